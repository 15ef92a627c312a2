"""A client that hangs up frees its row; whoever else is served gets the whole of his answer."""

import json
import socket

import pytest

from models.drafters import Draft
from serve.session import Decoder
from tests.tiny_server import Running, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


def connected(server: Running, stream: bool) -> socket.socket:
    """One that has asked for 230 tokens."""
    body = json.dumps({"prompt": "The", "max_tokens": 230, "temperature": 0, "stream": stream}).encode()
    client = socket.create_connection(("127.0.0.1", server.port))
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body)
    client.sendall(head + body)
    return client


def ends(server: Running) -> list[str]:
    return [line["finish_reasons"][0] for line in server.log]


@pytest.mark.parametrize("stream", [True, False])
def test_a_row_is_freed_and_the_others_finish(server, stream: bool):
    server.log.clear()
    scheduler, tokenizer = server.service.scheduler, server.service.tokenizer
    generated = scheduler.stats().generation_tokens
    gone = connected(server, stream)
    assert server.settles(lambda: scheduler.stats().running == 1)
    gone.close()
    whole = server.post("/v1/completions", prompt="Twice", max_tokens=40, temperature=0).json()
    assert server.settles(lambda: server.idle)
    assert server.settles(lambda: len(server.log) == 2)
    decoder = Decoder(server.engine, tokenizer, Draft("drafter", 4))
    (expected,) = decoder.generate([tokenizer.encode("Twice")], max_new_tokens=40)
    assert whole["choices"][0]["text"] == expected.text
    assert sorted(ends(server)) == ["cancelled", "length"]
    assert scheduler.stats().generation_tokens - generated < 230
    assert scheduler.stats().free_pages == scheduler.stats().pages
    assert server.service.metrics.ends["abort"] == 1 + (not stream)
