"""Several processes of one run, usually one a host: how they meet, agree, wait for each other and end together.

All of it goes through the coordination service of `jax.distributed`, which the first process runs; no device waits.
With one process nothing in this file does anything. Only the first process says what is going on and writes what there
is one of; errors are said by every process, on its own stderr.
"""

import argparse
import contextlib
import ctypes
import itertools
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from configs.console import one_line, report, say
from configs.errors import UserError
from configs.files import held

HEARTBEAT = 30  # seconds without a sign of life after which a process counts as ended
MEET = 300  # seconds for all processes to start
WAIT = 14 * 24 * 3600 * 1000  # milliseconds, in 31 bits, for what takes as long as another process's work
ENDED = "wideblock/ended"  # who ended before the others, and why
LOST = (
    b"error: another process of this run ended, or its machine did (what is above says which); whole shards and "
    b"checkpoints are kept; start all processes again, with --resume where training had begun\n"
)
LOST_STATUSES = (  # of the runtime, when a process that it waits for has ended
    "UNKNOWN: ",
    "UNAVAILABLE: ",
    "INTERNAL: ",
    "ABORTED: ",
    "CANCELLED: ",
    "DEADLINE_EXCEEDED: ",
    "FAILED_PRECONDITION: ",
)
T = TypeVar("T")
_rounds = itertools.count()  # of `agreed`: every process counts alike


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that name the processes of a run; the environment says what they leave out."""
    group = parser.add_argument_group("several processes, each started by the same command")
    environ = os.environ.get
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        default=environ("JAX_COORDINATOR_ADDRESS"),
        help="where the first process is reached (default: $JAX_COORDINATOR_ADDRESS)",
    )
    group.add_argument(
        "--processes",
        metavar="N",
        default=environ("JAX_NUM_PROCESSES"),
        help="how many there are, or auto: as the TPU's metadata or Slurm say (default: $JAX_NUM_PROCESSES)",
    )
    group.add_argument(
        "--process",
        metavar="I",
        default=environ("JAX_PROCESS_ID"),
        help="which one this is, from 0 (default: $JAX_PROCESS_ID)",
    )


@contextlib.contextmanager
def joined(options: argparse.Namespace) -> Iterator[None]:
    """This process among those of its run while open, as `add_options` say; alone where they say nothing.

    Whoever leaves by an exception ends all of them: each says in one line who it was and why.
    Raises:
      UserError: the options do not fit together, or the processes do not meet.
    """
    named = _named(options)
    if named is None:
        yield
        return
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)  # two programs' collectives would wait on each other
    try:
        jax.distributed.initialize(**named, initialization_timeout=MEET, heartbeat_timeout_seconds=HEARTBEAT)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"--processes: they did not meet ({reason}); start all of them, with the same coordinator"
        ) from error
    quiet = contextlib.nullcontext() if leads() else contextlib.redirect_stdout(open(os.devnull, "a"))  # noqa: SIM115
    ending = threading.Event()
    watch = _watch(ending)  # holds a handler that C calls
    say(f"processes: {jax.process_count()}, with {jax.device_count()} devices")
    try:
        with quiet:
            yield
    except BaseException as error:  # noqa: BLE001 (it is said, and ends the process)
        _end_all(error, ending)
    ending.set()
    signal.signal(signal.SIGABRT, signal.SIG_DFL)
    jax.distributed.shutdown()  # when all have come here
    watch.join()


def _named(options: argparse.Namespace) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is given; None: nothing was asked for."""
    given = (options.coordinator, options.processes, options.process)
    if given == (None, None, None):
        return None
    if given[1] == "auto":
        return {}
    number = [text is not None and text.isdecimal() for text in given[1:]]
    if None in given or not all(number) or ":" not in given[0] or not int(given[2]) < int(given[1]):
        raise UserError(
            "--coordinator, --processes, --process: expected HOST:PORT, a count N and one of 0 to N - 1, or "
            f"--processes auto; got {', '.join(map(str, given))}"
        )
    return {"coordinator_address": given[0], "num_processes": int(given[1]), "process_id": int(given[2])}


def _client() -> Any:
    from jax._src.distributed import global_state

    return global_state.client


def alone() -> bool:
    """Whether the run has one process."""
    return _client() is None


def leads() -> bool:
    """Whether this is the first process: the one that speaks, and writes what there is one of."""
    import jax

    return jax.process_index() == 0


def agreed(make: Callable[[], T]) -> T:
    """What `make` gives in the first process, for all of them (as JSON has it); nobody goes on before it is there."""
    if alone():
        return make()
    key = f"wideblock/agreed/{next(_rounds)}"
    if leads():
        _client().key_value_set(key, json.dumps(make()))
    return json.loads(_client().blocking_key_value_get(key, WAIT))


def meet() -> None:
    """Returns when all processes have come here."""
    if not alone():
        _client().wait_at_barrier(f"wideblock/meet/{next(_rounds)}", WAIT)


@contextlib.contextmanager
def held_by_first(directory: Path, *, wait: bool) -> Iterator[None]:
    """`files.held` by the first process for all of them; it lets go when all have left.

    Raises:
      UserError: another run holds it, or a process does not see what the first one writes.
    """
    with held(directory, wait=wait) if leads() else contextlib.nullcontext():
        agreed(lambda: None)
        if not (directory / ".lock").is_file():
            raise UserError(
                f"{directory}: not there for this process, though the first one writes to it; expected a file system "
                "that all hosts share"
            )
        yield
        meet()


def stop_agreed(step: int) -> bool:
    """Whether all processes stop after this step, because one of them got SIGTERM; asked at every step by all."""
    if alone():
        return False
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


def _watch(ending: threading.Event) -> threading.Thread:
    """Ends this process with one line when another one has ended, whatever it is waiting for, until `ending` is set."""
    client = _client()

    def lost(_: int) -> None:
        os.write(2, LOST)
        os._exit(1)

    def wait_for_an_end() -> None:
        with contextlib.suppress(RuntimeError):  # the service is gone: all have ended well, or `lost` says so
            why = client.blocking_key_value_get(ENDED, WAIT)
            if not ending.is_set():
                print(f"error: {why}", file=sys.stderr, flush=True)
                os._exit(1)

    # A process that was killed says nothing: JAX notices and aborts, in a thread where no handler of Python's runs.
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lost)
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)
    thread = threading.Thread(target=wait_for_an_end, daemon=True)
    thread.handler = handler  # pyright: ignore[reportAttributeAccessIssue] (lives as long)
    thread.start()
    return thread


def collective_failed(error: BaseException) -> bool:
    """Whether the runtime refused for a reason that the end of another process gives it.

    A status of the runtime names its kind first; the same one comes as JaxRuntimeError where a program is called and as
    ValueError where its result is read.
    """
    return isinstance(error, RuntimeError | ValueError) and str(error).startswith(LOST_STATUSES)


def _end_all(error: BaseException, ending: threading.Event) -> None:
    """Says what happened here, as `console.command` does, lets the others know and ends without waiting for them."""
    import jax

    if isinstance(error, SystemExit) and not error.code:
        raise error
    if collective_failed(error):
        time.sleep(HEARTBEAT + 15)  # a collective fails at once when a process ends; who it was is known later
    ending.set()
    index, count = jax.process_index(), jax.process_count()
    why = one_line(error) if isinstance(error, UserError | OSError) else f"{type(error).__name__}: {error}"
    with contextlib.suppress(RuntimeError):  # another one ended first
        _client().key_value_set(ENDED, f"process {index} of {count} ended: {why}")
    try:
        code = report(error)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if leads():
        time.sleep(2)  # it is the first one that the others hear it from
    os._exit(code)
