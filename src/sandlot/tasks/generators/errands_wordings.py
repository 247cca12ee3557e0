"""More ways to ask for each kind of errand, for training only.

The sets that measure ask in two plain sentences, or in other words that no sentence here uses:
`errands_rephrased` stays a test of words that training never showed.
"""

from __future__ import annotations

from collections.abc import Mapping

MORE: Mapping[str, tuple[str, ...]] = {
    "mul": (
        "Compute {a} * {b}.",
        "{a} x {b} = ?",
        "How much is {a} times {b}?",
        "Work out {a} multiplied by {b}.",
        "Please calculate {a} times {b}.",
        "One crate weighs {a} grams. What do {b} crates weigh, in grams?",
        "A ticket costs {a} cents and {b} people buy one. What do they pay in cents?",
        "I need the result of {a} times {b}.",
    ),
    "lookup": (
        "What is the number of {name}? Search the files in input/.",
        "Search input/ for {name} and write down its number.",
        "One file in input/ has an entry {name}. Which number stands behind it?",
        "I lost the number of {name}. It must be in input/.",
        "Get me the number that is listed for {name} in input/.",
        "{name}: which number? See the files in input/.",
        "The folder input/ has a list of names and numbers. What does {name} have?",
        "Give the value stored under {name} in the files of input/.",
    ),
    "grepcount": (
        "How often does a line of input/{file} contain {word}?",
        "The file input/{file} has lines with {word}. Count these lines.",
        "Number of lines with {word} in input/{file}?",
        "Count every line with {word} in input/{file}.",
        "How many entries of input/{file} include {word}?",
        "Open input/{file} and count the lines that have {word} in them.",
        "I want to know how many lines in input/{file} mention {word}.",
        "For {word}, how many lines match in input/{file}?",
    ),
    "wordcount": (
        "How many words are in input/{file}?",
        "How long is input/{file}, in words?",
        "Tell the number of words in input/{file}.",
        "The file input/{file} has words in it. Count them all.",
        "I wrote input/{file}. How many words did I write?",
        "Number of words of input/{file}?",
        "Please count all words in the file input/{file}.",
        "Compute how many words input/{file} contains.",
    ),
    "sortwords": (
        "Alphabetical order, please: {words}.",
        "Arrange {words} from A to Z, one on each line.",
        "Sort the words {words}.",
        "Here are some words: {words}. Sort them.",
        "Write these words sorted, one per line: {words}.",
        "Order alphabetically: {words}.",
        "I have the words {words}. List them in alphabetical order.",
        "Sort {words} by letter.",
    ),
    "sortnums": (
        "Sort input/{file} by number.",
        "The file input/{file} has numbers. Sort them, smallest first.",
        "Write the numbers of input/{file} in increasing order.",
        "Order the values in input/{file} from low to high.",
        "Arrange the numbers from input/{file}, the smallest at the top.",
        "Please sort all numbers found in input/{file} upwards.",
        "input/{file} is not sorted. Sort its numbers.",
        "Show the numbers in input/{file}, small ones before large ones.",
    ),
    "sum": (
        "Sum input/{file}.",
        "What do the numbers in input/{file} add up to?",
        "Compute the sum of all numbers of input/{file}.",
        "Each line of input/{file} is a number. Add all of them.",
        "Add the values in input/{file}. What is the result?",
        "input/{file} lists what I paid. How much did I pay in all?",
        "Sum up every value of input/{file}.",
    ),
    "maximum": (
        "What is the maximum of input/{file}?",
        "Find the biggest number in input/{file}.",
        "Which number in input/{file} is the greatest?",
        "Of all numbers in input/{file}, give the largest one.",
        "Look at the numbers in input/{file}. Which is highest?",
        "Give me the maximum value that input/{file} contains.",
        "input/{file} lists results. What was the best, that is the highest?",
    ),
    "distinct": (
        "How many distinct words are listed in input/{file}?",
        "Count the unique lines of input/{file}.",
        "Some lines of input/{file} come twice. How many different ones are there?",
        "Number of unique entries in input/{file}?",
        "How many lines remain when duplicates are removed from input/{file}?",
        "Without duplicates, how many lines has input/{file}?",
        "How many different entries does the file input/{file} list?",
    ),
    "nthline": (
        "Print line {n} of input/{file}.",
        "Show me line {n} in the file input/{file}.",
        "What does line {n} of input/{file} say?",
        "Which text is on line {n} of input/{file}?",
        "Get line number {n} from input/{file}.",
        "I need the text of line {n} in input/{file}.",
        "Write down line {n} from the file input/{file}.",
    ),
    "days": (
        "What day comes {n} days after {start}?",
        "Add {n} days to {start}.",
        "Start at {start} and go {n} days ahead. Which date is that?",
        "A bill of {start} is due after {n} days. On which date?",
        "Compute the date that is {n} days later than {start}.",
        "{start} plus {n} days is which date?",
        "We leave on {start} and come back {n} days later. On what date?",
    ),
    "column": (
        "Sum column {n} of input/{file}, called {head}.",
        "In input/{file}, what do all values of column {n} ({head}) add up to?",
        "Add all {head} values, column {n}, in input/{file}.",
        "Column {n} of input/{file} is {head}. Compute its sum.",
        "What is the total of column {n} ({head}) of the table input/{file}?",
        "The table input/{file} has {head} in column {n}. Add these up.",
        "Sum of {head} in input/{file} (column {n})?",
    ),
    "filecount": (
        "How many of the files in input/ have the word {word} in them?",
        "Count the files in input/ that contain {word}.",
        "Number of files in input/ with {word}?",
        "In input/, how many files include {word}?",
        "Some files of input/ contain {word}. How many?",
        "Search all files in input/ for {word} and count the files that have it.",
        "{word} can be found in how many files of input/?",
    ),
    "commas": (
        "Make one line with commas out of the lines of input/{file}, no spaces.",
        "Put the lines of input/{file} on one line, commas between them and no spaces.",
        "Join input/{file} with commas, without spaces.",
        "Write input/{file} as a list with commas on one line, no spaces.",
        "Merge all lines of input/{file} into one, a comma between each two, no spaces.",
        "I want the lines of input/{file} as one line: a,b,c and so on.",
    ),
    "reverse": (
        "Reverse input/{file} line by line.",
        "Write input/{file} with the last line first.",
        "Turn around the order of the lines in input/{file}.",
        "Show the lines of input/{file} backwards, the last one at the top.",
        "Print input/{file} from its last line to its first line.",
        "Put the lines in input/{file} in the opposite order.",
        "List the lines of input/{file} starting at the end.",
    ),
}
"""Sentences by trained family, with the same gaps as the plain ones."""

ENDINGS = ("txt", "log", "dat", "lst", "out", "text")
"""Of made-up file names."""
