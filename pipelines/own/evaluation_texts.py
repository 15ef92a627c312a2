"""Templates and texts of the evaluation prompts of the kind rewriting; texts are (text, question) pairs."""

NARRATIVE_TEMPLATES = (
    "Please condense this into a single sentence:\n\n{text}",
    "What is this passage about? Reply with one sentence taken directly from it.\n\n{text}",
    "Put the passage into the future tense, but touch nothing else.\n\n{text}",
    "{text}\n\nName three things mentioned above and quote what the passage says about each of them.",
    "Delete the least important sentence and give me everything else unchanged.\n\n{text}",
    "{text}\n\n{question} Give only the words from the passage.",
    "Turn the passage into an interview with two questions and two answers.\n\n{text}",
)
MESSAGE_TEMPLATES = (
    "List who wrote, to whom, about what, and any date or time given.\n\n{text}",
    "Forward the following with an introduction of one line. Leave the text itself as it is.\n\n{text}",
    "Make this sound businesslike without dropping any information:\n\n{text}",
    "Write the same thing as a notice for the front door.\n\n{text}",
    "What has to be remembered from this? Put it into a checklist.\n\n{text}",
)
NOTE_TEMPLATES = (
    "Convert into YAML, please:\n\n{text}",
    "Arrange the following as an HTML table.\n\n{text}",
    "Which entries contain a number above ten? Copy those entries.\n\n{text}",
    "Write one complete sentence for each entry.\n\n{text}",
)
ERROR_TEMPLATES = (
    "A pupil wrote this. Return it without errors:\n\n{text}",
    "Polish this text, staying as close to it as possible.\n\n{text}",
    "{text}\n\nShow the correct version of each sentence and nothing more.",
    "Which words are misspelled here? Then write the text properly.\n\n{text}",
)

NARRATIVES = (
    (
        "The harbour cat of Skagen has no owner and eleven names. Every fishing boat calls it differently, "
        "and it answers to all of them. In the morning it waits at the fish hall, at noon it sleeps on a "
        "pile of nets, and in the evening it visits the pharmacy, where the heating is never switched off.",
        "Where does the cat sleep at noon?",
    ),
    (
        "A group of pupils builds a radio telescope on the roof of their school. The dish comes from an "
        "old weather station, and the electronics cost less than a pair of shoes. On clear nights they "
        "listen to Jupiter, which sounds like waves breaking on a beach. Ms Abara teaches physics and "
        "brings the biscuits.",
        "What does Jupiter sound like?",
    ),
    (
        "Cork is the bark of an oak that grows around the western Mediterranean. The trees are not cut "
        "down: workers peel off the bark with small axes, and it grows again within nine years. A number "
        "painted on the trunk shows the year of the last harvest. Some trees are peeled for two centuries.",
        "What does the number on the trunk show?",
    ),
    (
        "Mrs Lindqvist drives the mobile library through nine valleys. The bus holds four thousand books "
        "and one armchair. Children ask for comics, farmers ask for crime novels, and one shepherd orders "
        "a book about the stars every week. When snow closes the road, she reads the orders aloud over the "
        "telephone.",
        "What does the shepherd order?",
    ),
    (
        "Salt was once carried across the desert in blocks as heavy as a child. A caravan needed forty "
        "days for the journey and travelled mostly at night. The guides found their way by the stars, by "
        "the wind, and by the taste of the sand. Today two trucks do the same work in three days.",
        "How long did a caravan need?",
    ),
    (
        "A baker in Tromso starts work at two in the morning, when the northern lights are brightest. He "
        "has baked eighty rye loaves a night for thirty years and has never bought an alarm clock. His "
        "apprentice, Solveig, bakes only sixty, but hers have patterns on the crust: reindeer, ships, and "
        "once the face of the mayor.",
        "What patterns do Solveig's loaves have?",
    ),
    (
        "The sloth moth spends nearly its whole life in the fur of a sloth. Once a week the sloth climbs "
        "down from its tree, and the moths lay their eggs on the ground. Algae grow in the damp fur and "
        "colour it green, which hides the animal from eagles. All three seem to live well together.",
        "What colours the fur green?",
    ),
    (
        "At the edge of the airfield stands a shed with a wind harp. Its strings are old brake cables, and "
        "the sound box was part of a glider. Pilots like it because a high tone means wind from the west. "
        "On calm days it says nothing, and the mechanics whistle instead.",
        "What does a high tone mean?",
    ),
)

MESSAGES = (
    (
        "Hello Mr Petrov, this is Ingrid Sand from the second floor. The plumber comes on Wednesday, 14 "
        "February, between one and three. Could you let him in? I am in Ghent that day. The key hangs "
        "behind the red door. Many thanks, Ingrid",
        "",
    ),
    (
        "Dear choir, our concert in the Fishermen's Church is sold out. Please be there at half past five, "
        "wear something dark, and bring your own water. Mr Adeyemi will hand out the scores at the side "
        "entrance. The car park closes at ten. Yours, Philippa",
        "",
    ),
    (
        "Bad news, Theo: the tent has a hole and the stove is gone. Can you ask Carmen for hers? We leave "
        "on Saturday at six in the morning from the petrol station in Brig. I have the maps, the rope and "
        "far too much chocolate. Uncle Benedikt",
        "",
    ),
    (
        "To the editors: your article of 8 May says that the footbridge was opened by the mayor. I was "
        "there. It was opened by a goat that had walked past the barrier while the mayor was still "
        "speaking. Please correct this. Henrietta Moss, Weir Lane",
        "",
    ),
)

NOTES = (
    (
        "Allotment 7: beans, tomatoes, two beehives\nAllotment 12: potatoes, chard, a pear tree\nAllotment "
        "15: empty since autumn\nAllotment 9: strawberries, a blue shed",
        "",
    ),
    (
        "Lap times: Odile 58 seconds, Bram 61 seconds, Xavier 9 minutes (fell twice), Noor 57 seconds, "
        "Petra did not finish",
        "",
    ),
    (
        "Box A: 14 spoons, 3 forks. Box B: a kettle without a lid. Box C: 22 candles, matches. Box D: "
        "winter curtains, 2 pillows.",
        "",
    ),
    (
        "Ferry to Hoy 07:45, 12 seats left; ferry to Rousay 09:10, full; ferry to Shapinsay 11:30, 4 seats "
        "left; ferry to Westray 13:00, 31 seats left",
        "",
    ),
)

PLAIN_ERRORS = (
    (
        "On holliday we was in Slovenia and swimmed in a lake what was more colder than our fridge. My "
        "sister have cryed but than she dont wanted to come out.",
        "",
    ),
    (
        "The libary is opened untill seven, exept on fridays, than it close allready at noon. You must "
        "gave your books back befor two week is over.",
        "",
    ),
    (
        "My uncel, which is a fisher, he teached me how you does a knot. Now I knows five diffrent knot "
        "and can tying them with close eyes.",
        "",
    ),
    (
        "Its been raining since three day's and the celar is full from water. We carrys everything up "
        "stairs, also the old piano who weight a tonne.",
        "",
    ),
)
