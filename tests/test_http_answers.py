"""What the API answers is what the target says: offline decoding's text, with the log-probabilities of its logits."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import whole
from models.drafters import Draft
from serve.session import Decoder
from tests.tiny_server import CAPACITY, Running, serving

QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


def offline(server: Running, prompt: list[int], tokens: int, **how: Any):
    decoder = Decoder(server.engine, server.service.tokenizer, Draft("drafter", 4))
    (answer,) = decoder.generate([prompt], max_new_tokens=tokens, **how)
    return answer


def streamed(server: Running, path: str, **body: Any) -> list[dict[str, Any]]:
    with server.client.stream("POST", path, json={**body, "stream": True}) as response:
        lines = [line for line in response.iter_lines() if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@pytest.mark.parametrize("speculative", [True, False])
def test_a_chat_answer_is_offline_decodings(server, speculative: bool):
    given = {"messages": QUESTION, "max_tokens": 40, "temperature": 0, "speculative": speculative}
    body = server.post("/v1/chat/completions", **given).json()
    expected = offline(server, server.service.tokenizer.encode_chat(QUESTION), 40)
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
    assert choice["finish_reason"] == {"eos": "stop", "length": "length"}[expected.finished]
    assert body["usage"]["completion_tokens"] == len(expected.ids)


def test_an_answer_that_is_not_bounded_goes_on_to_its_end(server):
    body = server.post("/v1/chat/completions", messages=QUESTION, temperature=0).json()
    prompt = server.service.tokenizer.encode_chat(QUESTION)
    expected = offline(server, prompt, CAPACITY - len(prompt))
    assert (body["choices"][0]["finish_reason"], expected.finished) == ("stop", "eos")
    assert body["choices"][0]["message"]["content"] == expected.text


def test_a_stream_is_the_same_answer_in_pieces(server):
    given = {"messages": QUESTION, "max_tokens": 40, "temperature": 0}
    at_once = server.post("/v1/chat/completions", **given).json()
    *pieces, last = streamed(server, "/v1/chat/completions", **given, stream_options={"include_usage": True})
    assert pieces[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert (
        "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
        == (at_once["choices"][0]["message"]["content"])
    )
    reasons = [piece["choices"][0]["finish_reason"] for piece in pieces]
    assert reasons == [None] * (len(pieces) - 1) + [at_once["choices"][0]["finish_reason"]]
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], at_once["usage"]["completion_tokens"])


def test_the_steps_of_a_stream_make_its_text(server):
    given = {"messages": QUESTION, "max_tokens": 40, "temperature": 0, "per_request_metrics": True}
    pieces = [piece["choices"][0] for piece in streamed(server, "/v1/chat/completions", **given) if piece["choices"]]
    steps: dict[int, int] = {}
    for piece in pieces:
        texts = [step["text"] for step in piece.get("steps", ())]
        assert "".join(texts) == (piece["delta"].get("content", "") if "steps" in piece else "")
        steps |= {step["index"]: step["tokens"] for step in piece.get("steps", ())}
    expected = offline(server, server.service.tokenizer.encode_chat(QUESTION), 40)
    assert [steps[index] for index in range(len(steps))] == expected.runs


def test_every_prompt_has_its_answers(server):
    prompts = ["The", "Twice", [1, 2, 3]]
    body = server.post("/v1/completions", prompt=prompts, n=2, max_tokens=12, temperature=0).json()
    encode = server.service.tokenizer.encode
    expected = [offline(server, encode(p) if isinstance(p, str) else p, 12).text for p in prompts]
    assert [choice["index"] for choice in body["choices"]] == list(range(6))
    assert [choice["text"] for choice in body["choices"]] == [text for text in expected for _ in range(2)]


def test_an_answer_ends_before_a_stop_string(server):
    text, word = offline(server, server.service.tokenizer.encode("Twice"), 40).text, "Jd"
    body = server.post("/v1/completions", prompt="Twice", max_tokens=40, temperature=0, stop=word).json()
    assert word in text
    assert body["choices"][0]["text"] == text[: text.index(word)]
    assert body["choices"][0]["finish_reason"] == "stop"


def test_a_seed_fixes_what_is_drawn(server):
    given = {"prompt": "Twice", "max_tokens": 30, "temperature": 1.5, "n": 2}
    one, same, other = (server.post("/v1/completions", **given, seed=seed).json()["choices"] for seed in (7, 7, 8))
    assert one == same
    assert one[0]["text"] != one[1]["text"]
    assert other[0] == {**one[1], "index": 0}  # the second of seed 7 is the first of seed 8


def test_log_probabilities_are_those_of_the_logits(server):
    given = {"max_tokens": 10, "temperature": 0}
    tokenizer, target = server.service.tokenizer, server.engine.target
    prompt = tokenizer.encode("Twice")
    expected = offline(server, prompt, 10)
    row = jnp.array([prompt + expected.ids])
    logits = target.logits(target(row, whole(row))[0])[0, len(prompt) - 1 : -1]
    reference = np.asarray(jax.nn.log_softmax(logits))
    text = server.post("/v1/completions", prompt="Twice", logprobs=3, **given).json()["choices"][0]["logprobs"]
    own = reference[np.arange(10), expected.ids]
    np.testing.assert_allclose(text["token_logprobs"], own, atol=1e-4)
    likeliest = -np.sort(-reference, axis=1)[:, :3]
    # tokens that are parts of characters share a text
    assert [max(top.values()) for top in text["top_logprobs"]] == pytest.approx(likeliest[:, 0], abs=1e-4)
    messages = server.post("/v1/chat/completions", messages=QUESTION, logprobs=True, top_logprobs=3, **given).json()
    content = messages["choices"][0]["logprobs"]["content"]
    assert all(len(token["top_logprobs"]) == 3 and token["top_logprobs"][0] | token == token for token in content)
