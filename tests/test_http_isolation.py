"""What is asked together is answered as if alone: nothing of one request, text or fault, gets into another's answer."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

import serve.engine
from models.decode import Engine
from models.drafters import Draft
from serve.session import Decoder
from tests.tiny_server import Running, serving

POISON = 258  # a token whose embedding is not finite
ASKED = {"max_tokens": 25, "temperature": 0}


def poison(engine: Engine) -> None:
    """Nobody chooses the token himself: an earlier one always has the same logit."""
    table, head = engine.target.embedding, engine.target.untied_head
    assert head is not None
    table[...] = table[...].at[POISON].set(jnp.nan)
    head[...] = head[...].at[POISON].set(head[...][5])


def answers(server: Running, bodies: list[dict[str, Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: server.post("/v1/completions", **ASKED | body), bodies))


def test_sentinels_and_faults(tmp_path: Path):
    """Eight clients on two rows, over pages that rows before them had; one in four asks for a fault."""
    with serving(tmp_path, rows=2, queue=8, change=poison) as server:
        encode = server.service.tokenizer.encode
        decoder = Decoder(server.engine, server.service.tokenizer, Draft("drafter", 4))
        prompts = [encode(f"{letter}-secret-of-{letter} " * 3) for letter in "ABCDEF"]
        expected = [decoder.generate([prompt], max_new_tokens=25)[0].text for prompt in prompts]
        faulty = [[*prompts[0][:place], POISON, 3] for place in (1, 30)]
        bodies = [{"prompt": prompt} for prompt in (*prompts[:3], faulty[0], *prompts[3:], faulty[1])]
        for _ in range(2):
            responses = answers(server, bodies)
            right = [one.json()["choices"][0]["text"] for one in responses if one.status_code == 200]
            assert right == expected
            wrong = [one.json()["error"] for one in responses if one.status_code != 200]
            assert [error["type"] for error in wrong] == ["server_error"] * 2
            ids = {line["id"] for line in map(server.line, responses) if line["status"] == 500}
            assert all(any(id in error["message"] for id in ids) for error in wrong)
            assert not any("secret" in error["message"] for error in wrong)
        assert server.settles(lambda: server.idle)
        stats = server.service.scheduler.stats()
        assert stats.free_pages == stats.pages


@pytest.mark.parametrize("program", ["advance", "prefill"])
def test_a_device_without_memory_is_one_requests_misfortune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
):
    """Twice among eight clients there is none left on the device: two get a 500 with their ids, six their answers."""
    real, calls = getattr(serve.engine, program), iter(range(1, 10_000))

    def now_and_then(*given: Any, **options: Any) -> Any:
        if next(calls) in (4, 7):
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory while trying to allocate A-secret-of-A")
        return real(*given, **options)

    with serving(tmp_path, rows=4, queue=8) as server:
        encode = server.service.tokenizer.encode
        decoder = Decoder(server.engine, server.service.tokenizer, Draft("drafter", 4))
        prompts = [encode(f"{letter}-secret-of-{letter} " * 3) for letter in "ABCDEFGH"]
        expected = [decoder.generate([prompt], max_new_tokens=25)[0].text for prompt in prompts]
        with monkeypatch.context() as broken:
            broken.setattr(serve.engine, program, now_and_then)
            responses = answers(server, [{"prompt": prompt} for prompt in prompts])
        failed = [one.json()["error"] for one in responses if one.status_code == 500]
        ids = [line["id"] for line in map(server.line, responses) if line["status"] == 500]
        assert len(failed) == len(ids) == 2
        assert all(any(id in error["message"] for id in ids) for error in failed)
        assert not any("secret" in error["message"] for error in failed)
        for one, text in zip(responses, expected, strict=True):
            assert one.status_code == 500 or one.json()["choices"][0]["text"] == text
        assert server.settles(lambda: server.idle)
        stats = server.service.scheduler.stats()
        assert stats.free_pages == stats.pages
