"""`dflash benchmark openai` (PyPI dflash 0.1.0) on a task file: its command line, prompts from a file.

Arguments: the URL, the model, the file. Its datasets come from the Hugging Face Hub; everything else is its own.
"""

import json
import sys
from pathlib import Path

from dflash import benchmark, cli

url, model, file = sys.argv[1:]
rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
benchmark.load_and_process_dataset = lambda name: [{"turns": [row["messages"][0]["content"]]} for row in rows]
asked = ["--dataset", Path(file).stem, "--num-prompts", "6", "--concurrency", "2", "--max-new-tokens", "32"]
cli.main(["benchmark", "openai", "--base-url", url, "--model", model, *asked])
