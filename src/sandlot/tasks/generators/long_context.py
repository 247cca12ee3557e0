"""Questions over many documents of an invented coast, of any size, with known answers.

Four kinds: `needle` (one figure in one document), `count` (events of one person over all
documents), `join` (three facts in three documents, each leading to the next), `contradiction`
(every ship's size stands in two documents; for one ship they differ). Decoys stand beside each:
a ship whose name differs in one letter, relatives of the person, goods of the same name.

The same options give the same bytes on every machine: all chance comes from `random.Random`
seeded with a text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from sandlot.core.errors import ConfigError, unknown_name
from sandlot.core.types import Task
from sandlot.tasks.generators.vocabulary import GOODS, VESSELS, chatter, first_name, near, words
from sandlot.tasks.loaders import DOCUMENTS, file_digest

VERSION = "1"
CHARS_PER_TOKEN = 4
"""How `tokens` is turned into a size: an estimate, since every tokenizer cuts differently."""

_FACTS = 0.4  # share of the text that states something about ships and persons
_TOKENS_PER_DOCUMENT = 4000
_SMALLEST, _LARGEST = 1000, 10_000_000


@dataclass(frozen=True, slots=True)
class Options:
    """`tokens` is the size of one item's documents; `kinds` are taken in turn."""

    tokens: int = 100_000
    items: int = 20
    seed: int = 1
    kinds: tuple[str, ...] = ("needle", "count", "join", "contradiction")


def generate(options: Mapping[str, Any], *, domain: str = "long_context") -> tuple[Task, ...]:
    """The tasks of a generator row.

    Raises:
        ConfigError: an option that does not exist or has a value out of range.
    """
    asked = _checked(options)
    return tuple(
        make_item(asked.tokens, asked.kinds[number % len(asked.kinds)], asked.seed, number, domain)
        for number in range(asked.items)
    )


def make_item(tokens: int, kind: str, seed: int, number: int, domain: str) -> Task:
    """One task: its documents, question and answer."""
    rng = Random(f"sandlot long_context {VERSION} {seed} {number} {kind} {tokens}")
    coast = _Coast(rng, documents=max(4, min(500, round(tokens / _TOKENS_PER_DOCUMENT))))
    question, answer, needs = _KINDS[kind](coast)
    size = tokens * CHARS_PER_TOKEN
    while coast.size < _FACTS * size or coast.ships < 4:
        coast.add_ship(coast.ship())
    files = coast.written(size)
    return Task(
        id=f"long_context-{_short(tokens)}-{seed}-{number:03d}",
        prompt=_PROMPT.format(count=len(files), question=question),
        input_files=files,
        target=answer,
        domain=domain,
        metadata={
            "kind": kind,
            "label": "computer-favouring" if tokens >= 10_000 else "neutral",
            "qa_type": "open",
            "tokens": tokens,
            "documents_needed": needs,
            DOCUMENTS: file_digest(files),
        },
    )


_PROMPT = (
    "The {count} documents are the harbour books of a coast, each a separate file. What they say "
    "of ships and persons is all that is known of them.\n\n{question}"
)


def _short(tokens: int) -> str:
    for unit, name in ((1_000_000, "m"), (1000, "k")):
        if tokens % unit == 0:
            return f"{tokens // unit}{name}"
    return str(tokens)


def _checked(options: Mapping[str, Any]) -> Options:
    known = ("items", "kinds", "seed", "tokens")
    for name in options:
        if name not in known:
            raise unknown_name("option of the generator 'long_context'", name, known)
    for name, low, high in (
        ("tokens", _SMALLEST, _LARGEST),
        ("items", 1, 100_000),
        ("seed", 0, 2**63),
    ):
        value = options.get(name, low)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ConfigError(
                f"generator 'long_context': {name} must be a whole number from {low:,} to "
                f"{high:,}, found {value!r}"
            )
    kinds = options.get("kinds", Options().kinds)
    if not isinstance(kinds, list | tuple) or not kinds:
        raise ConfigError(f"generator 'long_context': kinds must be a list, found {kinds!r}")
    for kind in kinds:
        if kind not in _KINDS:
            raise unknown_name("kind of long-context task", str(kind), _KINDS)
    return Options(**{**options, "kinds": tuple(kinds)})


@dataclass(slots=True)
class _Coast:
    """What is stated, and in which document. Only `written` turns it into text."""

    rng: Random
    documents: int
    sentences: list[list[str]] = field(init=False)
    size: int = 0
    ships: int = 0
    _ship_names: Iterator[str] = field(init=False)
    _surnames: Iterator[str] = field(init=False)
    _used: set[str] = field(default_factory=set)
    _towns: list[str] = field(init=False)
    _inspectors: list[str] = field(default_factory=list)
    _cargo: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.sentences = [[] for _ in range(self.documents)]
        self._ship_names = words(self.rng, 3)
        self._surnames = words(self.rng, 2)
        towns = words(self.rng, 1)
        self._towns = [next(towns) + "haven" for _ in range(24)]

    # --- names and figures ---

    def ship(self) -> str:
        """A name that no ship has yet."""
        return self._taken(next(name for name in self._ship_names if name not in self._used))

    def _taken(self, name: str) -> str:
        self._used.add(name)
        return name

    def decoy_of(self, ship: str) -> str:
        """A ship that is not yet known and whose name is nearly the same."""
        name = near(self.rng, ship)
        while name in self._used:
            name = near(self.rng, ship)
        return self._taken(name)

    def person(self) -> str:
        return f"{first_name(self.rng)} {next(self._surnames)}"

    def relative_of(self, person: str) -> str:
        first, last = person.split()
        other = first_name(self.rng)
        while other == first:
            other = first_name(self.rng)
        return f"{other} {last}"

    def town(self) -> str:
        return self.rng.choice(self._towns)

    def cargo(self, goods: str | None = None) -> str:
        """A cargo that no other ship brings."""
        while True:
            amount = self.rng.randrange(12, 99_999)
            vessel, what = self.rng.choice(VESSELS), goods or self.rng.choice(GOODS)
            cargo = f"{amount} {vessel} of {what}"
            if cargo not in self._cargo:
                self._cargo.add(cargo)
                return cargo

    def figure(self) -> int:
        return self.rng.randrange(10_000, 100_000)

    def places(self, count: int) -> list[int]:
        """Different documents."""
        return self.rng.sample(range(self.documents), count)

    # --- statements ---

    def state(self, forms: tuple[str, ...], place: int | None = None, **parts: object) -> None:
        """One sentence in one of several forms, in a document."""
        sentence = self.rng.choice(forms).format(**parts)
        at = self.rng.randrange(self.documents) if place is None else place
        self.sentences[at].append(sentence)
        self.size += len(sentence) + 1

    def inspected(
        self, person: str, held: bool, ship: str | None = None, place: int | None = None
    ) -> None:
        forms = _HELD if held else _PASSED
        self.state(forms, place, person=person, ship=ship or self.ship())

    def sized(self, ship: str, loads: tuple[int, int]) -> None:
        """The size of a ship, in two documents."""
        for place, figure in zip(self.places(2), loads, strict=True):
            self.state(_SIZE, place, ship=ship, n=figure)

    def commanded(self, ship: str, cargo: str, person: str, town: str) -> None:
        """Cargo, commander and birthplace, in three documents."""
        first, second, third = self.places(3)
        self.state(_CARGO, first, ship=ship, cargo=cargo)
        self.state(_COMMAND, second, ship=ship, person=person)
        self.state(_BORN, third, person=person, town=town)

    def add_ship(self, ship: str) -> None:
        """All that is known of one more ship, as noise for whatever is asked."""
        self.ships += 1
        self.state(_SEAL, ship=ship, n=self.figure())
        self.state(_SAIL, ship=ship, n=self.figure())
        loads = self.figure() // 100
        self.sized(ship, (loads, loads))
        self.commanded(ship, self.cargo(), self.person(), self.town())
        for _ in range(self.rng.randrange(1, 4)):
            self.inspected(self._inspector(), self.rng.random() < 0.5, ship)

    def _inspector(self) -> str:
        if len(self._inspectors) < 3 + self.ships // 8:
            self._inspectors.append(self.person())
        return self.rng.choice(self._inspectors)

    # --- text ---

    def written(self, size: int) -> dict[str, bytes]:
        """Every document, filled up with talk to its share of `size` characters."""
        share = size // self.documents
        files = {}
        for number, sentences in enumerate(self.sentences, 1):
            town = self._towns[number % len(self._towns)]
            head = f"Harbour book of {town}, volume {number}\n\n"
            files[f"book_{number:03d}.txt"] = (head + self._filled(sentences, share)).encode()
        return files

    def _filled(self, sentences: list[str], share: int) -> str:
        text = list(sentences)
        length = sum(len(sentence) + 1 for sentence in text)
        while length < share:
            talk = chatter(self.rng)
            text.append(talk)
            length += len(talk) + 1
        self.rng.shuffle(text)
        paragraphs = []
        at = 0
        while at < len(text):
            step = self.rng.randrange(4, 9)
            paragraphs.append(" ".join(text[at : at + step]))
            at += step
        return "\n\n".join(paragraphs) + "\n"


_SEAL = (
    "The seal of the {ship} bears the number {n}.",
    "Number {n} is cut into the seal of the {ship}.",
    "On the seal of the {ship} one reads the number {n}.",
)
_SAIL = (
    "The sail of the {ship} bears the number {n}.",
    "Number {n} is sewn into the sail of the {ship}.",
)
_HELD = (
    "{person} went aboard the {ship} and held it back.",
    "The {ship} was held back by {person}.",
    "{person} was not content with the {ship} and held it back.",
)
_PASSED = (
    "{person} went aboard the {ship} and let it pass.",
    "The {ship} was let pass by {person}.",
    "{person} was not content with the {ship} but let it pass.",
)
_CARGO = (
    "The {ship} landed {cargo}.",
    "From the {ship} came {cargo}.",
)
_COMMAND = (
    "{person} commands the {ship}.",
    "The {ship} sails under {person}.",
)
_BORN = (
    "{person} was born in {town}.",
    "The birthplace of {person} is {town}.",
)
_SIZE = (
    "The {ship} measures {n} loads.",
    "The {ship} is entered at {n} loads.",
    "At the scales the {ship} was put down at {n} loads.",
)

_Question = tuple[str, str, int]
"""The question, its answer, and how many documents are needed to answer."""


def _needle(coast: _Coast) -> _Question:
    ship, figure = coast.ship(), coast.figure()
    coast.state(_SEAL, ship=ship, n=figure)
    coast.state(_SAIL, ship=ship, n=coast.figure())
    coast.add_ship(coast.decoy_of(ship))
    question = f"Which number does the seal of the {ship} bear? Answer with the number only."
    return question, str(figure), 1


def _count(coast: _Coast) -> _Question:
    person = coast.person()
    times = coast.rng.randrange(3, 6 + min(12, coast.documents))
    places = [coast.rng.randrange(coast.documents) for _ in range(times)]
    for place in places:
        coast.inspected(person, True, place=place)
    for _ in range(coast.rng.randrange(2, 5)):
        coast.inspected(person, False)
        coast.inspected(coast.relative_of(person), True)
    question = (
        f"How many times did {person} hold a ship back, over all books? "
        "Answer with the number only."
    )
    return question, str(times), len(set(places))


def _join(coast: _Coast) -> _Question:
    goods = coast.rng.choice(GOODS)
    cargo, town = coast.cargo(goods), coast.town()
    ship, person = coast.ship(), coast.person()
    coast.commanded(ship, cargo, person, town)
    other, relative = coast.decoy_of(ship), coast.relative_of(person)
    coast.commanded(other, coast.cargo(goods), relative, coast.town())
    question = (
        f"In which town was the commander of the ship born that landed {cargo}? "
        "Answer with the name of the town only."
    )
    return question, town, 3


def _contradiction(coast: _Coast) -> _Question:
    ship, loads = coast.ship(), coast.figure() // 100
    other = coast.figure() // 100
    coast.sized(ship, (loads, other if other != loads else loads + 7))
    same = coast.figure() // 100
    coast.sized(coast.decoy_of(ship), (same, same))
    question = (
        "Each ship's size in loads stands in two books. For one ship alone the two figures "
        "differ. Which ship is it? Answer with its name only."
    )
    return question, ship, 2


_KINDS: Mapping[str, Callable[[_Coast], _Question]] = {
    "needle": _needle,
    "count": _count,
    "join": _join,
    "contradiction": _contradiction,
}
