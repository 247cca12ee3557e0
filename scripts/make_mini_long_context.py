"""Write the long-context problems of the set `mini`: five invented worlds, five questions each.

    python scripts/make_mini_long_context.py [FILE]

The facts of a world are drawn with a fixed seed or written out below, then told in prose with
distractors. A truth is worked out here from the facts; tests/tasks/mini_truth_b.py finds it again
from the documents alone.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

TARGET = Path(__file__).parent.parent / "src/sandlot/tasks/data/mini/long_context.jsonl"
SEED = 41207
FORMAT = (
    "End with a line of the form 'Answer: X', where X is the short answer alone: a number, a name "
    "or a few words."
)
COMPUTER, NEUTRAL, HOSTILE = "computer-favouring", "neutral", "computer-hostile"

T = TypeVar("T")


class Question(NamedTuple):
    text: str
    answer: str
    label: str
    reason: str


@dataclass(frozen=True, slots=True)
class World:
    name: str
    intro: str
    files: Mapping[str, str]
    questions: Sequence[Question]


def deal(rng: random.Random, values: Sequence[T]) -> Iterator[T]:
    """The values in random order, again and again, never the same one twice running."""
    last: T | None = None
    while True:
        order = list(values)
        rng.shuffle(order)
        if len(order) > 1 and order[0] == last:
            order.append(order.pop(0))
        yield from order
        last = order[-1]


class Chatter:
    """Sentences that decide nothing, filled from lists of words. None comes twice."""

    def __init__(
        self, rng: random.Random, sentences: Sequence[str], words: Mapping[str, Sequence[str]]
    ) -> None:
        self._sentences = deal(rng, sentences)
        self._words = {name: deal(rng, values) for name, values in words.items()}
        self._said: set[str] = set()

    def say(self) -> str:
        for _ in range(2000):
            sentence = next(self._sentences).format_map(_Next(self._words))
            if sentence not in self._said:
                self._said.add(sentence)
                return sentence[0].upper() + sentence[1:]
        raise RuntimeError("the chatter has run out of sentences")

    def paragraph(self, sentences: int) -> str:
        return " ".join(self.say() for _ in range(sentences))


class _Next(dict[str, str]):
    """Looks up the next word of a list for each slot."""

    def __init__(self, words: Mapping[str, Iterator[str]]) -> None:
        super().__init__()
        self._lists = words

    def __missing__(self, key: str) -> str:
        return next(self._lists[key])


def listed(names: Sequence[str]) -> str:
    """`A`, `A and B`, `A, B and C`."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def dates(months: Mapping[str, int], first: int = 1) -> list[str]:
    return [f"{day} {month}" for month, days in months.items() for day in range(first, days + 1)]


# --- Brennoway: a harbour -------------------------------------------------------------------------

SHIPS = {
    "Gullsway": ("Karsholm", "Hanne Ruddock"),
    "Marigold": ("Voss", "Tam Orchard"),
    "Old Patience": ("Dunmere", "Lisbet Crane"),
    "Tern": ("Karsholm", "Edric Vole"),
    "Harrow Queen": ("Aldery", "Jorun Pell"),
    "Windle": ("Voss", "Matthis Groat"),
    "Saint Orla": ("Dunmere", "Una Fairlead"),
    "Copperhead": ("Aldery", "Wace Tilling"),
    "Lantern of Voss": ("Karsholm", "Berit Sloane"),
    "Brisk": ("Dunmere", "Col Marchant"),
    "Two Sisters": ("Voss", "Ada Penhale"),
    "Karsholm Lass": ("Aldery", "Rolf Dunnage"),
}
CARGOES = {
    "salt": "sacks",
    "herring": "barrels",
    "tar": "barrels",
    "wool": "bales",
    "lamp oil": "casks",
    "roof slate": "crates",
}
ARRIVALS = (
    "The {ship} came in on the {tide} tide and made fast at berth {berth}; she landed {load}.",
    "Towards {hour} the {ship} was warped to berth {berth}, where she landed {load}.",
    "At berth {berth} the {ship}, somewhat late, landed {load}.",
    "The {ship} lay in the roads until {hour}, then took berth {berth} and landed {load}.",
    "Word came from the mole at {hour} that the {ship} was in; at berth {berth} she landed {load}.",
)
NON_ARRIVALS = (
    "The {ship} was looked for with {load}, but did not come.",
    "The {ship} sailed with {load} for the outer islands.",
    "A boat from the {ship} asked the price of a mooring and went off again; she carries {load}, "
    "they said, and none of it for us.",
)
HARBOUR_CHATTER = (
    "Wind {wind}, {sky}, and the glass {glass}.",
    "{man} painted the {thing} and had the brush stolen by a gull.",
    "The {thing} was found adrift and brought back by {man}.",
    "{man} reports that the {place} wants new planks before the autumn.",
    "A quarrel over the {thing} was settled at the {place} without the constable.",
    "Sent {man} to sound the channel off the {place}; no change worth writing down.",
    "{sky} all day, so that the lamp at the {place} was lit before supper.",
    "Two crabs the size of hats were taken near the {place}, and {man} would not sell them.",
    "The pilot's dog slept on the {thing} and nobody had the heart to move it.",
    "{man} asked again for an oilskin out of the common chest, and was again given a promise.",
    "The bell by the {place} rang of itself in the night, the wind being {wind}.",
    "Fog until noon; {man} led the ferry in by beating the {thing}.",
    "The {place} smelt of rope and oranges, nobody could say why.",
    "Children fished from the {place} and had to be told about the {thing} twice.",
    "Spliced, greased and put away the {thing}; the wind stays {wind}.",
)
HARBOUR_WORDS = {
    "wind": ("south-west and fresh", "north and sharp", "easterly, light", "hardly a breath",
             "west by north", "veering all day", "south and wet", "backing to the east"),
    "sky": ("low cloud", "clear sky", "rain in the offing", "a thin haze", "high mares' tails",
            "showers", "a yellow sky", "drizzle"),
    "glass": ("falling", "steady", "rising", "not to be trusted", "slow to move"),
    "man": ("Old Betteridge", "the boy Finn", "Crabb the ferryman", "the sailmaker", "Dowsett",
            "the night watchman", "the younger Hume", "the cooper", "Widow Larkin's son"),
    "thing": ("dinghy", "long hawser", "weighing beam", "spare anchor", "tide board", "hand pump",
              "buoy chain", "blue handcart", "fog horn", "harbour boat"),
    "place": ("mole", "east stairs", "fish hall", "old slip", "customs shed", "sail loft",
              "coal wharf", "breakwater", "ferry steps", "rope walk"),
}  # fmt: skip


@dataclass(slots=True)
class Arrival:
    date: str
    ship: str
    berth: int
    cargo: str
    amount: int

    @property
    def load(self) -> str:
        return f"{self.amount} {CARGOES[self.cargo]} of {self.cargo}"


def harbour(rng: random.Random) -> World:
    days = dates({"March": 31, "April": 30, "May": 31, "June": 30})
    ships, cargoes = deal(rng, list(SHIPS)), deal(rng, list(CARGOES))
    logged = [
        Arrival(day, next(ships), rng.randint(1, 6), next(cargoes), rng.randint(11, 98))
        for day in days
        for _ in range(rng.choice((0, 1, 1)))
    ]
    chatter = Chatter(rng, HARBOUR_CHATTER, HARBOUR_WORDS)
    tell = _harbour_log(rng, logged, chatter)
    slip, corrected = _harbour_slip(rng, logged)
    files = {
        "harbour_log_march_april.txt": tell("March", "April"),
        "harbour_log_may_june.txt": tell("May", "June"),
        "correction_slip.txt": slip,
        "customs_report.txt": _customs_report(rng),
        "board_minutes.txt": BOARD_MINUTES,
        "letters_about_the_crane.txt": CRANE_LETTERS,
    }
    salt = sum(arrival.cargo == "salt" for arrival in corrected)
    herring = sum(
        arrival.amount
        for arrival in corrected
        if arrival.cargo == "herring" and SHIPS[arrival.ship][0] == "Karsholm"
    )
    rule = "Where the correction slip differs from the log, the slip holds."
    return World(
        "brennoway",
        "The files are papers of the harbour of Brennoway from the year 412.",
        files,
        (
            Question(
                f"How many cargoes of salt were landed at Brennoway from March to June? {rule} "
                "Ships that only passed, sailed or were looked for in vain do not count. Give the "
                "number.",
                str(salt), COMPUTER, "a count over a long log with corrections",
            ),
            Question(
                "How many barrels of herring in all were landed from March to June by ships whose "
                f"home port is Karsholm? {rule} Give the number.",
                str(herring), COMPUTER, "a join of log and report, then a sum",
            ),
            Question(
                "By the resolutions of the harbour board, what does a day at berth 6 cost on 1 "
                "July 412? Give the number of pennings.",
                "9", NEUTRAL, "a chain of resolutions to be followed",
            ),
            Question(
                "What is the name of the master who in the end answered for the broken lamp on the "
                "mole?",
                SHIPS["Harrow Queen"][1], NEUTRAL, "two places to be put together",
            ),
            Question(
                "One of the letters about the crane praises it without meaning a word of the "
                "praise. Who wrote that letter?",
                "Gideon Sparrow", HOSTILE, "irony to be heard",
            ),
        ),
    )  # fmt: skip


def _harbour_log(
    rng: random.Random, logged: Sequence[Arrival], chatter: Chatter
) -> Callable[..., str]:
    forms, hours = deal(rng, ARRIVALS), deal(rng, ("eight", "nine", "noon", "three", "five"))
    lures = deal(rng, NON_ARRIVALS)

    def entry(day: str) -> str:
        said = [chatter.paragraph(rng.choice((1, 1, 2)))]
        for one in (arrival for arrival in logged if arrival.date == day):
            tide = rng.choice(("morning", "evening"))
            said.append(
                next(forms).format(
                    ship=one.ship, tide=tide, hour=next(hours), berth=one.berth, load=one.load
                )
            )
        if rng.random() < 0.2:
            cargo = rng.choice(("salt", "herring", "tar"))
            load = f"{rng.randint(11, 98)} {CARGOES[cargo]} of {cargo}"
            said.append(next(lures).format(ship=rng.choice(list(SHIPS)), load=load))
        if day == "17 May":
            said.append(
                "In the dark some ship's boom carried away the lamp on the mole; the Brisk lay "
                "nearest and has been charged with it."
            )
        if rng.random() < 0.6:
            said.append(chatter.say())
        return f"{day}. " + " ".join(said)

    def tell(*months: str) -> str:
        head = f"HARBOUR LOG OF BRENNOWAY, {' and '.join(months)} 412\n\n"
        days = dates({month: 30 if month in ("April", "June") else 31 for month in months})
        return head + "\n\n".join(map(entry, days)) + "\n"

    return tell


def _harbour_slip(rng: random.Random, logged: Sequence[Arrival]) -> tuple[str, tuple[Arrival, ...]]:
    """The slip, and the arrivals as they are with it: two amounts, two cargoes, two struck out."""
    salt = [one for one in logged if one.cargo == "salt"]
    karsholm = [
        one for one in logged if one.cargo == "herring" and SHIPS[one.ship][0] == "Karsholm"
    ]
    wool = [one for one in logged if one.cargo == "wool"]
    struck = [salt[2], karsholm[-1]]
    says = [
        f"Under {one.date} the {one.ship} is entered with {one.load}. She lay elsewhere that day; "
        "the entry is to be struck out."
        for one in struck
    ]
    right = [one for one in logged if one not in struck]
    for one, amount in ((karsholm[0], 87), (wool[0], 29)):
        says.append(
            f"Under {one.date} the {one.ship} is entered with {one.load}. The tally shows {amount}."
        )
        right[right.index(one)] = Arrival(one.date, one.ship, one.berth, one.cargo, amount)
    for one, cargo in ((wool[3], "salt"), (salt[5], "lamp oil")):
        says.append(
            f"Under {one.date} the {one.ship} is entered with {one.load}. The goods were {cargo}, "
            f"{one.amount} {CARGOES[cargo]} of it."
        )
        right[right.index(one)] = Arrival(one.date, one.ship, one.berth, cargo, one.amount)
    rng.shuffle(says)
    head = (
        "CORRECTION SLIP TO THE LOG, 3 July 412\n\nThe clerk of the tally has compared the log of "
        "March to June with his sticks. Where this slip differs from the log, the slip holds.\n\n"
    )
    return head + "\n\n".join(says) + "\n", tuple(right)


def _customs_report(rng: random.Random) -> str:
    forms = deal(
        rng,
        (
            "The {ship} belongs to {port}; her master is {master}, who {trait}.",
            "{master}, master of the {ship}, {trait}; the ship's home port is {port}.",
            "Of the ships of {port} we saw the {ship} under {master}, who {trait}.",
        ),
    )
    traits = deal(
        rng,
        (
            "pays in small coin", "keeps a tame jackdaw", "has never been late with a paper",
            "argues about every seal", "asks for the shed's best scales", "writes a fine hand",
            "brings the clerk a cheese at midsummer", "sings while the hold is searched",
        ),
    )  # fmt: skip
    ships = list(SHIPS.items())
    rng.shuffle(ships)
    told = [
        next(forms).format(ship=ship, port=port, master=master, trait=next(traits))
        for ship, (port, master) in ships
    ]
    return (
        "REPORT OF THE CUSTOMS SHED, half year to the end of June 412\n\nA ship's name says little "
        "of where she belongs, so the shed lists home ports from the papers.\n\n"
        + "\n\n".join(told)
        + "\n\nFines. The fine for the lamp on the mole was first laid on the master of the Brisk. "
        "He could show that his boom was inboard that night. On 2 June the master of the Harrow "
        "Queen owned to the damage, paid for the glass and gave the keeper a bottle besides; the "
        "Brisk has had her money back. The fine for the spilt tar at berth 2 stands against the "
        "Copperhead.\n"
    )


BOARD_MINUTES = """MINUTES OF THE HARBOUR BOARD OF BRENNOWAY, 412

Meeting of 6 March. Present: all five members. The dues were gone through berth by berth. A day \
at berths 1 to 5 stays at 6 pennings. For berth 6, which has the deep water, the board raised the \
day from 7 to 9 pennings. The harbour master asked for a second boat and was told to mend the \
first.

Meeting of 3 April. Present: four members. A letter of the ship owners called 9 pennings at berth \
6 robbery and proposed 7 as before. After an hour the matter was put off. The board ordered forty \
fathoms of hawser. It was noted that the fish hall's roof can be seen through.

Meeting of 8 May. Present: all five members. The owners' proposal came up again. The board \
resolved by three votes to two that a day at berth 6 shall cost 8 pennings from 1 June. A motion \
to make it 10 for ships that carry tar found no second. The new crane was declared open and a \
toast was drunk.

Meeting of 5 June. Present: all five members. It was found that one of the three who carried the \
resolution on berth 6 in May owns a third of a ship that lies there. The resolution of 8 May was \
therefore declared void from the beginning; what was resolved before it holds. A proposal to fix \
the day at 11 pennings was not put to the vote, the hour being late. The harbour master's second \
boat was refused again.
"""

CRANE_LETTERS = """LETTERS TO THE BOARD ABOUT THE NEW CRANE, June 412

1.
To the board. I was against the crane, as you will remember, and said so at some length. I take \
it back. On Thursday it set forty bales on the quay in the time that we used to need for ten, and \
no man's back was the worse for it. The chain is noisy and wants grease. Otherwise I have nothing \
to say but that I was wrong, which my wife has asked me to put in writing.
Obed Larch, stevedore

2.
Honoured members. What a blessing you have bestowed on us! Before the crane, I was obliged to \
have my slate unloaded on the day it came, and hardly had time to sit down. Now I may rest on the \
quay from Monday to Wednesday and admire it, so tall and so still, while my crates keep dry in \
the hold. My customers, who have all found slate elsewhere, share my joy. I hear that you mean to \
buy a second. Then at last there would be two of them to look at.
Gideon Sparrow, slater

3.
To the board. The crane is too near the east stairs. Its shadow is no matter, but the hook swings \
over the path where the school goes by, and one day it will take off somebody's cap with the head \
in it. I ask that the arm be tied when nothing is lifted. It is a good machine, and I have no \
quarrel with it but that.
Nessa Quillan, schoolmistress

4.
Gentlemen, I do not understand why the board needs letters about a crane. It lifts things. I have \
watched it lift things. My barrels came up whole, at a fair charge, and the man who works it said \
good morning. If you want more than that from a crane you should marry one.
Prudence Hatch, cooper's widow

5.
To the honoured board. You have thrown money into the sea. For the price of that iron heron you \
could have had the roof of the fish hall mended twice, and eight men could have kept their \
places. I was one of them. I do not expect an answer, having had none to my last three letters.
Simm Attwater, late of the quay gang

6.
Dear members, my grandson and I come down each evening to see the crane at work and he has named \
it Gerda. He would like to know whether it sleeps. I would like to thank whoever had it painted \
green. Since it came, the wagons are gone from our lane by supper and the dust with them.
Clemency Barrow
"""


# --- Orrin and Tace: a nursery --------------------------------------------------------------------

PLANT_FIRST = ("Merrow's", "Abbot's", "Widow's", "Tace's", "Northern", "Little",
               "Drummer's", "Candle", "Pilgrim's", "Winter", "Marsh", "Sexton's", "Gypsum",
               "Harvest")  # fmt: skip
PLANT_LAST = ("Lamp", "Thimble", "Plume", "Bonnet", "Star", "Whistle", "Lantern", "Comfort")
COLOURS = ("white", "yellow", "blue", "rose", "orange", "violet")
ORIGINS = (
    "It was raised here from seed of our own",
    "The first plant came to us in a hat box from the coast",
    "A pedlar left it in payment for a night's straw",
    "It was found in a churchyard by the schoolmaster of Neame",
    "The postman found it in the quarry behind Olding",
    "It came up by itself between the frames in the wet year",
    "Mother Tace had it from her aunt, who would not say more",
    "We bought the stock from the late Canon Brill",
)
PLANT_CHATTER = (
    "The leaves are {leaf} and smell of {smell} when it rains.",
    "{pest} will not touch it, but {beast} will.",
    "Plant it where you can see it from the {window}, in {soil}.",
    "It asks for {soil} and to be left alone.",
    "Cut it for the {window} and it lasts a week, smelling of {smell}.",
    "In a dry year the {leaf} foliage curls; water forgives everything.",
    "{beast} lie down in it, which it bears better than we do.",
    "Our neighbours grow it beside the {window} against all advice.",
    "Divide it when {pest} are about and share what you do not need.",
    "Some say that it smells of {smell}; we have never been sure.",
    "Visitors ask for it by the {leaf} leaves and are surprised by the flower.",
)
PLANT_WORDS = {
    "leaf": ("grey", "glossy", "felted", "narrow", "crinkled", "bronze", "finely cut",
             "heart-shaped", "thick", "dark"),
    "smell": ("cold tea", "oranges", "new bread", "wet slate", "pencils", "honey", "cloves", "goat",
              "rain", "green apples"),
    "pest": ("slugs", "snails", "hares", "mice", "earwigs", "pigeons", "rabbits", "wood lice"),
    "beast": ("cats", "hens", "sheep", "small children", "deer", "the neighbour's goose", "bees"),
    "window": ("kitchen window", "hall table", "gate", "well", "south wall", "pond", "sick room",
               "door"),
    "soil": ("poor soil", "deep loam", "clay", "chalk", "gravel", "leaf mould", "half shade",
             "full sun"),
}  # fmt: skip
LOW = 100  # cm; what counts as low
PLANT_FORMS = (
    "Flowers {colour}, height {height} cm, grade {grade}, {price} pence.",
    "Grade {grade}; it grows {height} cm tall and flowers {colour}. The price is {price} pence.",
    "At {price} pence you have a plant of {height} cm with {colour} flowers, grade {grade}.",
)


@dataclass(frozen=True, slots=True)
class Plant:
    name: str
    colour: str
    height: int
    grade: str
    price: int

    def changed(self, **fields: int | str) -> Plant:
        known = {name: getattr(self, name) for name in self.__slots__}
        return Plant(**(known | fields))

    def told(self, form: str) -> str:
        return form.format(**{name: getattr(self, name) for name in self.__slots__})


def nursery(rng: random.Random) -> World:
    names = [f"{first} {last}" for first in PLANT_FIRST for last in PLANT_LAST]
    rng.shuffle(names)
    names.remove("Merrow's Lamp")
    names.remove("Pilgrim's Whistle")
    colours, grades = deal(rng, COLOURS), deal(rng, "ABCD")
    plants = [
        Plant(name, next(colours), rng.randrange(15, 150, 5), next(grades), rng.randint(4, 30))
        for name in ["Merrow's Lamp", "Pilgrim's Whistle", *names[:46]]
    ]
    plants[0] = plants[0].changed(grade="B")
    supplement, sold = _nursery_supplement(rng, plants, names[46:49])
    order = [(rng.choice((2, 3, 4, 5, 6)), plant) for plant in _ordered(plants)]
    total = sum(n * sold[plant.name].price for n, plant in order if plant.name in sold)
    low_white = sum(p.colour == "white" and p.height <= LOW for p in sold.values())
    rule = "Where the supplement differs from the catalogue, the supplement holds."
    return World(
        "orrin_tace",
        "The files are papers of Orrin and Tace, a nursery that sells plants by post.",
        {
            "catalogue.txt": _catalogue(rng, plants),
            "supplement.txt": supplement,
            "growers_notes.txt": GROWERS_NOTES,
            "order_letters.txt": _order_letters(rng, order, plants),
            "letters_of_complaint.txt": COMPLAINTS,
        },
        (
            Question(
                "What does the order of Mistress Adela Quince cost in all, in pence, plants that "
                f"are withdrawn being left out? {rule} Give the number.",
                str(total), COMPUTER, "a join of three files, then a sum",
            ),
            Question(
                "How many varieties on sale after the supplement (new ones included, withdrawn "
                f"ones not) flower white and are given a height of at most {LOW} cm? "
                f"{rule} Give the number.",
                str(low_white), COMPUTER, "a count over a catalogue with changes",
            ),
            Question(
                f"Which grade of hardiness is Merrow's Lamp sold with now? {rule} Give the letter.",
                "C", NEUTRAL, "three documents that disagree, and a rule",
            ),
            Question(
                "Which variety of the catalogue is said to come from a seedling that the "
                "schoolmaster of Neame found in a quarry?",
                "Pilgrim's Whistle", NEUTRAL, "one sentence among many like it",
            ),
            Question(
                "Five letters complain of plants that died. The nursery means to refuse the one "
                "whose own words show that the writer's neglect killed the plants. Whose letter is "
                "it?",
                "Lambert Ayscough", HOSTILE, "a fault that the writer does not admit",
            ),
        ),
    )  # fmt: skip


def _ordered(plants: Sequence[Plant]) -> list[Plant]:
    """Two with a new price, one withdrawn, four as they were."""
    return [plants[at] for at in (30, 4, 17, 8, 41, 25, 12)]


def _catalogue(rng: random.Random, plants: Sequence[Plant]) -> str:
    forms, origins = deal(rng, PLANT_FORMS), deal(rng, ORIGINS)
    chatter = Chatter(rng, PLANT_CHATTER, PLANT_WORDS)
    entries = []
    for plant in sorted(plants, key=lambda plant: plant.name):
        origin = next(origins)
        if plant.name == "Pilgrim's Whistle":
            origin = "The schoolmaster of Neame found the seedling in a quarry"
        parts = [plant.told(next(forms)), f"{origin}.", chatter.say(), chatter.say()]
        entries.append(f"{plant.name.upper()}. " + " ".join(parts))
    head = (
        "ORRIN AND TACE, CATALOGUE OF PLANTS, spring 88\n\nGrades tell how much cold a plant "
        "bears, from A (any) to D (none). Heights are those of the third year. Prices are for one "
        "plant."
    )
    return "\n\n".join([head, *entries]) + "\n"


def _nursery_supplement(
    rng: random.Random, plants: Sequence[Plant], new_names: Sequence[str]
) -> tuple[str, dict[str, Plant]]:
    sold = {plant.name: plant for plant in plants}
    says = []
    for at in (4, 25, 33, 38):
        name = plants[at].name
        sold[name] = sold[name].changed(price=plants[at].price + rng.choice((-3, 2, 5, 7)))
        says.append(f"{name} is now {sold[name].price} pence.")
    for at in (17, 22):
        says.append(f"{plants[at].name} is withdrawn; the frost had the whole bed.")
        del sold[plants[at].name]
    white = [p for p in plants if p.colour == "white" and p.name in sold]
    low, high = (next(p for p in white if (p.height <= LOW) == wanted) for wanted in (True, False))
    for plant, height in ((low, 125), (high, 85)):
        says.append(f"The height of {plant.name} was misprinted; it is {height} cm.")
        sold[plant.name] = plant.changed(height=height)
    says.append("Merrow's Lamp came through last winter badly and is moved to grade C.")
    sold["Merrow's Lamp"] = sold["Merrow's Lamp"].changed(grade="C")
    for name, colour, height in zip(
        new_names, ("white", "white", "blue"), (40, 110, 35), strict=True
    ):
        sold[name] = Plant(name, colour, height, "B", rng.randint(6, 20))
        says.append(f"New: {name}. " + sold[name].told(PLANT_FORMS[0]))
    rng.shuffle(says)
    head = (
        "SUPPLEMENT TO THE CATALOGUE, autumn 88\n\nWhat stands here holds where it differs from "
        "the catalogue of spring.\n\n"
    )
    return head + "\n".join(says) + "\n", sold


def _order_letters(
    rng: random.Random, order: Sequence[tuple[int, Plant]], plants: Sequence[Plant]
) -> str:
    def wants(lines: Sequence[tuple[int, Plant]]) -> str:
        return listed([f"{number} of {plant.name}" for number, plant in lines])

    others = [
        [(rng.randint(1, 6), plant) for plant in rng.sample(list(plants), 6)] for _ in range(4)
    ]
    return (
        "ORDER LETTERS, October 88\n\n"
        f"Dear Orrin and Tace, the bed by the pump is empty and I am tired of looking at it. Send "
        f"me {wants(others[0])}. If something is gone, leave it out and send no substitute.\n"
        "Mistress Philippa Dray\n\n"
        f"Sirs, I have walked through your catalogue with a pencil. Please pack {wants(order)}. "
        "What is no longer to be had, leave out. The carrier knows my gate by the broken hinge.\n"
        "Mistress Adela Quince\n\n"
        f"To the nursery. My sister Adela will have written to you already; send me the same "
        f"carrier but other plants: {wants(others[1])}. I shall pay when she does.\n"
        "Mistress Orla Quince\n\n"
        f"Dear friends, for the churchyard we would like {wants(others[2])}. The money was "
        "collected after the harvest supper and is all in coppers.\n"
        "Canon Ivo Stett\n\n"
        f"Good people, last year's box was a joy. This year {wants(others[3])}, and a label for "
        "each, for I forget.\n"
        "Doctor Amias Reeve\n"
    )


GROWERS_NOTES = """GROWER'S NOTES, kept by Tace in the potting shed, summer 88

First week of June. Merrow's Lamp looks poorly in the lower field. If it were mine alone to say I \
would call it D and sell it to people with glass. Orrin says B and will not hear of it.

Third week of June. The white ones sell first, whatever they are. A lady asked today for \
something white that is not white.

Second week of July. Took cuttings. The boy has labelled a whole tray Unknown, which is honest.

First week of August. Orrin has been through the lower field with me and says nothing now. We \
shall see what the supplement says.

Fourth week of August. Rain at last. The carrier brought back a box that nobody would pay for; \
everything in it was alive, which is more than can be said of the carrier's temper.
"""

COMPLAINTS = """LETTERS OF COMPLAINT, spring 89

1.
Dear Orrin and Tace, I write in sorrow. The six plants came on a Tuesday in good straw, and I set \
them out within the hour as your leaflet says, with water and a shade of sacking. On Friday the \
frost came, ten days after you had sent them, and took them all. I know that you cannot rule the \
weather. But need you have sent them in March?
Honor Pettifer

2.
Sirs, I have never been so disappointed in a firm. Your plants arrived in perfect order the day \
before we left for my brother's, and I gave them the best place in the house, on the sill above \
the stove, where my own geraniums were so happy. When we came back after the five weeks there was \
nothing left of yours but string. A healthy plant does not behave so. Kindly send others, \
stronger ones this time.
Lambert Ayscough

3.
To the nursery. The box was wet through, the labels were soup, and of the nine plants I could \
tell only that they had been nine. They smelt. I have asked the carrier, who says that it stood a \
week in the yard at Olding because your ink on the address had run. I should like my forty pence.
Barnaby Stile

4.
Dear people, three of the four are dead. I did all that one can do, I moved them out of the sun, \
I stirred wood ash into the bed, and I asked the Canon. When I lifted them I found the white \
grubs at the root, and the grubs were in the ball of your earth and nowhere else in my garden. I \
enclose two of them in a pill box.
Winifred Osk

5.
Gentlemen, you sent me the yellow where I had ordered the blue, and the yellow have died, and I \
am not sorry for them. They came with broken necks. I kept them in water for the night and \
planted them in the morning, more than they deserved. Pray send the blue.
Major Tobias Kellaway
"""


# --- Tarn Ossel: an expedition --------------------------------------------------------------------

LEADER_WEATHER = {
    "snow": (
        "Snow from first light.", "It snowed all afternoon.", "We woke under fresh snow.",
        "A thin snow fell most of the day.",
    ),
    "rain": ("Rain, and more of it.", "It rained until supper.", "Cold rain on the tents."),
    "clear": ("A clear day.", "Sun, and a hard blue sky.", "Clear and still."),
    "wind": ("Such wind that we shouted.", "Wind from the glacier all day.", "A gale at noon."),
}  # fmt: skip
MARCH_CHATTER = (
    "{who} has a {pain} and says nothing of it.",
    "The mules would not pass the {place} until {who} went first.",
    "We lost a {thing} at the {place} and {who} went back for it.",
    "{who} saw {beast} near the {place}.",
    "Mended the {thing} by the fire with {who} holding the candle.",
    "{who} talked of snow at home, and of the {thing} that was left there.",
    "Crossed below the {place}, each with a hand on the rope.",
    "{who} and I divided the last of the {food} at the {place}.",
    "No tracks but those of {beast}.",
    "The {thing} is damp and so are we; {who} laughs at it.",
    "{who} dreamt of {food} and told us too much about it.",
    "Stones came down by the {place}, none near us.",
    "The porters sang about {beast} until {who} joined in.",
    "From the {place} we looked back and could not see yesterday.",
    "I gave {who} my second {thing} against a promise of {food}.",
    "{who} thinks that the {place} is not on any map; I think so too.",
    "A {pain} kept me slow, and {who} carried my {thing}.",
    "At the {place} we found the ashes of a fire, and a {thing}, neither of them ours.",
)
MARCH_WORDS = {
    "who": ("Strake", "Marr", "Tolley", "Doctor Lind", "Fenwick", "the youngest porter",
            "the guide", "old Harl"),
    "pain": ("bad tooth", "blister", "cough", "stiff knee", "headache", "sore wrist"),
    "place": ("black moraine", "second ford", "birch ridge", "broken hut", "long scree",
              "hanging ice", "salt spring", "sheep walls", "red boulder", "frozen reeds"),
    "thing": ("kettle", "tent pole", "lantern", "strap", "glove", "notebook", "saw", "blanket",
              "water skin", "spirit lamp"),
    "beast": ("a grey fox", "two eagles", "a hare in winter coat", "wild goats", "an owl",
              "nothing larger than a vole"),
    "food": ("barley", "dried pears", "cheese", "tea", "mutton", "honey", "bread", "onions"),
}  # fmt: skip


def _march_chatter(rng: random.Random, writer: str) -> Chatter:
    """The chatter of one who does not speak of himself or herself by name."""
    others = tuple(name for name in MARCH_WORDS["who"] if name != writer)
    return Chatter(rng, MARCH_CHATTER, MARCH_WORDS | {"who": others})


@dataclass(frozen=True, slots=True)
class Day:
    date: str
    weather: str
    guessed: int
    measured: int
    height: int


def expedition(rng: random.Random) -> World:
    log = _march(rng)
    snow = sum(day.measured for day in log if day.weather == "snow")
    differ = sum(day.measured != day.guessed for day in log)
    rule = "For distances the surveyor's book holds, for the weather the leader's journal."
    return World(
        "tarn_ossel",
        "The files are papers of an expedition to Tarn Ossel, a lake that nobody had mapped.",
        {
            "orders_of_the_society.txt": ORDERS,
            "journal_of_the_leader.txt": _leader_journal(rng, log),
            "book_of_the_surveyor.txt": _surveyor_book(rng, log),
            "cooks_notes.txt": _cook_notes(rng, log),
            "letters_home.txt": LETTERS_HOME,
        },
        (
            Question(
                "How many kilometres did the expedition cover in all on the days for which the "
                "leader's journal reports snow, falling or fresh (talk of snow elsewhere does not "
                f"count)? {rule} Give the number.",
                str(snow), COMPUTER, "a join of two journals by date, then a sum",
            ),
            Question(
                "On how many days does the leader's journal give another distance than the "
                "surveyor's book? Give the number.",
                str(differ), COMPUTER, "two long files compared day by day",
            ),
            Question(
                "Who found the brass compass of the earlier expedition? Give the person's name, "
                "not a nickname.",
                "Odo Fenwick", NEUTRAL, "a nickname to be resolved in another file",
            ),
            Question(
                "One writer of the letters home lets the reader understand, without saying so, "
                "that he or she means to leave the expedition at the village of Hask. Who?",
                "Petra Lind", HOSTILE, "an intention between the lines",
            ),
            Question(
                "One writer of the letters home is jealous of the surveyor, though the letter "
                "speaks well of her. Who?",
                "Halvard Strake", HOSTILE, "a feeling between the lines",
            ),
        ),
    )  # fmt: skip


def _march(rng: random.Random) -> list[Day]:
    days = dates({"September": 30}, first=3) + dates({"October": 14})
    log, height = [], 640
    for day in days:
        rest = rng.random() < 0.1
        measured = 0 if rest else rng.randint(5, 19)
        guessed = measured if rest or rng.random() < 0.55 else measured + rng.choice((-2, -1, 1, 2))
        height += 0 if rest else rng.randint(-60, 110)
        weather = rng.choice(("snow", "snow", "rain", "clear", "clear", "wind"))
        log.append(Day(day, weather, guessed, measured, height))
    return log


def _leader_journal(rng: random.Random, log: Sequence[Day]) -> str:
    chatter = _march_chatter(rng, "Strake")
    forms = deal(
        rng,
        (
            "We made {km} kilometres by my reckoning.",
            "I put the march at {km} kilometres.",
            "A march of {km} kilometres, I should say.",
        ),
    )
    weather = {kind: deal(rng, says) for kind, says in LEADER_WEATHER.items()}
    entries = []
    for day in log:
        march = next(forms).format(km=day.guessed) if day.guessed else "We did not move today."
        parts = [next(weather[day.weather]), chatter.paragraph(2), march, chatter.paragraph(2)]
        if day.date == "27 September":
            parts.append(
                "The brass compass of poor Anselm's expedition has been found under the broken "
                "hut, by the one whom the porters call the Heron. The needle still swings."
            )
        entries.append(f"{day.date}. " + " ".join(parts))
    return "JOURNAL OF HALVARD STRAKE, leader\n\n" + "\n\n".join(entries) + "\n"


def _surveyor_book(rng: random.Random, log: Sequence[Day]) -> str:
    chatter = _march_chatter(rng, "Marr")
    forms = deal(
        rng,
        (
            "By chain and wheel {km} kilometres; the camp lies at {height} metres.",
            "Camp at {height} metres. The wheel gives {km} kilometres for the day.",
            "Measured {km} kilometres. Boiling point puts the camp at {height} metres.",
        ),
    )
    entries = []
    for day in log:
        figures = next(forms).format(km=day.measured, height=day.height)
        if not day.measured:
            figures = f"The wheel did not turn; we stay at {day.height} metres."
        more = chatter.paragraph(rng.randint(2, 3))
        entries.append(f"{day.date}. {figures} {more}")
    return "BOOK OF YSOLDE MARR, surveyor\n\n" + "\n\n".join(entries) + "\n"


def _cook_notes(rng: random.Random, log: Sequence[Day]) -> str:
    chatter = _march_chatter(rng, "Tolley")
    foods = deal(rng, MARCH_WORDS["food"])
    entries = []
    for day in log[::2]:
        parts = [f"{next(foods)} and {next(foods)} for all.".capitalize(), chatter.paragraph(2)]
        if day.date == "11 September":
            parts.append(
                "The porters have names for us. Marr is the Plumb Line, the Doctor is the Wren, "
                "I am the Ladle, and Fenwick, since he waded the ford on one leg, is the Heron. "
                "Strake does not know his, and I shall not write it down."
            )
        if day.weather == "snow":
            parts.append("Melted what lay on the tents, to spare the walk to the water.")
        entries.append(f"{day.date}. " + " ".join(parts))
    return "NOTES OF BRAM TOLLEY, cook\n\n" + "\n\n".join(entries) + "\n"


ORDERS = """ORDERS OF THE SOCIETY TO THE TARN OSSEL EXPEDITION

You are five: Halvard Strake to lead, Ysolde Marr to survey, Doctor Petra Lind for health and \
plants, Bram Tolley to cook, and Odo Fenwick to hire and command the porters.

Each keeps a book. Where your books differ, the surveyor's holds for distances and heights, and \
the leader's for the weather. The cook's holds for nothing but food, though the Society reads it \
with the greatest pleasure.

Look for traces of the expedition of Anselm, of which nothing has been heard for eleven years. \
Whoever finds such traces is to be named in the report.

You will come to the village of Hask in the middle of October. There the mail goes down, for the \
last time before the winter, and fresh mules can be had.
"""

LETTERS_HOME = """LETTERS HOME, given to the mail at Hask, 15 October

1. Halvard Strake to his sister
Dearest Runa, we are all well. You ask about Miss Marr. She is excellent, quite excellent; the \
Society's President says so in each of the three letters that he has written to her, and she was \
good enough to read them to us. No doubt there will be a ridge with her name on it. I led us over \
that ridge, in a gale, but one does not name ridges after people who merely go first. She has \
asked me to hold the other end of the chain tomorrow. I said that I should be delighted. Tell \
Father that the boots hold.

2. Ysolde Marr to the President
Sir, I enclose the figures to Hask. I owe them to the patience of my companions, who stop when I \
stop. I would ask you not to write to me alone; the letters are read aloud here, there being \
little else to read, and it is Mr Strake who brings us through. The tarn should be in sight in \
nine days.

3. Petra Lind to her landlady
Dear Mrs Ames, please air my room and have the stove swept by the second week of November, not in \
spring as we said. I have shown Tolley which bottle is for coughs and which for feet, and written \
him a list, and he has it by heart now. My good boots I have promised to the youngest porter, who \
has farther to go in them. The tarn is said to be very blue. I am glad that somebody will see it. \
Say nothing to the Society yet; I shall write to them myself when I am nearer to a door that I \
can close.

4. Bram Tolley to his mother
Dear Mum, I am thinner, but so is everybody. There is barley to the tarn and back if nobody is \
greedy, and I sleep on the sack. The Doctor has been teaching me her bottles, which is kind of \
her, and I have sewn bells onto the mules. Do not let Uncle have my bed. I shall want it at \
midsummer, when we are home, and not before.

5. Odo Fenwick to his wife
My dear, I have bad feet and a good temper, as always. Two porters wished to stop at Hask and I \
have talked them out of it; I told them what I tell you, that I have not come so far to look at a \
village. I found a thing that will please the Society. Miss Marr works like a mule and Mr Strake \
like a man who is watching one. Kiss the children and do not sell the boat.
"""


# --- Ellerwick: a council -------------------------------------------------------------------------

COUNCIL = ("Aldous Finch", "Beatrix Horne", "Cuthbert Rowe", "Dorcas Pym", "Emlyn Skerry",
           "Felix Garth", "Griselda Moon", "Hartley Vane", "Isolde Trask")  # fmt: skip
MEETINGS = ("10 January", "7 February", "7 March", "4 April", "2 May", "6 June", "4 July",
            "8 August")  # fmt: skip
PROJECTS = ("almshouse gutters", "new town bell", "drain in Tanner Lane", "school stoves",
            "ferry landing", "lime avenue", "fire buckets", "clock on the corn hall", "poor box",
            "footbridge at Hobb", "wash house", "hedge of the burial ground", "night watch",
            "town band", "fish stalls", "map of the parish", "goose fair", "mill weir",
            "library shelves", "road to Corran", "pound for stray cattle", "pump in Salt Street",
            "rat catcher", "lamps on the hill", "midwife's horse", "bowling green",
            "toll house roof", "reading room")  # fmt: skip
COUNCIL_CHATTER = (
    "{who} wished to know who had counted the {thing}.",
    "{who} recalled at length what {his} opinion of the {thing} had been.",
    "A member of the public called out something about the {thing} and was asked to leave.",
    "{who} held that the {thing} could wait, and {other} that there had been waiting enough.",
    "{other} read a letter about the {thing}, both sides.",
    "The clerk was asked to find out what {other} had promised about the {thing}.",
    "{who} thought the sum too small to do good and too large to be forgotten.",
    "{who} begged that the {thing} be kept apart from the matter in hand.",
    "There was laughter when {other} mentioned the {thing}.",
    "{other} said that {who} had said the same of the {thing} last year.",
    "A sample of the {thing} was handed round and came back smaller.",
    "{who} regretted the tone; {other} regretted the {thing}.",
    "The stove smoked, and {who} spoke from the window about the {thing}.",
    "{who} asked for figures and was given the {thing}.",
)
COUNCIL_WORDS = {
    "who": tuple(name.split()[1] for name in COUNCIL[:5]),
    "other": tuple(name.split()[1] for name in COUNCIL[5:]),
    "his": ("an uncle's", "a grandmother's", "the late mayor's"),
    "thing": ("gravel", "cobbles", "town seal", "sheep wash", "weights", "accounts of the fair",
              "hay carts", "churchyard wall", "candles", "mayor's chain", "well rope", "ducks",
              "toll board", "gate money", "stamps", "sacks", "old minutes", "drains"),
}  # fmt: skip
VOTES = (
    "In favour: {yes}. Against: {no}. {away}",
    "Against: {no}. In favour: {yes}. {away}",
    "{away} In favour: {yes}. Against: {no}.",
)


@dataclass(frozen=True, slots=True)
class Motion:
    meeting: str
    project: str
    crowns: int
    rescinds: bool
    yes: tuple[str, ...]
    no: tuple[str, ...]

    @property
    def carried(self) -> bool:
        return len(self.yes) > len(self.no)


def council(rng: random.Random) -> World:
    motions = _motions(rng)
    struck = {motion.project for motion in motions if motion.rescinds and motion.carried}
    granted = sum(
        motion.crowns
        for motion in motions
        if motion.carried and not motion.rescinds and motion.project not in struck
    )
    against = sum(motion.carried and "Dorcas Pym" in motion.no for motion in motions)
    minutes = _minutes(rng, motions)
    return World(
        "ellerwick",
        "The files are papers from the town of Ellerwick in the year 531.",
        {
            "minutes_january_to_april.txt": minutes(MEETINGS[:4]),
            "minutes_may_to_august.txt": minutes(MEETINGS[4:]),
            "ellerwick_gazette.txt": GAZETTE,
        },
        (
            Question(
                "How often did Dorcas Pym vote against a motion that was carried, in the eight "
                "meetings whose minutes are given? Count motions to rescind like any other. Give "
                "the number.",
                str(against), COMPUTER, "votes to be tallied by name and outcome",
            ),
            Question(
                "How many crowns did the council grant in all by motions carried in these eight "
                "meetings, leaving out every grant that was rescinded by a later motion that was "
                "carried? Give the number.",
                str(granted), COMPUTER, "a long sum with exceptions",
            ),
            Question(
                "On which day of the week is the market held in September 531, by what the council "
                "decided?",
                "Friday", NEUTRAL, "a chain of decisions and a rumour",
            ),
            Question(
                "Which councillor left the room before the lease of the quarry was talked about?",
                "Emlyn Skerry", NEUTRAL, "two files to be put together",
            ),
            Question(
                "The Gazette prints four speeches about the statue. One speaker asks the town to "
                "have the statue but means that it should not. Who?",
                "Hartley Vane", HOSTILE, "irony to be heard",
            ),
        ),
    )  # fmt: skip


def _motions(rng: random.Random) -> list[Motion]:
    projects = list(PROJECTS)
    rng.shuffle(projects)
    motions: list[Motion] = []
    for at, meeting in enumerate(MEETINGS):
        motions.extend(
            _vote(rng, meeting, project, rng.randint(12, 240), False, None)
            for project in projects[at * 3 : at * 3 + 3]
        )
        if at >= 5:
            earlier = [m for m in motions[: at * 3] if m.carried and not m.rescinds]
            known = {m.project for m in motions if m.rescinds}
            old = rng.choice([m for m in earlier if m.project not in known])
            wanted = at != 6
            motions.append(_vote(rng, meeting, old.project, old.crowns, True, wanted))
    return motions


def _vote(
    rng: random.Random, meeting: str, project: str, crowns: int, rescinds: bool, wanted: bool | None
) -> Motion:
    """A vote without a tie, somebody against, and with the wanted outcome if there is one."""
    while True:
        here = [name for name in COUNCIL if rng.random() > 0.12]
        leaning = rng.uniform(0.3, 0.8)
        yes = tuple(n for n in here if rng.random() < (0.35 if n == "Dorcas Pym" else leaning))
        no = tuple(name for name in here if name not in yes)
        motion = Motion(meeting, project, crowns, rescinds, yes, no)
        fits = wanted is None or motion.carried == wanted
        if len(yes) > 1 and no and len(yes) != len(no) and len(here) < len(COUNCIL) and fits:
            return motion


def _minutes(rng: random.Random, motions: Sequence[Motion]) -> Callable[[Sequence[str]], str]:
    chatter = Chatter(rng, COUNCIL_CHATTER, COUNCIL_WORDS)
    votes = deal(rng, VOTES)

    def told(motion: Motion) -> str:
        asks = f"that {motion.crowns} crowns be granted for the {motion.project}"
        if motion.rescinds:
            asks = f"that the grant of {motion.crowns} crowns for the {motion.project} be rescinded"
        away = [name for name in COUNCIL if name not in motion.yes + motion.no]
        vote = next(votes).format(
            yes=listed(motion.yes),
            no=listed(motion.no),
            away=f"Not in the room for the vote: {listed(away)}.",
        )
        outcome = "carried" if motion.carried else "lost"
        talk = chatter.paragraph(rng.randint(4, 7))
        mover, seconder = rng.sample(motion.yes, 2)
        return (
            f"{mover} moved, and {seconder} seconded, {asks}. {talk} {vote} The motion was "
            f"{outcome}."
        )

    def meeting(day: str) -> str:
        parts = [f"MEETING OF {day} 531", chatter.paragraph(6)]
        parts.extend(told(motion) for motion in motions if motion.meeting == day)
        parts.extend(REPORTS.get(day, ()))
        parts.append(chatter.paragraph(4))
        return "\n\n".join(parts)

    def tell(days: Sequence[str]) -> str:
        return "MINUTES OF THE COUNCIL OF ELLERWICK\n\n" + "\n\n".join(map(meeting, days)) + "\n"

    return tell


REPORTS = {
    "10 January": (
        "Without a vote it was put on record that the market is held on Wednesday, as it has been "
        "since the charter.",
    ),
    "7 February": (
        "It was agreed by all that from March on the market is held on Friday and no longer on "
        "Wednesday, the carriers having asked for it.",
    ),
    "4 April": (
        "The lease of the quarry was then taken. The member who is brother to the owner's wife "
        "left the room before the matter was opened. After a short talk the lease was renewed for "
        "seven years, no names being taken.",
    ),
    "6 June": (
        "It was agreed by all that, the old bridge being down, the market is held on Thursday "
        "until the new bridge is opened, and after that on Friday again.",
    ),
    "8 August": (
        "The surveyor of roads said that the new bridge was opened to carts and people on the "
        "first of the month, with a speech that he would not repeat.",
    ),
}

GAZETTE = """THE ELLERWICK GAZETTE, pages kept by a reader, 531

21 January. Weddings. At Hobb, in the snow, Mr Noll Barge to Miss Tamsin Skerry, of this town, \
with her brother to give her away and forty guests to eat what there was. Mr Barge's men had cut \
a path from the church door to the inn through snow as deep as a hat. At Ellerwick, Mr Peter \
Garth to Miss Anna Lowe.

11 March. For sale, a bay mare, quiet with everything but geese. Apply to the toll house.

29 March. Mr Barge, who owns the quarry, has given a stone for the school door and asks for \
nothing but that the children should wipe their feet on it. Mr Rowe, whose cousin keeps the other \
quarry, at Corran, says that his cousin's stone is greyer.

15 April. THE STATUE. It is proposed to set up a statue of the founder on his horse, in bronze, \
at the price of nine hundred crowns. We print what was said at the corn hall, where anybody may \
speak.

Miss Trask said: "I am for it. My grandfather spoke of the founder as if he had held his stirrup. \
A town that cannot say where it comes from is only a lot of houses. It is a great deal of money, \
and I should like to see it spread over six years; but I am for it, and have put down ten \
crowns."

Mr Garth said: "I am against it. Nine hundred crowns would drain Tanner Lane from end to end. I \
have nothing to say against the founder, who I am told was a sensible man, and would have drained \
it."

Mr Vane said: "By all means let us have him, and let us have him twice the size! The school has \
no roof on the north side, and I have long wondered where the children are to go when it rains: \
under the horse, of course. The almshouse is cold; but who could feel the cold, with such a back \
to look at? I ask only that he be made to face the river, so that he need not see the rest. I \
second the statue with all my heart, and trust that the town will take me at my word."

Mrs Moon said: "I do not care for horses, and bronze turns green. But the young people want it, \
and they will have to look at it longest. So put me down in favour. If there is a list for the \
plinth, I will give the cost of one corner."

20 May. It is said at the inn that the market will soon be held on Saturday. It is also said at \
the inn that the mayor has webbed feet.

3 August. The new bridge is open. Our reporter was the ninth person across, the eighth being a dog.

19 August. A reader asks us on what day the market is now held, as her cousin at Corran tells her \
Thursday and her carter tells her Saturday. We advise her to ask the council, who decided it.
"""


# --- Sallow House: a museum -----------------------------------------------------------------------

MAKERS = ("Ilse Corran", "Tobias Fane", "the Lowmoor workshop", "an unknown hand")
OBJECTS = ("pewter jug", "salt box", "painted drum", "clock", "prayer bench", "silver thimble",
           "bread mould", "globe", "wardrobe", "candle stand", "ship's bell", "lute",
           "hand mirror", "tapestry", "beehive", "chess board", "weather vane", "cradle",
           "spinning wheel", "birdcage", "lantern", "plough", "hourglass",
           "wine press")  # fmt: skip
HOUSES = ("the Weavers' Hall", "the school at Tarn", "Lady Osmund", "the town of Voll",
          "the Abbey", "a fair at Lowmoor")  # fmt: skip
REGISTER_FORMS = (
    "No. {no}, a {thing} by {maker}, dated about {year}, insured at {value} marks.",
    "No. {no} is a {thing}, about {year}, the work of {maker}; it is insured at {value} marks.",
    "No. {no}: {thing}. It was made by {maker} about {year} and is insured at {value} marks.",
)
REGISTER_CHATTER = (
    "It came from the {room} of {owner}.",
    "The {part} is a later repair.",
    "{owner} gave it with a poem, which is not shown.",
    "Bought from {owner} with the money of the door box.",
    "The {part} has been lost and found again in the {room}.",
    "Visitors touch the {part}, whatever the card says.",
    "It stands in the {room}, away from the window.",
)
REGISTER_WORDS = {
    "room": ("attic", "long gallery", "buttery", "music room", "cold pantry", "gun room", "hall"),
    "owner": ("the Misses Gray", "a retired bargeman", "the Dean", "old Mr Sallow",
              "the pawnbroker at Voll", "a lady who would not be named"),
    "part": ("lid", "foot", "left side", "handle", "hinge", "paint", "lower rim", "back"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Piece:
    no: int
    thing: str
    maker: str
    year: int
    value: int


def museum(rng: random.Random) -> World:
    makers = deal(rng, MAKERS)
    pieces = [
        Piece(101 + at, thing, next(makers), rng.randint(480, 660), rng.randint(5, 90) * 10)
        for at, thing in enumerate(OBJECTS)
    ]
    loans, out = _loan_book(rng, pieces)
    corran = [piece for piece in pieces if piece.maker == "Ilse Corran"]
    other = next(piece for piece in pieces if piece.maker == "Tobias Fane")
    values = {corran[1].no: 640, corran[-1].no: 95, other.no: 410}
    total = sum(values.get(piece.no, piece.value) for piece in corran)
    return World(
        "sallow_house",
        "The files are papers of Sallow House, a small museum.",
        {
            "register.txt": _register(rng, pieces),
            "loan_book.txt": loans,
            "conservator_reports.txt": _conservator(values),
            "letters_to_the_museum.txt": MUSEUM_LETTERS,
        },
        (
            Question(
                "How many objects were out on loan at the end of 1 June 714, by the loan book? "
                "Give the number.",
                str(out), COMPUTER, "comings and goings to be followed object by object",
            ),
            Question(
                "For how many marks in all are the objects made by Ilse Corran insured? Where a "
                "conservator's report gives another value than the register, the report holds. "
                "Give the number.",
                str(total), COMPUTER, "a join of two files, then a sum",
            ),
            Question(
                "About which year was the weather vane, No. 117, made? Where the register and the "
                "reports differ, the latest report holds. Give the year.",
                "548", NEUTRAL, "three dates and a rule",
            ),
            Question(
                "One letter writer gives something in memory of a child who has died, though the "
                "letter never says so. Who?",
                "Jessamy Holt", HOSTILE, "a loss between the lines",
            ),
            Question(
                "One letter, polite throughout, is meant as a threat. Whose?",
                "Rupert Lisle", HOSTILE, "a threat between the lines",
            ),
        ),
    )  # fmt: skip


def _register(rng: random.Random, pieces: Sequence[Piece]) -> str:
    chatter = Chatter(rng, REGISTER_CHATTER, REGISTER_WORDS)
    forms = deal(rng, REGISTER_FORMS)
    entries = [
        next(forms).format(**{name: getattr(piece, name) for name in Piece.__slots__})
        + f" {chatter.say()} {chatter.say()}"
        for piece in pieces
    ]
    return "REGISTER OF SALLOW HOUSE\n\n" + "\n\n".join(entries) + "\n"


def _loan_book(rng: random.Random, pieces: Sequence[Piece]) -> tuple[str, int]:
    """The book from January 713 to August 714, and how many pieces are out after 1 June 714."""
    year = dates({"January": 31, "February": 28, "March": 31, "April": 30, "May": 31, "June": 30,
                  "July": 31, "August": 31, "September": 30, "October": 31, "November": 30,
                  "December": 31})  # fmt: skip
    days = [f"{day} 713" for day in year] + [
        f"{day} 714" for day in year[: year.index("31 August")]
    ]
    closing = days.index("1 June 714")
    houses, forms = deal(rng, HOUSES), deal(rng, ("No. {no} left for {house}.",
                                                  "{house} has No. {no} on loan."))  # fmt: skip
    entries: list[tuple[int, str]] = []
    out = 0
    for piece in pieces:
        at, away, house = rng.randint(0, 200), False, ""
        while at < len(days):
            house = house if away else next(houses)
            form = "No. {no} is back from {house}." if away else next(forms)
            said = form.format(no=piece.no, house=house)
            entries.append((at, said[0].upper() + said[1:]))
            away = not away
            out += (1 if away else -1) if at <= closing else 0
            at += rng.randint(60, 230)
    for at in rng.sample(range(len(days)), 9):
        no, house = rng.choice(pieces).no, next(houses)
        entries.append((at, f"{house[0].upper()}{house[1:]} asked for No. {no} and was refused."))
    told = [f"{days[at]}. {said}" for at, said in sorted(entries, key=lambda entry: entry[0])]
    return "LOAN BOOK OF SALLOW HOUSE\n\n" + "\n".join(told) + "\n", out


def _conservator(values: Mapping[int, int]) -> str:
    first, second, third = (f"No. {no} is to be insured at {v} marks" for no, v in values.items())
    return f"""REPORTS OF THE CONSERVATOR

Report of autumn 712. The weather vane, No. 117, was taken down and cleaned. Under the gilding is \
a maker's stamp that was not used after 530; I date it about 525. The beehive needs nothing but \
to be left alone. {second}, since the worm is in it.

Report of spring 713. {first}, after what the last one of its kind fetched at Voll. The lute has \
been strung by somebody who meant well. I was asked about the weather vane again and had no time.

Report of autumn 713. I have to take back what I wrote of the weather vane. The stamp belongs to \
a nephew of the same name, and the iron is of the second forge; about 548 is right, and I shall \
not change my mind a third time. {third}.
"""


MUSEUM_LETTERS = """LETTERS TO SALLOW HOUSE, 714

1.
Dear Keeper, I send you the little sledge that you admired. It has been used for three winters \
only, so you will find the paint nearly new. We have no call for it now. My husband would rather \
that it were looked at than that it should stand in the passage, where one keeps walking round \
it. I have left the red mitten tied to the cord, if that is not against your rules. It was always \
tied there.
Jessamy Holt

2.
Dear Keeper, what a pleasure to see my grandfather's telescope in your gallery, and so well lit. I \
had forgotten that he only lent it. I see that the gallery is also where you keep the oil for the \
lamps. My lawyer, who is a nervous man, tells me that such houses burn so easily, and that those \
who have given things back beforehand always sleep better. I told him that you are a sensible \
person. I shall call on Friday with a cart, in the hope of finding everything as it was.
Rupert Lisle

3.
To the Keeper. I want my desk back. I have wanted it since spring and have said so in four \
letters, each ruder than the last, and this is the rudest. You are a magpie, sir, and your \
catalogue is full of mistakes. If you wish to keep the desk you may buy it. I should take eighty \
marks and be glad of the room.
Hector Dunmow

4.
Dear Keeper, my son has grown out of his toy ship and has asked me to bring it to you himself, \
but he is at sea until the spring, on a real one. He says that the mast was always crooked and \
that you are not to straighten it. I enclose two marks for the door box from him, out of his \
first pay.
Verity Lamb

5.
Dear Keeper, the thimble was my mother's. She was ninety-one and sewed until the Tuesday. I know \
that you have a thimble, but yours is silver and was never used. I should like people to see one \
that was. Put it low, if you can, where children look.
Constance Abery
"""


# --- the file -------------------------------------------------------------------------------------


def worlds() -> list[World]:
    makers = (harbour, nursery, expedition, council, museum)
    return [make(random.Random(SEED + at)) for at, make in enumerate(makers)]


def items() -> Iterator[dict[str, object]]:
    number = 0
    for world in worlds():
        for question in world.questions:
            number += 1
            yield {
                "id": f"mini-long_context-{number:02d}",
                "domain": "long_context",
                "problem_statement": f"{world.intro} {question.text}\n\n{FORMAT}",
                "ground_truth": question.answer,
                "input_files": dict(world.files),
                "qa_type": "open",
                "label": question.label,
                "label_reason": question.reason,
                "document_set": world.name,
            }


def main(target: Path) -> None:
    lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in items()]
    target.write_text("".join(lines), encoding="utf-8")
    print(f"{target}: {len(lines)} problems, {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET)
