"""Where a result comes from: command, git revision, package versions, device. Written beside every output."""

import importlib.metadata
import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.device import describe_device

PACKAGES = (
    "wideblock",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "google-tunix",
    "transformers",
)


def provenance(command: Sequence[str]) -> dict[str, Any]:
    """{command, revision, versions, device} of this process."""
    return {
        "command": shlex.join(command),
        "revision": git_revision(),
        "versions": {"python": platform.python_version(), **_versions()},
        "device": describe_device(),
    }


def git_revision() -> str:
    """The commit of the checkout this code is the root of, "-dirty" if it was changed, "unknown" outside one.

    A package installed inside another project's checkout is no part of it.
    """
    root = Path(__file__).resolve().parent.parent
    if Path(_git(root, "rev-parse", "--show-toplevel") or "/") != root:
        return "unknown"
    return _git(root, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*") or "unknown"


def _git(root: Path, *words: str) -> str:
    """What a git command says in `root`, nothing where it fails."""
    try:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
