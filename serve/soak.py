"""python -m serve.soak: many clients on one server for a while, well and badly behaved, and what became of it.

Clients ask, in equal shares of what they do, for whole answers and for streams of random lengths, hang up at random
moments, and send damaged bodies. A greedy answer that finished is compared with offline decoding's. The last line is

    {"soak": {minutes, clients, requests, finished, wrong, hung_up, damaged, busy, faults, rows_stuck, pages_leaked,
              megabytes: [after warm-up, at the end], megabytes_per_minute, exit_code}}

busy counts 429s, faults answers of 5xx and damaged bodies that were taken for good. megabytes_per_minute is the slope
of the server's resident memory after the first third of the time.
"""

import argparse
import contextlib
import http.client
import json
import random
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.console import command, say
from serve.child import events, serving

LONGEST = 96  # tokens of an answer
EVERY = 2.0  # seconds between looks at the server's memory
PATIENCE = 60.0  # seconds for the rows to become free at the end


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serve.soak", description="Many clients, for a while.")
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--drafter", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=15.0, help="(default %(default)s)")
    parser.add_argument("--clients", type=int, default=16, help="(default %(default)s)")
    parser.add_argument("--tasks", default="word-problems,code,chat,rewriting,knowledge")
    parser.add_argument("--prompts", type=int, default=4, help="prompts per task (default %(default)s)")
    parser.add_argument("--width", type=int, help="one block width (default: chosen while decoding)")
    options = parser.parse_args(arguments)
    references = offline(options)
    found = soak(options, references)
    print(json.dumps({"soak": found}))
    return 0 if all(found[name] == 0 for name in ("wrong", "faults", "rows_stuck", "pages_leaked", "exit_code")) else 1


def offline(options: argparse.Namespace) -> list[tuple[list[dict[str, str]], list[str]]]:
    """Conversations, and for every length the text that offline decoding has after so many tokens."""
    from configs.device import keep_compiled_programs
    from pipelines.prompt_files import encode_prompt, load_tasks
    from serve.load import load_engine
    from serve.session import Decoder

    keep_compiled_programs()
    engine, tokenizer, _ = load_engine(options.target, options.drafter, "float32")
    tasks = load_tasks(options.tasks, None, options.prompts)
    decoder, found = Decoder(engine, tokenizer, None), []
    for prompt in (prompt for prompts in tasks.values() for prompt in prompts):
        (answer,) = decoder.generate([encode_prompt(tokenizer, prompt)], max_new_tokens=LONGEST)
        texts = [tokenizer.decode(answer.ids[:count], skip_special=True) for count in range(len(answer.ids) + 1)]
        found.append((prompt.chat(), texts))
    say(f"soak: {len(found)} answers decoded offline to compare with")
    return found


def soak(options: argparse.Namespace, references: Sequence[tuple[list[dict[str, str]], list[str]]]) -> dict[str, Any]:
    given = ["--target", options.target, "--drafter", str(options.drafter)]
    with serving(given + (["--width", str(options.width)] if options.width else [])) as (process, port):
        begin = time.monotonic()
        end, memory = begin + 60 * options.minutes, []
        clients = [Client(port, references, seed, end) for seed in range(options.clients)]
        threads = [threading.Thread(target=client.run) for client in clients]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(EVERY)
            memory.append(((time.monotonic() - begin) / 60, resident_megabytes(process.pid)))
        idle = time.monotonic() + PATIENCE
        while (left := gauges(port))["num_requests_running"] + left["num_requests_waiting"]:
            if time.monotonic() > idle:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        exit_code = process.wait(PATIENCE)
    warm = [(minute, size) for minute, size in memory if minute > options.minutes / 3] or memory
    counts = sum((client.counts for client in clients), Counter[str]())
    minutes, sizes = np.array(warm).T
    slope = float(np.polyfit(minutes, sizes, 1)[0]) if len(warm) > 2 else 0.0
    return {
        "minutes": options.minutes,
        "clients": options.clients,
        **{name: counts[name] for name in ("requests", "finished", "wrong", "hung_up", "damaged", "busy", "faults")},
        "rows_stuck": int(left["num_requests_running"] + left["num_requests_waiting"]),
        "pages_leaked": left["kv_cache_usage_perc"],
        "megabytes": [round(warm[0][1]), round(warm[-1][1])],
        "megabytes_per_minute": round(slope, 3),
        "exit_code": exit_code,
    }


def resident_megabytes(process: int) -> float:
    (kilobytes,) = re.findall(r"VmRSS:\s*(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(kilobytes) / 1e3


def gauges(port: int) -> dict[str, float]:
    """/metrics without their labels."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return {name: float(value) for name, value in re.findall(r"^vllm:(\w+)\{[^}]*\} (\S+)$", text, re.MULTILINE)}


class Client:
    """One that asks until `end` and counts what it sees."""

    def __init__(self, port: int, references: Sequence[tuple[list[dict[str, str]], list[str]]], seed: int, end: float):
        self.port, self.references, self.end = port, references, end
        self.draw, self.counts = random.Random(seed), Counter[str]()

    def run(self) -> None:
        ways = (self.ask, self.stream, self.hang_up, self.damage)
        while time.monotonic() < self.end:
            self.counts["requests"] += 1
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
            try:
                self.draw.choice(ways)(connection)
            except (OSError, http.client.HTTPException) as error:
                self.counts["faults"] += 1
                say(f"soak: {error!r}")
            finally:
                connection.close()

    def body(self, **more: Any) -> tuple[dict[str, Any], str]:
        """A request, and the text that answers it."""
        messages, texts = self.draw.choice(self.references)
        tokens = self.draw.randint(1, LONGEST)
        greedy = {"messages": messages, "max_tokens": tokens, "temperature": 0}
        return greedy | more | {"speculative": self.draw.random() < 0.8}, texts[min(tokens, len(texts) - 1)]

    def sent(self, connection: http.client.HTTPConnection, body: bytes) -> http.client.HTTPResponse | None:
        """The response; None where the server was busy or failed."""
        connection.request("POST", "/v1/chat/completions", body)
        response = connection.getresponse()
        if response.status == 429:
            self.counts["busy"] += 1
            time.sleep(float(response.headers["retry-after"]))
        elif response.status >= 500:
            self.counts["faults"] += 1
        return response if response.status == 200 else None

    def finish(self, text: str, expected: str) -> None:
        self.counts["finished"] += 1
        self.counts["wrong"] += text != expected

    def ask(self, connection: http.client.HTTPConnection) -> None:
        body, expected = self.body()
        if response := self.sent(connection, json.dumps(body).encode()):
            self.finish(json.load(response)["choices"][0]["message"]["content"], expected)

    def stream(self, connection: http.client.HTTPConnection) -> None:
        body, expected = self.body(stream=True)
        if response := self.sent(connection, json.dumps(body).encode()):
            deltas = [choice["delta"] for event in events(response) for choice in event["choices"]]
            self.finish("".join(delta.get("content", "") for delta in deltas), expected)

    def hang_up(self, connection: http.client.HTTPConnection) -> None:
        """Before the answer, or after some of it."""
        self.counts["hung_up"] += 1
        body, _ = self.body(stream=self.draw.random() < 0.5)
        connection.request("POST", "/v1/chat/completions", json.dumps(body).encode())
        assert connection.sock is not None
        connection.sock.settimeout(self.draw.uniform(0.01, 1))
        with contextlib.suppress(TimeoutError):
            connection.sock.recv(self.draw.randint(1, 2000))

    def damage(self, connection: http.client.HTTPConnection) -> None:
        """A field nobody knows, or a text cut short."""
        self.counts["damaged"] += 1
        text = json.dumps(self.body()[0] | {"top_secret": 1}).encode()
        text = text if self.draw.random() < 0.5 else text[: self.draw.randrange(len(text))]
        self.counts["faults"] += self.sent(connection, text) is not None


if __name__ == "__main__":
    sys.exit(main())
