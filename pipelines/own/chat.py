"""Training prompts of the kind chat: advice, letters, plans, small talk, stories and role play."""

from pipelines.own.templates import Maker, listed, sentence_makers
from pipelines.own.words import CITIES, DAYS, HOBBIES, JOBS, MONTHS, PEOPLE

WORDS = {
    "person": PEOPLE,
    "city": CITIES,
    "day": DAYS,
    "hobby": HOBBIES,
    "job": JOBS,
    "month": MONTHS,
    "worry": listed(
        """I cannot fall asleep before midnight, I keep putting off my homework, my neighbour plays loud
        music at night, I forget people's names, I am nervous before every presentation, my desk is always
        a mess, I spend too much money on takeaway food, I feel lonely in a new town, my flatmate never
        washes the dishes, I have trouble waking up early, I argue with my sister about small things, I
        check my phone all the time, I never finish the books I start, my houseplants keep dying, I get
        bored at work in the afternoon, I am afraid of flying, I say yes to everything, my children refuse
        to eat vegetables, I have two job offers and cannot decide, my best friend moved to another
        country, I always arrive late"""
    ),
    "occasion": listed(
        """a housewarming, a retirement party, a fiftieth birthday, a wedding anniversary, a graduation, a
        farewell lunch, a baby shower, a school reunion, a neighbourhood picnic, a surprise party, a New
        Year's dinner, an engagement party"""
    ),
    "relative": listed(
        """my grandmother, my best friend, my boss, my younger brother, my neighbour, my teacher, my
        cousin, my father, my colleague, my aunt, my roommate, my running partner"""
    ),
    "dish": listed(
        """vegetable soup, lasagne, pancakes, fried rice, a lentil curry, an apple pie, tomato pasta,
        guacamole, banana bread, a potato salad, mushroom risotto, omelettes, hummus, chicken noodle soup,
        a fruit salad, tacos, ratatouille, oatmeal with berries"""
    ),
    "leftover": listed(
        """three eggs and some spinach, cooked rice and a can of beans, old bread and a few tomatoes, half
        a pumpkin, two ripe bananas, a bag of carrots, cold potatoes and cheese, a jar of chickpeas,
        leftover pasta, a bunch of wilted herbs"""
    ),
    "product": listed(
        """a folding bicycle, a reusable coffee cup, a wool blanket, a desk lamp, a rain jacket, a lunch
        box, wireless earphones, a herb garden for the kitchen, a standing desk, a travel pillow, a
        ceramic teapot, a hammock, a board game about bees, a pocket notebook, a solar charger, handmade
        soap"""
    ),
    "business": listed(
        """a small bakery, a bicycle repair shop, a dog walking service, a second-hand bookshop, a yoga
        studio, a flower shop, a mobile coffee cart, a toy library, a tailor's shop, a plant nursery, a
        language school, a boat rental"""
    ),
    "hero": listed(
        """a shy dragon, a lighthouse keeper, a lost umbrella, a robot who paints, an old sailor, a
        curious hedgehog, a clockmaker, a girl who talks to rivers, a retired detective, a snail with a
        map, a cloud that is afraid of heights, a baker in a snowstorm, a postman on the moon, a forgetful
        wizard, two rival gardeners, a talking suitcase, a young astronaut, a cat who runs a hotel"""
    ),
    "thing": listed(
        """the sea in winter, an empty train station, the smell of rain, a kitchen on Sunday morning, the
        first snow, a bridge at night, an old tree, autumn leaves, a market in summer, a quiet library,
        the moon over a field, a broken clock, a paper boat, a campfire"""
    ),
    "form": listed("a short poem, a haiku, a four-line rhyme, a limerick, a short song verse, a poem without rhymes"),
    "tone": listed("friendly, formal, cheerful, calm, grateful, firm but polite, humorous, warm"),
    "excuse": listed(
        """I cannot come to dinner, I will be two days late with the report, I have to cancel the music
        lesson, I lost the book I borrowed, I need to leave the meeting early, I forgot the appointment, I
        cannot lend any money, I will miss the training session, I have to move our trip to next month, I
        cannot look after the dog this weekend"""
    ),
    "problem": listed(
        """a parcel that never arrived, a broken heater in my flat, a wrong amount on my phone bill, a
        cancelled train, a noisy hotel room, a jacket with a missing button, a delayed refund, a gym
        membership I want to cancel, a lamp that stopped working after a week, a cold meal in a
        restaurant"""
    ),
    "goal": listed(
        """drink more water, read one book a month, run five kilometres, learn basic Spanish, save money
        for a trip, spend less time on social media, cook at home more often, get better at public
        speaking, keep a diary, wake up at six, walk ten thousand steps a day, keep in touch with old
        friends, declutter my flat, learn to swim, eat less sugar, write a short novel"""
    ),
    "trip": listed(
        """a weekend in the mountains, a day at the beach with children, a week of camping, a train
        journey of nine hours, a business trip of three days, a city break in winter, a bicycle tour, a
        hike in the rain, a road trip with a dog, a flight with a baby"""
    ),
    "group": listed(
        """five-year-olds, teenagers, a group of colleagues, grandparents, two shy people, a family of
        four, students on a small budget, new neighbours, a book club, tourists"""
    ),
    "topic": listed(
        """working from home, keeping pets in a flat, learning a second language as an adult, living in a
        big city, school uniforms, eating less meat, buying second-hand clothes, cycling to work, reading
        paper books, playing video games, a four-day working week, living with roommates, travelling
        alone, cooking for one, public libraries, early mornings"""
    ),
    "expert": listed(
        """a patient librarian, a ship's captain from long ago, a gardener, a detective, a friendly
        waiter, a museum guide, a fitness coach, a medieval knight, a weather forecaster, a travel agent,
        a job interviewer, a wise owl, a grumpy chef, a space explorer, a radio host, a language
        teacher"""
    ),
    "question": listed(
        """how to start the day well, what to do on a rainy afternoon, how to be patient, how to make new
        friends, what to cook for guests, how to stay calm, where to travel next, how to learn faster, how
        to tell a good story, how to choose a gift"""
    ),
    "pet": listed(
        "a kitten, a puppy, a rabbit, a goldfish, a parrot, a hamster, a tortoise, an old dog, two guinea pigs"
    ),
    "animal": listed("cat, dog, parrot, hamster, tortoise, goldfish, rabbit, horse, hedgehog, duck"),
    "club": listed(
        """a chess club, a running group, a choir, a neighbourhood garden, a film club, a coding club, a
        hiking group, a drama group, a knitting circle, a debating club"""
    ),
    "device": listed("phone, laptop, printer, television, router, tablet, headphones, camera, dishwasher, car"),
    "mood": listed("tired, proud, homesick, excited, disappointed, stressed, curious, bored, hopeful, a bit sad"),
    "event": listed(
        """passed my driving test, ran my first ten kilometres, got a new job, failed an exam, moved to a
        new flat, adopted a dog, finished a long project, broke my favourite cup, won a small prize,
        started piano lessons, made a new friend, missed my train"""
    ),
}

TEMPLATES = (
    "I have a problem: {worry}. What can I do about it?",
    "Lately {worry}. Give me three practical tips.",
    'A friend told me: "{worry}." What would be a kind reply?',
    "Write an invitation to {occasion} on {day} afternoon. Keep it short and warm.",
    "What is a good present for {relative} on the occasion of {occasion}? Suggest four ideas.",
    "Write a toast of about five sentences for {occasion}.",
    "Help me plan {occasion} for twelve people with little money.",
    "Write a thank-you note to {relative}, who helped me with {hobby}.",
    "Write a {tone} email to {relative} explaining that {excuse}.",
    "How do I tell {relative} that {excuse} without sounding rude?",
    "Write a {tone} text message: {excuse}.",
    "Write a {tone} letter of complaint about {problem}.",
    "I want to phone customer service about {problem}. What should I say? Give me a short script.",
    "How do I make {dish}? List the ingredients and the steps.",
    "What goes well with {dish}?",
    "I have {leftover} in the kitchen. What can I cook with that?",
    "Which two side dishes suit {dish} at a dinner for {group}?",
    "Write a short advertisement for {product}.",
    "Think of five names for {business}.",
    "Write a slogan for {business} and explain it in one sentence.",
    "Describe {product} for an online shop in about 60 words.",
    "What should I think about before I open {business}?",
    "Write a short story about {hero}.",
    "Write the first paragraph of a story about {hero} in {city}.",
    "Tell me a bedtime story about {hero} with a happy ending. Not more than ten sentences.",
    "Two characters meet: {hero} and {hero2}. Write their conversation.",
    "Give me an idea for a children's book about {hero}, with a title and a summary.",
    "Write {form} about {thing}.",
    "Describe {thing} in three sentences, using sight, sound and smell.",
    "Write {form} for {relative}.",
    "I would like to {goal}. Make me a simple plan for four weeks.",
    "What usually stops people who want to {goal}, and how can they get past it?",
    "Give me five small habits that help to {goal}.",
    "Motivate me! I want to {goal} but today I am too lazy.",
    "What should I pack for {trip}? Make a list.",
    "Suggest a plan for one day in {city} for {group}.",
    "I am nervous about {trip}. How can I prepare?",
    "Write a postcard from {city} to {relative}.",
    "What are the advantages and disadvantages of {topic}?",
    "Give me three arguments for {topic} and three against.",
    "What do you think about {topic}? Answer in one paragraph.",
    "Write a short dialogue between two friends who disagree about {topic}.",
    "Pretend to be {expert} and advise me on {question}.",
    "You are {expert}. Introduce yourself and ask me two questions.",
    "Answer like {expert} would: what do you know about {hobby}?",
    "How can I get started with {hobby}? I have about an hour a week.",
    "Why do people enjoy {hobby}? Explain it to someone who has never tried it.",
    "What equipment does a beginner need for {hobby}?",
    "I am bored with {hobby}. Which three hobbies are similar?",
    "We are thinking about getting {pet}. What should we know first?",
    "Suggest six funny names for a {animal}.",
    "Write a diary entry from the point of view of a {animal} on a {day}.",
    "Which games can I play with {group} on a rainy {day}?",
    "Write a short speech to welcome new members of {club}.",
    "How could {club} find more members? Give me four ideas.",
    "My {device} does not switch on any more. What can I check before I call for help?",
    "Explain to {relative} how to clean a {device}. Use simple words.",
    "I feel {mood} today because I {event}. Say something nice.",
    "Guess what: I {event}! What should I do next?",
    "I have a job interview as {job} on {day}. Which questions will they ask?",
    "Describe a typical working day of {job}.",
    "What are good and bad sides of being {job}?",
    "Write a short, {tone} message to congratulate {person}, who just became {job}.",
    "Write a weather report for {city} on a day in {month}, as if you were on the radio.",
    "Give me a conversation starter for a party with {group}.",
    "Tell me a harmless joke about {job}.",
    "Make a weekly cleaning plan for a flat shared by {person}, {person2} and {person3}.",
)


def makers() -> list[Maker]:
    """Returns one maker a template."""
    return sentence_makers(TEMPLATES, WORDS)
