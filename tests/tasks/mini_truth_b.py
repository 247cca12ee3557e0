"""The truth of the tasks of `mini` in biomed and long_context, found a second time.

`BIOMED` computes the right option's text from the statement's own numbers and the task's files;
`RECALL` names the right option of what is only known, and a book that says so.
"""

from __future__ import annotations

import csv
import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
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
