"""The report of an evaluation: a dictionary comes in; report.json, report.md, report.html and a terminal table go out.

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
                             tokens_per_step}; drafts is "drafter", "ngram" (copied) or "none" (width 1: a plain step
                             that keeps the drafter's context)
    speedup, speedup_interval  plain milliseconds a token over speculative ones, each all its milliseconds over all its
                             tokens; [low, high]
    exact                    how many outputs equal those of plain greedy decoding; null when sampling
    mismatches               the others: a list of {id, position, logit_gap} at the first difference; the gap is null
                             where one answer goes on where the other ends, which no near-tie explains
    repetition_rate          share of the outputs that fall into a loop
    tau_without_repetition   tau over the rest; null if there is no rest
    samples                  a list of {prompt, output, runs}; runs are the tokens each verify step committed.
                             With `pieces`, the text of each run, the page tints the runs in the output

Acceptance (tau, acceptance, survival, accepted_lengths, tau_over_position) is of the answers at full width; times
are of the batch-1 loops. Every file is written whole or not at all.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from configs.errors import DiskError, UserError
from configs.files import write_atomic
from configs.paths import read_object
from serve import charts

SCHEMA = 4
NEAR_TIE = 1e-3


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


def markdown(report: dict[str, Any]) -> str:
    """The report as one table and the lines that say what it measured."""
    tau = f"tau (W={report['width']})"
    times = ["plain ms/token", "speculative ms/token", "speedup (95 % interval)"]
    rows = [["task", "prompts", tau, "tokens/step", *times, "exact"], ["---"] * 8]
    for name, task in report["tasks"].items():
        low, high = task["speedup_interval"]
        rows.append(
            [
                name,
                str(task["prompts"]),
                "{:.2f} ({:.2f}-{:.2f})".format(task["tau"], *task["tau_interval"]),
                f"{task['tokens_per_step']:.2f}",
                f"{task['plain_ms_per_token']['median']:.1f}",
                f"{task['speculative_ms_per_token']['median']:.1f}",
                f"{task['speedup']:.2f}x ({low:.2f}-{high:.2f})",
                exact_of(task),
            ]
        )
    mean = report["average"]
    bold = [f"{mean['tau']:.2f}", f"{mean['tokens_per_step']:.2f}", f"{mean['speedup']:.2f}x"]
    exact = exact_of(mean)
    rows.append(["**average**", "", f"**{bold[0]}**", f"**{bold[1]}**", "", "", f"**{bold[2]}**", f"**{exact}**"])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    what = f"{report['target']}, drafter {report['drafter']}, {report['dtype']}"
    how = f"at most {report['max_new_tokens']} new tokens, on {report['device']}, revision {report['revision']}"
    notes = [f"- {name}, prompt {found['id']}: {mismatch_of(found)}" for name, found in mismatches_of(report)]
    if notes:
        notes = ["", "Outputs that differ from plain greedy decoding:", "", *notes]
    if report["unfinished"]:
        notes += ["", unfinished_of(report)]
    return "\n".join([table, *notes, "", f"{what}, {how}.", "", f"    {report['command']}", ""])


def unfinished_of(report: Mapping[str, Any]) -> str:
    """What an unfinished report lacks, to show."""
    return f"Unfinished: decoding ended before the tasks {', '.join(report['unfinished'])}."


def mismatches_of(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(task, mismatch) of all tasks."""
    return [(name, found) for name, task in report["tasks"].items() for found in task["mismatches"]]


def mismatch_of(found: Mapping[str, Any]) -> str:
    """Where an output differs and whether a near-tie explains it, to show."""
    gap = found["logit_gap"]
    if gap is None:
        return f"from token {found['position']}, one goes on where the other ends: no near-tie"
    return f"from token {found['position']}, logit gap {gap:.2g}: {'a' if gap < NEAR_TIE else 'no'} near-tie"


def exact_of(entry: Mapping[str, Any]) -> str:
    """How many of its outputs equal the plain ones, to show; a dash where sampling makes them other draws."""
    return "-" if entry["exact"] is None else f"{entry['exact']}/{entry['prompts']}"


def most_used_width(tasks: Mapping[str, Any]) -> int:
    """The width most steps that did not copy had, every task counting the same."""
    shares: dict[int, float] = {1: 0.0}
    for task in tasks.values():
        for way in (way for way in task["ways"] if way["drafts"] != "ngram"):
            shares[way["width"]] = shares.get(way["width"], 0.0) + way["share"]
    return max(shares, key=lambda width: shares[width])


def page(report: dict[str, Any]) -> str:
    """The report as one self-contained HTML page: style and charts inline, no script, nothing fetched."""
    tasks = report["tasks"]
    cost = report["cost"]
    survival = {name: task["survival"] for name, task in tasks.items()}
    speedups = {name: (task["speedup"], *task["speedup_interval"]) for name, task in tasks.items()}
    chosen = most_used_width(tasks)
    drawings = {
        "positions": charts.tau_curves({name: task["tau_over_position"] for name, task in tasks.items()}),
        "survival": charts.survival_curves(survival),
        "speedup": charts.speedup_bars(speedups),
        "cost": charts.cost_bars(cost["widths"], plain_ms=cost["plain_ms"], chosen=chosen),
        "expected": charts.expected_speedups(cost["widths"], chosen=chosen),
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("serve").joinpath("report.html.jinja").read_text("utf-8"))
    return template.render(
        report=report,
        drawings=drawings,
        histograms=_histograms(tasks),
        num_slots=charts.num_visible_slots(survival),
        series={name: charts.series(index) for index, name in enumerate(tasks)},
        mismatches=mismatches_of(report),
        unfinished=unfinished_of(report) if report["unfinished"] else None,
        near_tie=NEAR_TIE,
        samples=_chosen_samples(tasks),
    )


def _histograms(tasks: Mapping[str, Any]) -> dict[str, str]:
    """A small histogram for each task, all on the same axes, as far as 1 % of some task's steps reach."""
    last, high = 2, 0.1
    for task in tasks.values():
        counts = task["accepted_lengths"]
        shares = [count / max(1, sum(counts)) for count in counts]
        last = max([last, *(n for n, share in enumerate(shares) if share >= 0.01)])
        high = max([high, *shares])
    return {
        name: charts.committed_histogram(task["accepted_lengths"], last=last, high=high, index=index)
        for index, (name, task) in enumerate(tasks.items())
    }


def _chosen_samples(tasks: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The first sample of the task with the largest tau and of the one with the smallest."""
    ranked = sorted((name for name, task in tasks.items() if task["samples"]), key=lambda n: -tasks[n]["tau"])
    return [(name, tasks[name]["samples"][0]) for name in dict.fromkeys(ranked[:1] + ranked[-1:])]


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


def print_comparison(reports: Mapping[str, dict[str, Any]], console: Console) -> None:
    """One row a task; tau, speedup and exact outputs of every report side by side."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("task", no_wrap=True)
    for name, report in reports.items():
        for column in (f"{name}\ntau W={report['width']}", "\nspeedup", "\nexact"):
            table.add_column(column, justify="right")
    tasks = list(dict.fromkeys(task for report in reports.values() for task in report["tasks"]))

    def cells(found: Mapping[str, Any] | None) -> list[str]:
        if found is None:
            return ["", "", ""]
        return [f"{found['tau']:.2f}", f"{found['speedup']:.2f}x", exact_of(found)]

    for task in tasks:
        table.add_row(task, *(cell for report in reports.values() for cell in cells(report["tasks"].get(task))))
    table.add_section()
    table.add_row("average", *(c for report in reports.values() for c in cells(report["average"])), style="bold")
    console.print(table)
    settings = ("target", "dtype", "sampling", "max_new_tokens", "device")
    differing = [name for name in settings if len({str(report[name]) for report in reports.values()}) > 1]
    if differing:
        console.print(f"not like for like: {', '.join(differing)} differ", style="yellow")
    for name, report in reports.items():
        if report["unfinished"]:
            console.print(f"{name}: {unfinished_of(report)}", style="yellow")


def print_table(report: dict[str, Any], console: Console, directory: Path | None = None) -> None:
    """Print one row a task and their average, then where the files lie if `directory` is given."""
    title = f"{report['target']}, drafter of width {report['width']}, {report['dtype']}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("task", no_wrap=True)
    for name in (
        "prompts",
        f"tau\nW={report['width']}",
        "tokens\na step",
        "plain\nms/token",
        "speculative\nms/token",
        "speedup",
        "exact",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for name, task in report["tasks"].items():
        table.add_row(
            name,
            str(task["prompts"]),
            f"{task['tau']:.2f}",
            f"{task['tokens_per_step']:.2f}",
            f"{task['plain_ms_per_token']['median']:.2f}",
            f"{task['speculative_ms_per_token']['median']:.2f}",
            f"{task['speedup']:.2f}x",
            exact_of(task),
        )
    average = report["average"]
    table.add_section()
    table.add_row(
        "average",
        str(average["prompts"]),
        f"{average['tau']:.2f}",
        f"{average['tokens_per_step']:.2f}",
        "",
        "",
        f"{average['speedup']:.2f}x",
        exact_of(average),
        style="bold",
    )
    console.print(table)
    if report["unfinished"]:
        console.print(unfinished_of(report), style="yellow")
    if directory is not None:
        console.print(f"report: {directory / 'report.html'} and {directory / 'report.json'}", soft_wrap=True)
