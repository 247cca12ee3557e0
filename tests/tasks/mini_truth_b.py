"""The truth of the tasks of `mini` in biomed and long_context, found a second time.

`BIOMED` computes the right option's text from the statement's own numbers and the task's files;
`RECALL` names the right option of what is only known, and a book that says so.
"""

from __future__ import annotations

import csv
import math
import re
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

Files = Mapping[str, str]
Row = dict[str, str]


def _rows(text: str) -> list[Row]:
    return list(csv.DictReader(text.splitlines()))


def _sequence(text: str) -> str:
    return "".join(line for line in text.splitlines() if not line.startswith(">"))


_CODE = {
    "A": "GCT GCC GCA GCG", "R": "CGT CGC CGA CGG AGA AGG", "N": "AAT AAC", "D": "GAT GAC",
    "C": "TGT TGC", "Q": "CAA CAG", "E": "GAA GAG", "G": "GGT GGC GGA GGG", "H": "CAT CAC",
    "I": "ATT ATC ATA", "L": "TTA TTG CTT CTC CTA CTG", "K": "AAA AAG", "M": "ATG",
    "F": "TTT TTC", "P": "CCT CCC CCA CCG", "S": "TCT TCC TCA TCG AGT AGC",
    "T": "ACT ACC ACA ACG", "W": "TGG", "Y": "TAT TAC", "V": "GTT GTC GTA GTG",
    "*": "TAA TAG TGA",
}  # fmt: skip
_RESIDUE = {codon: letter for letter, codons in _CODE.items() for codon in codons.split()}
_THREE = {"R": "Arg", "G": "Gly", "L": "Leu"}


def _protein(dna: str) -> str:
    residues = (_RESIDUE[dna[at : at + 3]] for at in range(0, len(dna) - 2, 3))
    return "".join(residues).split("*")[0]


def _hardy_weinberg(files: Files) -> str:
    found = Counter(row["genotype"] for row in _rows(files["genotypes.csv"]))
    both, mixed, none = (found[genotype] for genotype in ("AA", "AB", "BB"))
    # With one degree of freedom the statistic is n times the squared inbreeding estimate.
    people = both + mixed + none
    alleles = 2 * both + mixed, 2 * none + mixed
    expected = alleles[0] * alleles[1] / (2 * people)
    return f"{people * (1 - mixed / expected) ** 2:.2f}"


def _leucines(files: Files) -> str:
    dna = _sequence(files["transcript.fasta"]).replace("U", "T")
    return str(_protein(dna[dna.index("ATG") :]).count("L"))


def _longest_fragment(files: Files) -> str:
    circle = _sequence(files["plasmid.fasta"])
    turned = circle[100:] + circle[:100]  # so that a site at the seam is a site like any other
    first = (turned * 2).index("GAATTC")
    opened = (turned * 2)[first + 1 : first + 1 + len(circle)]
    return f"{max(len(piece) for piece in opened.replace('GAATTC', 'G|AATTC').split('|'))} bp"


def _mantel_haenszel(files: Files) -> str:
    strata: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for row in _rows(files["cohort.csv"]):
        strata[row["age_group"]][row["exposed"], row["ill"]] += 1
    upper = lower = Fraction(0)
    for cells in strata.values():
        exposed, others = (cells[group, "0"] + cells[group, "1"] for group in "10")
        upper += Fraction(cells["1", "1"] * others, exposed + others)
        lower += Fraction(cells["0", "1"] * exposed, exposed + others)
    return f"{float(upper / lower):.2f}"


def _kaplan_meier(files: Files) -> str:
    rows = [(int(row["months"]), row["died"] == "1") for row in _rows(files["survival.csv"])]
    rows.sort(key=lambda row: (row[0], not row[1]))  # deaths before censorings of a month
    survival, at_risk = 1.0, len(rows)
    for month, died in rows:
        if died and month <= 24:
            survival *= 1 - 1 / at_risk  # one by one gives the same product as month by month
        at_risk -= 1
    return f"{survival:.3f}"


def _mean_area(files: Files) -> str:
    curves: dict[str, list[tuple[Fraction, Fraction]]] = defaultdict(list)
    for row in _rows(files["concentrations.csv"]):
        curves[row["subject"]].append((Fraction(row["hours"]), Fraction(row["mg_per_l"])))
    areas = [
        sum(
            (after[0] - before[0]) * (after[1] + before[1]) / 2 for before, after in pairwise(curve)
        )
        for curve in curves.values()
    ]
    return f"{float(sum(areas, Fraction(0)) / len(areas)):.1f} mg·h/L"


def _inbreeding(files: Files) -> str:
    """By Wright's paths: (1/2)^n (1 + F of the common ancestor), over paths without repeats."""
    parents = {
        row["animal"]: [row[side] for side in ("father", "mother") if row[side]]
        for row in _rows(files["pedigree.csv"])
    }

    def ascents(animal: str) -> list[list[str]]:
        return [[animal], *([animal, *up] for one in parents[animal] for up in ascents(one))]

    def inbreeding(animal: str) -> Fraction:
        if len(parents[animal]) < 2:
            return Fraction(0)
        father, mother = parents[animal]
        total = Fraction(0)
        for one in ascents(father):
            for other in ascents(mother):
                if one[-1] == other[-1] and len({*one, *other}) == len(one) + len(other) - 1:
                    generations = len(one) + len(other) - 1
                    total += Fraction(1, 2**generations) * (1 + inbreeding(one[-1]))
        return total

    return str(inbreeding("Runa"))


def _interference(files: Files) -> str:
    rows = _rows(files["offspring.csv"])
    recessive = {"bristle": "curly", "body": "dusky", "wing": "short"}
    classes = Counter(tuple(row[gene] == form for gene, form in recessive.items()) for row in rows)
    folded: Counter[tuple[bool, ...]] = Counter()
    for form, number in classes.items():
        folded[form if form[0] else tuple(not one for one in form)] += number
    parental, double = folded.most_common()[0][0], folded.most_common()[-1][0]
    differ = [one != other for one, other in zip(parental, double, strict=True)]
    middle = differ.index(True) if sum(differ) == 1 else differ.index(False)
    left, right = (at for at in range(3) if at != middle)

    def rate(one: int, other: int) -> float:
        return sum(n for form, n in folded.items() if form[one] != form[other]) / len(rows)

    coincidence = folded[double] / len(rows) / (rate(left, middle) * rate(middle, right))
    return f"{1 - coincidence:.2f}"


def _roc_area(files: Files) -> str:
    rows = [(float(r["marker_ng_per_ml"]), r["diseased"]) for r in _rows(files["marker.csv"])]
    healthy = sorted(value for value, diseased in rows if diseased == "0")
    ill = [value for value, diseased in rows if diseased == "1"]
    wins = sum(bisect_left(healthy, v) + bisect_right(healthy, v) for v in ill) / 2
    return f"{wins / len(healthy) / len(ill):.3f}"


def _protein_change(files: Files) -> str:
    wild, mutant = (_protein(_sequence(files[f"{name}.fasta"])) for name in ("wild", "mutant"))
    changes = [
        f"{_THREE[one]}{at}{_THREE[other]}"
        for at, (one, other) in enumerate(zip(wild, mutant, strict=True), start=1)
        if one != other
    ]
    return ", ".join(changes)


def _dose(_: Files) -> str:
    return f"{12 * 4.0 * 8 / 0.8:.0f} mg"


def _fall(_: Files) -> str:
    return f"{math.log(40 / 5) * 42 / 7:.1f} h"


def _predictive_value(_: Files) -> str:
    ill, healthy = 0.02 * 0.90, 0.98 * 0.05
    return f"{100 * ill / (ill + healthy):.1f} %"


def _recessive_risk(_: Files) -> str:
    allele = Fraction(1, 50)
    carrier = 2 * allele * (1 - allele) / (1 - allele**2)
    return str(Fraction(2, 3) * carrier * Fraction(1, 4))


def _oxygen_difference(_: Files) -> str:
    return f"{(620 - 47) * 0.21 - 32 / 0.8 - 62:.0f} mmHg"


def _chloride(_: Files) -> str:
    return f"{61.5 / -1 * math.log10(110 / 10):+.0f} mV"


def _carrier(_: Files) -> str:
    carrier, free = Fraction(1, 2) * Fraction(1, 4), Fraction(1, 2)
    return str(carrier / (carrier + free))


def _reabsorbed(_: Files) -> str:
    filtered = 1.2 * 30 / 0.30 * 2.0
    return f"{100 * (1 - 1.2 * 50 / filtered):.0f} %"


BIOMED: Mapping[str, Callable[[Files], str]] = {
    f"mini-biomed-{number:02d}": compute
    for number, compute in enumerate(
        (
            _hardy_weinberg, _leucines, _longest_fragment, _mantel_haenszel, _kaplan_meier,
            _mean_area, _inbreeding, _interference, _roc_area, _protein_change, _dose, _fall,
            _predictive_value, _recessive_risk, _oxygen_difference, _chloride, _carrier,
            _reabsorbed,
        ),
        start=1,
    )
}  # fmt: skip

RECALL: Mapping[str, tuple[str, str]] = {
    "mini-biomed-19": ("Axillary nerve", "Gray's Anatomy, upper limb: the quadrangular space"),
    "mini-biomed-20": (
        "Listeria monocytogenes",
        "Murray et al., Medical Microbiology, aerobic gram-positive rods",
    ),
    "mini-biomed-21": (
        "Cholecystokinin",
        "Guyton and Hall, Medical Physiology, hormones of the gastrointestinal tract",
    ),
    "mini-biomed-22": (
        "Black flies (Simulium)",
        "Murray et al., Medical Microbiology, nematodes of blood and tissue",
    ),
    "mini-biomed-23": (
        "Third pharyngeal pouch",
        "Langman's Medical Embryology, head and neck: pharyngeal pouches",
    ),
    "mini-biomed-24": (
        "Thiamine pyrophosphate",
        "Lehninger, Principles of Biochemistry, the pentose phosphate pathway",
    ),
    "mini-biomed-25": ("Length-time bias", "Gordis, Epidemiology, evaluation of screening"),
}


# --- long_context: the truth from the documents alone ---------------------------------------------


def _find(pattern: str, text: str) -> re.Match[str]:
    match = re.search(pattern, text)
    assert match, (pattern, text[:200])
    return match


_NUMBER_NAME = re.compile(r"(\d+) of ([A-Z][\w' ]+?)(?=,| and |\.|$)")


def _entries(text: str) -> list[tuple[str, str]]:
    """(date, entry) of a diary whose paragraphs begin with a date."""
    found = (re.match(r"(\d+ [A-Z][a-z]+)\. (.*)", line) for line in text.splitlines())
    return [(match[1], match[2]) for match in found if match]


def _landed(files: Files) -> list[tuple[str, str, int]]:
    """(ship, cargo, amount) of each arrival, as it is after the slip."""
    home = _home_ports(files)
    ship = "|".join(home)
    arrival = re.compile(rf"[Tt]he ({ship})\b[^.]*?\blanded (\d+) \w+ of ([a-z ]+?)\.")
    log = files["harbour_log_march_april.txt"] + files["harbour_log_may_june.txt"]
    found = {
        date: (match[1], match[3], int(match[2]))
        for date, entry in _entries(log)
        for match in arrival.finditer(entry)
    }
    slip = re.compile(
        rf"Under (\d+ \w+) the ({ship}) is entered with (\d+) \w+ of ([a-z ]+)\. "
        r"(?:(?P<out>She lay elsewhere)|The tally shows (?P<amount>\d+)"
        r"|The goods were (?P<cargo>[a-z ]+),)"
    )
    for match in slip.finditer(files["correction_slip.txt"]):
        date, name, amount, cargo = match[1], match[2], int(match[3]), match[4]
        assert found[date] == (name, cargo, amount)
        found[date] = (name, match["cargo"] or cargo, int(match["amount"] or amount))
        if match["out"]:
            del found[date]
    return list(found.values())


def _home_ports(files: Files) -> dict[str, str]:
    forms = (
        r"The (?P<ship>[A-Z][\w ]+?) belongs to (?P<port>\w+);",
        r"master of the (?P<ship>[A-Z][\w ]+?), [^.]*home port is (?P<port>\w+)\.",
        r"Of the ships of (?P<port>\w+) we saw the (?P<ship>[A-Z][\w ]+?) under",
    )
    report = files["customs_report.txt"]
    found = [match for form in forms for match in re.finditer(form, report)]
    return {match["ship"]: match["port"] for match in found}


def _salt(files: Files) -> str:
    return str(sum(cargo == "salt" for _, cargo, _ in _landed(files)))


def _herring(files: Files) -> str:
    home = _home_ports(files)
    landed = [load for load in _landed(files) if load[1] == "herring"]
    return str(sum(amount for ship, _, amount in landed if home[ship] == "Karsholm"))


def _berth_dues(files: Files) -> str:
    history: list[str] = []
    for meeting in files["board_minutes.txt"].split("Meeting of ")[1:]:
        resolved = re.search(r"(?:from \d+ to (\d+) pennings|shall cost (\d+) pennings)", meeting)
        if "declared void from the beginning" in meeting:
            history.pop()
        elif resolved and "board" in meeting:
            history.append(resolved[1] or resolved[2])
    return history[-1]


def _guilty_master(files: Files) -> str:
    report = files["customs_report.txt"]
    owned = _find(r"the master of the ([\w ]+) owned to the damage", report)
    by_name = re.search(rf"(\w+ \w+), master of the {owned[1]},", report)
    match = by_name or _find(rf"{owned[1]}\b[^.]*?(?:master is|under) (\w+ \w+)", report)
    return match[1]


def _signed(text: str) -> dict[str, str]:
    """Letters by their writers: numbered, signed in the last line, offices left out."""
    letters = re.split(r"^\d+\.\n", text, flags=re.MULTILINE)[1:]
    return {letter.strip().splitlines()[-1].split(",")[0]: letter for letter in letters}


def _writer(letters: Mapping[str, str], cue: str) -> str:
    """The one writer whose letter holds the words on which the verdict rests."""
    (writer,) = (writer for writer, letter in letters.items() if cue in letter)
    return writer


def _ironic(files: Files) -> str:
    return _writer(_signed(files["letters_about_the_crane.txt"]), "so tall and so still")


@dataclass(frozen=True, slots=True)
class _Plant:
    colour: str
    height: int
    grade: str
    price: int


_PLANT_FIELDS = {
    "colour": r"[Ff]lowers (?:in )?(white|yellow|blue|rose|orange|violet)|cm with (\w+) flowers",
    "height": r"(?:height|grows|plant of) (\d+) cm",
    "grade": r"[Gg]rade ([A-D])\b",
    "price": r"(\d+) pence",
}


def _plant(text: str) -> _Plant:
    found = {}
    for field, pattern in _PLANT_FIELDS.items():
        match = _find(pattern, text)
        found[field] = match[match.lastindex or 1]
    return _Plant(found["colour"], int(found["height"]), found["grade"], int(found["price"]))


def _on_sale(files: Files) -> dict[str, _Plant]:
    listed = re.findall(r"^([A-Z' ]{5,})\. (.*)$", files["catalogue.txt"], re.MULTILINE)
    plants = {name: _plant(text) for name, text in listed}
    for line in files["supplement.txt"].splitlines():
        if match := re.match(r"(.+) is now (\d+) pence", line):
            name = match[1].upper()
            plants[name] = replace(plants[name], price=int(match[2]))
        elif match := re.match(r"(.+) is withdrawn", line):
            del plants[match[1].upper()]
        elif match := re.match(r"The height of (.+) was misprinted; it is (\d+) cm", line):
            name = match[1].upper()
            plants[name] = replace(plants[name], height=int(match[2]))
        elif match := re.match(r"(.+) came through .* moved to grade ([A-D])", line):
            name = match[1].upper()
            plants[name] = replace(plants[name], grade=match[2])
        elif match := re.match(r"New: (.+?)\. (.*)", line):
            assert match[1].upper() not in plants
            plants[match[1].upper()] = _plant(match[2])
    return plants


def _order(files: Files) -> str:
    plants = _on_sale(files)
    letters = files["order_letters.txt"].split("\n\n")
    (letter,) = (one for one in letters if one.strip().endswith("Mistress Adela Quince"))
    lines = _NUMBER_NAME.findall(letter.split("Please pack")[1].split(". ")[0])
    assert len(lines) == 7
    sold = [(int(number), name.upper()) for number, name in lines if name.upper() in plants]
    return str(sum(number * plants[name].price for number, name in sold))


def _low_and_white(files: Files) -> str:
    plants = _on_sale(files).values()
    return str(sum(plant.colour == "white" and plant.height <= 100 for plant in plants))


def _grade(files: Files) -> str:
    return _on_sale(files)["MERROW'S LAMP"].grade


def _from_the_quarry(files: Files) -> str:
    (entry,) = (
        line
        for line in files["catalogue.txt"].splitlines()
        if "The schoolmaster of Neame found the seedling in a quarry" in line
    )
    return entry.split(".")[0].title().replace("'S", "'s")


def _neglectful(files: Files) -> str:
    return _writer(_signed(files["letters_of_complaint.txt"]), "after the five weeks")


def _distances(text: str) -> dict[str, int]:
    found = {}
    for date, entry in _entries(text):
        match = re.search(r"(\d+) kilometres", entry)
        assert match or "did not" in entry
        found[date] = int(match[1]) if match else 0
    return found


def _snow_days(files: Files) -> str:
    measured = _distances(files["book_of_the_surveyor.txt"])
    journal = _entries(files["journal_of_the_leader.txt"])
    snowy = re.compile(r"\bfresh snow\b|\bIt snowed\b|^Snow\b|\bsnow fell\b")
    return str(sum(measured[date] for date, entry in journal if snowy.search(entry)))


def _differing_days(files: Files) -> str:
    books = [_distances(files[f"{name}.txt"]) for name in
             ("journal_of_the_leader", "book_of_the_surveyor")]  # fmt: skip
    assert books[0].keys() == books[1].keys()
    return str(sum(books[0][date] != books[1][date] for date in books[0]))


def _compass(files: Files) -> str:
    nickname = _find(
        r"compass .* has been found .* by the one whom the porters call the (\w+)\.",
        files["journal_of_the_leader.txt"],
    )
    surname = _find(rf"(\w+), since [^,]+, is the {nickname[1]}\.", files["cooks_notes.txt"])
    return _find(rf"\w+ {surname[1]}\b", files["orders_of_the_society.txt"])[0]


def _letters_home(files: Files) -> dict[str, str]:
    parts = re.split(r"^\d+\. (\w+ \w+) to ", files["letters_home.txt"], flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _leaver(files: Files) -> str:
    return _writer(_letters_home(files), "not in spring as we said")


def _jealous(files: Files) -> str:
    return _writer(_letters_home(files), "excellent, quite excellent")


@dataclass(frozen=True, slots=True)
class _Motion:
    project: str
    crowns: int
    rescinds: bool
    carried: bool
    against: str


def _motions(files: Files) -> list[_Motion]:
    text = files["minutes_january_to_april.txt"] + files["minutes_may_to_august.txt"]
    found = []
    for line in text.splitlines():
        asked = re.search(r"moved, and .*? seconded, that (the grant of )?(\d+) crowns ", line)
        if not asked:
            continue
        project = _find(r" for the ([^.]+?)(?: be rescinded)?\. ", line)
        against = _find(r"Against: ([^.]+)\.", line)
        favour = _find(r"In favour: ([^.]+)\.", line)
        outcome = _find(r"The motion was (carried|lost)\.$", line)
        ayes, noes = (len(re.split(r", | and ", side[1])) for side in (favour, against))
        assert (outcome[1] == "carried") == (ayes > noes)
        found.append(
            _Motion(project[1], int(asked[2]), bool(asked[1]), ayes > noes, against[1])
        )  # fmt: skip
    assert len(found) == 27
    return found


def _votes_against(files: Files) -> str:
    carried = [motion for motion in _motions(files) if motion.carried]
    return str(sum("Dorcas Pym" in motion.against for motion in carried))


def _granted(files: Files) -> str:
    grants: dict[str, int] = {}
    for motion in _motions(files):
        if motion.carried and motion.rescinds:
            assert grants.pop(motion.project) == motion.crowns
        elif motion.carried:
            grants[motion.project] = motion.crowns
    return str(sum(grants.values()))


def _market_day(files: Files) -> str:
    text = files["minutes_january_to_april.txt"] + files["minutes_may_to_august.txt"]
    opened = "the new bridge was opened" in text
    (rule,) = re.findall(
        r"held on (\w+) until the new bridge is opened, and after that on (\w+)", text
    )
    return str(rule[1] if opened else rule[0])


def _kinsman(files: Files) -> str:
    assert "brother to the owner's wife left the room" in files["minutes_january_to_april.txt"]
    gazette = files["ellerwick_gazette.txt"]
    owner = _find(r"Mr (\w+), who owns the quarry", gazette)
    bride = _find(rf"Mr \w+ {owner[1]} to Miss \w+ (\w+), of this town, with her brother", gazette)
    votes = re.findall(r"In favour: ([^.]+)\.", files["minutes_january_to_april.txt"])
    names = {name for vote in votes for name in re.split(r", | and ", vote)}
    (full,) = (name for name in names if name.endswith(bride[1]))
    return full


def _mock_speaker(files: Files) -> str:
    speeches = re.findall(
        r'^M\w+ (\w+) said: "(.*)"$', files["ellerwick_gazette.txt"], re.MULTILINE
    )
    surname = _writer(dict(speeches), "twice the size")
    return _find(rf"\b[A-Z]\w+ {surname}(?= moved|,)", files["minutes_january_to_april.txt"])[0]


def _out_on_loan(files: Files) -> str:
    out: set[str] = set()
    for line in files["loan_book.txt"].splitlines():
        if re.match(r"(?:[2-9]|\d\d) June 714|\d+ (?:July|August) 714", line):
            break
        number = re.search(r"No\. (\d+)", line)
        if number and "is back from" in line:
            out.remove(number[1])
        elif number and "was refused" not in line:
            assert number[1] not in out
            out.add(number[1])
    return str(len(out))


def _insured(files: Files) -> str:
    values = {
        match[1]: int(match[2])
        for match in re.finditer(r"^No\. (\d+)\b.*Ilse Corran.*insured at (\d+) marks",
                                 files["register.txt"], re.MULTILINE)
    }  # fmt: skip
    reports = re.findall(
        r"No\. (\d+) is to be insured at (\d+) marks", files["conservator_reports.txt"]
    )
    values.update({number: int(value) for number, value in reports if number in values})
    return str(sum(values.values()))


def _vane_year(files: Files) -> str:
    last = re.findall(r"Report of .*", files["conservator_reports.txt"])[-1]
    (year,) = re.findall(r"about (\d{3}) is right", last)
    return str(year)


def _mourner(files: Files) -> str:
    return _writer(_signed(files["letters_to_the_museum.txt"]), "red mitten")


def _threat(files: Files) -> str:
    return _writer(_signed(files["letters_to_the_museum.txt"]), "such houses burn so easily")


LONG_CONTEXT: Mapping[str, Callable[[Files], str]] = {
    f"mini-long_context-{number:02d}": find
    for number, find in enumerate(
        (
            _salt, _herring, _berth_dues, _guilty_master, _ironic, _order, _low_and_white, _grade,
            _from_the_quarry, _neglectful, _snow_days, _differing_days, _compass, _leaver, _jealous,
            _votes_against, _granted, _market_day, _kinsman, _mock_speaker, _out_on_loan, _insured,
            _vane_year, _mourner, _threat,
        ),
        start=1,
    )
}  # fmt: skip
