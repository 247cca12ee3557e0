"""Short common words for errands, in a part for training and a part that training never shows.

Common words, because small tokenizers cut them into one or two tokens. No word is part of another,
so that a search for one finds no other.
"""

from __future__ import annotations

from random import Random

_TEXT = """
abbey album alder alley amber anchor angel anvil apple apron arch armor arrow aspen atlas attic
autumn axle bacon badge bagel balcony bamboo banana banjo barley barrel basil basin basket beach
beacon bean beaver beetle bell bench berry birch bishop blanket blossom boat bonnet bottle boulder
bread breeze bronze brook brush bucket butter button cabin cable cactus camel candle canoe canvas
canyon carbon carpet carrot castle cedar cello cement chain chalk cheese cherry chess chimney
circle citron clay cliff clock cloud clover cobalt coffee collar comet copper coral corn cottage
cotton coyote crab cradle crane crate cream creek cricket crown crystal curtain cypress dagger
daisy dancer desert diamond dolphin dome donkey dragon drum dune eagle echo elbow ember engine
envelope fabric falcon feather fence fern ferry fiddle fig finch fiord flame flint flute forest
fossil fountain fox frost garden garlic gecko ginger glacier glass globe glove goblin goose gorge
granite grape gravel guitar hammer harbor harp hazel hedge helmet heron hinge hollow honey horse
hunter icicle igloo indigo inlet iris iron island ivory jacket jade jasmine jelly jewel jungle
juniper kayak kettle kitten kiwi knight ladder lagoon lake lamb lantern latch laurel lemon lime
linen lion lizard lobster locket lotus magnet magpie mango mantle maple marble mast meadow melon
meteor mill mint mirror monkey moss moth motor mountain muffin mule mustard nectar needle nest
nickel noodle nut oak oasis ocean olive onion opal orange orbit orchid otter oven owl oyster
paddle palace panda paper parcel parrot parsley pasture peach pearl pebble pelican pencil penguin
pepper piano pigeon pillow pine pirate planet plough plum pocket pony poppy porch prairie prism
puzzle quail quartz quilt quiver rabbit radish ranch raven reef ribbon rice ridge river robin
rocket rope rose ruby saddle saffron sail salmon sand sapphire scarf seal shadow shell shovel
sickle silver skunk sleet slipper snail sock soup spark spider sponge spoon spruce squash squirrel
statue stone stork storm straw sugar summer sunset swamp swan syrup table temple tent thistle
thunder tiger timber toad tomato topaz torch tower tractor trail trout trumpet tulip tundra tunnel
turtle umbrella vanilla vase vault velvet vessel vine violet violin wagon walrus water whale wheat
wheel whistle willow window winter wolf wood wren yacht yam zebra zinc zipper
"""

_COMMON = tuple(_TEXT.split())

_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "st", "tr")
_VOWELS = "aeiou"
_CODAS = ("l", "m", "n", "r", "s", "t", "k", "x")

_EVERY = 3  # each third word is unseen in training
TRAIN_WORDS = tuple(word for at, word in enumerate(_COMMON) if at % _EVERY)
UNSEEN_WORDS = tuple(_COMMON[::_EVERY])
WORDS = {"train": TRAIN_WORDS, "unseen": UNSEEN_WORDS}


def invented(rng: Random) -> str:
    """A word of two syllables that stands in no list."""
    while True:
        parts = (rng.choice(_ONSETS), rng.choice(_VOWELS), rng.choice(_ONSETS[:14]))
        word = "".join(parts) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        if word not in _COMMON:
            return word
