"""The process: a socket, uvicorn on it, the scheduler in a thread of its own, and an orderly end.

On SIGTERM, or Ctrl-C, it accepts nothing more, finishes what runs for as long as it may, and ends.
"""

import asyncio
import functools
import socket
import threading
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from configs import schema
from configs.console import say
from configs.device import describe_device, keep_compiled_programs, share_one_heap
from configs.errors import UserError
from models.drafters import Draft
from models.tokenizer import TemplateArgs
from serve.api import Refusal
from serve.choose import Chooser, Who
from serve.http import Served, Service, refusal_response
from serve.load import batch_costs, check_draft, load_engine, step_cost
from serve.scheduler import Scheduler

HEADER_BYTES = 64 * 2**10
KEEP_ALIVE_SECONDS = 30


class Connection(H11Protocol):
    """uvicorn's own waits for ever for a request's headers, and for a client that does not read; this one hangs up.

    One past the `most` that may be open is answered 503, in the API's own shape.
    """

    def __init__(self, *args: Any, peer_seconds: float, most: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.peer_seconds, self.most = peer_seconds, most
        self.awaited: dict[str, asyncio.TimerHandle] = {}

    def expect(self, what: str) -> None:
        if what not in self.awaited:
            self.awaited[what] = self.loop.call_later(self.peer_seconds, self.transport.abort)

    def came(self, what: str) -> None:
        if what in self.awaited:
            self.awaited.pop(what).cancel()

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self.app = refusal_response(Refusal(503, f"{self.most} connections are open; try again", code="busy"))
        self.expect("headers")

    def connection_lost(self, exc: Exception | None) -> None:
        for what in list(self.awaited):
            self.came(what)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self.expect("headers")
        else:
            self.came("headers")

    def pause_writing(self) -> None:
        super().pause_writing()
        self.expect("room to write")

    def resume_writing(self) -> None:
        super().resume_writing()
        self.came("room to write")


def bind(host: str, port: int) -> socket.socket:
    """A socket with an address, any port for 0, which does not listen yet.

    Raises:
      UserError: the system refuses.
    """
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} --port {port}: {reason}; choose another address") from error
    return found


def open_service(
    target: str,
    drafter: Path,
    *,
    dtype: str,
    draft: Draft | None,
    who: Who,
    chat_template_args: TemplateArgs,
    mesh: schema.Mesh,
    rows: int,
    context: int,
    queue: int,
    name: str | None,
    **how: Any,
) -> Service:
    """What answers requests: `load.open_decoder`'s parts over a scheduler of `rows` rows; `how` goes to `Service`.

    How much is drafted, and by whom of `who`, is chosen while decoding unless `draft` fixes it, as there.
    Raises:
      UserError: no such target or drafter, or one that does not fit the other.
    """
    share_one_heap()
    keep_compiled_programs()
    engine, tokenizer, artifact = load_engine(target, drafter, dtype, chat_template_args, mesh)
    capacity, plain_ms, picks = min(context, engine.target.config.max_positions), None, draft
    if draft is not None:
        check_draft(draft, engine.drafter, drafter)
    else:
        cost = step_cost(engine, artifact, capacity - artifact.config.width)
        batches = batch_costs(engine, artifact, capacity - artifact.config.width, rows)
        picks, plain_ms = Chooser(cost, artifact.acceptance, who=who, batches=batches), cost.verify_ms[1]
    scheduler = Scheduler(engine, tokenizer, rows=rows, capacity=capacity, queue=queue, draft=picks)
    say(f"serve: compiling steps of up to {rows} rows (minutes the first time; kept on disk)")
    scheduler.warm()
    served = Served(
        name=name or Path(target.split()[0]).name.removesuffix(".gguf").removesuffix(".yml"),
        drafter=str(drafter),
        device=describe_device(),
        rows=rows,
        fingerprint=engine.target.fingerprint,
        plain_ms_per_token=plain_ms,
    )
    return Service(scheduler, tokenizer, engine.target.config, served, **how)


def web_server(service: Service, *, connections: int = 256, drain_seconds: int = 30) -> uvicorn.Server:
    """uvicorn with `service` in it, at most so many connections open at a time."""
    config = uvicorn.Config(
        service.app,
        http=functools.partial(  # type: ignore[arg-type]
            Connection, peer_seconds=service.limits.peer_seconds, most=connections
        ),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=drain_seconds,
        h11_max_incomplete_event_size=HEADER_BYTES,
    )
    return uvicorn.Server(config)


def run(server: uvicorn.Server, scheduler: Scheduler, listening: socket.socket) -> None:
    """Serves until a signal says to end, or `server.should_exit`; then finishes what runs, and ends."""
    stopping = threading.Event()

    def work() -> None:
        try:
            scheduler.run(stopping)
        finally:  # where it is by a fault of its own, nobody would answer
            server.should_exit = server.force_exit = True

    worker = threading.Thread(target=work, name="scheduler")
    worker.start()
    try:
        server.run(sockets=[listening])
    finally:
        early = not worker.is_alive()
        stopping.set()
        scheduler.abort()
        worker.join()
    if early:
        raise SystemExit(1)


def read_keys(file: Path) -> list[str]:
    """The keys that a file holds, one a line.

    Raises:
      UserError: it holds none.
    """
    try:
        keys = file.read_text(encoding="utf-8").split()
    except UnicodeDecodeError:
        keys = []
    if not keys:
        raise UserError(f"--api-key-file {file}: expected keys, one a line, got none; openssl rand -hex 32 makes one")
    return keys
