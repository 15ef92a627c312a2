"""Training prompts of the kind word-problems: short stories with numbers, and the answers to them."""

from pipelines.own import stories_everyday, stories_quantities
from pipelines.own.templates import Maker, story_makers
from pipelines.own.words import FRUITS, GADGETS, GOODS, PEOPLE

WORDS = {
    "person": PEOPLE,
    "fruit": FRUITS,
    "goods": GOODS,
    "gadget": GADGETS,
    "bakes": (
        "bread rolls",
        "muffins",
        "scones",
        "croissants",
        "bagels",
        "cinnamon buns",
        "pretzels",
        "cookies",
    ),
    "sweets": ("toffees", "jelly beans", "chocolates", "caramels", "marshmallows", "liquorice sticks"),
    "collected": ("stamps", "seashells", "postcards", "marbles", "badges", "trading cards", "bottle caps"),
    "drinks": ("lemonades", "smoothies", "hot chocolates", "iced teas", "milkshakes"),
    "snacks": ("sandwiches", "pancakes", "salads", "pizza slices", "burritos"),
    "tool": ("drill", "garden hose", "toolbox", "paint sprayer", "hand saw", "ladder", "workbench"),
    "shop": ("bakery", "market stall", "corner shop", "school kitchen", "farm shop", "street cafe"),
    "chore": ("washing cars", "walking dogs", "mowing lawns", "babysitting", "delivering papers", "tutoring"),
    "beast": ("sheep", "goats", "cows", "horses", "pigs", "donkeys"),
    "fowl": ("chickens", "ducks", "geese", "turkeys"),
    "building": ("library", "museum shop", "school", "bookshop", "community centre"),
    "vehicle": ("bus", "tram", "ferry", "train"),
    "show": ("concert", "play", "magic show", "film night", "puppet show", "ballet"),
    "liquid": ("water", "orange juice", "olive oil", "milk", "cider"),
    "exercise": ("push-ups", "sit-ups", "squats", "lunges", "skipping jumps"),
}

REQUESTS = (
    "{story}\n\nThink step by step and keep it short.",
    "{story}\n\nReason step by step in a few lines, then state the answer.",
    '{story} Show the steps briefly and finish with "Answer:" and the number.',
    "{story}\nWork it out step by step.",
    "Solve this problem step by step.\n\n{story}",
    "{story} Write one short line per step, then the result.",
    "Here is a maths problem. Go through it one step at a time.\n\n{story}",
    "{story}\n\nExplain each step in one sentence before giving the final number.",
    "Question: {story}\n\nSolve it step by step.",
    "{story} Please show how you get there.",
)


STORIES = stories_everyday.STORIES + stories_quantities.STORIES
TEMPLATES = tuple(item.text for item in STORIES) + REQUESTS


def makers() -> list[Maker]:
    """Returns one maker a story."""
    return story_makers(STORIES, REQUESTS, WORDS)
