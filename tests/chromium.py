"""Chromium without a window, spoken to over its debugging pipe. Not tests: what the test of the page uses.

The DevTools protocol over file descriptors 3 (to it) and 4 (from it): JSON messages, each ended by a zero byte.
"""

import base64
import contextlib
import itertools
import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page:
    """One tab."""

    def __init__(self, to: int, of: int):
        self.to, self.of, self.numbers, self.session, self.kept = to, of, itertools.count(), None, b""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.kept:
                self.kept += os.read(self.of, 2**20)
            first, _, self.kept = self.kept.partition(b"\0")
            answer = json.loads(first)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def value(self, script: str) -> Any:
        """What a JavaScript expression is."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> None:
        """Until the expression is true."""
        end = time.monotonic() + seconds
        while not self.value(script):
            assert time.monotonic() < end, f"{script} has not come true"
            time.sleep(0.05)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        code = {"Enter": 13, "Escape": 27, "Tab": 9}[key]
        named = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **named, **({"text": "\r"} if key == "Enter" else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def browsing(folder: Path, width: int = 900, height: int = 700) -> Iterator[Page]:
    """A tab of a browser that keeps what it keeps in `folder`."""
    assert PROGRAM is not None
    (theirs, to), (of, theirs_too) = os.pipe(), os.pipe()
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
    flags += [f"--user-data-dir={folder}", f"--window-size={width},{height}", "--no-first-run"]

    command = f"exec {shlex.join([PROGRAM, *flags])} 3<&{theirs} 4>&{theirs_too}"
    program = subprocess.Popen(["bash", "-c", command], pass_fds=(theirs, theirs_too), stderr=subprocess.DEVNULL)
    os.close(theirs)
    os.close(theirs_too)
    try:
        yield Page(to, of)
    finally:
        program.kill()
        program.wait()
        os.close(to)
        os.close(of)
