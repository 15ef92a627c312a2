"""Training stories about shops, farms, schools and journeys, with answers computed from their numbers."""

from pipelines.own.templates import story

STORIES = (
    story(
        "{person} packs {a} crates with {b} {fruit} in each. Later {c} of the {fruit} turn out to be "
        "bruised and "
        "are thrown away. How many good {fruit} are left?",
        lambda a, b, c: a * b - c,
        a=range(4, 16),
        b=range(12, 41),
        c=range(5, 40),
    ),
    story(
        "A {shop} bakes {a} trays of {bakes} every morning, with {b} on each tray. By noon {c} of them "
        "have been "
        "sold. How many {bakes} are still on the shelf?",
        lambda a, b, c: a * b - c,
        a=range(5, 15),
        b=range(8, 25),
        c=range(20, 110),
    ),
    story(
        "{person} reads {a} pages on every weekday and {b} pages on each day of the weekend. How many "
        "pages does "
        "{person.he} read in {c} weeks?",
        lambda a, b, c: c * (5 * a + 2 * b),
        a=range(8, 30),
        b=range(20, 60),
        c=range(2, 7),
    ),
    story(
        "A {vehicle} leaves with {a} passengers. At the first stop {b} get off and {c} get on. At the "
        "second stop "
        "{d} get off and nobody gets on. How many passengers are on the {vehicle} now?",
        lambda a, b, c, d: a - b + c - d,
        a=range(30, 90),
        b=range(5, 25),
        c=range(4, 30),
        d=range(3, 25),
    ),
    story(
        "{person} is {a} years old and {person2} is {b} times as old. How old will {person2} be in {c} years?",
        lambda a, b, c: a * b + c,
        a=range(5, 15),
        b=range(2, 5),
        c=range(2, 12),
    ),
    story(
        "A {tool} normally costs ${a}. During a sale everything is {b}% off. How many dollars does "
        "{person} pay "
        "for {c} of them?",
        lambda a, b, c: a * c * (100 - b) / 100,
        a=range(20, 160, 5),
        b=range(10, 60, 10),
        c=range(2, 6),
    ),
    story(
        "{person} earns ${a} an hour and works {b} hours a day on {c} days of the week. The rent is ${d} a "
        "week. "
        "How much money is left each week after the rent is paid?",
        lambda a, b, c, d: a * b * c - d,
        a=range(12, 31),
        b=range(4, 9),
        c=range(3, 6),
        d=range(90, 220, 10),
    ),
    story(
        "A rectangular garden is {a} metres long and {b} metres wide. Fencing costs ${c} per metre. How many "
        "dollars does it cost to put a fence all the way around?",
        lambda a, b, c: 2 * (a + b) * c if a > b else 0,
        a=range(8, 40),
        b=range(5, 25),
        c=range(3, 16),
    ),
    story(
        "A van uses {a} litres of fuel for every 100 kilometres. How many litres does it need for a trip "
        "of {b} "
        "kilometres and back?",
        lambda a, b: 2 * a * b / 100,
        a=range(5, 13),
        b=range(50, 500, 50),
    ),
    story(
        "{person} cycles at {a} kilometres per hour for {b} hours, takes a break, and then cycles at {c} "
        "kilometres "
        "per hour for {d} hours. How far does {person.he} cycle altogether?",
        lambda a, b, c, d: a * b + c * d if a != c else 0,
        a=range(12, 25),
        b=range(2, 5),
        c=range(10, 22),
        d=range(1, 4),
    ),
    story(
        "{person} saves ${a} every month for {gadget} that costs ${b}. {person} already has ${c}. How many "
        "months will it take until there is enough money?",
        lambda a, b, c: (b - c) / a if b > c else 0,
        a=range(15, 60, 5),
        b=range(150, 600, 10),
        c=range(20, 140, 10),
    ),
    story(
        "A school hires {a} buses with {b} seats each for a trip. There are {c} pupils and {d} teachers. "
        "How many "
        "seats stay empty?",
        lambda a, b, c, d: a * b - c - d,
        a=range(2, 7),
        b=range(30, 56),
        c=range(60, 240),
        d=range(5, 16),
    ),
    story(
        "On a farm there are {a} {beast} and {b} {fowl}. How many legs do the animals have altogether?",
        lambda a, b: 4 * a + 2 * b,
        a=range(6, 40),
        b=range(8, 60),
    ),
    story(
        "A tap fills a tank with {a} litres of water per minute, but {b} litres per minute run out through "
        "a leak. "
        "The tank is empty at the start. After how many minutes does it hold {c} litres?",
        lambda a, b, c: c / (a - b) if a > b else 0,
        a=range(8, 25),
        b=range(2, 7),
        c=range(60, 400, 10),
    ),
    story(
        "{person} shares {a} {sweets} equally among {b} friends and keeps whatever cannot be shared. How "
        "many "
        "{sweets} does {person} keep?",
        lambda a, b: a % b,
        a=range(50, 200),
        b=range(6, 14),
    ),
    story(
        "A painter mixes red and blue paint in the ratio {a} to {b}. The mixture is {c} litres in total. "
        "How many "
        "litres of red paint does it contain?",
        lambda a, b, c: a * c / (a + b) if a != b else 0,
        a=range(1, 8),
        b=range(1, 8),
        c=range(10, 90),
    ),
    story(
        "In three tests {person} scored {a}, {b} and {c} points. What is {person.his} average score?",
        lambda a, b, c: (a + b + c) / 3,
        a=range(55, 100),
        b=range(50, 100),
        c=range(60, 100),
    ),
    story(
        "{person} wants an average of {a} points over four quizzes. The first three scores were {b}, {c} "
        "and {d}. "
        "How many points are needed in the fourth quiz?",
        lambda a, b, c, d: 4 * a - b - c - d if 4 * a - b - c - d <= 100 else 0,
        a=range(70, 92),
        b=range(60, 100),
        c=range(60, 100),
        d=range(60, 100),
    ),
    story(
        "{person} has {a} {collected}. One day {person.he} gives one third of them to {person2}, and then "
        "{person.he} finds {b} more. How many {collected} does {person} have now?",
        lambda a, b: 2 * a / 3 + b,
        a=range(30, 150),
        b=range(5, 40),
    ),
    story(
        "On the first day of a fair {person} sold {a} {goods}. On the second day {person.he} sold twice as "
        "many, and "
        "on the third day {b} fewer than on the second. How many {goods} were sold in total?",
        lambda a, b: 5 * a - b if b < 2 * a else 0,
        a=range(12, 60),
        b=range(5, 30),
    ),
    story(
        "A village had {a} inhabitants. Its population grew by {b} percent, and afterwards {c} people "
        "moved away. "
        "How many people live there now?",
        lambda a, b, c: a * (100 + b) / 100 - c,
        a=range(400, 3000, 50),
        b=range(5, 45, 5),
        c=range(15, 120),
    ),
    story(
        "{person} starts {person.his} homework at 4 o'clock. Maths takes {a} minutes, English takes {b} "
        "minutes, and "
        "there is a break of {c} minutes in between. How many minutes after 4 o'clock is everything done?",
        lambda a, b, c: a + b + c,
        a=range(20, 55),
        b=range(15, 50),
        c=range(5, 21),
    ),
    story(
        "A pack of three {goods} costs ${a}. At the same price per piece, how many dollars do {b} {goods} cost?",
        lambda a, b: a * b / 3,
        a=range(6, 46, 3),
        b=range(4, 20),
    ),
    story(
        "{a} workers need {b} days to build a wall. How many days would {c} workers need if everybody "
        "works at the "
        "same speed?",
        lambda a, b, c: a * b / c if a != c else 0,
        a=range(3, 13),
        b=range(4, 21),
        c=range(2, 16),
    ),
    story(
        "A theatre has {a} rows with {b} seats in each row. For a {show} all but {c} seats were sold, at "
        "${d} per "
        "ticket. How much money did the tickets bring in?",
        lambda a, b, c, d: (a * b - c) * d,
        a=range(8, 21),
        b=range(10, 26),
        c=range(6, 60),
        d=range(5, 26),
    ),
    story(
        "{person} finds {a} quarters, {b} dimes and {c} nickels in a jar. How many cents is that?",
        lambda a, b, c: 25 * a + 10 * b + 5 * c,
        a=range(3, 25),
        b=range(4, 30),
        c=range(2, 30),
    ),
)
