"""What every request passes before the API sees it: key, host, size and time; and the line that is logged of it."""

import asyncio
import dataclasses
import hmac
import json
import sys
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api import Refusal

OPEN = ("/", "/health", "/docs", "/openapi.json")  # no key is asked for: nothing of anybody's is said there
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may ask for and how long it may take; the scheduler bounds the queue."""

    body_bytes: int = 2 * 2**20
    prompt_tokens: int | None = None  # None: what the context holds
    new_tokens: int | None = None  # the same
    request_seconds: float = 600.0  # from its headers to the answer's end
    peer_seconds: float = 20.0  # for the client to send headers, to send a body, to go on reading


def log_line(record: dict[str, Any]) -> None:
    print(json.dumps(record, ensure_ascii=False), file=sys.stderr, flush=True)


class Guard:
    """ASGI middleware. It gives a request its id (`state.id`) and a record to log (`state.log`)."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        keys: Sequence[str] = (),
        hosts: Collection[str] | None = None,
        log: Callable[[dict[str, Any]], None] = log_line,
    ):
        self.app, self.limits, self.hosts, self.log = app, limits, hosts, log
        self.keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, record, status, events = time.perf_counter(), {}, 0, False
        scope["state"] = {**scope.get("state", {}), "id": uuid.uuid4().hex, "log": record}

        async def answer(message: Message) -> None:
            nonlocal status, events
            if message["type"] == "http.response.start":
                status = message["status"]
                events = Headers(raw=message["headers"]).get("content-type", "").startswith("text/event-stream")
                message["headers"] = [*message["headers"], (b"x-request-id", scope["state"]["id"].encode())]
            await send(message)

        try:
            async with asyncio.timeout(self.limits.request_seconds) as time_left:
                try:
                    self.admit(scope["path"], Headers(scope=scope))
                    await self.app(scope, self.bounded(receive), answer)
                except Refusal as refusal:  # of the two lines above alone: the API answers its own
                    record["error"] = refusal.message
                    await JSONResponse(refusal.body, refusal.status)(scope, receive, answer)
        except TimeoutError:
            if not time_left.expired():
                raise
            record["error"] = message = f"took longer than {self.limits.request_seconds:g} s; ask for less at a time"
            refusal = Refusal(504, message, code="timeout").body
            if not status:
                await JSONResponse(refusal, 504)(scope, receive, answer)
            elif events:
                last = f"data: {json.dumps(refusal)}\n\n".encode()
                await answer({"type": "http.response.body", "body": last, "more_body": False})
        finally:
            taken = {"status": status or 500, "total_ms": round((time.perf_counter() - began) * 1e3, 3)}
            about = {"time": round(time.time(), 3), "id": scope["state"]["id"]}
            self.log({**about, "method": scope["method"], "path": scope["path"], **taken, **scope["state"]["log"]})

    def admit(self, path: str, headers: Headers) -> None:
        """Raises Refusal for a host name that is not ours, a key that is missing or wrong, a body said to be large."""
        name = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
        if self.hosts is not None and name not in self.hosts:
            raise Refusal(403, f"host: {name!r} is not this server; expected {' or '.join(self.hosts)}")
        given = headers.get("authorization", "").removeprefix("Bearer ").encode()
        if self.keys and path not in OPEN and not any([hmac.compare_digest(given, key) for key in self.keys]):
            message = "authorization: expected 'Bearer ' and this server's API key"
            raise Refusal(401, message, code="invalid_api_key")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.limits.body_bytes:
            raise self.too_large()

    def too_large(self) -> Refusal:
        return Refusal(413, f"body: expected at most {self.limits.body_bytes} bytes, got more", code="body_too_large")

    def bounded(self, receive: Receive) -> Receive:
        """`receive` of a body no larger and no slower than allowed."""
        size, deadline, whole = 0, asyncio.get_running_loop().time() + self.limits.peer_seconds, False

        async def receive_bounded() -> Message:
            nonlocal size, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                seconds = self.limits.peer_seconds
                raise Refusal(408, f"body: expected within {seconds:g} s", code="timeout") from None
            size += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if size > self.limits.body_bytes:
                raise self.too_large()
            return message

        return receive_bounded
