"""The machine computation runs on: what it is called, and where its compiled programs are kept."""

import os
import platform
from pathlib import Path


def keep_compiled_programs() -> None:
    """Keeps compiled programs on disk, so that a second run of the same shapes compiles nothing."""
    import jax

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wideblock" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def describe_device() -> str:
    """The accelerators, or the CPU with its core count, in words."""
    import jax

    first = jax.devices()[0]
    if first.platform != "cpu":
        return f"{jax.device_count()} x {first.device_kind}"
    return f"{_cpu_name()}, {os.cpu_count()} cores"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
