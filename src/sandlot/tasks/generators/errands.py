"""Errands: small tasks over small files, each done exactly by one short shell command.

They are made for models that are small enough to be trained on a laptop: prompts of some thirty
tokens, files of at most twelve lines (grade 1), a truth that follows from files and prompt alone.
The command that does an errand stands in its metadata (`efficient`), which no model gets to see.

The same options give the same bytes on every machine: all chance comes from `random.Random`
seeded with a text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from random import Random
from typing import Any

from sandlot.core.errors import ConfigError, unknown_name
from sandlot.core.types import Task
from sandlot.tasks.generators.errands_wordings import ENDINGS, MORE
from sandlot.tasks.generators.errands_words import TRAIN_WORDS, WORDS, invented
from sandlot.tasks.loaders import DOCUMENTS, file_digest

VERSION = "1"

TRIAL = ("mul", "lookup", "grepcount", "wordcount", "sortwords", "sortnums")
"""Families of the first trial."""
FURTHER = (
    "sum", "maximum", "distinct", "nthline", "days", "column", "filecount", "commas", "reverse",
)  # fmt: skip
"""Further families that training may use."""
HELD_OUT = ("join", "longest")
"""Families that no training uses: what is learned elsewhere is tested on them."""
DRILLS = ("copy",)
"""Exercises in copying names and figures into a command, for a warm start only."""

WORDINGS = ("plain", "varied", "rephrased")
"""Two plain sentences a family; these and many more, over files of any name, to train on; other
words, and files of other names, that only tests use."""
_PLAIN_SHARE = 0.4
"""Of the varied prompts."""
ANSWER = "output/answer.txt"
_LINES = (0, 12, 40, 150)  # most lines of a file, by grade


@dataclass(frozen=True, slots=True)
class Options:
    """`families` are taken in turn. `names` is "train" or "unseen"; None is "unseen" for the
    wording "rephrased", else "train".
    """

    families: tuple[str, ...] = TRIAL
    items: int = 60
    seed: int = 1
    wording: str = "plain"
    names: str | None = None
    grade: int = 1


def generate(options: Mapping[str, Any], *, domain: str = "errands") -> tuple[Task, ...]:
    """The tasks of a generator row.

    Raises:
        ConfigError: an option that does not exist or has a value out of range.
    """
    asked = _checked(options)
    return tuple(
        make_item(
            asked.families[number % len(asked.families)],
            asked.seed,
            number,
            wording=asked.wording,
            names=asked.names,
            grade=asked.grade,
            domain=domain,
        )
        for number in range(asked.items)
    )


def make_item(
    family: str,
    seed: int,
    number: int,
    *,
    wording: str = "plain",
    names: str | None = None,
    grade: int = 1,
    domain: str = "errands",
) -> Task:
    """One task of a family."""
    part = names or ("unseen" if wording == "rephrased" else "train")
    rng = Random(f"sandlot errands {VERSION} {family} {seed} {number} {wording} {part} {grade}")
    errand = _FAMILIES[family](_Desk(rng, WORDS[part], wording, grade, family))
    files = {name: "".join(f"{line}\n" for line in lines) for name, lines in errand.files.items()}
    data = {name: text.encode("ascii") for name, text in sorted(files.items())}
    variant = f"{grade}{wording[0]}{part[0]}"
    return Task(
        id=f"errands-{family}-{variant}-{seed}-{number:04d}",
        prompt=errand.prompt,
        input_files=data,
        target=errand.target,
        domain=domain,
        metadata={
            "family": family,
            "grade": grade,
            "wording": wording,
            "names": part,
            "label": "computer-favouring",
            "efficient": f"{errand.command} > {ANSWER}",
            DOCUMENTS: file_digest(data),
        },
    )


def _checked(options: Mapping[str, Any]) -> Options:
    known = ("families", "grade", "items", "names", "seed", "wording")
    for name in options:
        if name not in known:
            raise unknown_name("option of the generator 'errands'", name, known)
    for name, low, high in (("grade", 1, 3), ("items", 1, 100_000), ("seed", 0, 2**63)):
        value = options.get(name, low)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ConfigError(
                f"generator 'errands': {name} must be a whole number from {low:,} to "
                f"{high:,}, found {value!r}"
            )
    if (wording := options.get("wording", "plain")) not in WORDINGS:
        raise unknown_name("wording of errands", str(wording), WORDINGS)
    if (names := options.get("names")) is not None and names not in WORDS:
        raise unknown_name("names of errands", str(names), tuple(WORDS))
    families = options.get("families", TRIAL)
    if not isinstance(families, list | tuple) or not families:
        raise ConfigError(f"generator 'errands': families must be a list, found {families!r}")
    for family in families:
        if family not in _FAMILIES:
            raise unknown_name("family of errands", str(family), tuple(_FAMILIES))
    return Options(**{**options, "families": tuple(families)})


@dataclass(frozen=True, slots=True)
class _Errand:
    """What is asked, over which files (lines by name), and how one command does it."""

    prompt: str
    target: str
    command: str
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Desk:
    """Where an errand is made up: chance, words, wording and grade."""

    rng: Random
    pool: tuple[str, ...]
    wording: str
    grade: int
    family: str

    @property
    def rephrased(self) -> bool:
        return self.wording == "rephrased"

    @property
    def varied(self) -> bool:
        return self.wording == "varied"

    def say(self, plain: Sequence[str], rephrased: Sequence[str], **parts: object) -> str:
        sentences = rephrased if self.rephrased else plain
        if self.varied and self.rng.random() >= _PLAIN_SHARE:
            sentences = MORE.get(self.family, plain)
        return self.rng.choice(sentences).format(**parts)

    def file(self, plain: Sequence[str], rephrased: Sequence[str]) -> str:
        name = self.rng.choice(rephrased if self.rephrased else plain)
        if not self.varied or self.rng.random() < _PLAIN_SHARE:
            return name
        ending = "csv" if name.endswith(".csv") else self.rng.choice(ENDINGS)
        return f"{self.word()}.{ending}"

    def files(self, count: int) -> list[str]:
        """Names of different files."""
        if self.varied:
            return [f"{word}.{self.rng.choice(ENDINGS)}" for word in self.words(count)]
        return self.rng.sample(_SHEETS if self.rephrased else _DOCUMENTS, count)

    def words(self, count: int) -> list[str]:
        """Different words; where the vocabulary has too few, some with a digit behind."""
        if count <= len(self.pool):
            return self.rng.sample(self.pool, count)
        more = [f"{word}{n}" for n in range(2, 9) for word in self.pool]
        return [*self.rng.sample(self.pool, len(self.pool)), *more][:count]

    def word(self) -> str:
        return self.rng.choice(self.pool)

    def lines(self, least: int = 8) -> int:
        """How many lines a file has."""
        most = _LINES[self.grade]
        return self.rng.randint(least if self.grade == 1 else most // 2, most)

    def figures(self, count: int, low: int = 2, high: int = 999) -> list[int]:
        """Different numbers."""
        return self.rng.sample(range(low, high + 1), count)

    def by_grade(self, *values: int) -> int:
        return values[self.grade - 1]


_DOCUMENTS = (
    "north.txt", "south.txt", "east.txt", "west.txt", "left.txt", "right.txt", "first.txt",
    "second.txt", "third.txt", "old.txt", "new.txt", "main.txt", "spare.txt", "top.txt",
)  # fmt: skip
_SHEETS = (
    "red.md", "green.md", "blue.md", "black.md", "white.md", "gray.md", "pink.md", "brown.md",
    "gold.md", "tan.md", "lime.md", "teal.md", "plain.md", "dark.md",
)  # fmt: skip


# --- the families of the trial ----------------------------------------------------------------


def _mul(desk: _Desk) -> _Errand:
    one, other = _figure(desk.rng, 2 + 2 * desk.grade), _figure(desk.rng, 2 + desk.grade)
    prompt = desk.say(
        ("Multiply {a} by {b}.", "What is {a} times {b}?"),
        ("Find the product of {a} and {b}.", "{a} boxes hold {b} pins each. How many pins?"),
        a=one,
        b=other,
    )
    return _Errand(prompt, str(one * other), f"echo $(({one}*{other}))")


def _figure(rng: Random, digits: int) -> int:
    return rng.randrange(10 ** (digits - 1), 10**digits)


def _lookup(desk: _Desk) -> _Errand:
    documents = desk.by_grade(3, 6, 12)
    names = desk.words(documents * desk.by_grade(12, 20, 30))
    values = desk.figures(len(names), 1000, 9999)
    lines = [f"{name}: {value}" for name, value in zip(names, values, strict=True)]
    at = desk.rng.randrange(len(names))
    if desk.grade > 1:  # decoys whose names begin with the name that is asked for
        decoys = zip("sxy", desk.figures(desk.grade, 1000, 9999), strict=False)
        lines += [f"{names[at]}{letter}: {value}" for letter, value in decoys]
    desk.rng.shuffle(lines)
    files = {name: lines[n::documents] for n, name in enumerate(desk.files(documents))}
    prompt = desk.say(
        (
            "The files in input/ hold lines with a name and a number. Find the number of {name}.",
            "Which number belongs to {name}? It stands in one of the files in input/.",
        ),
        (
            "Somewhere in input/ there is a line for {name}. What number is given there?",
            "Look through the sheets in input/ and tell me the figure noted for {name}.",
        ),
        name=names[at],
    )
    command = f"grep -hw {names[at]} input/* | cut -d' ' -f2"
    return _Errand(prompt, str(values[at]), command, files)


_LEVELS = (("ERROR", "WARN", "INFO", "DEBUG"), ("FATAL", "ALERT", "NOTE", "TRACE"))


def _grepcount(desk: _Desk) -> _Errand:
    name = desk.file(("log.txt", "app.log", "server.log"), ("events.md", "night.log", "trail.txt"))
    levels, topics = _LEVELS[desk.rephrased], desk.words(4)
    rows = [(desk.rng.choice(levels), desk.rng.choice(topics)) for _ in range(desk.lines(9))]
    asked = desk.rng.choice(rows)[desk.rng.randrange(2)]
    times = sorted(f"{desk.rng.randrange(24):02d}:{desk.rng.randrange(60):02d}" for _ in rows)
    lines = [f"{time} {level} {topic}" for time, (level, topic) in zip(times, rows, strict=True)]
    if desk.grade > 1:  # a line that has the word twice is one line
        twice = [asked in row and at % 2 for at, row in enumerate(rows)]
        lines = [
            f"{line} {asked}" if more else line for line, more in zip(lines, twice, strict=True)
        ]
    prompt = desk.say(
        (
            "How many lines of input/{file} contain the word {word}?",
            "Count the lines of input/{file} that contain {word}.",
        ),
        (
            "Tell me on how many rows of input/{file} one can read {word}.",
            "In input/{file} some rows show {word}. How many are they?",
        ),
        file=name,
        word=asked,
    )
    target = str(sum(asked in row for row in rows))
    return _Errand(prompt, target, f"grep -c {asked} input/{name}", {name: lines})


def _wordcount(desk: _Desk) -> _Errand:
    name = desk.file(("note.txt", "story.txt", "text.txt"), ("letter.md", "essay.md", "page.txt"))
    lines = [
        " ".join(desk.word() for _ in range(desk.rng.randint(2, 6))) for _ in range(desk.lines(5))
    ]
    prompt = desk.say(
        ("How many words does input/{file} have?", "Count the words of input/{file}."),
        ("Give me the word count of input/{file}.", "input/{file} is a text of how many words?"),
        file=name,
    )
    target = str(len(" ".join(lines).split(" ")))
    return _Errand(prompt, target, f"wc -w < input/{name}", {name: lines})


def _sortwords(desk: _Desk) -> _Errand:
    words = desk.words(desk.by_grade(5, 9, 14))
    if words == sorted(words):
        words.reverse()
    prompt = desk.say(
        ("Sort these words alphabetically: {words}.", "Put these words in order: {words}."),
        ("Which order does a dictionary give to {words}?", "Bring into ABC order: {words}."),
        words=" ".join(words),
    )
    command = rf"printf '%s\n' {' '.join(words)} | sort"
    return _Errand(prompt, "\n".join(sorted(words)), command)


def _numbers(desk: _Desk, plain: Sequence[str], rephrased: Sequence[str]) -> tuple[str, list[int]]:
    """A file's name and its numbers, all different: sorted as text they stand in another order,
    with another one at the end.
    """
    count, digits = desk.lines(), desk.by_grade(3, 4, 5)
    while True:
        drawn = {desk.rng.randrange(2, 10 ** desk.rng.randint(1, digits)) for _ in range(count)}
        numbers = sorted(drawn)
        if len(drawn) > count // 2 and max(numbers, key=str) != numbers[-1]:
            break
    desk.rng.shuffle(numbers)
    if numbers == sorted(numbers):
        numbers.reverse()
    return desk.file(plain, rephrased), numbers


_NUMBER_FILES = ("numbers.txt", "values.txt", "data.txt"), ("scores.md", "weights.txt", "ages.md")


def _sortnums(desk: _Desk) -> _Errand:
    name, numbers = _numbers(desk, *_NUMBER_FILES)
    prompt = desk.say(
        (
            "Sort the numbers in input/{file} from smallest to largest.",
            "Put the numbers of input/{file} in ascending order.",
        ),
        (
            "List what input/{file} holds, lowest number first.",
            "Give the figures of input/{file} in rising order.",
        ),
        file=name,
    )
    target = "\n".join(map(str, sorted(numbers)))
    return _Errand(prompt, target, f"sort -n input/{name}", {name: list(map(str, numbers))})


# --- further families -------------------------------------------------------------------------


def _sum(desk: _Desk) -> _Errand:
    name, numbers = _numbers(desk, *_NUMBER_FILES)
    prompt = desk.say(
        ("Add up the numbers in input/{file}.", "What is the sum of the numbers in input/{file}?"),
        ("Total all figures of input/{file}.", "How much is everything in input/{file} together?"),
        file=name,
    )
    command = f"awk '{{s+=$1}} END {{print s}}' input/{name}"
    return _Errand(prompt, str(sum(numbers)), command, {name: list(map(str, numbers))})


def _maximum(desk: _Desk) -> _Errand:
    name, numbers = _numbers(desk, *_NUMBER_FILES)
    prompt = desk.say(
        ("What is the largest number in input/{file}?", "Find the highest number of input/{file}."),
        (
            "Which figure of input/{file} beats all others?",
            "Tell me the top value of input/{file}.",
        ),
        file=name,
    )
    command = f"sort -n input/{name} | tail -1"
    return _Errand(prompt, str(max(numbers)), command, {name: list(map(str, numbers))})


_WORD_FILES = ("words.txt", "list.txt", "names.txt"), ("items.md", "terms.txt", "things.md")


def _distinct(desk: _Desk) -> _Errand:
    name, count = desk.file(*_WORD_FILES), desk.lines(9)
    some = desk.words(desk.rng.randint(3, count - 3))
    lines = [*some, *(desk.rng.choice(some) for _ in range(count - len(some)))]
    desk.rng.shuffle(lines)
    prompt = desk.say(
        (
            "How many different lines does input/{file} have?",
            "Count the distinct lines of input/{file}.",
        ),
        (
            "Not counting repeats, how many rows has input/{file}?",
            "How many unlike rows are in input/{file}?",
        ),
        file=name,
    )
    return _Errand(prompt, str(len(some)), f"sort -u input/{name} | wc -l", {name: lines})


def _nthline(desk: _Desk) -> _Errand:
    name = desk.file(*_WORD_FILES)
    lines = [" ".join(desk.words(2)) for _ in range(desk.lines())]
    at = desk.rng.randint(2, len(lines))
    prompt = desk.say(
        ("What is line {n} of input/{file}?", "Copy line {n} of input/{file}."),
        (
            "Read out row number {n} of input/{file}.",
            "Which words make up row {n} of input/{file}?",
        ),
        n=at,
        file=name,
    )
    return _Errand(prompt, lines[at - 1], f"sed -n {at}p input/{name}", {name: lines})


def _days(desk: _Desk) -> _Errand:
    start = date(2001, 1, 1) + timedelta(days=desk.rng.randrange(10_000))
    count = desk.rng.randrange(*((10, 100), (100, 1000), (1000, 10_000))[desk.grade - 1])
    prompt = desk.say(
        ("Which date is {n} days after {start}?", "What is the date {n} days after {start}?"),
        ("It is {start}. What date will it be in {n} days?", "Move {start} forward by {n} days."),
        n=count,
        start=start.isoformat(),
    )
    command = f"date -ud '{start.isoformat()} {count} days' +%F"
    return _Errand(prompt, (start + timedelta(days=count)).isoformat(), command)


def _column(desk: _Desk) -> _Errand:
    name = desk.file(("shop.csv", "sales.csv", "stock.csv"), ("trips.csv", "farm.csv", "bills.csv"))
    heads = ("cost", "length", "score") if desk.rephrased else ("price", "count", "size")
    rows = [(word, desk.figures(3, 2, 99)) for word in desk.words(desk.lines(6) - 1)]
    at = desk.rng.randrange(3)
    lines = [f"name,{','.join(heads)}", *(f"{word},{','.join(map(str, n))}" for word, n in rows)]
    prompt = desk.say(
        (
            "Add up column {n} ({head}) of input/{file}.",
            "What is the sum of column {n} ({head}) in input/{file}?",
        ),
        (
            "What does the {head} field, number {n} of each row of input/{file}, add up to?",
            "Total the field {n} ({head}) over input/{file}.",
        ),
        n=at + 2,
        head=heads[at],
        file=name,
    )
    command = f"awk -F, '{{s+=${at + 2}}} END {{print s}}' input/{name}"
    return _Errand(prompt, str(sum(n[at] for _, n in rows)), command, {name: lines})


def _filecount(desk: _Desk) -> _Errand:
    names = desk.files(desk.by_grade(5, 9, 14))
    asked, *others = desk.words(12)
    holders = set(desk.rng.sample(names, desk.rng.randint(1, len(names) - 1)))
    files = {}
    for name in names:
        lines = [desk.rng.choice(others) for _ in range(desk.by_grade(4, 12, 40))]
        for _ in range(desk.rng.randint(1, 2) if name in holders else 0):
            lines.insert(desk.rng.randrange(len(lines) + 1), asked)
        files[name] = lines
    prompt = desk.say(
        (
            "In how many of the files in input/ does {word} occur?",
            "How many files in input/ contain the word {word}?",
        ),
        (
            "Count those sheets in input/ that mention {word}.",
            "How many sheets of input/ name {word}?",
        ),
        word=asked,
    )
    return _Errand(prompt, str(len(holders)), f"grep -l {asked} input/* | wc -l", files)


def _commas(desk: _Desk) -> _Errand:
    name, lines = desk.file(*_WORD_FILES), desk.words(desk.by_grade(6, 15, 40))
    prompt = desk.say(
        (
            "Join the lines of input/{file} into one line, with commas and no spaces.",
            "Write the lines of input/{file} in one line with a comma between them, no spaces.",
        ),
        ("Turn the rows of input/{file} into a single row, split by commas only.",),
        file=name,
    )
    return _Errand(prompt, ",".join(lines), f"paste -sd, input/{name}", {name: lines})


def _reverse(desk: _Desk) -> _Errand:
    name, lines = desk.file(*_WORD_FILES), desk.words(desk.lines())
    prompt = desk.say(
        (
            "Write the lines of input/{file} in reverse order.",
            "Reverse the order of the lines of input/{file}.",
        ),
        (
            "Give the rows of input/{file} from the last to the first.",
            "Turn input/{file} upside down, row by row.",
        ),
        file=name,
    )
    return _Errand(prompt, "\n".join(lines[::-1]), f"tac input/{name}", {name: lines})


# --- families left out of training ------------------------------------------------------------


def _join(desk: _Desk) -> _Errand:
    first = desk.file(("keys.txt", "cards.txt"), ("tags.md", "marks.md"))
    second = desk.file(("prices.txt", "rooms.txt"), ("shelf.md", "seats.md"))
    count = min(_LINES[desk.grade], len(desk.pool))
    names = desk.words(count)
    codes = [f"K{n}" for n in desk.figures(count, 100, 999)]
    values = list(map(str, desk.figures(count, 1000, 9999)))
    at = desk.rng.randrange(count)
    keys = [f"{name}: {code}" for name, code in zip(names, codes, strict=True)]
    facts = [f"{code}: {value}" for code, value in zip(codes, values, strict=True)]
    desk.rng.shuffle(keys)
    desk.rng.shuffle(facts)
    prompt = desk.say(
        (
            "input/{first} gives each name a code, input/{second} each code a number. "
            "Find the number of {name}.",
        ),
        (
            "Take the code of {name} from input/{first} and tell me the figure that input/{second} "
            "notes for it.",
        ),
        first=first,
        second=second,
        name=names[at],
    )
    code = f"$(grep -w {names[at]} input/{first} | cut -d' ' -f2)"
    command = f"grep {code} input/{second} | cut -d' ' -f2"
    return _Errand(prompt, values[at], command, {first: keys, second: facts})


def _longest(desk: _Desk) -> _Errand:
    name, lines = desk.file(*_WORD_FILES), desk.words(desk.lines())
    most = max(map(len, lines))
    longest = next(line for line in lines if len(line) == most)
    lines = [line for line in lines if len(line) < most or line == longest]
    prompt = desk.say(
        ("What is the longest word in input/{file}?", "Find the longest line of input/{file}."),
        ("Which entry of input/{file} has the most letters?",),
        file=name,
    )
    command = f"awk '{{print length, $0}}' input/{name} | sort -n | tail -1 | cut -d' ' -f2"
    return _Errand(prompt, longest, command, {name: lines})


# --- drills -----------------------------------------------------------------------------------


def _copy(desk: _Desk) -> _Errand:
    """A short one of five shapes, with names that mostly stand in no list."""
    names = list(dict.fromkeys(_any_name(desk) for _ in range(9)))
    return desk.rng.choice(_COPIES)(desk, names)


def _any_name(desk: _Desk) -> str:
    return invented(desk.rng) if desk.rng.random() < 0.6 else desk.rng.choice(TRAIN_WORDS)


def _copy_lookup(desk: _Desk, names: list[str]) -> _Errand:
    values = desk.figures(len(names), 1000, 9999)
    lines = [f"{name}: {value}" for name, value in zip(names, values, strict=True)]
    at = desk.rng.randrange(len(names))
    files = {name: lines[n::3] for n, name in enumerate(desk.files(3))}
    prompt = f"Find the number of {names[at]} in the files in input/."
    command = f"grep -hw {names[at]} input/* | cut -d' ' -f2"
    return _Errand(prompt, str(values[at]), command, files)


def _copy_sort(desk: _Desk, names: list[str]) -> _Errand:
    words = names[: desk.rng.randint(2, 5)]
    command = rf"printf '%s\n' {' '.join(words)} | sort"
    return _Errand(f"Sort these words: {' '.join(words)}.", "\n".join(sorted(words)), command)


def _copy_mul(desk: _Desk, names: list[str]) -> _Errand:
    one, other = (desk.rng.randrange(10, 10 ** desk.rng.randint(2, 4)) for _ in range(2))
    return _Errand(f"Multiply {one} by {other}.", str(one * other), f"echo $(({one}*{other}))")


def _copy_line(desk: _Desk, names: list[str]) -> _Errand:
    *lines, stem = names
    file, at = f"{stem}.txt", desk.rng.randint(2, len(lines))
    prompt = f"Line {at} of input/{file}, please."
    return _Errand(prompt, lines[at - 1], f"sed -n {at}p input/{file}", {file: lines})


def _copy_files(desk: _Desk, names: list[str]) -> _Errand:
    asked = names[0]
    others = [name for name in names if asked not in name]
    holders = desk.rng.randint(1, 3)
    files = {
        name: [asked if at < holders else desk.rng.choice(others), desk.rng.choice(others)]
        for at, name in enumerate(desk.files(4))
    }
    prompt = f"How many files in input/ have {asked}?"
    return _Errand(prompt, str(holders), f"grep -l {asked} input/* | wc -l", files)


_COPIES = (_copy_lookup, _copy_sort, _copy_mul, _copy_line, _copy_files)

_FAMILIES: Mapping[str, Callable[[_Desk], _Errand]] = {
    "mul": _mul,
    "lookup": _lookup,
    "grepcount": _grepcount,
    "wordcount": _wordcount,
    "sortwords": _sortwords,
    "sortnums": _sortnums,
    "sum": _sum,
    "maximum": _maximum,
    "distinct": _distinct,
    "nthline": _nthline,
    "days": _days,
    "column": _column,
    "filecount": _filecount,
    "commas": _commas,
    "reverse": _reverse,
    "join": _join,
    "longest": _longest,
    "copy": _copy,
}
