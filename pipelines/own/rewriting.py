"""Training prompts of the kind rewriting: extract from, correct, shorten or reshape a given text."""

from pipelines.own.passages import MAIL, PROSE, RECORDS, ROUGH
from pipelines.own.templates import Maker, passage_makers
from pipelines.own.words import CITIES, DATES, DAYS, GOODS, MONTHS, PEOPLE, TIMES

WORDS = {
    "person": PEOPLE,
    "city": CITIES,
    "day": DAYS,
    "date": DATES,
    "month": MONTHS,
    "time": TIMES,
    "goods": GOODS,
    "count": range(14, 60),
    "small": range(3, 10),
    "year": range(1931, 2012),
}

PROSE_TEMPLATES = (
    "Summarise this text in one sentence.\n\n{text}",
    "Rewrite the following paragraph in the present tense:\n\n{text}",
    "Turn this text into a list of bullet points. Keep the original words where you can.\n\n{text}",
    "{text}\n\nCopy the longest sentence of the text above, word for word.",
    "Repeat the text below, but leave out the first sentence.\n\n{text}",
    "{text}\n\nGive this text a title and then repeat the text unchanged.",
    "Make this paragraph shorter by about half, and keep the facts:\n\n{text}",
    "Split the text into its sentences and number them.\n\n{text}",
    "List all names of people and places that occur in this text:\n\n{text}",
    "Write down every number in the text together with what it refers to.\n\n{text}",
    "Rewrite this for an eight-year-old, using simple words.\n\n{text}",
    "{text}\n\nWrite three questions about this text, each with its answer taken from the text.",
    "Mark the important nouns by repeating the text with those nouns in CAPITAL LETTERS.\n\n{text}",
    "Copy the text below exactly as it stands.\n\n{text}",
    "Put the sentences of this text in reverse order, without changing them:\n\n{text}",
    "Add one fitting sentence to the end of this text. Return the complete text.\n\n{text}",
)
QUESTION_TEMPLATES = (
    "{text}\n\nQuestion: {question}\nAnswer with the sentence of the text that tells us.",
    "Use only the text to answer. {question}\n\n{text}",
    "Read the text and answer the question.\n\nText: {text}\n\nQuestion: {question}",
    "{question} Quote the words of the text that support your answer.\n\n{text}",
)
MAIL_TEMPLATES = (
    "Who has to do what, and when? Extract it from this message as a list.\n\n{text}",
    "Extract the names, dates and times from the message as JSON with the keys names, dates, times.\n\n{text}",
    "Rewrite this message so that it sounds more formal. Keep all details.\n\n{text}",
    "Rewrite this message so that it sounds more relaxed and friendly. Keep all details.\n\n{text}",
    "Shorten the following message to a text of at most 30 words.\n\n{text}",
    "{text}\n\nWrite a short reply that confirms everything and repeats the important details.",
    "The meeting place and time matter most. Rewrite the message so that they come first.\n\n{text}",
    "Write a subject line for this message, then repeat the message under it.\n\n{text}",
    "Rewrite the message so that {person4} takes the place of {person}; change nothing else.\n\n{text}",
    "Anonymise the message: put NAME in place of every person and PLACE in place of every city.\n\n{text}",
    "Report in the third person what this message says.\n\n{text}",
)
RECORD_TEMPLATES = (
    "Turn these notes into a Markdown table:\n\n{text}",
    "Write the following data as a JSON list of objects.\n\n{text}",
    "Write the data below as CSV with a header line.\n\n{text}",
    "Sort these entries alphabetically and write one per line.\n\n{text}",
    "Write these notes out as full sentences in one paragraph:\n\n{text}",
    "Give every entry a number, one per line, and change nothing else.\n\n{text}",
    "{text}\n\nRepeat the first and the last entry of these notes.",
    "Write the notes again in reverse order.\n\n{text}",
)
ROUGH_TEMPLATES = (
    "Correct the spelling and grammar:\n\n{text}",
    "Please fix all mistakes in this text and return only the corrected version.\n\n{text}",
    "{text}\n\nRewrite this in good English, then list what you changed.",
    "Proofread the sentence below and make it sound natural.\n\n{text}",
    "How many mistakes can you find here? Name them and give the corrected text.\n\n{text}",
    "Correct this text and make it polite enough for a letter:\n\n{text}",
)
TEMPLATES = (
    PROSE_TEMPLATES
    + QUESTION_TEMPLATES
    + MAIL_TEMPLATES
    + RECORD_TEMPLATES
    + ROUGH_TEMPLATES
    + tuple(text for text, _ in PROSE)
    + MAIL
    + RECORDS
    + ROUGH
)


def makers() -> list[Maker]:
    """Returns one maker a way of rewriting."""
    return [
        *passage_makers(PROSE_TEMPLATES + QUESTION_TEMPLATES, PROSE, WORDS),
        *passage_makers(MAIL_TEMPLATES, [(text, "") for text in MAIL], WORDS),
        *passage_makers(RECORD_TEMPLATES, [(text, "") for text in RECORDS], WORDS),
        *passage_makers(ROUGH_TEMPLATES, [(text, "") for text in ROUGH], WORDS),
    ]
