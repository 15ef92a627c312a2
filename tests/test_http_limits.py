"""What guards the server: keys, hosts, and limits on size, number and time."""

import json
import socket
import time

import httpx
import pytest

from serve.guard import LOOPBACK, Limits
from tests.tiny_server import Running, serving

LIMITS = Limits(body_bytes=2000, prompt_tokens=20, new_tokens=200, request_seconds=600, peer_seconds=1)
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer a-key\r\ncontent-length: %d\r\n\r\n"
ASKED = {"prompt": "Twice", "max_tokens": 3, "temperature": 0}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    keys = {"keys": ["a-key", "another"], "hosts": LOOPBACK}
    with serving(folder, rows=1, queue=1, connections=4, limits=LIMITS, **keys) as running:
        running.client.headers["authorization"] = "Bearer another"
        yield running


def said(server: Running, text: bytes) -> tuple[bytes, float]:
    """What is answered to bytes on a connection, after how long."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(text)
        client.settimeout(20)
        return client.recv(1000), time.monotonic() - began


@pytest.mark.parametrize("given", [None, "Bearer", "Bearer a-kez", "Bearer a-key2", "a", "Bearer \xe9"])
def test_a_wrong_key_gets_nothing(server, given: str | None):
    headers = {} if given is None else {"authorization": given.encode("latin-1")}
    for path in ("/v1/models", "/metrics", "/server_info"):
        response = httpx.get(f"http://127.0.0.1:{server.port}{path}", headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")


def test_either_key_gets_in_and_some_things_need_none(server):
    for key in ("a-key", "another"):
        response = httpx.get(f"http://127.0.0.1:{server.port}/v1/models", headers={"authorization": f"Bearer {key}"})
        assert response.status_code == 200
    for path in ("/", "/health", "/docs", "/openapi.json"):
        assert httpx.get(f"http://127.0.0.1:{server.port}{path}").status_code == 200


def test_a_name_that_is_not_ours_is_refused(server):
    """A page elsewhere whose name was made to point here (DNS rebinding)."""
    assert server.client.get("/v1/models", headers={"host": "evil.example"}).status_code == 403
    assert server.client.get("/v1/models", headers={"host": "localhost:8000"}).status_code == 200


def test_sizes(server):
    assert server.post("/v1/completions", **ASKED | {"prompt": "x" * 20}).status_code == 200
    error = server.post("/v1/completions", **ASKED | {"prompt": "x" * 21}).json()["error"]
    assert (error["param"], error["code"]) == ("prompt[0]", "context_length_exceeded")
    assert server.post("/v1/completions", **ASKED | {"max_tokens": 201}).json()["error"]["param"] == "max_tokens"
    large = json.dumps({**ASKED, "user": "x" * 2000}).encode()
    assert server.client.post("/v1/completions", content=large).status_code == 413
    in_pieces = server.client.post("/v1/completions", content=iter([large[:1500], large[1500:]]))
    assert in_pieces.status_code == 413


def test_a_full_queue_says_when_to_come_again(server):
    """One row, one place in the queue."""
    server.log.clear()
    body = json.dumps({**ASKED, "max_tokens": 200, "prompt": "The"}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as one:
        one.sendall(HEAD % len(body) + body)
        assert server.settles(lambda: server.service.scheduler.stats().running == 1)
        with socket.create_connection(("127.0.0.1", server.port)) as two:
            two.sendall(HEAD % len(body) + body)
            assert server.settles(lambda: server.service.scheduler.stats().waiting == 1)
            response = server.post("/v1/completions", **ASKED)
    assert (response.status_code, response.json()["error"]["code"]) == (429, "queue_full")
    assert int(response.headers["retry-after"]) >= 1
    assert server.settles(lambda: server.idle)


def test_slow_clients_are_hung_up_on(server):
    answer, seconds = said(server, b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-slow: ")
    assert (answer, seconds >= 0.9) == (b"", True)
    answer, seconds = said(server, HEAD % 50 + b"{")
    assert answer.startswith(b"HTTP/1.1 408")
    assert seconds >= 0.9


def test_too_many_connections(server):
    assert server.settles(lambda: server.idle)
    others = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(4)]
    answer = httpx.get(f"http://127.0.0.1:{server.port}/health")
    for other in others:
        other.close()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["code"] == "busy"


def test_a_request_that_takes_too_long(tmp_path):
    """Its row is freed; a stream that has begun is cut off."""
    with serving(tmp_path, limits=Limits(request_seconds=0.05)) as server:
        scheduler = server.service.scheduler
        for stream in (False, True):
            response = server.post("/v1/completions", prompt="The", max_tokens=250, temperature=0, stream=stream)
            assert response.status_code == (200 if stream else 504)
            error = json.loads(response.text.split("data: ")[-1])["error"]
            assert error["code"] == "timeout"
        assert server.settles(lambda: server.idle)
        assert scheduler.stats().free_pages == scheduler.stats().pages
