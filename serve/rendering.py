"""A report to look at: its dictionary (`serve.report`) as Markdown, as an HTML page and as tables in the terminal."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from serve import charts

NEAR_TIE = 1e-3  # gaps of logits below it are rounding's to decide


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
    notes += ["", lacking] if (lacking := lacking_of(report)) else []
    return "\n".join([table, *notes, "", f"{what}, {how}.", "", f"    {report['command']}", ""])


def unfinished_of(report: Mapping[str, Any]) -> str:
    """What an unfinished report lacks, to show."""
    return f"Unfinished: decoding ended before the tasks {', '.join(report['unfinished'])}."


def lacking_of(report: Mapping[str, Any]) -> str:
    """What of each task a draft vocabulary lacks, to show; "" without one."""
    key = "outside_draft_vocabulary"
    shares = [f"{name} {task[key]:.1%}" for name, task in report["tasks"].items() if key in task]
    return f"Tokens outside the draft vocabulary: {', '.join(shares)}." if shares else ""


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
        lacking=lacking_of(report),
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
    if lacking := lacking_of(report):
        console.print(lacking)
    if directory is not None:
        console.print(f"report: {directory / 'report.html'} and {directory / 'report.json'}", soft_wrap=True)
