"""One API request's answers: what the scheduler brings them, as it comes, and the shapes in which clients get it."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from models.tokenizer import Tokenizer
from serve import api
from serve.api import Refusal
from serve.metrics import Metrics
from serve.requests import Full, Progress, Request, TokenLogprob
from serve.scheduler import Scheduler

FINISH: dict[str, api.Finish] = {"eos": "stop", "stop": "stop", "length": "length"}
RETRY_SECONDS = 1  # what a client is told to wait when the queue is full


@dataclasses.dataclass
class Choice:
    """One answer in the making."""

    index: int
    request: Request
    text: str = ""
    ids: list[int] = dataclasses.field(default_factory=list)
    runs: list[int] = dataclasses.field(default_factory=list)
    drafted: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[TokenLogprob] = dataclasses.field(default_factory=list)
    last: Progress | None = None
    ends: list[int] = dataclasses.field(default_factory=list)  # where in the text each step's tokens end

    def add(self, progress: Progress) -> None:
        self.text += progress.text
        self.ids += progress.ids
        self.runs += progress.runs
        self.drafted += progress.drafted
        self.logprobs += progress.logprobs or ()
        if progress.finished is not None:
            self.last = progress

    @property
    def finish_reason(self) -> api.Finish | None:
        return FINISH[self.last.finished] if self.last and self.last.finished in FINISH else None

    def steps(self, progress: Progress, tokenizer: Tokenizer) -> list[api.Step]:
        """What each step brought to the text that `progress`, already added, delivered."""
        begin, first_new = len(self.text) - len(progress.text), len(self.runs) - len(progress.runs)
        place = sum(self.runs[:first_new])
        for run in progress.runs:
            place += run
            so_far = tokenizer.decode(self.ids[:place], skip_special=True)
            whole = not so_far.endswith("�") or place == len(self.ids)
            self.ends.append(len(so_far) if whole else self.ends[-1] if self.ends else 0)
        found = []
        for index, (start, end) in enumerate(zip([0, *self.ends], self.ends, strict=False)):
            end = len(self.text) if index == len(self.ends) - 1 else end
            text = self.text[max(start, begin) : max(end, begin)]
            if text or index >= first_new:
                found.append(api.Step(index=index, text=text, tokens=self.runs[index], drafted=self.drafted[index]))
        return found


class Call:
    """The answers that one API request asks for, from submission to the last of them.

    Raises `Refusal` where the queue is full, where a row faults and where the server stops.
    """

    def __init__(self, scheduler: Scheduler, tokenizer: Tokenizer, metrics: Metrics, requests: Sequence[Request]):
        self.scheduler, self.tokenizer, self.metrics = scheduler, tokenizer, metrics
        self.choices = [Choice(index, request) for index, request in enumerate(requests)]
        self.running: list[Choice] = []  # submitted, and not finished
        self.queue: asyncio.Queue[tuple[Choice, Progress]] = asyncio.Queue()
        self.began = time.perf_counter()
        self.first: float | None = None  # seconds until the first token of any answer

    def submit(self) -> None:
        """All answers or none."""
        loop = asyncio.get_running_loop()
        try:
            for choice in self.choices:

                def deliver(progress: Progress, choice: Choice = choice) -> None:
                    with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever listened
                        loop.call_soon_threadsafe(self.queue.put_nowait, (choice, progress))

                self.scheduler.submit(choice.request, deliver)
                self.running.append(choice)
        except BaseException as error:
            self.cancel()
            if isinstance(error, Full):
                raise Refusal(429, f"{error}; try again in {RETRY_SECONDS} s", code="queue_full") from None
            raise

    def cancel(self) -> None:
        """Frees the rows of answers that are still being written."""
        for choice in self.running:
            self.scheduler.cancel(choice.request.id)
            self.metrics.ended("cancelled")
        self.running = []

    async def progress(self) -> AsyncIterator[tuple[Choice, Progress]]:
        """What comes, with the answer it is for, until all are finished."""
        seen: dict[int, float] = {}
        while self.running:
            choice, progress = await self.queue.get()
            now, index = time.perf_counter(), choice.index
            choice.add(progress)
            if progress.ids:
                if index in seen:
                    self.metrics.tokens_came(len(progress.ids), now - seen[index])
                else:
                    self.metrics.first_came(now - self.began)
                    self.first = self.first or now - self.began
                seen[index] = now
            if progress.finished is not None:
                self.running.remove(choice)
                self.metrics.ended(progress.finished)
            if choice.finish_reason is not None:
                self.metrics.answered(len(choice.request.prompt), len(choice.ids), progress.timing, now - self.began)
            if progress.finished == "fault":
                raise Refusal(500, f"{progress.fault} (request {choice.request.id})", code="fault")
            if progress.finished == "cancelled":
                raise Refusal(503, "the server is stopping; ask again", code="stopping")
            yield choice, progress

    @property
    def usage(self) -> api.Usage:
        """Of all answers; a prompt that has several is counted once."""
        prompts = sum(len(prompt) for prompt in {choice.request.prompt for choice in self.choices})
        written = sum(len(choice.ids) for choice in self.choices)
        details = api.PromptDetails(cached_tokens=self.cached_tokens)
        return api.Usage(
            prompt_tokens=prompts,
            completion_tokens=written,
            total_tokens=prompts + written,
            prompt_tokens_details=details,
        )

    @property
    def cached_tokens(self) -> int:
        """Of every prompt, what its first answer found known."""
        found = {c.request.prompt: c.last.timing for c in reversed(self.choices) if c.last is not None}
        return sum(timing.cached_tokens for timing in found.values() if timing is not None)

    def speculation(self) -> api.Metrics:
        """A step that drafted d tokens and committed r accepted min(r - 1, d): the last one of a run is the target's.

        (A last step that the answer's end cut short may have accepted one more than that.)
        """
        steps = [pair for choice in self.choices for pair in zip(choice.runs, choice.drafted, strict=True) if pair[1]]
        accepted, drafts = [min(run - 1, drafted) for run, drafted in steps], sum(drafted for _, drafted in steps)
        histogram = [accepted.count(number) for number in range(max(accepted, default=-1) + 1)]
        speculation = api.Speculation(
            mean_acceptance_length=1 + sum(accepted) / len(steps) if steps else None,
            draft_acceptance_rate=sum(accepted) / drafts if drafts else None,
            acceptance_histogram=histogram,
            num_spec_steps=len(steps),
            num_draft_tokens=drafts,
            num_accepted_draft_tokens=sum(accepted),
        )
        return api.Metrics(speculative_decoding=speculation, times=self.times())

    def times(self) -> api.Times | None:
        if len(self.choices) > 1 or self.choices[0].last is None or self.choices[0].last.timing is None:
            return None
        timing = self.choices[0].last.timing
        spans = {name: round(getattr(timing, f"{name}_s") * 1e3, 3) for name in ("queued", "prefill", "decode")}
        spans["first_token"] = round((self.first or 0.0) * 1e3, 3)
        return api.Times(**{f"{name}_ms": span for name, span in spans.items()}, preemptions=timing.preemptions)

    def meta_info(self, id: str) -> api.MetaInfo:
        written, steps = self.usage, sum(len(choice.runs) for choice in self.choices)
        return api.MetaInfo(
            id=id,
            prompt_tokens=written.prompt_tokens,
            completion_tokens=written.completion_tokens,
            cached_tokens=self.cached_tokens,
            spec_verify_ct=steps,
            spec_accept_length=written.completion_tokens / max(steps, 1),
        )

    def summary(self) -> dict[str, Any]:
        """For the log."""
        usage, steps = self.usage, sum(len(choice.runs) for choice in self.choices)
        times = self.times()
        return {
            "finish_reasons": [choice.last.finished if choice.last else "cancelled" for choice in self.choices],
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "steps": steps,
            "tau": round(usage.completion_tokens / steps, 3) if steps else None,
            **(times.model_dump() if times else {}),
        }
