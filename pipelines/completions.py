"""Texts from a server that speaks OpenAI's API: vLLM, SGLang, llama.cpp, `serve http`.

In: the address of its API (http://HOST:PORT/v1), prompts as token ids, so that its chat template is not asked. Out:
what it wrote, as text. $OPENAI_API_KEY is sent where it is set.
"""

import dataclasses
import os
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any

import httpx

from configs.errors import UserError

ATTEMPTS = 6
PAUSE = 1.0  # seconds before the second attempt, twice as many before each further one
TIMEOUT = httpx.Timeout(600.0, connect=10.0)  # an answer may wait for many others
BUSY = (408, 409, 425, 429)  # beside 5xx: worth another attempt


@dataclasses.dataclass(frozen=True)
class Asked:
    """One completion to ask for."""

    prompt: Sequence[int]
    max_tokens: int
    temperature: float
    seed: int


@dataclasses.dataclass(frozen=True)
class Completion:
    """What came back: the text, whether the model ended it itself, of how many tokens it was if the server says."""

    text: str
    finished: bool
    num_tokens: int | None


class Server:
    """A server at `url`, asked for the first model it lists.

    Raises:
      UserError: here and in every call, when it does not answer after ATTEMPTS, or refuses.
    """

    def __init__(self, url: str):
        key = os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self.url, self._client = url.rstrip("/"), httpx.Client(headers=headers, timeout=TIMEOUT, limits=limits)
        listed = self._ask("GET", "models").get("data")
        if not listed:
            raise UserError(f"{self.url}/models: lists no model; expected the target's")
        try:
            self.model = str(listed[0]["id"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{self.url}/models: not OpenAI's shape; expected data: [{{id: ...}}]") from error

    def close(self) -> None:
        self._client.close()

    def complete(self, asked: Iterable[Asked], *, at_once: int) -> Iterator[tuple[int, Completion]]:
        """(number, completion) in order of completion, `at_once` requests under way."""
        waiting = iter(enumerate(asked))
        pool = ThreadPoolExecutor(at_once)
        try:
            running: dict[Future[Completion], int] = {}
            while True:
                for number, one in islice(waiting, at_once - len(running)):
                    running[pool.submit(self._complete, one)] = number
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _complete(self, asked: Asked) -> Completion:
        body = dataclasses.asdict(asked) | {"model": self.model, "prompt": list(asked.prompt)}
        answer = self._ask("POST", "completions", body)
        try:
            choice = answer["choices"][0]
            num_tokens = (answer.get("usage") or {}).get("completion_tokens")
            text = choice["text"]
            if not isinstance(text, str):
                raise TypeError(f"text {text!r}")
            return Completion(text, choice["finish_reason"] == "stop", num_tokens)
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"{self.url}/completions: not OpenAI's shape ({error!r})") from error

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
            try:
                response = self._client.request(method, f"{self.url}/{path}", json=body)
            except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                raise UserError(f"{self.url}: expected http://HOST:PORT/v1 ({error})") from error
            except httpx.TransportError as error:
                why = f"{type(error).__name__}: {error}"
                continue
            if response.is_success:
                return _object(response)
            why = f"status {response.status_code}: {' '.join(response.text.split())[:160]}"
            if response.status_code < 500 and response.status_code not in BUSY:
                raise UserError(f"{self.url}/{path}: refused, {why}")
        raise UserError(
            f"{self.url}/{path}: no answer in {ATTEMPTS} attempts ({why}); whole shards are kept: start again when the "
            "server is up"
        )


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        found = response.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{response.url}: expected a JSON object, got {response.text[:80]!r}; is it OpenAI's API?")
    return found
