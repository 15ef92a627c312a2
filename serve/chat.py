"""A conversation in the terminal: the answer streams in, what each step committed is tinted, tau and speed go along."""

import sys
import time
from collections.abc import Iterable, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.style import Style
from rich.text import Text

from models.tokenizer import Tokenizer
from serve.session import Answer, Decoder, Row

PLAIN = Style()
TINTS = (Style(color="cyan"), Style(color="green"))  # alternating accepted runs; single tokens stay as they are


def chat(decoder: Decoder, *, message: str | None, max_new_tokens: int, stop: Sequence[str], seed: int) -> int:
    """Answers user messages until the input ends, or `message` alone; returns the exit code."""
    console = Console(highlight=False)
    messages: list[dict[str, str]] = []
    for number, content in enumerate(_ask(console) if message is None else [message]):
        messages.append({"role": "user", "content": content})
        ids = decoder.tokenizer.encode_chat(messages)
        stream = decoder.stream([ids], max_new_tokens=max_new_tokens, stop=stop, seeds=[(seed + number) % 2**32])
        messages.append({"role": "assistant", "content": show(stream, decoder.tokenizer, stop, console)})
    return 0


def _ask(console: Console):
    while True:
        try:
            message = console.input("[bold]> [/bold]") if sys.stdin.isatty() else input()
        except EOFError:
            return
        if message.strip():
            yield message


def show(
    stream: Iterable[tuple[list[Row], list[Answer]]], tokenizer: Tokenizer, stop: Sequence[str], console: Console
) -> str:
    """Shows one answer as it is written and returns its text.

    Finished lines are printed; the one being written stays below them in a terminal, with the figures so far.
    """
    num_printed, text = 0, ""
    seen: list[tuple[int, float]] = []  # after the first segment: tokens and time
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for (row,), answers in stream:
            seen = seen or [(len(row.ids), time.perf_counter())]
            pieces = tinted(tokenizer, row, holding=row.finished is None)
            held = unfinished_stop(pieces.plain, stop) if row.finished is None else 0
            lines = pieces[: len(pieces) - held if row.cut is None else row.cut].split("\n", allow_blank=True)
            for line in lines[num_printed:-1]:
                console.print(line, soft_wrap=True)
            num_printed = max(num_printed, len(lines) - 1)
            live.update(Group(lines[-1], figures(row, *seen[0])), refresh=True)
            text = answers[0].text if answers else text
    console.print(lines[-1], soft_wrap=True)
    console.print(figures(row, *seen[0]))
    return text


def figures(row: Row, first: int, began: float) -> Text:
    """Tokens, tau and tokens/s so far; the speed since `began`, when `first` tokens were there."""
    tau, rate = len(row.ids) / max(len(row.runs), 1), (len(row.ids) - first) / (time.perf_counter() - began)
    return Text(f"{len(row.ids)} tokens, {tau:.2f} a step, {rate:.1f} tokens/s", style="dim")


def unfinished_stop(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a stop string."""
    return max((size for word in stop for size in range(1, len(word)) if text.endswith(word[:size])), default=0)


def tinted(tokenizer: Tokenizer, row: Row, *, holding: bool) -> Text:
    """The answer so far, every run of several tokens in a tint of its own.

    While more is to come, an unfinished character at the end is held back.
    """
    text, place, before = Text(), 0, ""
    for step, run in enumerate(row.runs):
        place += run
        so_far = tokenizer.decode(row.ids[:place], skip_special=True)
        if so_far.endswith("�") and (holding or place < len(row.ids)):
            continue
        text.append(so_far[len(before) :], TINTS[step % 2] if run > 1 else PLAIN)
        before = so_far
    return text
