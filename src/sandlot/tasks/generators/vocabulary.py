"""Words of an invented coast: nothing here can have been seen by a model as a fact."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

_ONSETS = (
    "b", "br", "d", "dr", "f", "g", "gr", "h", "k", "kr", "l", "m", "n", "p", "r", "s", "sk", "st",
    "t", "tr", "v", "z",
)  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ei", "ou")
_CODAS = ("l", "m", "n", "r", "s", "sk", "t", "nd", "rn", "ld")
_FIRST_NAMES = (
    "Adra", "Belin", "Corvo", "Dessa", "Emric", "Falla", "Goran", "Hestia", "Ilmo", "Jorun",
    "Kesta", "Lorvi", "Marn", "Nessa", "Orel", "Pavo", "Querin", "Rulla", "Sevrin", "Tamsa",
    "Udo", "Velka", "Wendil", "Yorra", "Zorin",
)  # fmt: skip

GOODS = (
    "amber", "barley", "candles", "copper", "flax", "glass", "hemp", "honey", "indigo", "lamp oil",
    "leather", "lime", "mustard", "pitch", "resin", "salt", "slate", "soap", "tallow", "tar", "tea",
    "tin", "vinegar", "wax", "wool",
)  # fmt: skip
VESSELS = ("bales", "barrels", "casks", "chests", "crates", "jars", "sacks", "tubs")

_WHO = (
    "the lamp keeper", "a boy from the ropewalk", "the old pilot", "the baker's daughter",
    "the clerk of the scales", "a widow from the upper lane", "the cooper", "two of the porters",
    "the bell ringer", "a pedlar", "the net menders", "the ferryman",
)  # fmt: skip
_DID = (
    "swept the steps before the bell", "asked again for more candles", "slept through the tide",
    "mended the railing by the well", "brought bread for the watch", "quarrelled over the price of"
    " eels", "found the gate unlocked", "carried water to the store", "sang until the lamps were"
    " out", "lost a glove on the stairs", "counted the gulls for want of work",
    "wrote a long complaint about the smell",
)  # fmt: skip
_WEATHER = (
    "Fog lay on the water", "A dry wind blew from the hills", "Rain fell without a pause",
    "The air was still and warm", "Hail came down at noon", "The tide was late",
    "Ice stood in the basin", "The sky cleared slowly",
)  # fmt: skip
_WHEN = (
    "after the second bell", "until evening", "on the day of the fair", "before the lamps were lit",
    "as on the day before", "for most of the week", "while the chapel was being painted",
    "at the turn of the month",
)  # fmt: skip
_THOUGHT = (
    "Nobody could remember such a season.", "The matter was left for another day.",
    "It is hoped that the roof will last the winter.", "The keeper of this book takes no side.",
    "There is talk of a new wall.", "Such things are soon forgotten.",
    "The council has been told, and has not replied.", "Nothing more need be said of it.",
)  # fmt: skip


def words(rng: Random, syllables: int) -> Iterator[str]:
    """Invented capitalised words, none twice."""
    seen: set[str] = set()
    while True:
        parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables)]
        word = ("".join(parts) + rng.choice(_CODAS)).capitalize()
        if word not in seen:
            seen.add(word)
            yield word


def first_name(rng: Random) -> str:
    return rng.choice(_FIRST_NAMES)


def near(rng: Random, word: str) -> str:
    """The word with its last letter changed for another consonant."""
    return word[:-1] + rng.choice([letter for letter in "bdfgkmpvz" if letter != word[-1]])


def chatter(rng: Random) -> str:
    """A sentence that states nothing about ships or persons with names, and holds no figures."""
    form = rng.randrange(4)
    if form == 0:
        return f"{rng.choice(_WEATHER)} {rng.choice(_WHEN)}."
    if form == 1:
        return rng.choice(_THOUGHT)
    who, did = rng.choice(_WHO), rng.choice(_DID)
    if form == 2:
        return f"{rng.choice(_WEATHER)}, and {who} {did}."
    return f"{who[0].upper()}{who[1:]} {did} {rng.choice(_WHEN)}."
