"""Training prompts of the kind code: writing, explaining, mending and testing small programs."""

from pipelines.own.coding_words import (
    BUGS,
    COMMANDS,
    CONCEPTS,
    CONTRASTS,
    FUNCTIONS,
    GIT_TASKS,
    LANGUAGES,
    MISTAKES,
    MODELS,
    PATTERNS,
    QUERIES,
    SCRIPTS,
    SNIPPETS,
    WIDGETS,
)
from pipelines.own.templates import Maker, sentence_makers
from pipelines.own.words import JOBS

WORDS = {
    "f": FUNCTIONS,
    "snippet": SNIPPETS,
    "bug": BUGS,
    "query": QUERIES,
    "command": COMMANDS,
    "pattern": PATTERNS,
    "concept": CONCEPTS,
    "contrast": CONTRASTS,
    "widget": WIDGETS,
    "model": MODELS,
    "mistake": MISTAKES,
    "git": GIT_TASKS,
    "language": LANGUAGES,
    "script": SCRIPTS,
    "reader": (*JOBS, "a ten-year-old", "a new colleague", "a beginner"),
}

TEMPLATES = (
    "Write a Python function `{f.name}({f.args})` that {f.does}.",
    "Write a Python function called {f.name} that {f.does}. Add a short docstring.",
    'Complete this Python function. It {f.does}.\n\n```python\ndef {f.name}({f.args}):\n    """For example, '
    '{f.call} returns {f.result}."""\n```',
    "Implement `{f.name}({f.args})` in Python. It {f.does}: `{f.call}` should give `{f.result}`.",
    "I need a small Python helper that {f.does}. Please call it {f.name} and show one example call.",
    "Write a {language} function that {f.does}. Code first, then one sentence of explanation.",
    "How would you write a function in {language} that {f.does}?",
    "Write three assert statements for a Python function {f.name}({f.args}) that {f.does}.",
    "Write a pytest test for `{f.name}({f.args})`, a function that {f.does}. One normal case and one edge "
    "case.",
    "Write {f.name} in Python without importing anything. The function {f.does}.",
    "Give two versions of a Python function that {f.does}: one with a plain loop and one as short as you "
    "can.",
    "Write a Python function with type hints that {f.does}. Its signature starts with `def "
    "{f.name}({f.args})`.",
    "Which edge cases should a function that {f.does} handle? Then write it in Python.",
    "Describe in plain words, as a numbered list, how a function that {f.does} works. No code.",
    "What does this Python code print?\n\n```python\n{snippet.code}\n```",
    "Explain this code line by line:\n\n```python\n{snippet.code}\n```",
    "Add a short comment to every line of this program:\n\n```python\n{snippet.code}\n```",
    "Rewrite the following Python code in {language}:\n\n```python\n{snippet.code}\n```",
    "Turn this code into a function with a good name:\n\n```python\n{snippet.code}\n```",
    "```python\n{snippet.code}\n```\n\nIn one sentence, what is this code for?",
    "Give the variables in this code better names and return the full "
    "code:\n\n```python\n{snippet.code}\n```",
    "Is there a simpler way to write this?\n\n```python\n{snippet.code}\n```",
    "This code has a bug. It should {bug.goal}. Find the mistake and show the corrected code.\n\n"
    "```python\n{bug.code}\n```",
    "Why does this not work? I want it to {bug.goal}.\n\n```python\n{bug.code}\n```",
    "```python\n{bug.code}\n```\n\nThe code above should {bug.goal}. What is wrong with it?",
    "Fix this program so that it will {bug.goal}. Answer with the fixed code "
    "only.\n\n```python\n{bug.code}\n```",
    "There is a table {query.table}. Write an SQL query for {query.request}.",
    "Given the SQL table {query.table}, how do I get {query.request}? Explain the query in one sentence.",
    "Write the CREATE TABLE statement for {query.table} with sensible column types.",
    "Write an SQL statement that inserts two example rows into {query.table}.",
    "Which Linux command can I use to {command}?",
    "How do I {command} in a terminal? Explain the options you use.",
    "Write a short bash script to {command}.",
    "Write a regular expression that matches {pattern}, and explain its parts.",
    "In Python, how can I check with the re module whether a text contains {pattern}?",
    "Explain {concept} to {reader} in a few sentences.",
    "What is {concept} in programming? Give a tiny Python example.",
    "When is {concept} useful, and when is it not?",
    "What is the difference between {contrast}?",
    "I keep mixing up {contrast}. Can you explain the difference with a short example?",
    "Write the HTML and CSS for {widget}.",
    "Show me the simplest HTML for {widget}, with comments.",
    "Write a Python class that models {model}. Two or three methods are enough.",
    "Sketch a class for {model} in {language}.",
    "Which attributes and methods would a class for {model} need? List them briefly.",
    "My Python program stops with `{mistake}`. What does that mean and how can I fix it?",
    "Give a tiny example that causes `{mistake}`, and then the corrected version.",
    "With git, how do I {git}?",
    "I use git and want to {git}. Which commands do I type, in order?",
    "Write a short Python script that {script}.",
    "Write a program in {language} that {script}.",
    "I am learning Python. Guide me in five steps towards a script that {script}.",
    "Write pseudocode for a program that {script}.",
    "Write a README section of three sentences for a tool that {script}.",
)


def makers() -> list[Maker]:
    """Returns one maker a template."""
    return sentence_makers(TEMPLATES, WORDS)
