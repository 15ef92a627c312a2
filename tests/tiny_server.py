"""The server on a port of its own over a random target of two layers. Not tests: what the tests of the API share."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from models.decode import Engine, make_engine
from models.drafters import Draft
from models.sources import load_target
from models.tokenizer import load_tokenizer
from serve.guard import Limits
from serve.http import Served, Service
from serve.scheduler import Scheduler
from serve.server import bind, run, web_server
from tests.tiny import make_artifact
from tests.tiny_run import write_target

CAPACITY = 256
LIMITS = Limits()
FITS = {"vocab_size": 260, "mask_token_id": 259, "num_target_layers": 2, "target_layer_ids": (0, 1)}


class Running:
    """A server that runs; `log` holds what it logged."""

    def __init__(self, service: Service, engine: Engine, port: int, log: list[dict[str, Any]]):
        self.service, self.engine, self.port, self.log = service, engine, port, log
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def settles(self, fine: Callable[[], bool], seconds: float = 20) -> bool:
        """Whether `fine` comes true."""
        end = time.monotonic() + seconds
        while not fine() and time.monotonic() < end:
            time.sleep(0.01)
        return fine()

    def line(self, response: httpx.Response) -> dict[str, Any]:
        """The line of the log about a request, which is written after its answer is sent."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = [line for line in list(self.log) if line["id"] == response.headers["x-request-id"]]
            return bool(found)

        assert self.settles(there), "a request without a line in the log"
        (line,) = found
        return line

    @property
    def idle(self) -> bool:
        stats = self.service.scheduler.stats()
        return stats.running == stats.waiting == 0


@contextlib.contextmanager
def serving(
    folder: Path,
    *,
    rows: int = 2,
    queue: int = 8,
    connections: int = 64,
    limits: Limits = LIMITS,
    change: Callable[[Engine], None] = lambda engine: None,
    **how: Any,
) -> Iterator[Running]:
    """A server of the target that is written into `folder`; `change` may alter it, `how` is `Service`'s."""
    path = write_target(folder / "target")
    target = load_target(str(path), "float32")
    engine = make_engine(target, make_artifact(**FITS))
    change(engine)
    tokenizer, log = load_tokenizer(str(path)), []
    scheduler = Scheduler(engine, tokenizer, rows=rows, capacity=CAPACITY, queue=queue, draft=Draft("drafter", 4))
    served = Served("tiny", "a drafter", "a device", rows, "a fingerprint", plain_ms_per_token=None)
    service = Service(scheduler, tokenizer, target.config, served, limits=limits, log=log.append, **how)
    listening = bind("127.0.0.1", 0)
    server = web_server(service, connections=connections, drain_seconds=10)
    running = Running(service, engine, listening.getsockname()[1], log)
    thread = threading.Thread(target=run, args=(server, scheduler, listening))
    thread.start()
    try:
        assert running.settles(lambda: server.started)
        yield running
    finally:
        running.client.close()
        server.should_exit = True
        thread.join()
        listening.close()
