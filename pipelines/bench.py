"""python -m pipelines.bench: how fast responses are written and read as batches, and what memory that takes.

The last line is one JSON object

    responses              how many; synthetic, of 50 to 3,000 tokens evenly over the logarithm, a quarter prompt
    responses_per_second   {write: drawn and written in shards by the writer of `pipelines.records`;
                           iterate: opened, packed into rows of 3,072 and read as one epoch of training batches, without
                           features}
    padding                share of the rows' positions that hold no token
    peak_memory_bytes      peak resident memory of the process that did it
    quarter                {responses, peak_memory_bytes} of a quarter of them: memory should not grow with their number

Each of the two counts has a process of its own, since a process has one peak. The files (0.6 GB) lie in a temporary
directory until its end.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.console import command, say
from configs.errors import UserError

SHORTEST, LONGEST, ROW, VOCABULARY = 50, 3000, 3072, 49152
SHARD, ROWS, BLOCKS = 512, 8, {16: 64}
LEAST = 400  # a quarter of them still fills a batch


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.bench", description="Speed and memory of the data.")
    parser.add_argument("--responses", type=int, default=200_000, help="how many (default: %(default)s)")
    parser.add_argument("--alone", action="store_true", help="only so many, in this process")
    options = parser.parse_args(arguments)
    if options.responses < LEAST and not options.alone:
        raise UserError(f"--responses: expected at least {LEAST}, got {options.responses}")
    if options.alone:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(Path(folder) / "train", options.responses)))
        return 0
    results = []
    for count in (options.responses // 4, options.responses):
        say(f"bench: {count} responses, in a process of their own")
        call = [sys.executable, "-m", "pipelines.bench", "--alone", "--responses", str(count)]
        done = subprocess.run(call, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            return done.returncode  # it has said why
        results.append(json.loads(done.stdout.splitlines()[-1]))
    quarter, whole = results
    print(json.dumps(whole | {"quarter": {name: quarter[name] for name in ("responses", "peak_memory_bytes")}}))
    return 0


def measure(folder: Path, count: int) -> dict[str, Any]:
    """Writes `count` responses to `folder` and draws one epoch of batches of them."""
    from configs.device import peak_memory_bytes
    from pipelines.batches import RowSource, train_batches
    from pipelines.packing import padding
    from pipelines.records import Responses, write_responses

    began = time.perf_counter()
    for index, first in enumerate(range(0, count, SHARD)):
        write_responses(folder, index, synthetic(first, min(first + SHARD, count)))
    written = time.perf_counter()
    source = RowSource(Responses(folder), None, ROW)
    batches = train_batches(source, BLOCKS, rows=ROWS, seed=0)
    for _ in range(len(source) // ROWS):
        next(batches)
    done = time.perf_counter()
    return {
        "responses": count,
        "responses_per_second": {"write": count / (written - began), "iterate": count / (done - written)},
        "padding": padding(source.responses.lengths, len(source), ROW),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def synthetic(first: int, end: int) -> list[Any]:
    """Responses `first` to `end`, of tokens drawn at random."""
    import numpy as np

    from pipelines.records import Response

    rng = np.random.default_rng(first)
    lengths = np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST), end - first)).astype(int).tolist()
    texts = [tuple(rng.integers(0, VOCABULARY, length).tolist()) for length in lengths]
    return [
        Response("synthetic", str(number), ids[: len(ids) // 4], ids[len(ids) // 4 :], True)
        for number, ids in enumerate(texts, start=first)
    ]


if __name__ == "__main__":
    sys.exit(main())
