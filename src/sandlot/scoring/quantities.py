"""Numbers with units, as people and models write them, compared exactly.

Units follow the SI brochure (BIPM, 9th edition) with the common others; a factor is an exact
fraction wherever the unit is defined so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from sandlot.scoring.extract import plain

Units = Mapping[str, int]

_MAX_CHARACTERS = 200
_MAX_EXPONENT = 400


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number, and the unit behind it where there is one.

    `units` maps base units (or words that are no known unit) to powers; `factor` turns the number
    into base units. A percentage is its number with the unit `%`.
    """

    number: Fraction
    units: tuple[tuple[str, int], ...] = ()
    factor: Fraction = Fraction(1)

    @property
    def value(self) -> Fraction:
        return self.number * self.factor


def read_quantity(text: str) -> Quantity | None:
    """The number with its unit that the whole text is; None where it is anything else."""
    upright = _UPRIGHT.search(text) is not None
    text = _one_line(text)
    if len(text) > _MAX_CHARACTERS:
        return None
    currency, text = _currency(text)
    found = _number(text)
    if found is None:
        return None
    number, rest = found
    if not upright and _SYMBOLS.fullmatch(rest):
        return None
    unit = read_unit(rest)
    if unit is None or (currency and unit[0]):
        return None
    units, factor = ({currency: 1}, Fraction(1)) if currency else unit
    return Quantity(number, tuple(sorted(units.items())), factor)


def same_quantity(one: Quantity, other: Quantity, *, rel_tol: float = 0.0) -> bool:
    """Whether two quantities are equal.

    A unit that only one of them names is taken as understood; two units must convert into each
    other. A percentage equals the bare number, and the hundredth of it. `rel_tol` is relative to
    the second.
    """
    if one.units == other.units:
        return _close(one.value, other.value, rel_tol)
    if not one.units or not other.units:
        numbers = {quantity.number for quantity in (one, other)}
        named = one if one.units else other
        bare = other if one.units else one
        if named.units == _PERCENT:
            choices = (named.number, named.number / 100)
            return any(_close(choice, bare.number, rel_tol) for choice in choices)
        return len(numbers) == 1 or _close(one.number, other.number, rel_tol)
    return False


def _close(one: Fraction, other: Fraction, rel_tol: float) -> bool:
    return one == other or abs(one - other) <= abs(other) * Fraction(rel_tol)


_PERCENT = (("%", 1),)
_UPRIGHT = re.compile(r"\\(?:text|mathrm|textrm|operatorname|mbox|rm)\b")
_SYMBOLS = re.compile(r"[A-Za-zμΩ](?:\^?-?\d)?|\s*[A-Za-zμΩ](?:\s+[A-Za-zμΩ])+")
"""A letter that touches its number, or several side by side: symbols (2x, 3 m g), not units."""
_MARKS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), instead)
    for pattern, instead in (
        (r"\\(?:text|mathrm|textrm|mathbf|textbf|operatorname|mbox|rm)\s*\{([^{}]*)\}", r"\1"),
        (r"\\left|\\right|\\!|\\displaystyle", ""),
        (r"\{,\}", ","),
        (r"\\,(?=\d{3}(?!\d))", ""),
        (r"\\[,;: ]|~|\\quad", " "),
        (r"\\%", "%"),
        (r"\\\$", "$"),
        (r"^\$+([^$]+)\$+$", r"\1"),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree|\\circ|º", "°"),
        (r"\\(?:AA|angstrom)\b|Å|Å", "angstrom"),
        (r"\\mu\b|µ", "μ"),
        (r"\\Omega\b|Ω", "Ω"),
        (r"\\[dt]frac", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"(?<=\d)\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", r" \1/\2"),
        (r"\\frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}", r"\1/\2"),
        (r"\s*(?:\\times|\\cdot|×|·|\*|(?<=\d)\s*[xX](?=\s*10\s*(?:\^|\*\*)))\s*", "*"),
        (r"\^\s*\{\s*([-+]?\d+)\s*\}|\*\*\s*([-+]?\d+)", r"^\1\2"),
        (r"^(?:\\approx|≈|≃|~|=|about |approximately )\s*", ""),
    )
)
_SUPERSCRIPT_RUN = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")


def _one_line(text: str) -> str:
    if len(text) > 2 * _MAX_CHARACTERS:
        return text
    text = _SUPERSCRIPT_RUN.sub(lambda run: "^" + run[0].translate(_SUPERSCRIPTS), text)
    text = plain(text).strip().rstrip(".").strip("*`\"' ").replace("**", "^")
    for pattern, instead in _MARKS:
        text = pattern.sub(instead, text)
    return text.strip()


_CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen", "₹": "rupee"}


def _currency(text: str) -> tuple[str | None, str]:
    """The currency whose sign leads, and the text without it."""
    signed = re.match(r"([-+]?)\s*([$€£¥₹])\s*(?=[\d.])", text)
    if signed is None:
        return None, text
    return _CURRENCIES[signed[2]], signed[1] + text[signed.end() :]


_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)"


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", "").rstrip(".") or "0")


def _power_of_ten(exponent: str) -> Fraction | None:
    return Fraction(10) ** int(exponent) if abs(int(exponent)) <= _MAX_EXPONENT else None


def _scaled(number: Fraction, exponent: str) -> Fraction | None:
    power = _power_of_ten(exponent)
    return None if power is None else number * power


def _repeating(fixed: str, cycle: str) -> Fraction:
    """0.1(6) as a fraction: the cycle over as many nines, behind the fixed digits."""
    places = len(fixed.partition(".")[2])
    return _decimal(fixed) + Fraction(int(cycle), (10 ** len(cycle) - 1) * 10**places)


_Reader = Callable[[re.Match[str]], Fraction | None]
_READERS: tuple[tuple[re.Pattern[str], _Reader], ...] = (
    (re.compile(r"10\^([-+]?\d+)"), lambda m: _power_of_ten(m[1])),
    (
        re.compile(rf"({_DECIMAL})\*10\^([-+]?\d+)"),
        lambda m: _scaled(_decimal(m[1]), m[2]),
    ),
    (
        re.compile(rf"({_DECIMAL})[eE]([-+]?\d+)(?![\w.])"),
        lambda m: _scaled(_decimal(m[1]), m[2]),
    ),
    (
        re.compile(r"(\d*\.\d*)\\overline\s*\{\s*(\d+)\s*\}|(\d*\.\d*)\((\d+)\)"),
        lambda m: _repeating(m[1] or m[3], m[2] or m[4]),
    ),
    (
        re.compile(r"(\d+)\s+(\d+)\s*/\s*([1-9]\d*)(?![\w.])"),
        lambda m: Fraction(m[1]) + Fraction(int(m[2]), int(m[3])),
    ),
    (
        re.compile(r"(-?\d+)\s*/\s*([1-9]\d*)(?![\w.^])"),
        lambda m: Fraction(int(m[1]), int(m[2])),
    ),
    (re.compile(_DECIMAL), lambda m: _decimal(m[0])),
)


def _number(text: str) -> tuple[Fraction, str] | None:
    """The number that the text begins with, and what follows it."""
    signed = re.match(r"([-+]?)\s*", text)
    sign = -1 if signed and signed[1] == "-" else 1
    body = text[signed.end() :] if signed else text
    for pattern, read in _READERS:
        match = pattern.match(body)
        if match:
            number = read(match)
            return None if number is None else (sign * number, body[match.end() :])
    in_words = _number_words(body)
    return None if in_words is None else (sign * in_words[0], in_words[1])


def _listed(words: str) -> list[str]:
    return words.split()


_SMALL = {
    word: at
    for at, word in enumerate(
        _listed(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
            "fifteen sixteen seventeen eighteen nineteen"
        )
    )
} | {
    word: 10 * at
    for at, word in enumerate(
        _listed("twenty thirty forty fifty sixty seventy eighty ninety"), start=2
    )
}
_LARGE = {"thousand": 1000, "million": 10**6, "billion": 10**9}


def _number_words(text: str) -> tuple[Fraction, str] | None:
    """An English number word or compound (`forty-two`, `three hundred and five`) in front."""
    total = group = taken = 0
    for match in re.finditer(r"[A-Za-z]+", text[:120]):
        word = match[0].lower()
        between = text[taken : match.start()].strip()
        if between not in ("", "-"):
            break
        if word in _SMALL:
            group += _SMALL[word]
        elif word == "hundred" and taken:
            group *= 100
        elif word in _LARGE and taken:
            total, group = total + group * _LARGE[word], 0
        elif not (word == "and" and taken):
            break
        taken = match.end()
    if not taken or text[:taken].lower().rstrip().endswith(" and"):
        return None
    return Fraction(total + group), text[taken:]


def _si(
    symbol: str, units: Units, factor: Fraction | int = 1, *, words: tuple[str, ...] = ()
) -> dict[str, tuple[Units, Fraction]]:
    """A unit under its symbol with the prefixes of the SI, and under its plain names."""
    named = {symbol: (units, Fraction(factor))}
    for prefix, power in _PREFIXES.items():
        named[prefix + symbol] = (units, Fraction(factor) * power)
    for word in words:
        named[word] = (units, Fraction(factor))
        for prefix, power in _PREFIX_WORDS.items():
            named[prefix + word] = (units, Fraction(factor) * power)
    return named


_TEN = Fraction(10)
_PREFIXES = {
    letter: _TEN**power
    for letter, power in (
        ("T", 12), ("G", 9), ("M", 6), ("k", 3), ("d", -1), ("c", -2), ("m", -3),
        ("μ", -6), ("u", -6), ("n", -9), ("p", -12), ("f", -15),
    )
}  # fmt: skip
_PREFIX_WORDS = {
    word: _TEN**power
    for word, power in (
        ("giga", 9), ("mega", 6), ("kilo", 3), ("centi", -2), ("milli", -3), ("micro", -6),
        ("nano", -9),
    )
}  # fmt: skip
_M: Units = {"m": 1}
_S: Units = {"s": 1}
_KG: Units = {"kg": 1}
_JOULE: Units = {"kg": 1, "m": 2, "s": -2}
_PASCAL: Units = {"kg": 1, "m": -1, "s": -2}
_LITRE: Units = {"m": 3}
_MILLI = Fraction(1, 1000)

_KNOWN: dict[str, tuple[Units, Fraction]] = {
    **_si("m", _M, words=("metre", "meter")),
    **_si("s", _S, words=("second", "sec")),
    **_si("g", _KG, _MILLI, words=("gram", "gramme")),
    **_si("A", {"A": 1}, words=("ampere", "amp")),
    **_si("K", {"K": 1}, words=("kelvin",)),
    **_si("mol", {"mol": 1}, words=("mole",)),
    **_si("cd", {"cd": 1}, words=("candela",)),
    **_si("Hz", {"s": -1}, words=("hertz",)),
    **_si("N", {"kg": 1, "m": 1, "s": -2}, words=("newton",)),
    **_si("J", _JOULE, words=("joule",)),
    **_si("eV", _JOULE, Fraction("1.602176634e-19"), words=("electronvolt",)),
    **_si("cal", _JOULE, Fraction("4.184"), words=("calorie",)),
    **_si("Wh", _JOULE, 3600),
    **_si("W", {"kg": 1, "m": 2, "s": -3}, words=("watt",)),
    **_si("Pa", _PASCAL, words=("pascal",)),
    **_si("bar", _PASCAL, 100_000),
    **_si("V", {"kg": 1, "m": 2, "s": -3, "A": -1}, words=("volt",)),
    **_si("Ω", {"kg": 1, "m": 2, "s": -3, "A": -2}, words=("ohm",)),
    **_si("C", {"A": 1, "s": 1}, words=("coulomb",)),
    **_si("F", {"kg": -1, "m": -2, "s": 4, "A": 2}, words=("farad",)),
    **_si("H", {"kg": 1, "m": 2, "s": -2, "A": -2}, words=("henry",)),
    **_si("T", {"kg": 1, "s": -2, "A": -1}, words=("tesla",)),
    **_si("Wb", {"kg": 1, "m": 2, "s": -2, "A": -1}, words=("weber",)),
    **_si("L", _LITRE, _MILLI, words=("litre", "liter")),
    **_si("l", _LITRE, _MILLI),
    **_si("M", {"mol": 1, "m": -3}, 1000),
    "atm": (_PASCAL, Fraction(101_325)),
    "angstrom": (_M, _TEN**-10),
    "min": (_S, Fraction(60)), "minute": (_S, Fraction(60)),
    "h": (_S, Fraction(3600)), "hr": (_S, Fraction(3600)), "hour": (_S, Fraction(3600)),
    "day": (_S, Fraction(86_400)), "week": (_S, Fraction(604_800)),
    "inch": (_M, Fraction("0.0254")), "inche": (_M, Fraction("0.0254")),
    "foot": (_M, Fraction("0.3048")), "feet": (_M, Fraction("0.3048")),
    "ft": (_M, Fraction("0.3048")), "yard": (_M, Fraction("0.9144")),
    "mile": (_M, Fraction("1609.344")), "mi": (_M, Fraction("1609.344")),
    "mph": ({"m": 1, "s": -1}, Fraction("0.44704")),
    "kph": ({"m": 1, "s": -1}, Fraction(1000, 3600)),
    "tonne": (_KG, Fraction(1000)), "ton": (_KG, Fraction(1000)), "t": (_KG, Fraction(1000)),
    "lb": (_KG, Fraction("0.45359237")), "ounce": (_KG, Fraction("0.028349523125")),
    "hectare": ({"m": 2}, Fraction(10_000)), "ha": ({"m": 2}, Fraction(10_000)),
    "percent": ({"%": 1}, Fraction(1)), "%": ({"%": 1}, Fraction(1)),
    "°": ({"°": 1}, Fraction(1)), "degree": ({"°": 1}, Fraction(1)),
    "deg": ({"°": 1}, Fraction(1)), "°C": ({"°C": 1}, Fraction(1)), "°F": ({"°F": 1}, Fraction(1)),
    "cent": ({"dollar": 1}, Fraction(1, 100)), "usd": ({"dollar": 1}, Fraction(1)),
    "USD": ({"dollar": 1}, Fraction(1)), "buck": ({"dollar": 1}, Fraction(1)),
    "eur": ({"euro": 1}, Fraction(1)), "EUR": ({"euro": 1}, Fraction(1)),
}  # fmt: skip

_UNIT_TERM = re.compile(r"\s*([*/.]|\bper\b)?\s*(°?[A-Za-zμΩ]+|[%°])(?:\^\(?([-+]?\d)\)?|(-?\d))?")
_POWER_WORDS: Mapping[str, Literal[2, 3]] = {"square": 2, "sq": 2, "cubic": 3}


def read_unit(text: str) -> tuple[Units, Fraction] | None:
    """Base units with powers, and the factor. Nothing written is no unit; None is no unit's text.

    A word that is not known stands for itself (12 dogs are not 12 cats).
    """
    text = text.strip().strip("()").strip()
    powers: Counter[str] = Counter()
    factor, at, divided, power_word = Fraction(1), 0, False, 1
    while at < len(text):
        term = _UNIT_TERM.match(text, at)
        if term is None or term.end() - at > 40 or len(powers) > 6:
            return None
        at = term.end()
        divided = term[1] in ("/", "per") or (divided and term[1] != "*" and term[1] is not None)
        if term[2].lower() in _POWER_WORDS:
            power_word = _POWER_WORDS[term[2].lower()]
            continue
        known = _known(term[2])
        if known is None:
            return None
        units, own = known
        power = int(term[3] or term[4] or 1) * power_word * (-1 if divided else 1)
        power_word = 1
        factor *= own**power
        for name, count in units.items():
            powers[name] += count * power
    return {name: count for name, count in powers.items() if count}, factor


def _known(word: str) -> tuple[Units, Fraction] | None:
    for form in (word, word.lower(), word.lower().removesuffix("s")):
        if form in _KNOWN and (len(word) > 2 or form == word):
            return _KNOWN[form]
    if len(word) < 3 or word.lower() in _NO_UNITS:
        return None
    return {word.lower().removesuffix("s"): 1}, Fraction(1)


_NO_UNITS = frozenset(
    [
        "the",
        "and",
        "not",
        "but",
        "nor",
        "for",
        "are",
        "was",
        "were",
        "has",
        "had",
        "because",
        "since",
        "plus",
        "minus",
        "times",
        "over",
        "than",
        "more",
        "less",
        "half",
        "halves",
        "third",
        "thirds",
        "quarter",
        "quarters",
        "fourth",
        "fourths",
        "fifth",
        "fifths",
        "sixth",
        "sixths",
        "tenth",
        "tenths",
        "hundred",
        "thousand",
        "million",
        "billion",
        "dozen",
        "exactly",
        "only",
        "this",
        "that",
        "which",
    ]
)
"""Words behind a number that make it another number, or a sentence."""
