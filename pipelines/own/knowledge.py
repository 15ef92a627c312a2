"""Training prompts of the kind knowledge: questions about nature, science, history, places and words."""

from pipelines.own.templates import Maker, listed, sentence_makers
from pipelines.own.words import JOBS

WORDS = {
    "job": JOBS,
    "concept": listed(
        """photosynthesis, gravity, the water cycle, evolution, electricity, inflation, the immune system,
        plate tectonics, the greenhouse effect, democracy, magnetism, fermentation, supply and demand, the
        food chain, a sound wave, natural selection, compound interest, erosion, osmosis, friction, the
        speed of light, radioactivity, the nitrogen cycle, a chemical bond, vaccination, herd immunity,
        renewable energy, a black hole, DNA, cell division, the ozone layer, buoyancy, inertia, a solar
        eclipse, insulation, pollination, metabolism, an ecosystem, the electromagnetic spectrum,
        statistics"""
    ),
    "audience": listed(
        """a six-year-old, a teenager, my grandfather, someone who never liked science, a pupil in fifth
        grade, a curious adult"""
    ),
    "contrast": listed(
        """a virus and a bacterium, weather and climate, a planet and a star, a frog and a toad, mass and
        weight, a fruit and a vegetable, a comet and an asteroid, speed and acceleration, a crocodile and
        an alligator, heat and temperature, an atom and a molecule, a lake and a lagoon, latitude and
        longitude, a novel and a novella, a republic and a monarchy, butter and margarine, an artery and a
        vein, a mammal and a reptile, a moth and a butterfly, a simile and a metaphor, a violin and a
        viola, coffee and tea, a stalactite and a stalagmite, an island and a continent"""
    ),
    "why": listed(
        """is the sky blue, do leaves change colour in autumn, is the sea salty, do cats purr, do we
        dream, does bread rise, do onions make us cry, does ice float, do birds migrate, is Venus hotter
        than Mercury, do we yawn, does metal feel colder than wood, do we have leap years, does the moon
        change its shape, do stars twinkle, is blood red, does popcorn pop, do bees make honey, do
        volcanoes erupt, does iron rust, do our fingers wrinkle in water, does thunder follow lightning,
        do deserts get cold at night, do zebras have stripes, do cacti have spines, is the Dead Sea so
        easy to float in, do we need sleep, does soap clean, do magnets attract iron, do tides rise and
        fall"""
    ),
    "machine": listed(
        """a refrigerator, a microwave oven, a bicycle gear, a solar panel, a compass, a telescope, a
        vacuum cleaner, a thermometer, a wind turbine, a camera, a lock with a key, a piano, a zip
        fastener, a submarine, a hot-air balloon, a fax machine, a pressure cooker, a touch screen, a
        smoke detector, a parachute, a sewing machine, an elevator, a battery, a fountain pen, a steam
        engine"""
    ),
    "invention": listed(
        """the printing press, the telephone, the light bulb, paper, the bicycle, the steam engine,
        penicillin, the wheel, the compass, the radio, the sewing machine, the World Wide Web, the
        microscope, glass, concrete, the pencil, the aeroplane, the clock"""
    ),
    "country": listed(
        """Portugal, Kenya, Japan, Brazil, Canada, Norway, Egypt, Vietnam, Argentina, Poland, Morocco, New
        Zealand, Greece, Indonesia, Peru, Finland, South Africa, Turkey, Mexico, Ireland, Thailand,
        Iceland, Ethiopia, Chile, Mongolia, Hungary, Cuba, Nepal, Switzerland, Ghana"""
    ),
    "city": listed(
        """Rome, Istanbul, Paris, Cairo, Sydney, Buenos Aires, Singapore, Athens, New York, Berlin, Tokyo,
        Barcelona, Amsterdam, Rio de Janeiro, Venice, London, Beijing, San Francisco, Jerusalem, Moscow"""
    ),
    "figure": listed(
        """Marie Curie, Leonardo da Vinci, Nelson Mandela, Isaac Newton, Cleopatra, Albert Einstein,
        Mahatma Gandhi, Ada Lovelace, Galileo Galilei, William Shakespeare, Charles Darwin, Wolfgang
        Amadeus Mozart, Frida Kahlo, Johannes Gutenberg, Florence Nightingale, Marco Polo, Julius Caesar,
        Rosa Parks, Alexander Fleming, Jane Austen, Archimedes, Ludwig van Beethoven, Vincent van Gogh,
        Neil Armstrong, Amelia Earhart, Genghis Khan, Martin Luther King, Alan Turing, Socrates, Vasco da
        Gama"""
    ),
    "event": listed(
        """the French Revolution, the fall of the Berlin Wall, the moon landing, the Industrial
        Revolution, the Black Death, the First World War, the sinking of the Titanic, the Renaissance, the
        building of the pyramids, the end of apartheid, the California Gold Rush, the opening of the Suez
        Canal, the eruption of Vesuvius, the American Civil War, the invention of writing, the first
        Olympic Games, the Great Depression, the Cold War"""
    ),
    "animal": listed(
        """octopus, elephant, penguin, honey bee, blue whale, kangaroo, owl, chameleon, dolphin, camel,
        polar bear, hedgehog, salmon, spider, giraffe, sea turtle, wolf, hummingbird, bat, ant, sloth,
        crocodile, jellyfish, koala, flamingo"""
    ),
    "plant": listed(
        "oak, cactus, bamboo, sunflower, rice plant, olive tree, fern, tulip, vanilla orchid, mango tree, moss, lotus"
    ),
    "organ": listed("heart, liver, brain, skin, kidneys, lungs, stomach, spleen, pancreas, inner ear, retina, spine"),
    "element": listed(
        """oxygen, gold, carbon, helium, iron, copper, hydrogen, nitrogen, silver, aluminium, calcium,
        sodium, mercury, silicon, neon, uranium"""
    ),
    "planet": listed("Mercury, Venus, Mars, Jupiter, Saturn, Uranus, Neptune, Pluto, the Moon, the Sun"),
    "food": listed(
        """chocolate, sushi, coffee, cheese, tea, pizza, olive oil, honey, tofu, vinegar, ice cream,
        couscous, soy sauce, bread, pasta, yoghurt, sugar, mustard"""
    ),
    "art": listed(
        """jazz, impressionism, opera, Gothic architecture, haiku, ballet, cubism, flamenco, mosaics,
        surrealism, hip-hop, calligraphy, tragedy, folk music, film noir, origami"""
    ),
    "sport": listed(
        "badminton, cricket, fencing, judo, rowing, ice hockey, volleyball, rugby, archery, curling, "
        "handball, water polo, baseball"
    ),
    "saying": listed(
        """a blessing in disguise, once in a blue moon, to bite off more than you can chew, the early bird
        catches the worm, to kill two birds with one stone, better late than never, to spill the beans,
        when in Rome, to break the ice, under the weather, a piece of cake, to burn the midnight oil,
        every cloud has a silver lining, to cost an arm and a leg"""
    ),
    "word": listed(
        """resilient, ambiguous, gratitude, frugal, eloquent, nostalgia, inevitable, diligent, empathy,
        obsolete, meticulous, candid, paradox, serene, skeptical, benevolent, tedious, versatile"""
    ),
    "ocean": listed(
        "the Pacific Ocean, the Amazon River, the Sahara, the Himalayas, the Nile, the Great Barrier Reef, "
        "Antarctica, the Alps, Lake Victoria, the Mediterranean Sea, the Mariana Trench, the Andes"
    ),
    "unit": listed(
        "a light year, a calorie, a decibel, a kilowatt hour, a nautical mile, a carat, a byte, a Kelvin, "
        "a hectare, a volt"
    ),
    "field": listed(
        "astronomy, geology, botany, psychology, archaeology, linguistics, economics, genetics, "
        "philosophy, meteorology, anthropology, chemistry"
    ),
    "vitamin": listed(
        "vitamin C, vitamin D, iron, calcium, protein, dietary fibre, magnesium, iodine, omega-3 fatty "
        "acids, vitamin B12"
    ),
    "category": listed(
        """planets of the solar system, noble gases, bones of the human body, primary colours, musical
        instruments with strings, nocturnal animals, languages of Europe, large deserts, kinds of clouds,
        famous bridges, layers of the Earth, spices from Asia, types of energy, famous scientists, board
        games, marine mammals, poisonous plants, parts of a flower, ancient civilisations, kinds of
        bread"""
    ),
    "number": listed("three, four, five, six"),
}

TEMPLATES = (
    "What is {concept}?",
    "Explain {concept} to {audience}.",
    "Describe {concept} in exactly two sentences.",
    "Give an everyday example of {concept}.",
    "Why is {concept} important? Name two reasons.",
    "Write a short quiz of three questions with answers about {concept}.",
    "What do people often get wrong about {concept}?",
    "What is the difference between {contrast}?",
    "How can I tell apart {contrast}?",
    "Compare {contrast} in a small table with three rows.",
    "Why {why}?",
    "My child asked me: why {why}? Give me a simple answer.",
    "How does {machine} work?",
    "Explain step by step what happens inside {machine}.",
    "What did people use before {machine} existed?",
    "Who invented {invention}, and when?",
    "How did {invention} change everyday life?",
    "What is the capital of {country}, and what is it known for?",
    "Which languages are spoken in {country}?",
    "Name {number} facts about {country}.",
    "Which countries are the neighbours of {country}?",
    "What is a typical dish from {country}?",
    "Compare the climate of {country} with that of {country2}.",
    "What are the best-known sights of {city}?",
    "Tell me briefly about the history of {city}.",
    "Who was {figure}?",
    "Why is {figure} still remembered today?",
    "Write a short biography of {figure} for a school newspaper.",
    "In which century did {figure} live, and what was life like then?",
    "What would you ask {figure} in an interview? Write three questions.",
    "What caused {event}?",
    "Give a short timeline of {event}.",
    "What were the consequences of {event}?",
    "Describe {event} from the view of someone who was there.",
    "What does a typical {animal} eat, and where does it live?",
    "Tell me {number} surprising facts about the {animal}.",
    "How does the {animal} protect itself?",
    "Compare the {animal} and the {animal2}.",
    "Where does the {plant} grow, and what does it need?",
    "What do people use the {plant} for?",
    "What does the {organ} do in the human body?",
    "What is {element} used for?",
    "Describe {element}: its symbol, its properties and where it is found.",
    "What would it be like to stand on {planet}?",
    "How far away is {planet}, and what do we know about it?",
    "Where does {food} come from originally?",
    "How is {food} made?",
    "What is {art}? Name a well-known example.",
    "How did {art} begin?",
    "What are the basic rules of {sport}?",
    'What does the expression "{saying}" mean? Use it in a sentence.',
    'What does the word "{word}" mean? Give a synonym and an example sentence.',
    'Use the words "{word}" and "{word2}" in one sentence each.',
    "Why is {ocean} special?",
    "What is {unit}, and what is it used to measure?",
    "What do people study in {field}?",
    "Why does the body need {vitamin}, and which foods contain it?",
    "Name {number} {category}.",
    "List some {category} and say one thing about each.",
    "True or false: people need special training in {field} to understand {concept}. Explain your answer.",
    "Which school subjects are useful for {job}, and why?",
)


def makers() -> list[Maker]:
    """Returns one maker a template."""
    return sentence_makers(TEMPLATES, WORDS)
