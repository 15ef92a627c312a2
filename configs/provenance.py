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
    """The commit of the checkout this code runs from, "-dirty" if it was changed, "unknown" outside one."""
    root = Path(__file__).resolve().parent.parent
    call = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
