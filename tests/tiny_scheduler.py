"""A scheduler over the tiny target, driven by hand. Not tests: what the tests of the scheduler share."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.decode import Engine
from serve.requests import Progress, Request
from serve.scheduler import Scheduler
from serve.session import Answer, Decoder
from tests.tiny import Letters


def scheduler(engine: Engine, **options: Any) -> Scheduler:
    """Four rows of 256 positions over pages of 8."""
    usual: dict[str, Any] = {"rows": 4, "capacity": 256, "page": 8}
    return Scheduler(engine, Letters(), **usual | options)


def offline(engine: Engine, prompt: Sequence[int], new: int, **options) -> Answer:
    """What the plain loop answers, alone."""
    (answer,) = Decoder(engine, Letters(), None, capacity=512).generate([prompt], max_new_tokens=new, **options)
    return answer


class Asked:
    """What came of requests, by id."""

    def __init__(self, server: Scheduler):
        self.server = server
        self.came: dict[str, list[Progress]] = {}

    def ask(self, id: str, prompt: Sequence[int], new: int, **options) -> None:
        self.came[id] = []
        self.server.submit(Request(id, tuple(prompt), new, **options), self.came[id].append)

    def finish(self) -> None:
        """Turns until nothing is left, pages accounted for after each."""
        while self.server.turn():
            self.server.check()
        assert self.server.stats().running == self.server.stats().waiting == 0

    def ids(self, id: str) -> list[int]:
        return [token for progress in self.came[id] for token in progress.ids]

    def text(self, id: str) -> str:
        return "".join(progress.text for progress in self.came[id])

    def last(self, id: str) -> Progress:
        return self.came[id][-1]


def prompt(seed: int, size: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 60, size).tolist()
