"""The report of an evaluation: a dictionary comes in; report.json, report.md and report.html go out.

This module owns the format, of the dictionary and of report.json alike; other keys are kept, not shown:

    schema            4
    command           the command line that produced it
    device            what it ran on, in words
    revision          the git revision of this code
    versions          {package: version}
    target, drafter   what was decoded, and with which artifact
    dtype             of the computation, such as "float32"
    width             W the drafter was trained for: the anchor and W-1 drafted tokens
    asked_width       the one width of the speculative loop; null where it was chosen while decoding
    sampling          {temperature, top_k, top_p, min_p}
    max_new_tokens    limit of every answer
    peak_memory_bytes resident, of the process, loading included
    programs          {compiled, from_disk}: how many were compiled, how many found on disk
    drafter_info      {name: value} about the drafter, to show: digest (`Artifact.digest`), trained width, layers, ...
    unfinished        the tasks that were asked for and are not in it: decoding failed or was stopped
    cost              plain_ms: one step of the plain loop
                      widths: a list of {width, draft_ms, verify_ms, expected_tau, expected_speedup},
                      ascending, 1 among them: a plain step that keeps the drafter's context; expected values
                      may be null
    tasks             {name: task}, in the order to show
    average           tau, tokens_per_step and speedup averaged over the tasks; exact and prompts summed

A task holds

    prompts, tokens          counts of prompts, and of tokens generated for them
    tau, tau_interval        tokens committed per verify step at `width`, the bonus token included; [low, high]
    acceptance               W-1 values: of the blocks accepted up to slot i-1, the share accepted at slot i;
                             null where no block came that far
    survival                 W-1 values: the share of all blocks accepted up to and including slot i
    accepted_lengths         a histogram: entry n counts the verify steps that committed n tokens, so its mean
                             is tau and entry 0 is 0
    tau_over_position        tau of the steps beginning in tokens 0-15, 16-31, ... of the answer; null where none
    prefill_ms               {median, low, high} over the prompts: reading the prompt, in none of the times below
    plain_ms_per_token       {median, low, high} over the prompts
    speculative_ms_per_token the same
    tokens_per_step          of the speculative loop, at the widths it chose
    ways                     how its steps drafted, most frequent first: a list of {drafts, width, share,
                             tokens_per_step}; drafts is "drafter", "tree of N" (nodes), "ngram" (copied) or "none"
                             (width 1: a plain step that keeps the drafter's context)
    speedup, speedup_interval  plain milliseconds a token over speculative ones, each all its milliseconds over all its
                             tokens; [low, high]
    exact                    how many outputs equal those of plain greedy decoding; null when sampling
    mismatches               the others: a list of {id, position, logit_gap} at the first difference; the gap is null
                             where one answer goes on where the other ends, which no near-tie explains
    repetition_rate          share of the outputs that fall into a loop
    tau_without_repetition   tau over the rest; null if there is no rest
    outside_draft_vocabulary share of the plain answers' tokens that the drafter cannot draft; only where it has a draft
                             vocabulary
    samples                  a list of {prompt, output, runs}; runs are the tokens each verify step committed.
                             With `pieces`, the text of each run, the page tints the runs in the output

Acceptance (tau, acceptance, survival, accepted_lengths, tau_over_position) is of the answers at full width; times
are of the batch-1 loops. Every file is written whole or not at all.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.device import peak_memory_bytes
from configs.errors import DiskError, UserError
from configs.files import write_atomic
from configs.paths import read_object
from configs.provenance import provenance
from serve.rendering import markdown, page

SCHEMA = 4


@dataclass(frozen=True)
class Maybe:
    """In a form: this, or null."""

    form: Any


# A form: a type, a dictionary of required keys ({str: form}: any keys), a list [item], a fixed-length tuple.
SPREAD = {"median": float, "low": float, "high": float}
WIDTH = {
    "width": int,
    "draft_ms": float,
    "verify_ms": float,
    "expected_tau": Maybe(float),
    "expected_speedup": Maybe(float),
}
TASK = {
    "prompts": int,
    "tokens": int,
    "tau": float,
    "tau_interval": (float, float),
    "acceptance": [Maybe(float)],
    "survival": [float],
    "accepted_lengths": [int],
    "tau_over_position": [Maybe(float)],
    "prefill_ms": SPREAD,
    "plain_ms_per_token": SPREAD,
    "speculative_ms_per_token": SPREAD,
    "tokens_per_step": float,
    "ways": [{"drafts": str, "width": int, "share": float, "tokens_per_step": float}],
    "speedup": float,
    "speedup_interval": (float, float),
    "exact": Maybe(int),
    "mismatches": [{"id": str, "position": int, "logit_gap": Maybe(float)}],
    "repetition_rate": float,
    "tau_without_repetition": Maybe(float),
    "samples": [{"prompt": str, "output": str, "runs": [int]}],
}
REPORT = {
    "schema": int,
    "command": str,
    "device": str,
    "revision": str,
    "versions": {str: str},
    "target": str,
    "drafter": str,
    "dtype": str,
    "width": int,
    "asked_width": Maybe(int),
    "sampling": {"temperature": float, "top_k": Maybe(int), "top_p": float, "min_p": float},
    "max_new_tokens": int,
    "peak_memory_bytes": int,
    "programs": {"compiled": int, "from_disk": int},
    "drafter_info": {str: object},
    "unfinished": [str],
    "cost": {"plain_ms": float, "widths": [WIDTH]},
    "tasks": {str: TASK},
    "average": {"tau": float, "tokens_per_step": float, "speedup": float, "exact": Maybe(int), "prompts": int},
}


def check(value: Any, form: Any, where: str) -> None:
    """A ValueError of ours names the first place where `value` departs from `form`."""
    if isinstance(form, Maybe):
        if value is not None:
            check(value, form.form, where)
    elif isinstance(form, dict):
        _expect(isinstance(value, Mapping), where, "a mapping", value)
        keys = value if str in form else form
        for key in keys:
            _expect(key in value, f"{where}.{key}", "a value", "nothing")
            check(value[key], form[str if str in form else key], f"{where}.{key}")
    elif isinstance(form, list | tuple):
        _expect(isinstance(value, list | tuple), where, "a list", value)
        if isinstance(form, tuple):
            _expect(len(value) == len(form), where, f"{len(form)} values", value)
        for index, item in enumerate(value):
            check(item, form[0], f"{where}[{index}]")
    elif form is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        _expect(number and math.isfinite(value), where, "a finite number", value)
    elif form is not object:
        _expect(isinstance(value, form) and not isinstance(value, bool), where, f"{form.__name__}", value)


def _expect(holds: bool, where: str, expected: str, got: Any) -> None:
    if not holds:
        text = f"{where}: expected {expected}, got {got!r:.80}; serve/report.py lists every key"
        raise UserError(text)  # ours, of what we write; `read_report` says it of files


def describe(
    artifact: Any, command: Sequence[str], *, target: str, drafter: str, dtype: str, max_new_tokens: int
) -> dict[str, Any]:
    """What a report says of its run and of the drafter before anything is decoded."""
    config = artifact.config
    return {
        "schema": SCHEMA,
        **provenance(command),
        "target": target,
        "drafter": drafter,
        "dtype": dtype,
        "max_new_tokens": max_new_tokens,
        "drafter_info": {
            "digest": artifact.digest(),
            "trained width": config.width,
            "layers": config.num_layers,
            "taps": list(config.target_layer_ids),
            **artifact.traits(),
        },
    }


def assemble(described: Mapping[str, Any], measured: Mapping[str, Any], programs: Mapping[str, int]) -> dict[str, Any]:
    """The whole report: of `describe`, of `serve.evaluate.evaluate`, and of the process up to now."""
    return {**described, "peak_memory_bytes": peak_memory_bytes(), "programs": dict(programs), **measured}


def check_out(directory: Path) -> None:
    """Makes `directory` and writes into it, as `write_report` will: hours of decoding come before that.

    Raises:
      DiskError: it cannot be made or written.
    """
    with _refusals(directory):
        directory.mkdir(parents=True, exist_ok=True)
        write_atomic(directory / "probe", "")
        (directory / "probe").unlink()


@contextlib.contextmanager
def _refusals(directory: Path) -> Iterator[None]:
    """Turns what the disk refuses into a DiskError that names the option."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{directory}: expected a directory to write the report into, got: {error.strerror};"
            " choose another with --out"
        ) from error


def write_report(report: dict[str, Any], directory: Path) -> None:
    """Write report.json, report.md and report.html into `directory`, making it if need be.

    A dictionary that departs from the format is a ValueError of ours. Raises DiskError if the directory cannot be
    written.
    """
    check(report, REPORT, "report")
    _expect(report["schema"] == SCHEMA, "report.schema", str(SCHEMA), report["schema"])
    _expect(bool(report["tasks"]), "report.tasks", "at least one task", report["tasks"])
    texts = {
        "report.json": json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "report.md": markdown(report),
        "report.html": page(report),
    }
    with _refusals(directory):
        for name, text in texts.items():
            write_atomic(directory / name, text)


def read_report(path: Path) -> dict[str, Any]:
    """The report in a report.json, or in a directory holding one.

    Raises:
      UserError: there is none, or it is not a report of this schema.
    """
    file = path / "report.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path}: no report.json there; python -m serve eval --out DIR writes one")
    report = read_object(file)
    if report.get("schema") != SCHEMA:
        raise UserError(
            f"{file}: schema: expected {SCHEMA}, got {report.get('schema')!r}; write it again with python -m serve eval"
        )
    try:
        check(report, REPORT, str(file))
    except ValueError as error:
        raise UserError(str(error)) from error
    return report
