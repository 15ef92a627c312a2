"""python -m serve.bench_server: the server's scheduler under one to sixteen requests at a time.

The last line is one JSON object with

    throughput    {concurrency: output tokens a second}, prompts' reading included; so many requests are on their way
                  until all prompts are answered: when one ends the next comes
    vs_plain      {concurrency: that over the same with speculation off}
    ttft_ms       {p50, p99} from submission to the first token, over all concurrencies, speculation on
    inter_token_ms  the same of a delivery's wait, shared by the tokens it brought
    vs_offline    decoding speed of one request at a time over that of `Decoder.generate`
    tau           {concurrency: tokens a row's step}
    llama_cpp     {plain_ms_per_token, ngram_ms_per_token, ours_plain_ms_per_token, ours_ms_per_token}: llama.cpp on the
                  target's GGUF file, one request at a time, prefill apart, beside us on as many tokens; a sentence
                  where it is not there

Greedy, float32. Prompts of every task take turns, so that a batch is mixed. The plain server and the speculative one
alternate, each over its own pool; no prompt's beginning is found again in it, since each comes once.
"""

import argparse
import importlib.util
import itertools
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from configs.console import command, say
from serve.bench import parser_of

CONCURRENCY = (1, 2, 4, 8, 16)
OFFLINE = 5  # prompts decoded alone too, one of each task


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of("bench_server", "Speed of the server.", prompts=7, new=64)
    parser.add_argument("--concurrency", default=",".join(map(str, CONCURRENCY)), help="(default %(default)s)")
    print(json.dumps(measure(parser.parse_args(arguments))))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from configs.device import drop_programs, keep_compiled_programs, share_one_heap
    from pipelines.prompt_files import encode_prompt, load_tasks
    from serve.choose import Chooser
    from serve.load import batch_costs, load_engine, step_cost
    from serve.scheduler import Scheduler
    from serve.session import Decoder

    share_one_heap()
    keep_compiled_programs()
    tasks = load_tasks(options.tasks, options.task_dir, options.prompts)
    engine, tokenizer, artifact = load_engine(options.target, options.drafter, "float32")
    by_task = [[encode_prompt(tokenizer, prompt) for prompt in prompts] for prompts in tasks.values()]
    prompts = [ids for turn in itertools.zip_longest(*by_task) for ids in turn if ids is not None]
    sizes = [int(size) for size in options.concurrency.split(",")]
    capacity = max(map(len, prompts)) + options.max_new_tokens
    cost, batches = step_cost(engine, artifact, capacity), batch_costs(engine, artifact, capacity, max(sizes))
    drop_programs()

    def chooser() -> Chooser:
        return Chooser(cost, artifact.acceptance, batches=batches)

    room: dict[str, Any] = {"rows": max(sizes), "capacity": capacity, "queue": max(sizes)}
    servers = {
        "plain": Scheduler(engine, tokenizer, **room),
        "ours": Scheduler(engine, tokenizer, draft=chooser(), **room),
    }
    for name, server in servers.items():
        say(f"bench: compiling the {name} server's programs")
        server.warm()
    offline = {"plain": Decoder(engine, tokenizer, None), "ours": Decoder(engine, tokenizer, chooser())}
    few = prompts[:OFFLINE]
    beside = {name: beside_offline(servers[name], offline[name], few, options.max_new_tokens) for name in servers}
    found: dict[str, dict[str, Any]] = {"throughput": {}, "vs_plain": {}, "tau": {}}
    first: list[float] = []
    waits: list[float] = []
    for size in sizes:
        runs = {}
        for name, server in servers.items():
            server.forget()
            runs[name] = Load(server, prompts, options.max_new_tokens)
            runs[name].run(size)
        ours, plain = runs["ours"], runs["plain"]
        first += ours.first_ms
        waits += ours.waits_ms
        found["throughput"][str(size)] = round(ours.tokens_per_second, 1)
        found["vs_plain"][str(size)] = round(ours.tokens_per_second / plain.tokens_per_second, 3)
        found["tau"][str(size)] = round(ours.tokens / ours.steps, 2)
        say(f"bench: {size} at a time: " + ", ".join(f"{name} {found[name][str(size)]}" for name in found))
    return {
        **found,
        "ttft_ms": percentiles(first),
        "inter_token_ms": percentiles(waits),
        "vs_offline": round(beside["ours"]["ratio"], 3),
        "plain_vs_offline": round(beside["plain"]["ratio"], 3),
        "llama_cpp": beside_llama_cpp(options.target, few, options.max_new_tokens, beside),
    }


class Load:
    """Prompts answered so many at a time, and what that took."""

    def __init__(self, server: Any, prompts: Sequence[Sequence[int]], new: int):
        self.server, self.prompts, self.new = server, prompts, new
        self.tokens = self.steps = self.running = 0
        self.first_ms: list[float] = []
        self.waits_ms: list[float] = []
        self.decode_ms = 0.0
        self.tokens_per_second = 0.0

    def run(self, together: int) -> None:
        began, waiting = time.perf_counter(), list(enumerate(self.prompts))[::-1]
        while waiting or self.running:
            while waiting and self.running < together:
                self._ask(*waiting.pop())
            self.server.turn()
        self.tokens_per_second = self.tokens / (time.perf_counter() - began)

    def _ask(self, number: int, ids: Sequence[int]) -> None:
        from serve.requests import Progress, Request

        last: list[float] = []

        def deliver(progress: Progress) -> None:
            now = time.perf_counter()
            self.tokens += len(progress.ids)
            self.steps += len(progress.runs)
            if last and progress.ids:
                self.waits_ms += [(now - last[-1]) * 1e3 / len(progress.ids)] * len(progress.ids)
            last.append(now)
            if progress.timing is not None:
                assert progress.finished != "fault", progress.fault
                self.running -= 1
                self.first_ms.append(progress.timing.first_token_s * 1e3)
                self.decode_ms += progress.timing.decode_s * 1e3

        self.running += 1
        self.server.submit(Request(f"{number}", tuple(ids), self.new), deliver)


def beside_offline(server: Any, decoder: Any, prompts: Sequence[Sequence[int]], new: int) -> dict[str, float]:
    """Decoding milliseconds a token of the server, one request at a time, and the decoder's over it; in turn."""
    ours, offline, tokens = [], [], 0
    for ids in prompts:
        decoder.generate([ids], max_new_tokens=new)  # compiles
        server.forget()
        (answer,) = decoder.generate([ids], max_new_tokens=new)
        load = Load(server, [ids], new)
        load.run(1)
        assert load.tokens == len(answer.ids)
        tokens += load.tokens
        ours.append(load.decode_ms)
        offline.append(answer.decode_ms)
    return {"ms_per_token": sum(ours) / tokens, "ratio": float(np.median(np.array(offline) / np.array(ours)))}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{at}": round(float(np.percentile(values, at)), 1) for at in (50, 99)} if values else {}


def beside_llama_cpp(
    target: str, prompts: Sequence[Sequence[int]], new: int, ours: dict[str, dict[str, float]]
) -> dict[str, float] | str:
    """What llama.cpp takes for a token of each prompt's answer, plain and with its own n-gram drafts."""
    from serve.bench_llama_cpp import LlamaCpp, target_file

    file = target_file(target)
    if importlib.util.find_spec("xllamacpp") is None:
        return "xllamacpp is not installed; make .venv-peers/.peers, then make bench-server"
    if file is None:
        return f"{target} is not in a GGUF file"
    context, found = 1 << (max(map(len, prompts)) + new + 64).bit_length(), {}
    for name in ("plain", "ngram"):
        server = LlamaCpp(file, context, ngram=name == "ngram")
        found[f"{name}_ms_per_token"] = float(np.median([server.generate(ids, new).ms_per_token for ids in prompts]))
        del server  # the idle threads of another would take its cores
    found |= {
        "ours_plain_ms_per_token": ours["plain"]["ms_per_token"],
        "ours_ms_per_token": ours["ours"]["ms_per_token"],
    }
    return {name: round(value, 2) for name, value in found.items()}


if __name__ == "__main__":
    raise SystemExit(main())
