"""A request that cannot be honoured is refused, never failed: with the API's error, which names the field."""

import json
import random
from typing import Any

import pytest

from tests.tiny_server import CAPACITY, serving

CHAT = {"messages": [{"role": "user", "content": "Why?"}], "max_tokens": 2}
TEXT = {"prompt": "Why?", "max_tokens": 2}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


def refused(response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status
    (error,) = response.json().values()
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["param"] is None or error["message"].startswith(error["param"])
    return error


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{}]),
        ("response_format", {"type": "json_object"}),
        ("logit_bias", {"5": 1}),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -1),
        ("repetition_penalty", 1.1),
        ("audio", {}),
        ("reasoning_effort", "high"),
        ("ignore_eos", True),
        ("chat_template_kwargs", {"enable_thinking": False}),
        ("best_of_breed", 1),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(server, field: str, value: Any):
    error = refused(server.post("/v1/chat/completions", **CHAT, **{field: value}))
    assert (error["param"], error["code"]) == (field, "unsupported")


def test_what_says_what_is_done_anyway_passes(server):
    """Clients send their defaults."""
    fine = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "logit_bias": {}, "n": 1}
    fine |= {"presence_penalty": 0, "frequency_penalty": 0.0, "user": "me", "metadata": {"a": "b"}, "store": False}
    fine |= {"stop": None, "seed": None, "top_k": -1, "chat_template_kwargs": {}, "parallel_tool_calls": True}
    assert server.post("/v1/chat/completions", **CHAT, **fine).status_code == 200
    assert server.post("/v1/completions", **TEXT, echo=False, suffix=None, best_of=1).status_code == 200


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 17}, "n"),
        ({"stop": [""]}, "stop[0]"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": CAPACITY + 1}, "max_tokens"),
        ({"max_completion_tokens": CAPACITY}, "max_completion_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"chunk": 1}}, "stream_options.chunk"),
        ({"messages": [{"role": "user", "content": "x" * CAPACITY}]}, "messages"),
    ],
)
def test_a_wrong_value_is_refused_by_its_path(server, changes: dict[str, Any], param: str):
    assert refused(server.post("/v1/chat/completions", **CHAT | changes))["param"] == param


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ([], "prompt"),
        ("", "prompt[0]"),
        (["a", ""], "prompt[1]"),
        ([260], "prompt[0]"),
        ({}, "prompt"),
        ([[1], 2], "prompt[1]"),
    ],
)
def test_a_wrong_prompt_is_refused_by_its_place(server, prompt: Any, param: str):
    assert refused(server.post("/v1/completions", **TEXT | {"prompt": prompt}))["param"] == param


def test_what_is_not_there(server):
    assert refused(server.post("/v1/chat/completions", **CHAT, model="other"), 404)["param"] == "model"
    assert refused(server.client.get("/v1/models/other"), 404)["code"] == "model_not_found"
    refused(server.client.get("/v1/embeddings"), 404)
    refused(server.client.get("/v1/completions"), 405)


def test_what_is_described_is_there(server):
    described = server.client.get("/openapi.json").json()
    for path, ways in described["paths"].items():
        for method in ways:
            assert server.client.request(method, path.format(model="tiny")).status_code in (200, 400)
    asked = described["components"]["schemas"]["ChatRequest"]["properties"]
    page = server.client.get("/docs").text
    assert all(f"<code>{field}</code>" in page for field in asked)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff", b'{"prompt": NaN}', b'{"prompt": "\\ud800"}', b"[" * 500, b"1" * 9999]
)
def test_a_body_that_is_no_object_of_json(server, body: bytes):
    assert "body" in refused(server.client.post("/v1/completions", content=body))["message"]


def test_mutated_bodies_are_answered_or_refused(server):
    """Never a fault: what 60 random changes of good bodies get is 200, or a refusal that names its field."""
    draw = random.Random(0)
    for path, body in ((path, body) for _ in range(30) for path, body in ways()):
        response = server.client.post(path, content=mutated(body, draw))
        assert response.status_code == 200 or response.status_code in (400, 404), response.text
        if response.status_code != 200:
            refused(response, response.status_code)


def ways() -> list[tuple[str, dict[str, Any]]]:
    more = {"temperature": 0.5, "top_p": 0.9, "stop": ["x"], "stream": False, "n": 1, "seed": 3}
    return [("/v1/chat/completions", CHAT | more), ("/v1/completions", TEXT | more | {"logprobs": 1})]


def mutated(body: dict[str, Any], draw: random.Random) -> bytes:
    """`body` with a field gone, of another type, or new; or its text damaged."""
    values = [None, True, -1, 0, 3, 1e300, 2**70, "", "x", "\x00é", [], [[]], [1, "a"], {}, {"a": {}}, [{}] * 3]
    changed, name = dict(body), draw.choice(list(body))
    kind = draw.randrange(4)
    if kind == 0:
        del changed[name]
    elif kind == 1:
        changed[name] = draw.choice(values)
    elif kind == 2:
        changed[draw.choice(["x", "tools", "echo", "min_p", "top_k", "model"])] = draw.choice(values)
    text = bytearray(json.dumps(changed).encode())
    if kind == 3:
        text[draw.randrange(len(text))] = draw.randrange(256)
    return bytes(text)
