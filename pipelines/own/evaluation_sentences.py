"""Templates and words of the evaluation prompts of the kinds code, chat and knowledge."""

from pipelines.own.templates import listed

CODE_TEMPLATES = (
    "Please write {task}. Use Python.",
    "Python exercise: {task}. Give a solution with one comment per step.",
    "How would an experienced Python programmer solve this: {task}?",
    "Here is my homework: {task}. Show me code and explain the idea behind it.",
    "Write code in {other} for this: {task}.",
    "Test plan, please. The task was: {task}. Which inputs would you try, and what should come out?",
    "```python\n{sample}\n```\n\nTell me what happens here, in two or three sentences.",
    "Trace the values of all variables while this runs.\n\n```python\n{sample}\n```",
    "Could you document this function with a docstring and type annotations?\n\n```python\n{sample}\n```",
    "Refactor this so that it is easier to read, and say what you improved:\n\n```python\n{sample}\n```",
    "My colleague says that this code is wrong. Is it, and why?\n\n```python\n{faulty}\n```",
    "Debug this for me, please:\n\n```python\n{faulty}\n```",
    "Database question: {query}? The table is called visits and has the columns day, page, visitor, seconds.",
    "What would you type in the shell in order to {shell}?",
    "Which data structure fits best for {purpose}, and why? Show it in Python.",
    "Teach me {idea} with the shortest example that still makes sense.",
    'Someone reviewed my code and wrote: "{remark}" What does the reviewer mean, and what should I change?',
    "Create a small web page: {page}. One HTML file, please.",
    "Design the functions (names, inputs, outputs) of a command-line tool: {tool}. Code for one of them is enough.",
    "Write a commit message for this change: {change}.",
)
CODE_WORDS = {
    "task": (
        "a function that removes all punctuation from a text",
        "a function that returns the three largest numbers of a list",
        "a function that interleaves two lists of equal length",
        "a function that checks whether a password has a digit and a capital letter",
        "a function that counts the days between two dates",
        "a function that sums the diagonal of a square matrix",
        "a function that returns every second character of a string",
        "a function that finds the shortest name in a list of names",
        "a function that converts minutes into hours and minutes",
        "a function that moves all zeros of a list to its end",
        "a function that tells if a number is a perfect square",
        "a function that replaces every vowel by a star",
    ),
    "other": listed("JavaScript, Java, Rust, Go"),
    "sample": (
        "def shorten(words, limit):\n    result = []\n    for word in words:\n        if len(word) <= "
        "limit:\n"
        "            result.append(word)\n    return result",
        "def steps(n):\n    count = 0\n    while n != 0:\n        n = n - 1 if n % 2 else n // 2\n        "
        "count += 1\n"
        "    return count",
        "def scale(row, factor=2):\n    return [factor * x for x in row]\n\nprint(scale([1, 5]), scale([2], 10))",
        "def tally(votes):\n    board = {}\n    for vote in votes:\n        board[vote] = board.get(vote, "
        "0) + 1\n"
        "    return sorted(board.items(), key=lambda item: -item[1])",
        "def depth(tree):\n    if tree is None:\n        return 0\n    return 1 + max(depth(tree[0]), depth(tree[1]))",
    ),
    "faulty": (
        "def first_word(text):\n    return text.split()[1]",
        "def countdown(start):\n    for n in range(start, 0):\n        print(n)",
        "def average_age(people):\n    total = 0\n    for person in people:\n        total = person['age']\n"
        "    return total / len(people)",
        "def contains(items, goal):\n    for item in items:\n        if item == goal:\n            return "
        "True\n"
        "        else:\n            return False",
        "def discount(price, percent):\n    return price - percent / 100",
    ),
    "query": (
        "which page was visited most often",
        "how many different visitors came on each day",
        "what was the longest time anybody spent on a page",
        "which visitors never opened the page called help",
    ),
    "shell": (
        "see the first ten lines of every text file in a folder",
        "count how many pictures a folder contains",
        "turn all spaces in file names into underscores",
        "keep a program running after logging out",
    ),
    "purpose": (
        "the undo function of a text editor",
        "a dictionary of synonyms",
        "the waiting line of a printer",
        "the high scores of a game",
        "the folders and files on a disk",
    ),
    "idea": (
        "list comprehensions",
        "inheritance",
        "context managers",
        "sorting with a key",
        "default arguments",
    ),
    "remark": (
        "This function does too many things.",
        "Please avoid magic numbers.",
        "You are catching every exception here.",
        "These two branches are identical.",
    ),
    "page": (
        "a countdown from ten with a start button",
        "a recipe with a picture, ingredients and steps",
        "a list of books that can be ticked off",
        "a page with a light and a dark mode",
    ),
    "tool": (
        "it finds duplicate pictures in a folder",
        "it tracks how many hours one works on a project",
        "it learns vocabulary with flash cards",
        "it reports broken links of a web site",
    ),
    "change": (
        "the login page now shows an error when the password is empty",
        "the search ignores upper and lower case",
        "old log files are deleted after thirty days",
        "dates are shown in the time zone of the reader",
    ),
}

CHAT_TEMPLATES = (
    "Can you cheer me up? {trouble}",
    "{trouble} Be honest: what would you do in my place?",
    "Draft a message to my landlord. {errand}",
    "I need to phone the town hall tomorrow. {errand} How do I begin the call?",
    "Recommend a {genre} film evening for {company}, with snacks.",
    "Invent a {genre} story in which {plot}. Eight sentences at most.",
    "Continue this story in the present tense: It is almost midnight, and {plot}.",
    "Write a poem of two verses in which {plot}.",
    "Let us play a game: you are {role}, and I am a visitor. You speak first.",
    "As {role}, write a letter to somebody living a hundred years from now.",
    "Which questions would {role} ask before giving advice about {decision}?",
    "I cannot decide about {decision}. Help me think it through with a few questions.",
    "Make a list of pros and cons about {decision}.",
    "Suggest a menu of three courses for {company}. {limit}",
    "What could {company} do on a Sunday without any money?",
    "I have twenty minutes and {stuff}. What can I make?",
    "Sell me {stuff}! Write a funny pitch of four sentences.",
    "Help me write my profile for {site}. I like dogs, maps and old films.",
    "Write an announcement for {site}: the meeting next week has a new time and place.",
    "What is a good way to say goodbye to {company} after a long visit?",
)
CHAT_WORDS = {
    "trouble": (
        "I spilled coffee on my new white sofa.",
        "Nobody came to my first reading at the library.",
        "I failed the theory test for my licence, again.",
        "My sourdough starter died while I was on holiday.",
        "I sent an angry message to the wrong person.",
        "I have been learning the violin for a year and still sound terrible.",
    ),
    "errand": (
        "The bathroom window no longer closes.",
        "My mailbox key is broken.",
        "I would like to keep two hens in the yard.",
        "There has been no light on the stairs for a week.",
    ),
    "genre": listed("spooky, romantic, detective, science fiction, silly, western"),
    "company": listed(
        "my twin nephews, an exchange student, three old school friends, my parents-in-law, a tired couple"
    ),
    "plot": (
        "a piano falls in love with a violin",
        "the last bus of the night takes a different road",
        "a gardener digs up a tiny door",
        "all clocks in the town stop at once",
        "a penguin applies for a job in an office",
        "an elevator opens onto a beach",
    ),
    "role": listed(
        "an innkeeper in the mountains, the moon, a retired pirate, a very polite robot, a tree in a city park"
    ),
    "decision": listed(
        "moving in with my partner, buying a used car, studying abroad for a year, quitting my evening job"
    ),
    "limit": listed(
        "Nobody likes cheese., We have only one pot., It should not take longer than an hour., One of us "
        "is allergic to nuts."
    ),
    "stuff": listed("a cardboard box, six jam jars, a ball of red wool, an old bed sheet, a bucket of sand"),
    "site": listed("a hiking forum, a house-swap page, the local theatre group, a pen pal club"),
}

KNOWLEDGE_TEMPLATES = (
    "In simple terms, what does {term} mean?",
    "Give me a definition of {term} and one example from daily life.",
    "How would a teacher introduce {term} on the first day?",
    "What would happen if {hypothesis}?",
    "Scientists sometimes ask what the world would look like if {hypothesis}. What do you think?",
    "I read that {claim}. Is that correct?",
    "Fact check: {claim}.",
    "Tell me the story of {matter} in five sentences.",
    "Who contributed most to {matter}?",
    "What do {place} and its people live from?",
    "Plan a short geography lesson about {place}.",
    "What makes the {creature} different from its closest relatives?",
    "Describe a year in the life of a {creature}.",
    "Which came first, {rivals}? Explain how we know.",
    "Explain to a visitor from the past what a hundred years have changed in {field}.",
    "What are the main ideas of {book}, and who wrote it?",
    "Give me a summary of {book} without telling the ending.",
    "How do people in different countries celebrate {feast}?",
    "Where does the name of {feast} come from?",
    "Which part of {system} is the most important, and what happens when it fails?",
)
KNOWLEDGE_WORDS = {
    "term": listed("entropy, photosensitivity, bankruptcy, symbiosis, a tectonic fault, the placebo effect, an alloy"),
    "hypothesis": (
        "the Earth had two moons",
        "all insects disappeared",
        "nobody had ever invented money",
        "the days were twice as long",
        "humans could breathe under water",
    ),
    "claim": (
        "goldfish forget everything after three seconds",
        "lightning never strikes the same place twice",
        "we use only a tenth of our brain",
        "the Great Wall of China can be seen from the Moon",
        "bats are blind",
    ),
    "matter": listed(
        "the discovery of X-rays, the first map of the world, the race to the South Pole, the modern "
        "alphabet, the zero in mathematics"
    ),
    "place": listed("Madagascar, Greenland, Sri Lanka, Bolivia, the Netherlands, Tunisia"),
    "creature": listed("platypus, snowy owl, seahorse, red fox, fruit fly, beaver"),
    "rivals": listed(
        "the chicken or the egg, writing or mathematics, farming or cities, the flute or the drum, birds or flowers"
    ),
    "book": listed("Robinson Crusoe, Don Quixote, Frankenstein, The Little Prince, Moby Dick"),
    "feast": listed("Halloween, Diwali, Easter, Carnival, Thanksgiving"),
    "field": listed("medicine, travel, farming, cooking, sending news"),
    "system": listed("the human digestive system, a power station, a coral reef, a parliament, the nervous system"),
}
