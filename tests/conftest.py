"""Test set-up: CPU only, shapes and types checked at run time, compiled programs kept between runs."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
COMPILATION_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wideblock" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILATION_CACHE))
# Tiny models compile in well under JAX's default threshold of one second, and there are many of them.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# The hook must be in place before the first test module imports any of these.
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook(["configs", "models", "pipelines", "train", "serve"], "beartype.beartype")


@pytest.fixture(scope="session")
def session_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that one session's tests share, for artefacts that are slow to make."""
    return tmp_path_factory.mktemp("session")
