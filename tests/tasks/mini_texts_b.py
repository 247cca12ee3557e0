"""For each instruction task of `mini` a text that keeps every check, and one that just misses one.

They stand here and not in the package, where a model could find them.
"""

from __future__ import annotations

_FORECAST = (
    "Good morning from the harbour of Little Sorrel. A light wind from the west will freshen "
    "towards noon and push grey clouds over the northern cliffs. Expect short showers until four, "
    "then slow clearing and a pale sunset. Ferries sail on time, but the swimming steps stay "
    "closed. Tonight brings calm air, cool sand, clear stars and a thin moon."
)
_BRIDGE = (
    "Three low arches carry the road over brown water. Moss has softened every stone that masons "
    "once cut. Children drop sticks upstream and run across to look. Nobody living remembers when "
    "the last parapet fell down."
)
_BAKER = (
    "At dawn Marlow lights his old stack of coal and warms his hands. Flour falls, salt follows, "
    "and soon his dough is rising in a long row of bowls. Two loaf tins go in, four go out. By "
    "half past six a small crowd is waiting, and Marlow is smiling at his full racks."
)
_TEA = (
    "Take a big pot and fill it half full. Put it on the fire and wait. As it gets hot, put two "
    "or more tiny bags, or a cup of leaf, in the pot. Let it sit a bit so that the hue goes deep "
    "and dark. Add milk if you like it so, then pour and sip."
)
_MARKET = (
    "Bright awnings shade wet cobbles while gulls quarrel overhead. I pass heaps of turnips, "
    "baskets holding speckled eggs, cheeses wrapped in straw. An elderly fishmonger sings prices; "
    "somebody laughs. Cinnamon drifts from brown paper cones, mixing with leather, tar, roasting "
    "chestnuts. My pockets grow lighter, yet every corner offers another small wonder, until rain "
    "finally sends us home carrying plums."
)
_POEM = (
    "Low over the marsh it swings,\nAmber light upon the dark rushes,\nNobody calls, yet someone "
    "is walking,\nTrailing a coat through cold water.\nEvery frog falls silent at once,\nReeds bow "
    "down, then rise again,\nNight keeps the secret it holds."
)
_SHELF = (
    "The Ladlewright stirs, tastes and drains in one turn of the wrist: a beech handle, a folding "
    "steel bowl and a tiny bell that rings as soon as your porridge begins to catch. Easy to rinse "
    "by hand, too."
)
_NOON = (
    "At noon Hannah and Otto woke. Their mom and dad had left a note: the kayak was mended. A pup "
    "barked, Anna waved from the deck, and everybody ran to the water to see."
)
_RIVER = (
    "Slowly the cold river slips past a line of stone, hums under two bridges and turns beside "
    "the garden wall until it reaches the mill, where children wait; then it widens, forgets its "
    "name and becomes sea."
)
_RECIPE = (
    "# Soup of the Grey Lagoon\n\n1. Warm a little butter in a heavy pot.\n2. Stew the sliced "
    "moonroot until soft.\n3. Pour in broth and a cup of mist.\n4. Add pepper and stir towards the "
    "left.\n5. Simmer until the bubbles whisper.\n6. Serve in wide bowls with bread."
)
_NOTICE = (
    "Dear readers, the library is CLOSED on Monday while the shelves are washed.\n\nBooks that "
    "are due may be put into the box beside the door.\n\nPlease do NOT feed the cat. She has "
    "been fed."
)
_TRAIN = (
    "The night train left without a whistle, and silence came aboard with us. It sat between the "
    "seats like a passenger. Past the last signal box the silence thickened, until a child asked "
    "why; then even the answer was silence, and the lamps of farms went by."
)
_RIDDLES = (
    "I have hands but never clap. What am I?\n***\nI run all day and stay in my bed. What am I?\n"
    "***\nThe more you take of me, the more you leave behind. What am I?\n***\nI have teeth and "
    "cannot bite. What am I?"
)
_SHANTY = (
    "Oh, the morning tide is turning!\nAnd the lamps ashore are burning!\nHaul away for Mary's "
    "garden!\nHaul away and beg no pardon!\nHome we go with nothing earning!"
)
_KITE = (
    "oh, what a flyer it was. the storm only took it because it flew better than anything else up "
    "there. come by on sunday, i have paper, glue and far too much string. we will build one that "
    "storms are afraid of."
)
_LETTER = (
    "Dear Captain,\n\nthe kettle in the galley has now lost its lid, its handle and its temper. I "
    "would be most grateful for a new one before the soup learns to swim.\n\nYours, the cook"
)
_KITCHEN = (
    "There was always a pot on the stove and a radio that talked to itself. She cut bread against "
    "her chest and the crumbs fell on the cat. I could draw the pattern of the tiles today. I "
    "walked down that street last week and there was only sky where the window used to be."
)

TEXTS: dict[str, tuple[str, str]] = {
    "mini-instruct_follow-01": (_FORECAST, _FORECAST.replace("thin moon", "moon")),
    "mini-instruct_follow-02": (_BRIDGE, _BRIDGE.replace("fell down", "fell")),
    "mini-instruct_follow-03": (_BAKER, _BAKER.replace("crowd", "line")),
    "mini-instruct_follow-04": (
        "A brave captain dreams each foggy morning, oddly quiet, rowing towards Valhalla.",
        "A brave captain dreams each foggy morning, quiet, oddly rowing towards Valhalla.",
    ),
    "mini-instruct_follow-05": (_TEA, _TEA.replace("a cup of leaf", "a cup of loose leaf")),
    "mini-instruct_follow-06": (_MARKET, _MARKET.replace("drifts from", "drifts past from my")),
    "mini-instruct_follow-07": (_POEM, _POEM.replace("it holds", "it once held")),
    "mini-instruct_follow-08": (_SHELF, _SHELF.removesuffix(".")),
    "mini-instruct_follow-09": (
        _NOON,
        _NOON.replace("kayak", "canoe").replace("Anna", "Ann").replace("pup", "dog"),
    ),
    "mini-instruct_follow-10": (_RIVER, _RIVER.removesuffix("sea.") + "the sea, at last."),
    "mini-instruct_follow-11": (
        '{"name": "Gannet Light", "built": 1871, "height_m": 34, "keeper": "Orla Venn"}',
        '{"name": "Gannet Light", "built": 1871, "height": 34, "keeper": "Orla Venn"}',
    ),
    "mini-instruct_follow-12": (
        '["loupe", "magnet", "oil", "brass pins", "a spare spring", "tweezers", "a candle"]',
        '["loupe", "magnet", "oil", "brass pins", "a spare spring", "tweezers"]',
    ),
    "mini-instruct_follow-13": (
        "- Turn the entrances away from the west.\n- Weigh the lids down with stones.\n- Plant a "
        "thick hedge.\n- Keep the hives low.\n- Feed early after a stormy week.",
        "- Turn the entrances away from the west.\n- Weigh the lids down with 2 stones.\n- Plant a "
        "thick hedge.\n- Keep the hives low.\n- Feed early after a stormy week.",
    ),
    "mini-instruct_follow-14": (_RECIPE, _RECIPE.replace("a cup", "2 cups")),
    "mini-instruct_follow-15": (_NOTICE, _NOTICE.replace("NOT", "not")),
    "mini-instruct_follow-16": (_TRAIN, _TRAIN.replace("the silence", "it")),
    "mini-instruct_follow-17": (_RIDDLES, _RIDDLES + "\n***\n"),
    "mini-instruct_follow-18": (_SHANTY, _SHANTY.replace("earning!", "earning.")),
    "mini-instruct_follow-19": (_KITE, _KITE.replace(" i have", " I have")),
    "mini-instruct_follow-20": ("The theatre", "The theatre, of course."),
    "mini-instruct_follow-21": (
        '"The net that waits feeds the village; the hand that snatches smells of fish."',
        "“The net that waits feeds the village; the hand that snatches smells of fish.”",
    ),
    "mini-instruct_follow-22": (_LETTER, _LETTER + "."),
    "mini-instruct_follow-23": (_KITCHEN, _KITCHEN.replace("today. I", "today, and I")),
    "mini-instruct_follow-24": (
        "Merry Molly's moonlit muffins make many mice merry.",
        "Merry Molly's moonlit muffins make all many mice merry.",
    ),
    "mini-instruct_follow-25": (
        "The Daughters Who Stopped The Pendulum",
        "The Daughters Who Stopped the Pendulum",
    ),
}
