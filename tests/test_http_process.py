"""The command serves until it is told to end: then it finishes what runs, takes nothing more, and exits with 0."""

import json
import re
import signal
from pathlib import Path

import httpx
import pytest

from models.drafters.artifact import write_artifact
from serve.__main__ import main
from tests.tiny import make_artifact
from tests.tiny_run import start, write_target
from tests.tiny_server import FITS


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    write_artifact(make_artifact(**FITS), folder / "drafter")
    return ["--target", str(write_target(folder / "target")), "--drafter", str(folder / "drafter"), "--width", "4"]


def test_a_stream_outlives_the_order_to_end(models, tmp_path: Path):
    keys = tmp_path / "keys"
    keys.write_text("a-key\n")
    given = ["--port", "0", "--rows", "2", "--name", "mine", "--api-key-file", str(keys)]
    with start(["serve", "http", *models, *given]) as process:
        assert process.stdout is not None
        address = next(filter(None, (re.search(r"http://\S+(?=: a page)", line) for line in process.stdout)))[0]
        headers, body = {"authorization": "Bearer a-key"}, {"prompt": "Twice", "max_tokens": 150, "temperature": 0}
        with httpx.stream(
            "POST", f"{address}/v1/completions", headers=headers, json={**body, "stream": True}, timeout=60
        ) as stream:
            lines = stream.iter_lines()
            first = next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        _, err = process.communicate(timeout=60)
    assert json.loads(first.removeprefix("data: "))["model"] == "mine"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert rest[-1] == "data: [DONE]"
    assert process.returncode == 0
    (line,) = map(json.loads, err.splitlines())
    assert (line["status"], line["finish_reasons"], line["completion_tokens"]) == (200, ["length"], 150)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--rows", "0"], "--rows: expected at least 1, got 0"),
        (["--api-key-file", "{empty}"], "expected keys, one a line, got none"),
        (["--host", "192.0.2.1"], "choose another address"),
    ],
)
def test_options_that_will_not_do(tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], words: str):
    (tmp_path / "empty").write_text("\n")
    given = [word.format(empty=tmp_path / "empty") for word in given]
    assert main(["http", "--target", "smollm2-135m", "--drafter", str(tmp_path), *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
