"""An answer as it grows: from tokens to text that may be shown, up to a stop string."""

from collections.abc import Sequence

from models.tokenizer import Tokenizer

HALF = "\N{REPLACEMENT CHARACTER}"  # what the bytes of half a character decode to
CONTEXT = 8  # tokens decoded before the new ones: some tokenizers write a token as what comes before it has it


class Writing:
    """The text of an answer, token by token. What `take` gives is never half a character, nor of a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.stopped = False
        self._ids: list[int] = []
        self._begin = self._read = 0  # tokens from `_begin` on are decoded, those before `_read` gave text already
        self._held = ""  # not given yet: it may be the beginning of a stop string
        self._ready = ""

    def add(self, token: int) -> bool:
        """Whether the answer ends with this token, since it completes a stop string."""
        self._ids.append(token)
        self._grow(self._decoded())
        return self.stopped

    def take(self, *, ended: bool = False) -> str:
        """What may be shown now and was not yet: all there is where the answer has ended."""
        if ended and not self.stopped:
            self._grow(self._decoded(), whole=False)
            self._ready, self._held = self._ready + self._held, ""
        ready, self._ready = self._ready, ""
        return ready

    def _decoded(self) -> str:
        """The text of the tokens that gave none yet."""
        decode = self.tokenizer.decode
        before = decode(self._ids[self._begin : self._read], skip_special=True)
        return decode(self._ids[self._begin :], skip_special=True)[len(before) :]

    def _grow(self, new: str, *, whole: bool = True) -> None:
        if not new or (whole and new.endswith(HALF)):
            return
        self._read = len(self._ids)
        self._begin = max(self._begin, self._read - CONTEXT)
        text = self._held + new
        places = [text.find(word) for word in self.stop if word in text]
        if places:
            self.stopped, self._ready, self._held = True, self._ready + text[: min(places)], ""
            return
        keep = max((_overlap(text, word) for word in self.stop), default=0)
        self._ready, self._held = self._ready + text[: len(text) - keep], text[len(text) - keep :]


def _overlap(text: str, word: str) -> int:
    """How many of the last characters of `text` may begin `word`."""
    return next((size for size in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:size])), 0)
