"""A server in a process of its own, and how programs here talk to it."""

import contextlib
import http.client
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from configs.errors import UserError


@contextlib.contextmanager
def serving(arguments: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`python -m serve http` with these arguments, on any port: its process and the port.

    Raises:
      UserError: it ended before it served.
    """
    program = [sys.executable, "-m", "serve", "http", *arguments, "--port", "0"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                if address := re.search(r" on http://127\.0\.0\.1:(\d+)", line):
                    threading.Thread(target=process.stdout.read, daemon=True).start()
                    yield process, int(address[1])
                    return
            raise UserError(f"{' '.join(program)}: ended with code {process.wait()} before it served")
        finally:
            process.kill()


def ask(connection: http.client.HTTPConnection, path: str, body: dict[str, Any]) -> http.client.HTTPResponse:
    """The response to a POST."""
    connection.request("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return connection.getresponse()


def events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """What a stream says, as it comes."""
    return (json.loads(line[6:]) for line in response if line.startswith(b"data: {"))
