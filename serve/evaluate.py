"""Evaluation: decode every prompt of some tasks plainly and speculatively in one alternating run, and compare.

In: an engine, tasks. Out: the report dictionary of `serve.report`. Each prompt is decoded on device from a prefilled
prompt to its last token, prefill apart:

    plain        batch 1, the baseline
    speculative  batch 1, at widths the chooser picks as it goes (or one that was asked for): the speedup
    full width   in batches, at the width the drafter was trained for: tau and what each slot accepts, so that these
                 numbers are the drafter's and not the chooser's. Greedy steps are replayed through the plain answer,
                 which says what the target would (`models.decode.replay`); sampled ones are decoded

Every greedy speculative output is compared with the plain one; where they differ, the target's logit gap at the first
difference tells a near-tie from a fault. Sampled ones are other draws from the same distribution.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.console import progress, say
from configs.device import drop_programs
from configs.errors import UserError
from models.attention import whole
from models.decode import Engine, replayed
from models.drafters import Draft
from models.target import Target, check_ids
from models.tokenizer import Tokenizer
from models.verify import GREEDILY, Speculation
from pipelines.prompt_files import Prompt, encode_prompt
from serve.choose import Chooser, Who
from serve.cost import Cost
from serve.session import Answer, Decoder, context_capacity
from serve.summary import Decoded, average, describe_cost, num_equal, summarise, survival_of, tau_of

BATCH = 4  # rows walked together at full width


@dataclasses.dataclass(frozen=True)
class Question:
    """A conversation up to a user turn that has no answer yet."""

    task: str
    id: str
    text: str
    ids: list[int]


class Evaluator:
    """Decodes questions with one engine, plainly and as a chooser picks among what `who` drafts, in chains that a
    calibrated confidence may cut short if `cuts` (`draft`: one fixed draft instead).

    `speculation` says how to sample, and to draft and verify while sampling.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        max_new_tokens: int,
        *,
        cost: Cost,
        prior: Sequence[float],
        draft: Draft | None = None,
        who: Who = "both",
        cuts: bool = True,
        speculation: Speculation = GREEDILY,
        seed: int = 0,
        capacity: int = 256,
    ):
        self.engine, self.tokenizer, self.max_new_tokens, self.capacity = engine, tokenizer, max_new_tokens, capacity
        self.cost, self.prior, self.draft, self.speculation, self.seed = cost, prior, draft, speculation, seed
        self.who: Who = who
        self.cuts = cuts and getattr(engine.drafter, "temperature", None) is not None
        self.sampling = speculation.sampling
        self.plain = self._decoder(None)
        self._warm: set[int] = set()
        self._asked = itertools.count()

    def task(self, name: str, prompts: Sequence[Prompt], advance: Any) -> list[tuple[Question, Answer, Answer]]:
        """Plain and speculative answers of a task. A chooser starts anew with each and learns over its answers."""
        speculative, out = self.speculative(), []
        for prompt in prompts:
            for question in self.questions(prompt):
                out.append((question, *self.pair(question, speculative)))
            advance(name, [answer for _, _, answer in out])
        return out

    def at_full_width(self, pairs: Sequence[tuple[Question, Answer, Answer]]) -> list[Decoded]:
        """The steps that the same questions take at the drafter's full width, in batches."""
        walk = self._replayed if self.sampling.greedy else self._decoded
        batches = [pairs[begin : begin + BATCH] for begin in range(0, len(pairs), BATCH)]
        full = [runs for batch in batches for runs in walk(batch)]
        return [
            Decoded(q.task, q.id, q.text, plain, fast, runs, self._gap(q, plain, fast))
            for (q, plain, fast), runs in zip(pairs, full, strict=True)
        ]

    def speculative(self) -> Decoder:
        if self.draft is not None:
            return self._decoder(self.draft)
        return self._decoder(Chooser(self.cost, self.prior, who=self.who, cuts=self.cuts))

    def _decoder(self, draft: Draft | Chooser | None) -> Decoder:
        return Decoder(self.engine, self.tokenizer, draft, self.speculation, capacity=self.capacity)

    def questions(self, prompt: Prompt) -> list[Question]:
        """The conversation so far at every user turn without an answer; plain answers fill in as they are known."""
        messages, out = [], []
        turns = prompt.chat()
        for index, turn in enumerate(turns):
            messages.append(turn)
            following = turns[index + 1]["role"] if index + 1 < len(turns) else "user"
            if turn["role"] == "user" and following == "user":
                ids = encode_prompt(self.tokenizer, prompt, messages)
                check_room(self.engine.target, prompt, ids, self.max_new_tokens)
                out.append(Question(prompt.task, prompt.id, turn["content"], ids))
                if index + 1 < len(turns):
                    (answer,) = self.plain.generate([ids], max_new_tokens=self.max_new_tokens, seeds=[self.seed])
                    messages.append({"role": "assistant", "content": answer.text})
        return out

    def pair(self, question: Question, speculative: Decoder) -> tuple[Answer, Answer]:
        """Plain and speculative; they take turns at going first."""
        self.warm(question, speculative)
        if next(self._asked) % 2 == 0:
            return self.answer(question, None), self.answer(question, speculative)
        fast = self.answer(question, speculative)
        return self.answer(question, None), fast

    def answer(self, question: Question, decoder: Decoder | None) -> Answer:
        """The decoder's answer, the plain loop's for None."""
        (answer,) = (decoder or self.plain).generate(
            [question.ids], max_new_tokens=self.max_new_tokens, seeds=[self.seed]
        )
        return answer

    def warm(self, question: Question, speculative: Decoder) -> None:
        """Compiles what an answer to this question may use, so that no time holds a compilation."""
        context = speculative.context_for(len(question.ids) + self.max_new_tokens)
        if context not in self._warm:
            self.plain.warm(question.ids, self.max_new_tokens)
            speculative.warm(question.ids, self.max_new_tokens)
            self._warm.add(context)

    def _replayed(self, batch: Sequence[tuple[Question, Answer, Answer]]) -> list[list[int]]:
        """The runs of every greedy answer at full width, read off the plain one."""
        texts = [([*question.ids, *plain.ids], len(question.ids)) for question, plain, _ in batch]
        longest = max(len(ids) for ids, _ in texts)
        capacity = context_capacity(longest, self.engine.drafter.width, self.capacity)
        return replayed(self.engine, texts, rows=BATCH, capacity=capacity)

    def _decoded(self, batch: Sequence[tuple[Question, Answer, Answer]]) -> list[list[int]]:
        """The runs of every answer decoded at full width."""
        decoder = self._decoder(Draft("drafter", self.engine.drafter.width))
        prompts = [question.ids for question, _, _ in batch]
        seeds = [self.seed] * len(prompts)
        return [answer.runs for answer in decoder.generate(prompts, max_new_tokens=self.max_new_tokens, seeds=seeds)]

    def _gap(self, question: Question, plain: Answer, fast: Answer) -> float | None:
        if plain.ids == fast.ids or not self.sampling.greedy:
            return None
        gap = logit_gap(self.engine.target, question.ids, plain.ids, fast.ids)
        return gap if math.isfinite(gap) else None


def needed_context(
    tasks: Mapping[str, Sequence[Prompt]], target: Target, tokenizer: Tokenizer, max_new_tokens: int
) -> int:
    """The tokens of the longest prompt with its answer; UserError where `check_room` refuses one."""
    longest = 0
    for prompt in itertools.chain.from_iterable(tasks.values()):
        ids = encode_prompt(tokenizer, prompt)
        check_room(target, prompt, ids, max_new_tokens)
        longest = max(longest, len(ids))
    return longest + max_new_tokens


def check_room(target: Target, prompt: Prompt, ids: Sequence[int], max_new_tokens: int) -> None:
    """Raises UserError when a prompt holds ids the target does not have, or exceeds its context with the answer."""
    check_ids(ids, target.config, f"prompt {prompt.task}/{prompt.id}")
    limit = target.config.max_positions
    if len(ids) + max_new_tokens > limit:
        raise UserError(
            f"prompt {prompt.task}/{prompt.id}: {len(ids)} tokens + --max-new-tokens {max_new_tokens} exceed "
            f"the context of {target.config.name} ({limit}); lower --max-new-tokens or drop the prompt"
        )


def logit_gap(target: Target, prompt: Sequence[int], plain: Sequence[int], other: Sequence[int]) -> float:
    """Target logit of the plain token minus that of the other at the first position where they differ.

    Infinite when one answer is a proper prefix of the other, which no near-tie explains.
    """
    same = num_equal(plain, other)
    if same == min(len(plain), len(other)):
        return float("inf")
    ids = [*prompt, *plain[:same]]
    size = 1 << (len(ids) - 1).bit_length()
    row = np.zeros((1, size), np.int32)
    row[0, : len(ids)] = ids
    values = np.asarray(_last_logits(target, row, np.array([len(ids) - 1])))[0]
    return float(values[plain[same]] - values[other[same]])


@jax.jit
def _last_logits(target: Target, tokens: jax.Array, last: jax.Array) -> jax.Array:
    hidden, _, _ = target(tokens, whole(tokens))
    return target.logits(jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0])


Pairs = dict[str, list[tuple[Question, Answer, Answer]]]  # of each task: a question, its plain and speculative answer


def evaluate(
    evaluator: Evaluator,
    tasks: dict[str, list[Prompt]],
    *,
    keep: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """The measured part of the report: cost, tasks, average, and which tasks it lacks.

    Where it does not come to its end, `keep` is given the same of the tasks that did, and the error goes on.
    """
    pairs: Pairs = {}
    results: dict[str, list[Decoded]] = {}
    try:
        _decode(evaluator, tasks, pairs)
        _walk(evaluator, pairs, results)
    finally:
        if keep is not None and pairs and len(results) < len(tasks):
            if len(pairs) < len(tasks):
                say(f"eval: stopped in task {list(tasks)[len(pairs)]}; reporting the {len(pairs)} before it")
                _walk(evaluator, pairs, results)
            if results:
                keep(_measured(evaluator, tasks, results))
    return _measured(evaluator, tasks, results)


def _decode(evaluator: Evaluator, tasks: Mapping[str, list[Prompt]], pairs: Pairs) -> None:
    """Fills `pairs`, task by task."""
    with progress("eval: plain and speculative", sum(map(len, tasks.values())), "prompts") as bar:

        def advance(name: str, answers: Sequence[Answer]) -> None:
            done = sum(len(answer.ids) for answer in answers) / sum(len(answer.runs) for answer in answers)
            bar.advance(1, f"{name}: {done:.2f} tokens a step")

        for name, prompts in tasks.items():
            pairs[name] = evaluator.task(name, prompts, advance)


def _walk(evaluator: Evaluator, pairs: Pairs, results: dict[str, list[Decoded]]) -> None:
    """Fills `results`, task by task, from what was decoded."""
    drop_programs()
    with progress("eval: acceptance at full width", sum(map(len, pairs.values())), "answers") as bar:
        for name, answers in pairs.items():
            results[name] = evaluator.at_full_width(answers)
            bar.advance(len(answers), f"{name}: tau {tau_of(results[name]):.2f}")


def _measured(evaluator: Evaluator, tasks: Mapping[str, Any], results: Mapping[str, list[Decoded]]) -> dict[str, Any]:
    """The measured part of the report on the tasks in `results`."""
    width = evaluator.engine.drafter.width
    vocab = getattr(evaluator.engine.drafter, "draft_vocab", None)
    known = {"width": width, "greedy": evaluator.sampling.greedy}
    known |= {"draft_vocab": None if vocab is None else np.asarray(vocab)}
    summaries = {name: summarise(decoded, evaluator.tokenizer, **known) for name, decoded in results.items()}
    everything = [answer for decoded in results.values() for answer in decoded]
    return {
        "unfinished": [name for name in tasks if name not in results],
        "width": width,
        "asked_width": None if evaluator.draft is None else evaluator.draft.width,
        "sampling": dataclasses.asdict(evaluator.sampling),
        "cost": describe_cost(evaluator.cost, survival_of(everything, width)),
        "tasks": summaries,
        "average": average(summaries),
    }
