"""Training stories about rates, shapes, money and mixtures, with answers computed from their numbers."""

from pipelines.own.templates import story

STORIES = (
    story(
        "A recipe for {a} people needs {b} grams of flour. How many grams of flour are needed for {c} people?",
        lambda a, b, c: b * c / a if a != c else 0,
        a=range(2, 9),
        b=range(120, 640, 20),
        c=range(3, 25),
    ),
    story(
        "A phone plan costs ${a} a month plus {b} cents for every message. Last month {person} sent {c} "
        "messages. "
        "How many dollars was the bill?",
        lambda a, b, c: a + b * c / 100,
        a=range(9, 36),
        b=range(2, 16),
        c=range(50, 450, 10),
    ),
    story(
        "{person} and {person2} have {a} {collected} together. {person} has {b} more than {person2}. How "
        "many "
        "{collected} does {person2} have?",
        lambda a, b: (a - b) / 2,
        a=range(30, 140),
        b=range(4, 28),
    ),
    story(
        "Each of {a} hens lays {b} eggs a week. The eggs are sold by the dozen for ${c}. How many dollars "
        "does the "
        "farmer earn in a week?",
        lambda a, b, c: a * b / 12 * c if a * b % 12 == 0 else 0,
        a=range(8, 61),
        b=range(3, 8),
        c=range(3, 9),
    ),
    story(
        "{person} lives on the floor reached by {a} flights of stairs with {b} steps each. Every day "
        "{person.he} goes all the way down and up again {c} times. How many steps is that per day?",
        lambda a, b, c: 2 * a * b * c,
        a=range(2, 8),
        b=range(9, 19),
        c=range(2, 6),
    ),
    story(
        "The perimeter of a square playground is {a} metres. What is its area in square metres?",
        lambda a: (a / 4) ** 2,
        a=range(24, 240, 4),
    ),
    story(
        "A {building} owns {a} bookcases. Every bookcase has {b} shelves with {c} books each. At the "
        "moment {d} books "
        "are lent out. How many books are on the shelves?",
        lambda a, b, c, d: a * b * c - d,
        a=range(4, 16),
        b=range(4, 8),
        c=range(15, 36),
        d=range(25, 190),
    ),
    story(
        "{person} buys {a} {goods} for ${b} each and sells all of them for ${c} each. How big is the profit?",
        lambda a, b, c: a * (c - b),
        a=range(8, 60),
        b=range(3, 15),
        c=range(6, 30),
    ),
    story(
        "A lift can carry {a} kilograms. It is loaded with {b} boxes of {c} kilograms each and one person "
        "who weighs "
        "{d} kilograms. How many more kilograms can it carry?",
        lambda a, b, c, d: a - b * c - d,
        a=range(400, 1000, 50),
        b=range(4, 15),
        c=range(12, 36),
        d=range(55, 96),
    ),
    story(
        "A coach covers {a} kilometres in {b} hours. At the same speed, how many kilometres does it cover "
        "in {c} "
        "hours?",
        lambda a, b, c: a / b * c if b != c and a % b == 0 else 0,
        a=range(120, 400, 10),
        b=range(2, 6),
        c=range(3, 10),
    ),
    story(
        "{person} does {a} {exercise} on the first day and {b} more on each day than on the day before. "
        "How many "
        "{exercise} does {person.he} do on day {c}?",
        lambda a, b, c: a + (c - 1) * b,
        a=range(5, 25),
        b=range(2, 8),
        c=range(6, 15),
    ),
    story(
        "{person} puts {a} coins into a money box on Monday and {b} coins more each following day than the "
        "day "
        "before. How many coins are in the box after Friday, if it was empty at first?",
        lambda a, b: 5 * a + 10 * b,
        a=range(3, 20),
        b=range(1, 7),
    ),
    story(
        "A rope of {a} metres is cut into pieces of {b} metres. How many cuts are needed?",
        lambda a, b: a / b - 1,
        a=range(18, 140),
        b=range(2, 9),
    ),
    story(
        "The floor of a room is {a} metres long and {b} metres wide. It is covered with square tiles whose "
        "sides "
        "measure half a metre. How many tiles are needed?",
        lambda a, b: 4 * a * b if a >= b else 0,
        a=range(3, 13),
        b=range(2, 10),
    ),
    story(
        "A candle is {a} centimetres tall and gets {b} millimetres shorter every hour. How many "
        "millimetres tall is "
        "it after burning for {c} hours?",
        lambda a, b, c: 10 * a - b * c,
        a=range(12, 31),
        b=range(8, 22),
        c=range(2, 8),
    ),
    story(
        "Tickets for the {show} cost ${a} for adults and ${b} for children. A group of {c} adults and {d} "
        "children "
        "pays with a $200 note. How much change do they get?",
        lambda a, b, c, d: 200 - a * c - b * d if b < a else 0,
        a=range(9, 22),
        b=range(4, 12),
        c=range(2, 7),
        d=range(3, 9),
    ),
    story(
        "Trees are planted along one side of a road of {a} metres, one every {b} metres, including both "
        "ends. How "
        "many trees are planted?",
        lambda a, b: a / b + 1,
        a=range(60, 500, 10),
        b=range(4, 16),
    ),
    story(
        "Two friends live {a} kilometres apart and cycle towards each other at {b} and {c} kilometres per "
        "hour, "
        "starting at the same time. After how many hours do they meet?",
        lambda a, b, c: a / (b + c),
        a=range(40, 180),
        b=range(10, 22),
        c=range(10, 22),
    ),
    story(
        "The battery of {person}'s phone is at {a} percent and loses {b} percent every hour. After how "
        "many hours is "
        "it down to {c} percent?",
        lambda a, b, c: (a - c) / b,
        a=range(60, 101),
        b=range(3, 13),
        c=range(5, 40, 5),
    ),
    story(
        "Of {a} pupils, {b} percent walk to school, {c} come by bike and the rest take the bus. How many "
        "pupils take "
        "the bus?",
        lambda a, b, c: a * (100 - b) / 100 - c,
        a=range(120, 800, 20),
        b=range(15, 60, 5),
        c=range(25, 140),
    ),
    story(
        "A farmer counts {a} heads and {b} legs among the {fowl} and {beast} in the yard. How many {beast} are there?",
        lambda a, b: (b - 2 * a) / 2 if b < 4 * a else 0,
        a=range(15, 60),
        b=range(40, 200, 2),
    ),
    story(
        "A warehouse receives {a} pallets. On each pallet there are {b} boxes, and each box holds {c} "
        "{goods}. How "
        "many {goods} arrive?",
        lambda a, b, c: a * b * c,
        a=range(3, 15),
        b=range(6, 25),
        c=range(4, 25),
    ),
    story(
        "At a cafe {person} orders {a} {drinks} at ${b} each and {c} {snacks} at ${d} each and pays with a "
        "$100 note. "
        "How many dollars does {person.he} get back?",
        lambda a, b, c, d: 100 - a * b - c * d,
        a=range(2, 7),
        b=range(3, 7),
        c=range(2, 6),
        d=range(5, 11),
    ),
    story(
        "A barrel holds {a} litres of {liquid}. First {b} bottles of 2 litres are filled from it, then {c} "
        "cans of 5 "
        "litres. How many litres are left in the barrel?",
        lambda a, b, c: a - 2 * b - 5 * c,
        a=range(80, 220, 5),
        b=range(8, 30),
        c=range(4, 18),
    ),
    story(
        "{person} earns ${a} per afternoon by {chore}. After {b} afternoons {person.he} spends half of the "
        "money. How "
        "many dollars are left?",
        lambda a, b: a * b / 2,
        a=range(8, 40),
        b=range(4, 20),
    ),
    story(
        "A class of {a} children is divided into groups of {b}. Each group needs {c} sheets of paper. How "
        "many sheets "
        "are needed in total?",
        lambda a, b, c: a / b * c if a % b == 0 else 0,
        a=range(18, 43),
        b=range(2, 8),
        c=range(3, 15),
    ),
    story(
        "{person} walks {a} metres to the bus stop, rides the bus for {b} kilometres, and walks another "
        "{c} metres to "
        "the office. How many metres is the whole way?",
        lambda a, b, c: a + 1000 * b + c,
        a=range(150, 900, 50),
        b=range(3, 19),
        c=range(100, 700, 50),
    ),
    story(
        "Three brothers inherit ${a}. The eldest gets half, the second gets ${b}, and the youngest gets "
        "the rest. How "
        "many dollars does the youngest get?",
        lambda a, b: a / 2 - b,
        a=range(1200, 9000, 200),
        b=range(250, 2000, 50),
    ),
)
