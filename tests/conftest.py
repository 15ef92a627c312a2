"""Test set-up: CPU only, shapes and types checked at run time, compiled programs kept between runs."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# A shell starts its background jobs with SIGINT ignored, and what tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
COMPILATION_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wideblock" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILATION_CACHE))
# Tiny models compile in well under JAX's default threshold of one second, and there are many of them.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# The hook must be in place before the first test module imports any of these.
from jaxtyping import install_import_hook  # noqa: E402

# An int may stand where a float is asked for, as PEP 484 and the type checker have it.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
install_import_hook(["configs", "models", "pipelines", "train", "serve"], CHECKER)


@pytest.fixture(scope="module", autouse=True)
def programs_of_its_own() -> Iterator[None]:
    """A file's compiled programs go with it: hundreds of them in a worker are gigabytes, and one has crashed there."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="session")
def session_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that one session's tests share, for artefacts that are slow to make."""
    return tmp_path_factory.mktemp("session")
