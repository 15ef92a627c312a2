"""The cost study as a dictionary, tables in the terminal, charts and cost.json (written under --out):

target, source, machine   what was timed; "measured" or "estimated"; name, peak FLOP/s and bytes/s of the device
dtype, command            of the computation; what wrote it
curves                    `serve.cost_study.Curve` by batch and context, with `free_to` and `knee`
scaling, predicted        `serve.scaling`, where an acceptance was given
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from configs.files import write_atomic, write_json
from models.roofline import Machine
from serve import charts
from serve.cost_study import FREE, Curve
from serve.scaling import fitted, mean_survival, predicted, scaling


def assemble(
    curves: Sequence[Curve],
    machine: Machine,
    survivals: Mapping[str, Sequence[float]] | None,
    described: dict[str, Any],
) -> dict[str, Any]:
    """The study's dictionary; `survivals` are by task, `described` the entries about what was timed."""
    study = described | {"machine": dataclasses.asdict(machine), "curves": [curve.to_dict() for curve in curves]}
    if survivals is not None:
        survival = mean_survival(survivals)
        study["scaling"] = scaling(survival) | {"tasks": {name: fitted(each) for name, each in survivals.items()}}
        study["predicted"] = [predicted(curve, survival) for curve in curves if curve.verify_ms]
    return study


def print_study(study: dict[str, Any], console: Console) -> None:
    """A table a batch and context, and what follows from each."""
    machine = study["machine"]
    rates = f"peak {machine['peak'] / 1e12:.4g} TFLOP/s, {machine['bandwidth'] / 1e9:.4g} GB/s"
    what = f"{study['target']}, {study['dtype']}, {study['source']} on {machine['name']} ({rates}); milliseconds"
    console.print(what, markup=False)
    for curve in study["curves"]:
        if not curve["verify_ms"]:
            console.print(f"batch {curve['batch']}, context {curve['context']}: does not fit the chip's memory")
            continue
        table = Table(
            box=SIMPLE_HEAD, title=f"batch {curve['batch']}, context {curve['context']}", title_justify="left"
        )
        for name in ("W", "T_verify", "x W=1", "roofline", "T_draft"):
            table.add_column(name, justify="right")
        one = next(iter(curve["verify_ms"].values()))
        for width, ms in curve["verify_ms"].items():
            drafting = curve["draft_ms"].get(width)
            shown = [f"{ms:.2f}", f"{ms / one:.2f}", f"{curve['floor_ms'][width]:.2f}"]
            table.add_row(str(width), *shown, "-" if drafting is None else f"{drafting:.2f}")
        console.print(table)
        console.print(verdict(curve))
    if "scaling" in study:
        print_scaling(study["scaling"], console)
    for found in study.get("predicted", []):
        print_predicted(found, console)


def print_scaling(found: dict[str, Any], console: Console) -> None:
    """The geometric fits by task, and tau over the width."""
    for name, task in [*found["tasks"].items(), ("mean of the tasks", found)]:
        ceiling = "none" if task["ceiling"] is None else f"{task['ceiling']:.2f}"
        fit = f"conditional acceptance {task['geometric_acceptance']:.3f} fits, ceiling {ceiling}"
        console.print(f"{name}: tau {task['tau']:.2f}; {fit}")
    table = Table(box=SIMPLE_HEAD)
    for name in ("W", "tau", "geometric", f"acceptance +{found['better_by']}", "twice as wide"):
        table.add_column(name, justify="right")
    for row in found["widths"]:
        width, *taus = row.values()
        table.add_row(str(width), *(f"{tau:.2f}" for tau in taus))
    console.print(table)


def print_predicted(found: dict[str, Any], console: Console) -> None:
    """Predicted speedups by width and by tree, and the best of them."""
    table = Table(box=SIMPLE_HEAD)
    for name in ("drafts", "speedup", "with better acceptance"):
        table.add_column(name, justify="right")
    for width, speedup in found["widths"].items():
        table.add_row(f"W = {width}", f"{speedup:.2f}x", f"{found['better'][width]:.2f}x")
    for nodes, speedup in found["trees"].items():
        table.add_row(f"tree of {nodes}", f"{speedup:.2f}x", "")
    console.print(table)
    console.print(forecast(found))


def verdict(curve: dict[str, Any]) -> str:
    """Where verification is free, in words."""
    free, knee, ridge, batch = curve["free_to"], curve["knee"], curve["ridge"], curve["batch"]
    widest = max(curve["verify_ms"])
    shown = "no knee within it" if knee is None else f"knee at W = {knee:.0f} ({batch * knee:.0f} tokens a step)"
    free = f"free (within {FREE - 1:.0%}) to W = {free}" if free > 1 else "not free at any width"
    end = " (the widest)" if curve["free_to"] == widest else ""
    return f"{free}{end}; {shown}; roofline's ridge at W = {ridge:.0f} ({batch * ridge:.0f} tokens)"


def forecast(found: dict[str, Any]) -> str:
    """The best of the predicted speedups, in words."""
    best, tree = found["best"], found["best_tree"]
    text = f"batch {found['batch']}, context {found['context']}: best W = {best['width']}, {best['speedup']:.2f}x"
    text += f" predicted ({best['speedup_better']:.2f}x with better acceptance)"
    text += "" if tree is None else f"; best tree {tree['nodes']} nodes, {tree['speedup']:.2f}x"
    return text if found["drafting"] else text + "; drafting is not counted (no --drafter)"


def write_study(study: dict[str, Any], directory: Path) -> list[Path]:
    """cost.json and the charts; returns the files.

    Raises:
      OSError: the directory cannot be written.
    """
    shown = [curve for curve in study["curves"] if len(curve["verify_ms"]) > 1]
    files = {"verify.svg": charts.cost_curves(shown)} if shown else {}
    if "scaling" in study:
        tasks = study["scaling"]["tasks"]
        files["survival.svg"] = charts.survival_curves({name: task["survival"] for name, task in tasks.items()})
    found = [each for each in study.get("predicted", []) if len(each["widths"]) > 1]
    if found:
        names = {f"batch {each['batch']}, context {each['context']}": each["widths"] for each in found}
        files["speedup.svg"] = charts.width_curves(names, "times as fast as single tokens (predicted)", reference=1.0)
        rows = study["scaling"]["widths"]
        lines = {"measured": "tau", "geometric fit": "geometric_tau", "better acceptance": "tau_better"}
        lines["twice as wide"] = "tau_twice_as_wide"
        taus = {name: {row["width"]: row[key] for row in rows} for name, key in lines.items()}
        files["tau.svg"] = charts.width_curves(taus, "tau: tokens a step")
    for name, drawing in files.items():
        write_atomic(directory / name, charts.alone(drawing))
    write_json(directory / "cost.json", json.loads(json.dumps(study)))
    return [directory / name for name in ("cost.json", *files)]
