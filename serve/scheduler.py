"""Many requests, one batch: who is in it, what every row does next, and what each is told.

Requests wait in a queue, take a row and pages, have their prompts read chunk by chunk, write in segments of a few steps
among others, and leave. One `turn` is all of that once: at most one chunk of one prompt and one segment of all rows, so
that a long prompt holds nobody up for longer than a chunk. Between turns the host has all that matters: which tokens
are whose, and which pages (`serve.pages`); the device has rows that can be thrown away and made again.

Pages. A request is admitted when there are pages for its prompt; a row takes more as it grows. When there are none, the
row admitted last gives its own back and waits at the head of the queue with what it wrote as part of its prompt; its
draws are named by its seed and its positions, so it goes on as if nothing had been. Full pages whose row went on to
write finite logits are known from then on, and prompts that begin with the same tokens begin behind them.

Rows. The batch has as many rows as it needs, a power of two: one request is not slowed down by room for sixteen. One
prompt is read at a time, and whose turn to be read has not come waits without a row.

Faults. A row whose logits are not finite ends alone. An error on the device, out of memory or other, takes the state of
all rows with it and ends one request: the one the device was working for or, where that was all of them, the row
admitted last. The others wait at the head of the queue and are made again on a fresh state. As each error ends a
request, none comes for ever. Pages are zeroed before another row has them: 0 x NaN is NaN.
"""

import dataclasses
import itertools
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.errors import UserError
from models.decode import Engine
from models.drafters import SINGLE, Draft
from models.rows import Rows, make_rows
from models.sampling import GREEDY, Sampling, sampling_rows
from models.sharding import platform
from models.target import check_ids
from models.tokenizer import Tokenizer
from models.verify import Speculation
from serve import engine as device
from serve.choose import Chooser, Seen
from serve.pages import PageTable
from serve.requests import GAUGES, MOST_LOGPROBS, Finish, Full, Progress, Request, Stats, Timing, TokenLogprob
from serve.writing import Writing

SEGMENT = 8  # steps between looks at the rows
BRIEF = 1  # the same while a prompt waits to be read
CHUNKS = (64, 128)  # positions of a prompt read at once on a CPU: the fewest that hold what is left, or the most
CHUNKS_ELSEWHERE = (512,)


@dataclasses.dataclass(eq=False)
class Entry:
    """A request on its way."""

    request: Request
    deliver: Callable[[Progress], None]
    writing: Writing
    tokens: list[int]  # prompt and answer
    number: int  # of its admission: the youngest row has the largest; -1: not yet admitted
    submitted: float
    pages: list[int] = dataclasses.field(default_factory=list)
    known: int = 0  # of its pages, the first so many were made known
    read: int = 0  # positions that target and drafter know
    admitted: float = 0.0
    prompt_read: float = 0.0
    first_token: float = 0.0
    cached_tokens: int = 0
    preemptions: int = 0

    @property
    def live(self) -> bool:
        """Whether its prompt is read: it writes."""
        return self.read >= len(self.tokens) - 1

    @property
    def stop(self) -> int:
        """Length at which it ends."""
        return len(self.request.prompt) + self.request.max_new_tokens


class Scheduler:
    """Answers requests with one engine, up to `rows` at a time, each of up to `capacity` positions.

    `draft` says what steps draft, a chooser picks it as it goes, None is the plain loop. All rows share `pages` pages
    of `page` positions: what they could fill and what suits the device, unless it is said. Up to `queue` requests wait
    for others to end. One thread calls `turn` or `run`; every other method may be called from any.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        rows: int = 8,
        capacity: int = 1024,
        draft: Draft | Chooser | None = None,
        pages: int | None = None,
        page: int | None = None,
        queue: int = 64,
    ):
        self.engine = device.keeping(engine.plain if draft is None else engine)
        self.tokenizer, self.queue = tokenizer, queue
        self.capacity = min(capacity, engine.target.config.max_positions)
        self.chooser = draft if isinstance(draft, Chooser) else None
        self.drafts = draft.drafts if isinstance(draft, Chooser) else [draft or SINGLE]
        page = page or device.page_size(engine.target.mesh)
        self.chunks = CHUNKS if platform(engine.target.mesh) == "cpu" else CHUNKS_ELSEWHERE
        widest = max(draft.widest for draft in self.drafts)
        self._positions = -(-(self.capacity + max(*self.chunks, widest)) // page) * page
        self.sizes = device.batch_sizes(rows, engine.target.mesh)
        least = -(-(self.capacity + widest) // page)
        self._num_pages, self._page = least * rows if pages is None else pages, page
        if self._num_pages < least:
            raise UserError(
                f"pages: expected at least {least} (of {page} positions, for one request of {self.capacity}), got "
                f"{self._num_pages}"
            )
        self._changed = threading.Condition()
        self._waiting: deque[Entry] = deque()
        self._cancelled: set[str] = set()
        self._out: list[tuple[Entry, Progress]] = []
        self._numbers = itertools.count()
        self._short = False  # whether the head of the queue waits for pages
        self._served: Entry | None = None  # whom the device works for, where that is not all rows
        self._counts = dict.fromkeys([field.name for field in dataclasses.fields(Stats) if field.name not in GAUGES], 0)
        self._accepted_at = np.zeros(widest - 1, np.int64)
        self.state: Any = None
        self._begin()

    def submit(self, request: Request, deliver: Callable[[Progress], None]) -> None:
        """Puts a request into the queue; `deliver` is called with what comes of it, from the thread of `turn`.

        Raises:
          Full: as many are waiting as may.
          UserError: an id that is in use, an empty prompt or stop string, ids the target does not have, more tokens
            than fit, a seed or a number of alternatives out of range.
        """
        self._check(request)
        entry = Entry(
            request, deliver, Writing(self.tokenizer, request.stop), list(request.prompt), -1, time.perf_counter()
        )
        with self._changed:
            if any(other.request.id == request.id for other in [*self._waiting, *self._seated]):
                raise UserError(f"id: {request.id!r} is in use; choose another")
            if len(self._waiting) >= self.queue + self._free:
                raise Full(f"{self.queue} requests are waiting")
            self._waiting.append(entry)
            self._changed.notify()

    def cancel(self, id: str) -> None:
        """Ends a request within a segment; nothing happens where it has ended already."""
        with self._changed:
            self._cancelled.add(id)
            self._changed.notify()

    def abort(self) -> None:
        """Cancels all there are."""
        with self._changed:
            self._cancelled |= {entry.request.id for entry in [*self._waiting, *self._seated]}
            self._changed.notify()

    def run(self, stopping: threading.Event) -> None:
        """Turns until `stopping` is set and nothing is left to do."""
        while True:
            if self.turn():
                continue
            with self._changed:
                if stopping.is_set() and not self._waiting:
                    return
                if not self._waiting and not self._cancelled:
                    self._changed.wait(0.1)

    def turn(self) -> bool:
        """One round: admission, a chunk of a prompt, a segment, delivery; False when there was nothing to do."""
        try:
            ended = self._end_cancelled()
            self._admit()
            worked = self._read_chunk()
            worked = self._write() or worked or ended
        except Exception:  # noqa: BLE001  whatever it is, it is a request's end and not the server's
            traceback.print_exc()
            self._fail()
            worked = True
        out, self._out = self._out, []
        for entry, progress in out:
            entry.deliver(progress)
        return worked

    def stats(self) -> Stats:
        """A consistent copy."""
        with self._changed:
            return Stats(
                running=len(self._seated),
                waiting=len(self._waiting),
                free_pages=self.pages.available,
                pages=self.pages.num,
                accepted_per_position=tuple(self._accepted_at.tolist()),
                **self._counts,
            )

    def warm(self) -> None:
        """Compiles what greedy requests may need, and runs it once; what sampling needs, when it first comes.

        On a CPU the first run of a program takes a second more than those after it, and so does every loop in it.
        """
        for size in self.sizes:
            if len(self.rows) < size:
                self._resize()
            for draft in dict.fromkeys([SINGLE, *self._choices]):
                for copying in (0, -(-size // 2)) if draft.copy else (0,):
                    self._try(draft, copying)
        for chunk in self.chunks:
            self.state = device.prefill(self.engine, self.state, self._table(), 0, 0, chunk)
        while len(self.rows) > self.sizes[0]:
            self._resize(-1)
        self.forget()

    def _try(self, draft: Draft, copying: int) -> None:
        """A step of rows that own nothing, so many of which may copy."""
        for row in range(len(self.rows)):
            ids = [0] * (8 if row < copying else 1)
            new = self._row(ids, len(ids) + draft.widest, 0, GREEDY)
            self.state = device.seat(self.engine, self.state, self._table(), row, new, 1, chunk=self.chunks[0])
            self.state = device.brought(self.state, row)
        self._advance(np.ones(len(self.rows), bool), 1, draft, None)
        self.state = device.cleaned(self.state, np.full(self._positions // self._page, device.NOWHERE, np.int32))

    def forget(self) -> None:
        """Forgets all known pages, and all there is; nobody may be seated."""
        assert not self._seated
        self._begin()

    def check(self) -> None:
        """Asserts that every page is free, held by rows or known and idle."""
        self.pages.check([entry.pages for entry in self._seated])

    @property
    def _seated(self) -> list[Entry]:
        return [entry for entry in self.rows if entry is not None]

    @property
    def _free(self) -> int:
        """How many more may be seated before anybody ends."""
        return 0 if self._short else self.sizes[-1] - len(self._seated)

    @property
    def _unread(self) -> int:
        """Prompts that are read, or can be, before anybody ends."""
        return min(len(self._waiting), self._free) + sum(not entry.live for entry in self._seated)

    def _begin(self) -> None:
        """Nothing known, nobody seated."""
        self.rows: list[Entry | None] = [None] * self.sizes[0]
        self.pages = PageTable(self._num_pages, self._page)
        options = {"pages": self._num_pages, "page": self._page}
        self.state = device.empty_state(self.engine, self.sizes[0], self._positions, **options)

    def _check(self, request: Request) -> None:
        limit = self.capacity
        if not request.prompt:
            raise UserError("prompt: expected at least one token, got none")
        check_ids(request.prompt, self.engine.target.config, "prompt")
        if request.max_new_tokens < 1:
            raise UserError(f"max_new_tokens: expected at least 1, got {request.max_new_tokens}")
        if len(request.prompt) + request.max_new_tokens > limit:
            raise UserError(
                f"prompt of {len(request.prompt)} tokens + max_new_tokens={request.max_new_tokens} exceed the "
                f"{limit} positions of a request; shorten one of them"
            )
        if not 0 <= request.seed < 2**32:
            raise UserError(f"seed: expected 0 to {2**32 - 1}, got {request.seed}")
        if "" in request.stop:
            raise UserError("stop: expected texts, none of them empty")
        if request.logprobs is not None and not 0 <= request.logprobs <= MOST_LOGPROBS:
            raise UserError(f"logprobs: expected 0 to {MOST_LOGPROBS}, got {request.logprobs}")

    def _end_cancelled(self) -> bool:
        with self._changed:
            ids, self._cancelled = self._cancelled, set()
            gone = [entry for entry in self._waiting if entry.request.id in ids]
            for entry in gone:
                self._waiting.remove(entry)
        for entry in gone:
            self._tell(entry, finished="cancelled")
        for entry in self._seated:
            if entry.request.id in ids:
                gone.append(entry)
                self._leave(entry)
                self._tell(entry, finished="cancelled")
        return bool(gone)

    def _admit(self) -> None:
        """Seats the head of the queue where there is a row, pages, and no other prompt to read first.

        So steps run at as many rows as write, and a prompt finds the pages of the one that was read before it.
        """
        self._short = False
        while self._free and self._waiting and all(entry.live for entry in self._seated):
            self._served = entry = self._waiting[0]
            length = len(entry.tokens)
            found = self.pages.find(entry.tokens[: length - 1], entry.request.cache_salt)
            room = min(length + self._reserve, self.capacity + self._reserve)
            needed = self.pages.needed(room) - len(found)
            spare = len(self._seated)  # a page for each who writes already
            more = None if needed + spare > self.pages.available else self.pages.take(needed)
            if more is None:
                self.pages.release(found)
                self._short = True
                break
            if None not in self.rows:
                self._resize()
            with self._changed:
                self._waiting.popleft()
                self._counts["prefix_queries"] += length
                self._counts["prefix_hits"] += len(found) * self._page
            entry.pages, entry.known, entry.read = found + more, len(found), len(found) * self._page
            if entry.number < 0:
                entry.number, entry.admitted = next(self._numbers), time.perf_counter()
                entry.cached_tokens = entry.read
                self._counts["prompt_tokens"] += length
            self._seat(entry)
        self._served = None

    @property
    def _reserve(self) -> int:
        """Positions past its length that a row has at least."""
        return max(draft.widest for draft in self.drafts)

    def _seat(self, entry: Entry) -> None:
        row = self.rows.index(None)
        self.rows[row] = entry
        new = self._row(entry.tokens, entry.stop, entry.request.seed, entry.request.sampling)
        self.state = device.seat(self.engine, self.state, self._table(), row, new, entry.read, chunk=self.chunks[0])
        self._mark_read(entry)

    def _row(self, ids: Sequence[int], stop: int, seed: int, sampling: Sampling) -> Rows:
        tokens = np.zeros((1, self._positions), np.int32)
        tokens[0, : len(ids)] = ids
        one = np.array([[len(ids)], [stop]], np.int32)
        rows = make_rows(*map(jnp.asarray, (tokens, *one, np.array([seed], np.uint32).view(np.int32))))
        return dataclasses.replace(rows, sampling=sampling_rows([sampling]))

    def _read_chunk(self) -> bool:
        """A chunk of the prompt that is being read; False where there is none."""
        entry = next((entry for entry in self._seated if not entry.live), None)
        if entry is None:
            return False
        self._served = entry
        row, left = self.rows.index(entry), len(entry.tokens) - 1 - entry.read
        chunk = next((chunk for chunk in self.chunks if chunk >= left), self.chunks[-1])
        self.state = device.prefill(self.engine, self.state, self._table(), row, entry.read, chunk)
        entry.read += min(chunk, left)
        self._mark_read(entry)
        self._served = None
        return True

    def _mark_read(self, entry: Entry) -> None:
        if not entry.live:
            return
        self.state = device.brought(self.state, self.rows.index(entry))
        if not entry.prompt_read:
            jax.block_until_ready(self.state.cache)
            entry.prompt_read = time.perf_counter()

    def _write(self) -> bool:
        """A segment of all rows whose prompts are read; False where there are none."""
        self._fit()
        live = [entry for entry in self._seated if entry.live]
        if not live:
            return False
        draft = self._pick(live)
        steps = self._take_pages(BRIEF if self._unread else SEGMENT, draft)
        live = [entry for entry in self._seated if entry.live]  # without those that gave theirs back
        if not live:
            return True
        drawn = [entry.request.sampling for entry in live if not entry.request.sampling.greedy]
        ordered = any(one.top_k is not None or one.top_p < 1 for one in drawn) if drawn else None
        began = time.perf_counter()
        news = self._advance(np.array([entry in live for entry in self.rows]), steps, draft, ordered)
        self._take_news(live, news, draft, (time.perf_counter() - began) * 1e3)
        return True

    def _advance(self, live: np.ndarray, steps: int, draft: Draft, ordered: bool | None) -> device.News:
        options: dict[str, Any] = {"most": SEGMENT, "draft": draft, "speculation": Speculation(), "ordered": ordered}
        self.state, news = device.advance(self.engine, self.state, self._table(), live, steps, **options)
        return jax.device_get(news)

    @property
    def _choices(self) -> list[Draft]:
        """What may be drafted with as many rows as there are."""
        return self.chooser.choices(len(self.rows)) if self.chooser else self.drafts

    def _pick(self, live: Sequence[Entry]) -> Draft:
        if not all(entry.request.speculative for entry in live):
            return SINGLE
        hurry = self._unread > 1  # the sooner they write too, the more share every step
        draft = self.chooser.pick(len(self.rows), hurry=hurry) if self.chooser else self.drafts[0]
        drawn = not all(entry.request.sampling.greedy for entry in live)
        return dataclasses.replace(draft, tree=0) if drawn else draft  # trees are built at one temperature

    def _take_pages(self, steps: int, draft: Draft) -> int:
        """Gives every row that writes the pages of a segment, oldest first; how many steps it may take."""
        for entry in sorted(self._seated, key=lambda entry: entry.number):
            while entry in self.rows and entry.live:
                reach = min(len(entry.tokens) - 1 + steps * draft.widest, entry.stop - 1 + draft.widest)
                more = self.pages.take(max(self.pages.needed(reach) - len(entry.pages), 0))
                if more is not None:
                    entry.pages += more
                    break
                if steps > 1:
                    steps = 1
                else:
                    self._preempt(max(self._seated, key=lambda entry: entry.number))
        return steps

    def _preempt(self, entry: Entry) -> None:
        self._leave(entry)
        entry.preemptions += 1
        with self._changed:
            self._counts["preemptions"] += 1
            self._waiting.appendleft(entry)

    def _take_news(self, live: Sequence[Entry], news: device.News, draft: Draft, ms: float) -> None:
        seen, size = [], len(self.rows)
        for row, entry in [(self.rows.index(entry), entry) for entry in live]:
            self._served = entry
            if news.fault[row]:
                what = "the target's logits" if news.fault[row] > 0 else "the drafter's states"
                self._leave(entry)
                self._tell(entry, finished="fault", fault=f"{what} are not finite; the request ends here")
                continue
            steps = slice(news.num_steps[row])
            ids, runs = news.tokens[row, : news.count[row]].tolist(), news.runs[row, steps].tolist()
            copied, done, before = news.copied[row, steps].tolist(), bool(news.done[row]), len(entry.tokens)
            entry.tokens += ids
            entry.read = len(entry.tokens) - 1
            seen.append(Seen(runs, copied, list(entry.tokens), done=done))
            finished, ids = self._ended(entry, ids, done)
            scores = self._logprobs(row, entry, before, len(ids), draft) if entry.request.logprobs is not None else None
            runs = _cut(runs, len(ids))
            drafted = news.offered[row, : len(runs)].tolist()
            self._count(runs, drafted)
            if not entry.first_token:
                entry.first_token = time.perf_counter()
            entry.known = self.pages.know(
                entry.pages, entry.tokens[: entry.read], entry.known, entry.request.cache_salt
            )
            if finished:
                self._leave(entry)
            text = entry.writing.take(ended=finished is not None)
            self._tell(entry, tuple(ids), text, tuple(runs), tuple(drafted), scores, finished)
        self._served = None
        if self.chooser is not None:
            self.chooser.observe(draft, seen, rows=size, ms=ms)

    def _ended(self, entry: Entry, ids: list[int], done: bool) -> tuple[Finish | None, list[int]]:
        """How the answer ended, if it did, and its new tokens up to there."""
        for count, token in enumerate(ids, 1):
            if entry.writing.add(token):
                return "stop", ids[:count]
        if not done:
            return None, ids
        return "eos" if ids[-1] in self.engine.target.config.eos_ids else "length", ids

    def _count(self, runs: Sequence[int], drafted: Sequence[int]) -> None:
        with self._changed:
            self._counts["steps"] += len(runs)
            self._counts["generation_tokens"] += sum(runs)
            for run, size in zip(runs, drafted, strict=True):
                if size:
                    self._counts["drafts"] += 1
                    self._counts["draft_tokens"] += size
                    self._counts["accepted_tokens"] += run - 1
                    self._accepted_at[: run - 1] += 1

    def _logprobs(self, row: int, entry: Entry, begin: int, count: int, draft: Draft) -> tuple[TokenLogprob, ...]:
        most, options = entry.request.logprobs or 0, {"count": SEGMENT * draft.widest, "most": MOST_LOGPROBS}
        found = device.logprobs(self.engine, self.state, row, begin, **options)
        own, top, ids = (part[:count].tolist() for part in jax.device_get(found))
        new = entry.tokens[begin : begin + count]
        return tuple(
            TokenLogprob(token, score, tuple(zip(ids[at][:most], top[at][:most], strict=True)))
            for at, (token, score) in enumerate(zip(new, own, strict=True))
        )

    def _leave(self, entry: Entry) -> None:
        """Takes an entry's row and pages away, which are clean for the next."""
        self._served = entry
        self.rows[self.rows.index(entry)] = None
        freed = self.pages.release(entry.pages)
        entry.pages, entry.known, entry.read = [], 0, 0
        size = self._positions // self._page
        for begin in range(0, len(freed), size):
            pages = np.full(size, device.NOWHERE, np.int32)
            pages[: len(freed[begin : begin + size])] = freed[begin : begin + size]
            self.state = device.cleaned(self.state, pages)
        self._served = None

    def _tell(self, entry: Entry, *what: Any, **named: Any) -> None:
        progress = Progress(*what, **named)
        if progress.finished is not None:
            progress = dataclasses.replace(progress, timing=self._timing(entry))
        self._out.append((entry, progress))

    def _timing(self, entry: Entry) -> Timing:
        now = time.perf_counter()
        admitted, read = entry.admitted or now, entry.prompt_read or now
        first = entry.first_token - entry.submitted if entry.first_token else 0.0
        queued, prefill = admitted - entry.submitted, max(read - admitted, 0.0)
        return Timing(queued, prefill, first, now - read, entry.cached_tokens, entry.preemptions)

    def _fail(self) -> None:
        """One request ends in a fault, those that were seated beside it wait to be made again; a state of nobody's."""
        seated = sorted(self._seated, key=lambda entry: entry.number)
        ended, self._served = self._served or (seated[-1] if seated else None), None
        with self._changed:
            self._waiting.extendleft(entry for entry in reversed(seated) if entry is not ended)
            if ended in self._waiting:
                self._waiting.remove(ended)
            self._counts["preemptions"] += sum(entry is not ended for entry in seated)
        for entry in seated:
            entry.pages, entry.known, entry.read = [], 0, 0
            entry.preemptions += 1
        if ended is not None:
            what = f"request {ended.request.id}: the device failed while it ran; try again"
            self._tell(ended, finished="fault", fault=what)
        self.state = None  # its memory may be what the next one needs
        self._begin()

    def _table(self) -> np.ndarray:
        table = np.full((len(self.rows), self._positions // self._page), device.NOWHERE, np.int32)
        for row, entry in enumerate(self.rows):
            if entry is not None:
                table[row, : len(entry.pages)] = entry.pages
        return table

    def _fit(self) -> None:
        """Fewer rows, where fewer would do for all there are."""
        if len(self.rows) > self.sizes[0] and len(self._seated) <= self.sizes[self.sizes.index(len(self.rows)) - 1]:
            self._resize(-1)

    def _resize(self, by: int = 1) -> None:
        """The next number of rows, those that are taken first."""
        size = self.sizes[self.sizes.index(len(self.rows)) + by]
        taken = [row for row, entry in enumerate(self.rows) if entry is not None]
        which = (taken + [0] * size)[:size]
        self.state = device.resized(self.state, jnp.array(which, jnp.int32))
        self.rows = [self.rows[row] for row in taken] + [None] * (size - len(taken))


def _cut(runs: Sequence[int], count: int) -> list[int]:
    """Steps up to the one that brought the last of `count` tokens, which may have brought more."""
    ends = np.minimum(np.cumsum([0, *runs]), count)
    return [int(run) for run in np.diff(ends) if run > 0]
