"""What the scheduler is asked, and what it tells of it."""

import dataclasses
from typing import Literal

from models.sampling import GREEDY, Sampling

MOST_LOGPROBS = 20  # alternatives a request may ask for
Finish = Literal["eos", "stop", "length", "cancelled", "fault"]


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for."""

    id: str
    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling = GREEDY
    seed: int = 0  # 0 .. 2**32 - 1
    stop: tuple[str, ...] = ()
    logprobs: int | None = None  # of every token, with so many likeliest alternatives; None: none
    speculative: bool = True  # False: while it runs, nothing is drafted
    cache_salt: str = ""  # what of its prompt is known already is looked for among requests of the same salt


@dataclasses.dataclass(frozen=True)
class TokenLogprob:
    """A token's log-probability as the target has it, before temperature and filters."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # (id, logprob), likeliest first


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds a request took, and what it met."""

    queued_s: float  # until it had a row, first
    prefill_s: float  # from then on until its prompt was read, first
    first_token_s: float  # from submission to its first token; 0 where it has none
    decode_s: float  # from its prompt's end to its own
    cached_tokens: int  # of its prompt, found in known pages
    preemptions: int


@dataclasses.dataclass(frozen=True)
class Progress:
    """What one segment brought a request."""

    ids: tuple[int, ...] = ()
    text: str = ""  # never half a character, nothing of a stop string
    runs: tuple[int, ...] = ()  # tokens each step committed; they sum to len(ids)
    drafted: tuple[int, ...] = ()  # tokens drafted by each step; 0: a plain one
    logprobs: tuple[TokenLogprob, ...] | None = None
    finished: Finish | None = None
    fault: str | None = None  # one line, where it ended in a fault
    timing: Timing | None = None  # on the last one


@dataclasses.dataclass(frozen=True)
class Stats:
    """Counters since the start, and gauges of now."""

    running: int
    waiting: int
    free_pages: int  # those that can be had, known ones that no row holds among them
    pages: int
    prefix_queries: int  # tokens of prompts admitted
    prefix_hits: int  # of these, found in known pages
    drafts: int  # steps with drafts
    draft_tokens: int
    accepted_tokens: int
    accepted_per_position: tuple[int, ...]
    prompt_tokens: int
    generation_tokens: int
    preemptions: int
    steps: int  # of rows


GAUGES = ("running", "waiting", "free_pages", "pages", "accepted_per_position")  # of `Stats`, not counted one by one


class Full(Exception):
    """The queue holds as many requests as it may."""
