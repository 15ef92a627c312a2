"""The machine computation runs on: what it is called, and where its compiled programs are kept."""

import contextlib
import importlib.util
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def cache_directory() -> Path:
    """Where compiled programs and measured step costs are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wideblock"


def keep_compiled_programs() -> dict[str, int]:
    """Keeps compiled programs on disk, so that a second run of the same shapes compiles nothing.

    The dictionary returned counts from now on: programs "compiled" (those that took over half a second; smaller ones
    are not kept) and read "from_disk".
    """
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    names = {"/jax/compilation_cache/cache_misses": "compiled", "/jax/compilation_cache/cache_hits": "from_disk"}
    counts = dict.fromkeys(names.values(), 0)

    def count(event: str, **_: object) -> None:
        if event in names:
            counts[names[event]] += 1

    jax.monitoring.register_event_listener(count)
    return counts


def round_as_written() -> None:
    """Makes XLA round to bfloat16 wherever the program does, on a machine with no accelerator; before JAX computes.

    By default it leaves out what falls inside a fusion, and programs for steps of other widths fuse other operations: a
    token's logits would depend on how many are verified with it. An accelerator's fusions are left as they are.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_allow_excess_precision" in flags or importlib.util.find_spec("libtpu") or entry_points(group="jax_plugins"):
        return
    os.environ["XLA_FLAGS"] = f"{flags} --xla_allow_excess_precision=false".strip()


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


def peak_memory_bytes() -> int:
    """The most memory this process had resident so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the parent held when it forked
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def share_one_heap() -> None:
    """Makes all threads allocate from one heap, where the C library is glibc: XLA's own keep 100 MB apart otherwise."""
    _mallopt({"M_ARENA_MAX": 1})


def begin_in_huge_pages() -> None:
    """Starts the process over with memory in pages of 2 MB, where Linux gives them to who asks and nobody has decided.

    A CPU that reads all weights for every token looks up fewer addresses then: 1 to 6 % of a step (docs/decoding.md).
    glibc's allocator asks for such pages only if its environment said so before the process began (`GLIBC_TUNABLES`,
    `glibc.malloc.hugetlb`, since 2.35; an older one passes over it).
    """
    given = os.environ.get("GLIBC_TUNABLES", "")
    with contextlib.suppress(OSError):  # no such file, or a system that lets nobody read it or start over: as it is
        if "glibc.malloc.hugetlb" not in given and "[madvise]" in HUGE_PAGES.read_text():
            os.environ["GLIBC_TUNABLES"] = ":".join([*filter(None, [given]), "glibc.malloc.hugetlb=1"])
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def keep_freed_memory() -> None:
    """Keeps what is freed for the next step, where the C library is glibc: a training step on a CPU frees and asks for
    gigabytes, and giving them back to the system each time costs an eighth of it."""
    _mallopt({"M_ARENA_MAX": 1, "M_MMAP_MAX": 0, "M_TRIM_THRESHOLD": 2**31 - 1})


def _mallopt(options: Mapping[str, int]) -> None:
    import ctypes

    numbers = {"M_TRIM_THRESHOLD": -1, "M_MMAP_MAX": -4, "M_ARENA_MAX": -8}
    with contextlib.suppress(OSError, AttributeError):  # another C library: it keeps its own ways
        libc = ctypes.CDLL(None)
        for name, value in options.items():
            libc.mallopt(numbers[name], value)


def drop_programs() -> None:
    """Frees the compiled programs (each holds some 50 MB; those needed again come back from disk) and unused heap."""
    import jax

    jax.clear_caches()
    return_unused_heap()


def return_unused_heap() -> None:
    """Gives what the heap does not use back to the system, where the C library is glibc: a compilation leaves a lot."""
    import ctypes
    import gc

    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # a C library without it keeps what it has
        ctypes.CDLL(None).malloc_trim(0)
