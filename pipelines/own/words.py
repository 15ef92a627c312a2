"""Word lists that several kinds of training prompts share."""

from pipelines.own.templates import Person, listed

WOMEN = listed(
    """Amara, Beatriz, Clara, Dalia, Elena, Farida, Greta, Hana, Ines, Julia, Katya, Leila, Mei, Nadia,
    Olivia, Priya, Rosa, Sofia, Tamsin, Yuki"""
)
MEN = listed(
    """Aaron, Bruno, Callum, Dario, Emil, Farid, Gabriel, Hugo, Ivan, Jonas, Kofi, Liam, Mateo, Nils,
    Omar, Pavel, Rafael, Samir, Tomas, Viktor"""
)
PEOPLE = tuple(Person(name, "she", "her", "her") for name in WOMEN) + tuple(
    Person(name, "he", "him", "his") for name in MEN
)
FRUITS = listed("apples, pears, peaches, lemons, mangoes, plums, oranges, kiwis, apricots, limes, figs, melons")
GOODS = listed(
    """notebooks, mugs, candles, scarves, plant pots, keyrings, posters, puzzles, lampshades, cushions,
    water bottles, tote bags, umbrellas, picture frames, wooden spoons, tea towels"""
)
GADGETS = listed(
    """a camera, a tablet, a bicycle, a guitar, a telescope, a sewing machine, a drone, a keyboard, a
    tent, an e-reader, a skateboard, a pair of headphones"""
)
CITIES = listed(
    """Lisbon, Kyoto, Nairobi, Montreal, Oslo, Lima, Prague, Hanoi, Dublin, Marrakesh, Seville, Tallinn,
    Melbourne, Krakow, Cape Town, Vienna, Mexico City, Bergen"""
)
DAYS = listed("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
MONTHS = listed("January, March, April, May, June, July, September, October, November")
DATES = listed(
    """3 March, 9 April, 12 May, 17 June, 21 July, 28 August, 4 September, 15 October, 23 November, 6
    December, 30 January, 11 February"""
)
TIMES = listed("8:30, 9:15, 10:00, 11:45, 12:30, 14:00, 15:20, 16:45, 17:30, 18:00, 19:15")
JOBS = listed(
    """a nurse, a carpenter, a primary school teacher, a bus driver, an accountant, a chef, a software
    tester, a gardener, a librarian, an electrician, a florist, a dental assistant, a graphic designer, a
    warehouse manager, a journalist, a hotel receptionist, a physiotherapist, a farmer, a translator, a
    plumber"""
)
HOBBIES = listed(
    """birdwatching, pottery, chess, running, knitting, baking bread, rock climbing, watercolour painting,
    stargazing, swimming, learning the piano, vegetable gardening, photography, woodworking, cycling,
    calligraphy, hiking, juggling, yoga, playing the ukulele, origami, table tennis, beekeeping, model
    railways, geocaching, journaling"""
)
