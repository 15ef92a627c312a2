"""Responses that a server of OpenAI's API writes: ids of its texts, the end of the turn where it says so, features by
our own forward; asked for within bounds, again where it is busy, and never for a shard that is there."""

import dataclasses
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from configs.errors import UserError
from configs.schema import Recipe, RecipeError, load_recipe
from models.attention import whole
from models.sources import load_target
from models.target import packed_features
from models.tokenizer import load_tokenizer
from pipelines import completions
from pipelines.completions import Asked, Completion, Server
from pipelines.feature_store import FeatureSource
from pipelines.prepare import prepare
from pipelines.prompt_files import encode_prompt
from pipelines.prompts import load_prompts
from pipelines.records import Responses
from serve.session import Decoder
from tests.tiny_run import make_tiny
from tests.tiny_server import serving

END, SPARE = 256, 259  # of the tiny tokenizer


class Api(BaseHTTPRequestHandler):
    """Answers by the prompt's length; every fifth request finds it busy. It counts a special token's text in bytes."""

    server: Any

    def do_GET(self) -> None:
        self.reply(200, {"data": [{"id": "tiny"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen += 1
            busy = self.server.seen % 5 == 1
            self.server.running += 1
            self.server.most = max(self.server.most, self.server.running)
        if self.server.refuses:
            self.reply(400, {"error": {"message": "no such\nmodel"}})
        elif busy:
            self.reply(503, {"error": {"message": "busy"}})
        else:
            with self.server.lock:
                self.server.asked.append(asked)
            text, ended = answer(asked["prompt"])
            choice = {"text": text, "finish_reason": "stop" if ended else "length"}
            self.reply(200, {"choices": [choice], "usage": {"completion_tokens": len(text) + ended}})
        with self.server.lock:
            self.server.running -= 1

    def reply(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def answer(prompt: list[int]) -> tuple[str, bool]:
    """(text, whether it is ended) to a prompt."""
    strange = prompt[-20] % 2 == 0
    return f"so {sum(prompt)}" + "<|spare|>" * strange, sum(prompt) % 3 > 0


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(completions, "PAUSE", 0.0)
    server: Any = ThreadingHTTPServer(("localhost", 0), Api)
    server.lock, server.seen, server.running, server.most = threading.Lock(), 0, 0, 0
    server.asked, server.refuses = [], False
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def recipe_of(root: Path, api: Any) -> Recipe:
    tiny = make_tiny(root)
    return load_recipe(
        str(tiny.config), [f"responses.server=http://localhost:{api.server_port}/v1", "responses.batch=3"]
    )


@pytest.mark.parametrize("listed", [{"data": [{"name": "x"}]}, {"data": {"a": 1}}, {"data": ["m"]}])
def test_models_in_another_shape(listed: dict, api: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Api, "do_GET", lambda self: self.reply(200, listed))
    with pytest.raises(UserError, match=r"/models: not OpenAI's shape; expected data: \[\{id: \.\.\.\}\]"):
        Server(f"http://localhost:{api.server_port}/v1")


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://localhost/v1"])
def test_an_address_that_is_none(url: str):
    with pytest.raises(UserError, match="expected http://HOST:PORT/v1"):
        Server(url)


def test_what_a_server_writes(tmp_path: Path, api: Any, capsys: pytest.CaptureFixture[str]):
    recipe = recipe_of(tmp_path, api)
    source = recipe.target.source
    target, tokenizer = load_target(source, "float32"), load_tokenizer(source)
    prepared = prepare(recipe, target, tokenizer)
    assert len(api.asked) == 24
    assert api.most <= 3
    assert {(one["model"], one["max_tokens"], one["temperature"]) for one in api.asked} == {("tiny", 20, 0.0)}
    strange = 0
    for split in ("train", "heldout"):
        for response in Responses(prepared.responses / split):
            text, ended = answer(list(response.prompt_ids))
            ids = tokenizer.encode(text)
            assert list(response.response_ids) == [*ids, *[END] * ended]
            assert response.finished == ended
            assert (SPARE in ids) == text.endswith("<|spare|>")
            strange += SPARE in ids
    out = capsys.readouterr().out
    counted = [int(line.split()[1]) for line in out.split("\n") if "do not come back" in line]
    assert 0 < strange < 24
    assert sum(counted) == strange
    sent = {tuple(encode_prompt(tokenizer, p)) for p in load_prompts(recipe.prompts.sources, limit=24, seed=0)}
    assert {tuple(one["prompt"]) for one in api.asked} == sent

    assert prepared.features is not None
    first = Responses(prepared.responses / "train").ids(0)
    tokens = jnp.asarray(first)[None]
    expected = packed_features(target, tokens, whole(tokens), taps=(1,), final=True)[0]
    kept = FeatureSource(prepared.features, "train", 32)[0]
    np.testing.assert_allclose(kept[:-1], np.asarray(expected)[:-1], rtol=1e-4, atol=1e-5)

    api.asked.clear()
    (prepared.responses / "train" / "00001.json").unlink()
    assert prepare(recipe, target, tokenizer) == prepared
    assert len(api.asked) == 8, "the missing shard alone"

    gone = dataclasses.replace(recipe.responses, server="http://localhost:1/v1")
    assert prepare(dataclasses.replace(recipe, responses=gone), target, tokenizer) == prepared, "nobody is asked"


def test_our_own_server(tmp_path: Path):
    """It is asked as any other, and says what its target decodes."""
    prompts = [[3 + n, 70, 80 + n] for n in range(5)]
    with serving(tmp_path) as running:
        with closing(Server(f"http://127.0.0.1:{running.port}/v1")) as server:
            got = dict(server.complete((Asked(prompt, 12, 0.0, 0) for prompt in prompts), at_once=2))
        decoder = Decoder(running.engine, running.service.tokenizer, None)
        expected = [decoder.generate([prompt], max_new_tokens=12)[0] for prompt in prompts]
    assert server.model == "tiny"
    assert [got[number] for number in range(5)] == [
        Completion(answer.text, answer.finished == "eos", len(answer.ids)) for answer in expected
    ]


def test_a_refusal_and_an_absence_are_one_line(api: Any):
    url = f"http://localhost:{api.server_port}/v1"
    asked = Asked([1, 2], 4, 0.0, 0)
    api.refuses = True
    with (
        closing(Server(url)) as server,
        pytest.raises(UserError, match=r"/v1/completions: refused, status 400: .*no such") as caught,
    ):
        list(server.complete([asked], at_once=2))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"localhost:1/v1/models: no answer in 6 attempts \(ConnectError: "):
        Server("http://localhost:1/v1")


def test_a_server_writes_or_the_files_do(tmp_path: Path):
    tiny = make_tiny(tmp_path)
    with pytest.raises(RecipeError, match=r"responses\.server: expected null with responses\.regenerate=false"):
        load_recipe(str(tiny.config), ["responses.server=http://localhost:1/v1", "responses.regenerate=false"])
    with pytest.raises(RecipeError, match=r"responses\.server"):
        load_recipe(str(tiny.config), ["responses.server=localhost:1"])


def test_data_written_before_are_found(tmp_path: Path):
    """The manifest of responses written here has no word of servers."""
    from pipelines.responses import _manifest

    recipe = load_recipe(str(make_tiny(tmp_path).config))
    target = load_target(recipe.target.source, "float32")
    section = _manifest(recipe, target, {})["responses"]
    assert set(section) == {field.name for field in dataclasses.fields(recipe.responses)} - {"batch", "server"}
