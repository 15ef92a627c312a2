"""python -m serve.bench_server: the server under one to sixteen requests at a time.

The last line is one JSON object with

    throughput    {concurrency: output tokens a second}, prompts' reading included, while so many requests are on their
                  way: when one ends the next is sent, until all prompts are; median over rounds
    vs_plain      {concurrency: that over the same of the same server with "speculative": false}, which take turns;
                  median over rounds, vs_plain_range the lowest and the highest
    tau           {concurrency: tokens a row's step}
    ttft_ms       {p50, p99} from sending a request to its first token, over all concurrencies, speculation on
    inter_token_ms  the same of the wait for a piece of the stream, shared by the tokens it brought
    vs_offline    seconds that `Decoder.generate` takes for an answer over those of the server, one request at a time,
                  prompt and all; median over prompts, which take turns; plain_vs_offline the same without speculation
    llama_cpp     {plain_ms_per_token, ngram_ms_per_token, ours_plain_ms_per_token, ours_ms_per_token}: llama.cpp on the
                  target's GGUF file, one request at a time, prefill apart, beside us on as many tokens; a sentence
                  where it is not there

Greedy, over HTTP, the server in a process of its own. Prompts of every task take turns, so that a batch is
mixed; every run has a salt of its own, so that none finds what another read.
"""

import argparse
import http.client
import importlib.util
import itertools
import json
import secrets
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from configs.console import command, say
from configs.errors import UserError
from serve.bench import parser_of
from serve.child import ask, events, serving

CONCURRENCY = (1, 2, 4, 8, 16)
OFFLINE = 10  # prompts decoded alone too, two of each task
WAYS = {"plain": False, "ours": True}  # what "speculative" says


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of("bench_server", "Speed of the server.", prompts=8, new=64)
    parser.add_argument("--concurrency", default=",".join(map(str, CONCURRENCY)), help="(default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of every concurrency (default %(default)s)")
    print(json.dumps(measure(parser.parse_args(arguments))))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from models.drafters import SINGLE
    from pipelines.prompt_files import encode_prompt, load_tasks
    from serve.load import open_decoder
    from serve.session import context_capacity

    tasks = load_tasks(options.tasks, options.task_dir, options.prompts)
    sizes, new = concurrencies(options.concurrency), options.max_new_tokens
    if options.rounds < 1:
        raise UserError(f"--rounds: expected at least 1, got {options.rounds}")
    given = ["--target", options.target, "--drafter", str(options.drafter), "--dtype", options.dtype]
    plain = open_decoder(options.target, options.drafter, dtype=options.dtype, draft=SINGLE)
    by_task = [[encode_prompt(plain.tokenizer, prompt) for prompt in prompts] for prompts in tasks.values()]
    prompts = [ids for turn in itertools.zip_longest(*by_task) for ids in turn if ids is not None]
    context = max(map(len, prompts)) + new
    offline = {
        "plain": plain,
        "ours": open_decoder(options.target, options.drafter, dtype=options.dtype, context=context),
    }
    for decoder in offline.values():  # as much room as the server has: one shape to compile
        decoder.capacity = context_capacity(context, decoder.widest)
    with serving([*given, "--rows", str(max(sizes)), "--context", str(context)]) as (_, port):
        beside = {way: beside_offline(port, way, offline[way], prompts[:OFFLINE], new) for way in WAYS}
        found: dict[str, dict[str, Any]] = {"throughput": {}, "vs_plain": {}, "vs_plain_range": {}, "tau": {}}
        first: list[float] = []
        waits: list[float] = []
        for size in sizes:
            speeds: dict[str, list[float]] = {way: [] for way in WAYS}
            ours: list[Stream] = []
            for turn in range(options.rounds):
                for way in list(WAYS)[:: 1 if turn % 2 else -1]:
                    load = Load(port, way, prompts, new)
                    speeds[way].append(load.run(size))
                    ours += load.streams if way == "ours" else []
            first += [stream.first_ms for stream in ours]
            waits += [wait for stream in ours for wait in stream.waits_ms]
            ratios = [one / other for one, other in zip(speeds["ours"], speeds["plain"], strict=True)]
            found["throughput"][str(size)] = round(float(np.median(speeds["ours"])), 1)
            found["vs_plain"][str(size)] = round(float(np.median(ratios)), 3)
            found["vs_plain_range"][str(size)] = [round(min(ratios), 3), round(max(ratios), 3)]
            found["tau"][str(size)] = round(sum(len(s) for s in ours) / sum(stream.steps for stream in ours), 2)
            say(f"bench: {size} at a time: " + ", ".join(f"{name} {found[name][str(size)]}" for name in found))
    return {
        "dtype": options.dtype,
        **found,
        "ttft_ms": percentiles(first),
        "inter_token_ms": percentiles(waits),
        "vs_offline": round(beside["ours"]["ratio"], 3),
        "plain_vs_offline": round(beside["plain"]["ratio"], 3),
        "llama_cpp": beside_llama_cpp(options.target, prompts[:OFFLINE], new, beside),
    }


def concurrencies(text: str) -> list[int]:
    """Raises UserError for what is no list of whole numbers above 0."""
    sizes = text.split(",")
    if not all(size.strip().isdecimal() and int(size) for size in sizes):
        raise UserError(f"--concurrency: expected whole numbers above 0 with commas between them, got {text!r}")
    return [int(size) for size in sizes]


class Stream:
    """One answer over HTTP: when its tokens came, and what the server says of it."""

    def __init__(self, port: int, way: str, ids: Sequence[int], new: int, salt: str):
        body = {"prompt": list(ids), "max_tokens": new, "temperature": 0, "speculative": WAYS[way], "cache_salt": salt}
        body |= {"stream": True, "per_request_metrics": True}
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        self.came: list[tuple[int, float]] = []  # tokens so far, when
        self.began = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        last: dict[str, Any] = {}
        for last in events(ask(connection, "/v1/completions", body)):
            tokens, now = last["usage"]["completion_tokens"], time.perf_counter()
            if tokens > (self.came[-1][0] if self.came else 0):
                self.came.append((tokens, now))
        connection.close()
        self.ended = time.perf_counter()
        self.steps, self.decode_ms = last["meta_info"]["spec_verify_ct"], last["metrics"]["times"]["decode_ms"]

    def __len__(self) -> int:
        return self.came[-1][0]

    @property
    def first_ms(self) -> float:
        return (self.came[0][1] - self.began) * 1e3

    @property
    def waits_ms(self) -> list[float]:
        """Of every token after the first piece."""
        pairs = itertools.pairwise(self.came)
        return [
            wait
            for (before, then), (after, now) in pairs
            for wait in [(now - then) * 1e3 / (after - before)] * (after - before)
        ]

    def tokens_by(self, moment: float) -> int:
        return max((tokens for tokens, came in self.came if came <= moment), default=0)


class Load:
    """Prompts answered so many at a time."""

    def __init__(self, port: int, way: str, prompts: Sequence[Sequence[int]], new: int):
        self.asked = [(port, way, ids, new) for ids in reversed(prompts)]
        self.streams: list[Stream] = []

    def run(self, together: int) -> float:
        """Tokens a second until the first client finds nothing left to ask."""
        salt, idle = secrets.token_hex(8), []

        def work() -> None:
            while True:
                try:
                    asked = self.asked.pop()
                except IndexError:
                    idle.append(time.perf_counter())
                    return
                self.streams.append(Stream(*asked, salt))

        began, clients = time.perf_counter(), [threading.Thread(target=work) for _ in range(together)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        return sum(stream.tokens_by(min(idle)) for stream in self.streams) / (min(idle) - began)


def beside_offline(port: int, way: str, decoder: Any, prompts: Sequence[Sequence[int]], new: int) -> dict[str, float]:
    """Decoding milliseconds a token of the server, one request at a time, and the decoder's seconds over its."""
    decode_ms, ratios, tokens = 0.0, [], 0
    for ids in prompts:
        decoder.warm(ids, new)
        began = time.perf_counter()
        (answer,) = decoder.generate([ids], max_new_tokens=new)
        seconds = time.perf_counter() - began
        stream = Stream(port, way, ids, new, secrets.token_hex(8))
        assert len(stream) == len(answer.ids), f"{len(stream)} tokens, offline {len(answer.ids)}"
        ratios.append(seconds / (stream.ended - stream.began))
        decode_ms, tokens = decode_ms + stream.decode_ms, tokens + len(stream)
    return {"ms_per_token": decode_ms / tokens, "ratio": float(np.median(ratios))}


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
