"""Serving: decodes with a drafter artifact, verifies against the target, and reports what it measured.

The stable surface for programs (loaded on first use, so that `--help` stays quick):

    from serve import open_decoder, Decoder, Draft, Speculation, Sampling, Answer

    decoder = open_decoder("smollm2-135m", "exports/wide_block")
    (answer,) = decoder.generate(["Why is the sky blue?"], max_new_tokens=128)
    print(answer.text, len(answer.ids) / len(answer.runs))
"""

import importlib
from typing import Any

_SURFACE = {
    "open_decoder": "serve.load",
    "Decoder": "serve.session",
    "Answer": "serve.session",
    "Draft": "models.drafters",
    "Speculation": "models.verify",
    "Sampling": "models.sampling",
}
__all__ = list(_SURFACE)


def __getattr__(name: str) -> Any:
    if name not in _SURFACE:
        raise AttributeError(f"module 'serve' has no attribute {name!r}; it has {', '.join(_SURFACE)}")
    return getattr(importlib.import_module(_SURFACE[name]), name)
