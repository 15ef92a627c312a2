"""What the training prompts of the kind code are about: functions, snippets, bugs, queries and more."""

from dataclasses import dataclass

from pipelines.own.templates import listed


@dataclass(frozen=True)
class Function:
    """A function to write: name, arguments, what it does (after "that"), an example call."""

    name: str
    args: str
    does: str
    call: str
    result: str


@dataclass(frozen=True)
class Snippet:
    """Code and, for faulty code, what it was meant to do (after "It should")."""

    code: str
    goal: str = ""


@dataclass(frozen=True)
class Query:
    """A question to a table of a database."""

    table: str
    request: str


FUNCTIONS = (
    Function("count_vowels", "text", "counts the vowels in a string", 'count_vowels("banana")', "3"),
    Function("reverse_words", "sentence", "reverses the order of the words", 'reverse_words("a b c")', '"c b a"'),
    Function("is_palindrome", "word", "checks if a word reads the same backwards", 'is_palindrome("level")', "True"),
    Function("second_largest", "numbers", "returns the second largest number", "second_largest([4, 9, 7])", "7"),
    Function("flatten", "nested", "flattens a list of lists", "flatten([[1, 2], [3]])", "[1, 2, 3]"),
    Function("chunk", "items, size", "splits a list into chunks", "chunk([1, 2, 3], 2)", "[[1, 2], [3]]"),
    Function("is_prime", "n", "tells whether a number is prime", "is_prime(13)", "True"),
    Function("fibonacci", "n", "returns the first n Fibonacci numbers", "fibonacci(5)", "[0, 1, 1, 2, 3]"),
    Function("factorial", "n", "computes the factorial of a number", "factorial(5)", "120"),
    Function("gcd", "a, b", "finds the greatest common divisor of two numbers", "gcd(12, 18)", "6"),
    Function("word_lengths", "words", "maps each word to its length", 'word_lengths(["hi"])', '{"hi": 2}'),
    Function("celsius", "fahrenheit", "converts degrees Fahrenheit to Celsius", "celsius(212)", "100.0"),
    Function("unique", "items", "removes duplicates but keeps the order", "unique([3, 1, 3])", "[3, 1]"),
    Function("rotate", "items, k", "rotates a list to the right by k places", "rotate([1, 2, 3], 1)", "[3, 1, 2]"),
    Function("initials", "name", "returns the initials of a full name", 'initials("ada king")', '"AK"'),
    Function("digit_sum", "n", "adds up the digits of a number", "digit_sum(472)", "13"),
    Function("is_leap_year", "year", "decides if a year is a leap year", "is_leap_year(2024)", "True"),
    Function("common", "a, b", "returns the items two lists share", "common([1, 2], [2, 3])", "[2]"),
    Function("caesar", "text, shift", "shifts every letter along the alphabet", 'caesar("abc", 1)', '"bcd"'),
    Function("median", "numbers", "returns the median of a list of numbers", "median([5, 1, 3])", "3"),
    Function("transpose", "matrix", "swaps rows and columns", "transpose([[1, 2]])", "[[1], [2]]"),
    Function("invert", "mapping", "swaps the keys and values of a dictionary", 'invert({"a": 1})', '{1: "a"}'),
    Function("title_case", "text", "capitalises every word", 'title_case("blue sky")', '"Blue Sky"'),
    Function("running_total", "numbers", "returns the running totals", "running_total([1, 2, 3])", "[1, 3, 6]"),
    Function("to_binary", "n", "turns a whole number into a binary string", "to_binary(10)", '"1010"'),
    Function("are_anagrams", "a, b", "checks if two words are anagrams", 'are_anagrams("tea", "eat")', "True"),
    Function("longest_word", "text", "finds the longest word of a text", 'longest_word("a big dog")', '"big"'),
    Function("evens", "numbers", "keeps only the even numbers", "evens([1, 2, 4])", "[2, 4]"),
    Function("pairs_with_sum", "numbers, total", "finds pairs that add up", "pairs_with_sum([1, 3], 4)", "[(1, 3)]"),
    Function("compress", "text", "run-length encodes a string", 'compress("aab")', '"a2b1"'),
    Function("merge_sorted", "a, b", "merges two sorted lists", "merge_sorted([1, 4], [2])", "[1, 2, 4]"),
    Function("binary_search", "items, goal", "finds an index by binary search", "binary_search([2, 5, 8], 8)", "2"),
    Function("bubble_sort", "items", "sorts a list with bubble sort", "bubble_sort([3, 1, 2])", "[1, 2, 3]"),
    Function("most_common", "items", "returns the most frequent item", "most_common([1, 2, 2])", "2"),
    Function("clamp", "x, low, high", "limits a number to a range", "clamp(12, 0, 10)", "10"),
    Function("mask", "number", "hides all but the last four digits", 'mask("12345678")', '"****5678"'),
    Function("seconds", "clock", "turns a time like 1:30 into seconds", 'seconds("1:30")', "90"),
    Function("slugify", "title", "turns a title into a URL slug", 'slugify("My Post")', '"my-post"'),
    Function("average", "numbers", "returns the mean, or 0 for an empty list", "average([2, 4])", "3.0"),
    Function("group_by_first", "words", "groups words by first letter", 'group_by_first(["ox"])', '{"o": ["ox"]}'),
    Function("multiples", "n, count", "lists the first multiples of a number", "multiples(4, 3)", "[4, 8, 12]"),
    Function("is_sorted", "items", "checks if a list is in ascending order", "is_sorted([1, 2, 2])", "True"),
    Function("missing", "numbers", "finds the missing number from 1 to n", "missing([1, 2, 4])", "3"),
    Function("roman", "n", "writes a number in Roman numerals", "roman(9)", '"IX"'),
    Function("is_balanced", "text", "checks that all brackets are closed", 'is_balanced("(a[b])")', "True"),
    Function("word_count", "text", "counts how often each word occurs", 'word_count("a b a")', '{"a": 2, "b": 1}'),
    Function("power", "base, exponent", "raises a number to a power by recursion", "power(2, 5)", "32"),
    Function("extension", "filename", "returns the file extension", 'extension("notes.txt")', '"txt"'),
    Function("dot", "a, b", "computes the dot product of two vectors", "dot([1, 2], [3, 4])", "11"),
    Function("truncate", "text, limit", "shortens a text and adds dots", 'truncate("abcdef", 3)', '"abc..."'),
    Function("grade", "points", "maps points from 0 to 100 to a letter grade", "grade(91)", '"A"'),
    Function("zip_dict", "keys, values", "builds a dictionary from two lists", 'zip_dict(["a"], [1])', '{"a": 1}'),
    Function("collatz", "n", "counts the Collatz steps down to 1", "collatz(6)", "8"),
    Function("count_lines", "path", "counts the lines of a text file", 'count_lines("a.txt")', "12"),
)

SNIPPETS = (
    Snippet("total = 0\nfor n in range(1, 6):\n    if n % 2 == 1:\n        total += n\nprint(total)"),
    Snippet('words = ["red", "green", "blue"]\nprint([w.upper() for w in words if len(w) > 3])'),
    Snippet('counts = {}\nfor letter in "hello":\n    counts[letter] = counts.get(letter, 0) + 1\nprint(counts)'),
    Snippet("def f(n):\n    return 1 if n <= 1 else n * f(n - 1)\n\nprint(f(4))"),
    Snippet("a, b = 0, 1\nwhile a < 30:\n    print(a)\n    a, b = b, a + b"),
    Snippet('pairs = [("kim", 31), ("lee", 27)]\npairs.sort(key=lambda p: p[1])\nprint(pairs[0][0])'),
    Snippet('text = "level"\nprint(text == text[::-1])'),
    Snippet("grid = [[0] * 3 for _ in range(2)]\ngrid[0][1] = 5\nprint(grid)"),
    Snippet('def greet(name, mark="!"):\n    return f"Hello, {name}{mark}"\n\nprint(greet("Ana"))'),
    Snippet("stack = []\nfor n in [1, 2, 3]:\n    stack.append(n)\nwhile stack:\n    print(stack.pop())"),
    Snippet('try:\n    number = int("12a")\nexcept ValueError:\n    number = 0\nprint(number)'),
    Snippet("nums = [4, 8, 15, 16]\nprint(sum(nums) / len(nums))"),
    Snippet("seen = set()\nfor n in [3, 5, 3, 7, 5]:\n    if n in seen:\n        print(n)\n    seen.add(n)"),
    Snippet('prices = {"tea": 2, "cake": 4}\nprint(max(prices, key=prices.get))'),
    Snippet("def gen(n):\n    for i in range(n):\n        yield i * i\n\nprint(list(gen(4)))"),
    Snippet('for i, name in enumerate(["x", "y"], start=1):\n    print(i, name)'),
    Snippet('with open("log.txt") as file:\n    lines = [line.strip() for line in file]\nprint(len(lines))'),
    Snippet("x = [1, 2, 3]\ny = x\ny.append(4)\nprint(x)"),
    Snippet("class Counter:\n    def __init__(self):\n        self.n = 0\n\n    def tick(self):\n        self.n += 1"),
    Snippet("items = [5, 2, 9]\nbest = items[0]\nfor item in items:\n    if item > best:\n        best = item"),
    Snippet("evens = list(filter(lambda n: n % 2 == 0, range(10)))\nprint(evens)"),
    Snippet("matrix = [[1, 2], [3, 4]]\nprint([row[0] for row in matrix])"),
)

BUGS = (
    Snippet("def mean(nums):\n    return sum(nums) / len(nums) + 1", "return the average of the numbers"),
    Snippet("def last(items):\n    return items[len(items)]", "return the last item"),
    Snippet("def count(n):\n    while n > 0:\n        print(n)", "count down from n to 1"),
    Snippet("def is_even(n):\n    return n % 2 == 1", "tell whether n is even"),
    Snippet(
        "def add(item, bag=[]):\n    bag.append(item)\n    return bag",
        "start with an empty bag on every call",
    ),
    Snippet("def greet(name):\n    print('Hi ' + name)\n\nmessage = greet('Bo')", "store the greeting in message"),
    Snippet("total = 0\nfor n in range(1, 10):\n    total += n\nprint(total)", "add the numbers from 1 to 10"),
    Snippet("if x = 5:\n    print('five')", "print five when x equals 5"),
    Snippet("def area(r):\n    return 3.14 * r * 2", "compute the area of a circle"),
    Snippet("age = input('Age? ')\nif age > 17:\n    print('adult')", "tell adults from children"),
    Snippet("names = ['Al', 'Bo']\nfor i in range(3):\n    print(names[i])", "print every name once"),
    Snippet(
        "def biggest(nums):\n    best = 0\n    for n in nums:\n"
        "        if n > best:\n            best = n\n    return best",
        "also work when all numbers are negative",
    ),
    Snippet(
        "nums = [1, 2, 3, 4]\nfor n in nums:\n    if n % 2 == 0:\n        nums.remove(n)",
        "remove the even numbers",
    ),
    Snippet(
        "def half(n):\n    return n / 2\n\nprint('Half: ' + half(8))",
        "print the text and the number together",
    ),
    Snippet("data = {'a': 1}\nprint(data['b'])", "print 0 when a key is missing"),
    Snippet("def fact(n):\n    return n * fact(n - 1)", "compute the factorial of n"),
    Snippet("text = 'cat'\ntext[0] = 'b'\nprint(text)", "change cat into bat"),
    Snippet(
        "def total(prices):\n    for p in prices:\n        s = 0\n        s += p\n    return s",
        "add up all prices",
    ),
)

QUERIES = (
    Query("customers (id, name, city, joined_on)", "all customers from Lisbon"),
    Query("customers (id, name, city, joined_on)", "the number of customers in each city"),
    Query("customers (id, name, city, joined_on)", "the three customers who joined first"),
    Query("orders (id, customer_id, amount, ordered_on)", "the total amount spent by each customer"),
    Query("orders (id, customer_id, amount, ordered_on)", "the five largest orders"),
    Query("orders (id, customer_id, amount, ordered_on)", "the average order amount per month"),
    Query("books (id, title, author, year, price)", "all books published before 1950, oldest first"),
    Query("books (id, title, author, year, price)", "the authors with more than two books"),
    Query("books (id, title, author, year, price)", "the cheapest book"),
    Query("employees (id, name, department, salary)", "the average salary of each department"),
    Query("employees (id, name, department, salary)", "everybody who earns more than the average"),
    Query("employees (id, name, department, salary)", "the department with the most people"),
    Query("films (id, title, genre, rating, year)", "the best rated film of every genre"),
    Query("films (id, title, genre, rating, year)", "all films whose title starts with The"),
    Query("products (id, name, category, stock, price)", "the products that are out of stock"),
    Query("products (id, name, category, stock, price)", "the value of the stock in each category"),
    Query("students (id, name, class, score)", "the names and scores of class 7b, best score first"),
    Query("students (id, name, class, score)", "the highest and lowest score in each class"),
    Query("bookings (id, guest, room, nights, start_date)", "the guests who stayed longer than a week"),
    Query("bookings (id, guest, room, nights, start_date)", "the total number of nights for each room"),
)
COMMANDS = listed(
    """find all files larger than 100 MB in a folder, count the lines of every .py file, rename all .jpeg
    files to .jpg, show the ten largest folders, search for a word in all text files, list files changed
    in the last day, replace one word by another in a file, show the last 20 lines of a log file, delete
    all empty folders, copy a folder to another computer over SSH, find out which process uses port 8080,
    unpack a .tar.gz archive, make a script executable, compare two files line by line, sort a file and
    drop repeated lines, show how much disk space is left, download a file and save it under another name,
    print the third column of a CSV file, run a command every five minutes, stop a program that hangs, see
    which user you are logged in as, create a folder together with its parent folders, watch a file while
    it grows, print all environment variables"""
)
PATTERNS = listed(
    """a date like 2024-05-31, an email address, a five-digit postcode, a time like 23:59, a hex colour
    such as #1fa2bc, a word that starts with a capital letter, a price such as $12.50, a phone number with
    dashes, an IPv4 address, two identical words in a row, a line that contains only spaces, a file name
    ending in .png or .jpg, a quoted string, a hashtag, a number with an optional minus sign"""
)
CONCEPTS = listed(
    """recursion, a hash table, a linked list, polymorphism, a REST API, version control, unit testing, a
    database index, garbage collection, a race condition, dependency injection, a binary tree, Big O
    notation, a closure, caching, a foreign key, exception handling, a pure function, continuous
    integration, a virtual environment, type hints, a decorator, a generator, a queue, a stack, an
    environment variable, a deadlock, encapsulation, a compiler, an interpreter, memoisation, a load
    balancer, a container image, refactoring, a callback function, a webhook, lazy evaluation, a pointer,
    a regular expression, immutability"""
)
CONTRASTS = listed(
    """a list and a tuple, a process and a thread, == and is in Python, git merge and git rebase, GET and
    POST, a stack and a queue, an abstract class and an interface, SQL and NoSQL databases, TCP and UDP, a
    set and a list, a shallow copy and a deep copy, depth-first and breadth-first search, let and const in
    JavaScript, HTTP and HTTPS, a class and an object, unit tests and integration tests, compiled and
    interpreted languages, a while loop and a for loop, append and extend in Python, authentication and
    authorisation"""
)
WIDGETS = listed(
    """a contact form with name and email, a navigation bar with three links, a table of opening hours, a
    blue rounded button, a photo gallery with four pictures, a login box in the middle of the page, a card
    with a picture and a title, a footer with a copyright line, a drop-down list of countries, a progress
    bar at 60 percent, a numbered list of steps, a search field with a button, a two-column layout, a
    heading with a subtitle, a pricing table with two plans"""
)
MODELS = listed(
    """a bank account, a shopping cart, a playlist, a library book, a traffic light, a parking garage, a
    to-do list, a stopwatch, a recipe, a vending machine, a deck of cards, a student with grades, a
    thermostat, a chess board, a temperature sensor, a coffee machine, a phone book, a simple inventory, a
    dice game, a bus ticket"""
)
MISTAKES = listed(
    """IndexError: list index out of range, KeyError: 'name', TypeError: 'NoneType' object is not
    iterable, ModuleNotFoundError: No module named 'requests', IndentationError: unexpected indent,
    ZeroDivisionError: division by zero, RecursionError: maximum recursion depth exceeded,
    UnboundLocalError: local variable used before assignment, AttributeError: 'list' object has no
    attribute 'push', ValueError: invalid literal for int() with base 10: 'abc', FileNotFoundError: No
    such file or directory: 'data.csv', UnicodeDecodeError: 'utf-8' codec can't decode byte, TypeError:
    can only concatenate str (not "int") to str, NameError: name 'total' is not defined, PermissionError:
    Permission denied: 'report.txt'"""
)
GIT_TASKS = listed(
    """undo the last commit but keep the changes, create a new branch and switch to it, see what changed
    in a file, throw away all local changes, rename a branch, put unfinished work aside for a moment, list
    the last five commits, fix the message of the last commit, download new commits from the server,
    delete a branch that was merged, find out who wrote a line, mark a version with a tag, ignore a folder
    in every commit, combine two small commits, take one commit from another branch"""
)
LANGUAGES = listed("JavaScript, TypeScript, Java, Go, Rust, C, C++, C#, Ruby, Kotlin, Swift, PHP")
SCRIPTS = listed(
    """asks for a name and greets it, rolls two dice until both show six, prints the multiplication table
    of 7, reads a CSV file and prints the average of one column, counts the words of a text file, guesses
    a number between 1 and 100, downloads a web page and prints its title, renames the pictures of a
    folder by date, converts kilometres to miles, prints a calendar of the current month, draws a triangle
    of stars, generates a random password, reminds the user to take a break every hour, splits a
    restaurant bill, keeps a small shopping list in a JSON file, draws a bar chart of five numbers, sorts
    the lines of a file, tells how many days are left until New Year"""
)
