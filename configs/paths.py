"""Files a user names: where they are, and what is read of them."""

import json
import os
import re
from pathlib import Path
from typing import Any

from configs.errors import UserError

_HOME = re.compile(r"(?<![^\s=:@])~[\w.-]*(?=/|\s|$)")


def at_home(text: str) -> str:
    """`text` with `~` and `~name` replaced wherever a path may begin: at its start and after a space, `=`, `:` or `@`.

    A shell replaces the first alone, and not within quotes.
    """
    return _HOME.sub(lambda found: os.path.expanduser(found[0]), text)


def path(text: str) -> Path:
    """The path a user wrote; the type of a command's path options."""
    return Path(at_home(text))


def read_text(file: Path) -> str:
    """The text of a file in UTF-8.

    Raises:
      UserError: no such file, one that cannot be read, or another encoding.
    """
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte, place = error.object[error.start], error.start
        raise UserError(f"{file}: expected UTF-8 text, got byte {byte:#04x} at {place}; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{file}: expected a readable file, got: {error.strerror}; check the path") from error


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      UserError: no such file, not UTF-8, not JSON, or no object.
    """
    try:
        held = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}: not JSON ({error}); write it again") from error
    if not isinstance(held, dict):
        raise UserError(f"{file}: expected a JSON object, got {type(held).__name__}; write it again")
    return held
