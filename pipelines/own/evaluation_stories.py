"""The word problems of the evaluation prompts, with answers computed from their numbers."""

from pipelines.own.templates import Person, story

PEOPLE = (
    Person("Ruth", "she", "her", "her"),
    Person("Wendell", "he", "him", "his"),
    Person("Imogen", "she", "her", "her"),
    Person("Darnell", "he", "him", "his"),
    Person("Saoirse", "she", "her", "her"),
    Person("Kenji", "he", "him", "his"),
    Person("Abena", "she", "her", "her"),
    Person("Luca", "he", "him", "his"),
    Person("Zofia", "she", "her", "her"),
    Person("Tariq", "he", "him", "his"),
)

STORIES = (
    story(
        "A ferry makes {a} crossings a day with room for {b} cars on each. On {c} of the crossings today "
        "it was "
        "only half full, on all others it was full. How many cars did it carry?",
        lambda a, b, c: (a - c) * b + c * b / 2 if c < a else 0,
        a=range(6, 13),
        b=range(24, 61, 2),
        c=range(2, 6),
    ),
    story(
        "{person} knits {a} rows an evening. A scarf has {b} rows. How many evenings does {person.he} need "
        "for {c} "
        "scarves?",
        lambda a, b, c: b * c / a,
        a=range(12, 31),
        b=range(120, 361, 10),
        c=range(2, 6),
    ),
    story(
        "In a sack there are {a} potatoes. The cook peels {b} of them for soup and then uses a quarter of "
        "the others "
        "for a salad. How many potatoes stay in the sack?",
        lambda a, b: (a - b) * 3 / 4,
        a=range(40, 161),
        b=range(8, 33),
    ),
    story(
        "An orchestra has {a} string players, half as many wind players and {b} drummers. Each of them "
        "gets {c} "
        "free tickets for friends. How many free tickets are there?",
        lambda a, b, c: (a + a / 2 + b) * c,
        a=range(16, 41, 2),
        b=range(2, 6),
        c=range(2, 5),
    ),
    story(
        "{person} prints a booklet of {a} pages. The printer manages {b} pages a minute. How many minutes "
        "does it "
        "take to print {c} copies?",
        lambda a, b, c: a * c / b,
        a=range(16, 49, 4),
        b=range(8, 25, 4),
        c=range(5, 31),
    ),
    story(
        "A swimming pool charges ${a} for a single visit, and a card for ten visits costs ${b}. How many "
        "dollars "
        "does {person} save with the card by coming ten times?",
        lambda a, b: 10 * a - b,
        a=range(5, 10),
        b=range(36, 80),
    ),
    story(
        "Two snails crawl along a wall in the same direction. One covers {a} centimetres an hour, the "
        "other {b}. They "
        "start together. How far apart are they after {c} hours?",
        lambda a, b, c: (a - b) * c,
        a=range(50, 91),
        b=range(25, 50),
        c=range(3, 9),
    ),
    story(
        "A honey producer fills {a} litres of honey into jars. Jars hold {b} millilitres. How many jars are filled?",
        lambda a, b: a * 1000 / b,
        a=range(12, 61),
        b=(200, 250, 400, 500, 750),
    ),
    story(
        "For a mosaic {person} needs {a} blue stones, and for every {b} blue stones {c} white ones. How "
        "many stones "
        "does the mosaic have in all?",
        lambda a, b, c: a + a / b * c if a % b == 0 and b != c else 0,
        a=range(60, 301, 10),
        b=range(3, 7),
        c=range(2, 6),
    ),
    story(
        "A hotel has {a} floors with {b} double rooms each and {c} single rooms in the attic. Every bed is "
        "taken. How "
        "many guests are staying at the hotel?",
        lambda a, b, c: 2 * a * b + c,
        a=range(3, 9),
        b=range(8, 21),
        c=range(4, 16),
    ),
    story(
        "{person} borrows ${a} from {person2} and pays back ${b} every week. How much does {person.he} "
        "still owe after "
        "{c} weeks?",
        lambda a, b, c: a - b * c,
        a=range(150, 501, 10),
        b=range(12, 31),
        c=range(4, 11),
    ),
    story(
        "A cheese of {a} grams loses {b} percent of its weight while it ripens. It is then cut into {c} "
        "equal "
        "portions. How many grams does one portion weigh?",
        lambda a, b, c: a * (100 - b) / 100 / c,
        a=range(1000, 5001, 200),
        b=range(10, 31, 5),
        c=range(4, 17),
    ),
    story(
        "At a chess tournament every one of {a} players plays once against each of the others. How many "
        "games are "
        "played?",
        lambda a: a * (a - 1) / 2,
        a=range(6, 25),
    ),
    story(
        "A ticket machine contains {a} two-dollar coins and three times as many one-dollar coins. How many "
        "dollars are "
        "in the machine?",
        lambda a: 5 * a,
        a=range(35, 160),
    ),
    story(
        "{person} walks {a} dogs every morning and {b} every evening, seven days a week, and gets ${c} for "
        "each walk. "
        "What does {person.he} earn in a week?",
        lambda a, b, c: 7 * (a + b) * c,
        a=range(2, 7),
        b=range(2, 6),
        c=range(4, 12),
    ),
    story(
        "The sum of two numbers is {a}. One of them is {b} times as large as the other. What is the smaller number?",
        lambda a, b: a / (b + 1),
        a=range(36, 200),
        b=range(2, 8),
    ),
    story(
        "A clock is {a} minutes slow at noon and loses another {b} minutes each day. After how many days "
        "is it a full "
        "hour slow?",
        lambda a, b: (60 - a) / b,
        a=range(4, 25),
        b=range(2, 8),
    ),
    story(
        "{person} plants {a} rows of {b} lettuces. Slugs eat every fifth plant. How many lettuces can be harvested?",
        lambda a, b: a * b * 4 / 5,
        a=range(4, 13),
        b=range(10, 31, 5),
    ),
    story(
        "A photo is {a} centimetres wide and {b} centimetres high. {person} enlarges it so that it becomes "
        "{c} "
        "centimetres wide. How high is it then?",
        lambda a, b, c: b * c / a if c > a else 0,
        a=range(8, 21),
        b=range(6, 16),
        c=range(24, 91),
    ),
    story(
        "There are {a} chairs in the hall. After {person} carries in {b} stacks of {c} chairs, {d} guests "
        "sit down. How "
        "many chairs are free?",
        lambda a, b, c, d: a + b * c - d,
        a=range(25, 61),
        b=range(3, 8),
        c=range(6, 11),
        d=range(50, 91),
    ),
)
STORY_REQUESTS = (
    "{story}\n\nSolve it in clear, short steps.",
    "{story}\n\nFirst explain your reasoning, then write the answer on the last line.",
    "Can you help me with this? {story} I would like to see the calculation.",
    "{story}\nLet us go slowly: what is known, what follows, what is the answer?",
)
