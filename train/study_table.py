"""A study's results side by side, as Markdown and as plain numbers. In: the results of `train.study`."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from models.statistics import bootstrap_ratio

LEAST = 30  # steps that must reach a slot for its acceptance to be shown


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of one training: {variant, seed, failed} or {variant, seed, tau, mean_tau, slots, ...}."""
    named = {name: result[name] for name in ("variant", "seed")}
    if result["failed"] is not None:
        return named | {"failed": result["failed"]}
    measured = {name: result[name] for name in ("steps", "positions", "parameters", "seconds_per_step", "responses")}
    return (
        named
        | measured
        | {
            "seconds": _seconds(result),
            "tau": {task: values["tau"] for task, values in result["tasks"]["tasks"].items()},
            "mean_tau": result["tasks"]["tau"],
            "heldout_tau": result["heldout"]["tau"],
            "slots": [slot["acceptance"] for slot in result["heldout"]["slots"]],
        }
    )


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row per training in the study's order, the mean over seeds after several, then acceptance by slot
    and how far confidence can be believed."""
    done = [result for result in results if result["failed"] is None]
    parts = [_trainings(results, done), _slots(done), _confidence(done)] if done else []
    parts += [
        f"`{r['variant']}` seed {r['seed']} did not come to its end: {r['failed']}\n" for r in results if r["failed"]
    ]
    return "\n".join(parts)


def _trainings(results: Sequence[Mapping[str, Any]], done: Sequence[Mapping[str, Any]]) -> str:
    tasks = list(done[0]["tasks"]["tasks"])
    first = {result["seed"]: result for result in reversed(done) if result["variant"] == results[0]["variant"]}
    head = ["variant", "seed", *tasks, "mean tau", "of the first's", "held-out tau", "positions", "steps"]
    rows = [[*head, "s/step", "s", "parameters", "data"]]
    for variant in dict.fromkeys(result["variant"] for result in done):
        of_variant = [result for result in done if result["variant"] == variant]
        for result in of_variant:
            taus = [result["tasks"]["tasks"][task]["tau"] for task in tasks]
            rows.append(
                [
                    variant,
                    str(result["seed"]),
                    *_fixed(*taus, result["tasks"]["tau"]),
                    _relative(result, first.get(result["seed"])),
                    *_fixed(result["heldout"]["tau"]),
                    f"{result['positions']:.4g}",
                    str(result["steps"]),
                    *_fixed(result["seconds_per_step"], _seconds(result)),
                    f"{result['parameters'] / 1e6:.2f} M",
                    result["responses"][:6],
                ]
            )
        if len(of_variant) > 1:
            means = [fmean(result["tasks"]["tasks"][task]["tau"] for result in of_variant) for task in tasks]
            every = [result["tasks"]["tau"] for result in of_variant]
            spread = f"{min(every):.2f} to {max(every):.2f}"
            rows.append([variant, "mean", *_fixed(*means, fmean(every)), spread, *[""] * 7])
    note = (
        "tau: tokens a step of greedy decoding at full width, bonus token included. Of the first's: the steps of the "
        "first variant (same seed) over these, on the same answers, with its 95 % interval over answers; for means, "
        "the lowest and highest seed."
    )
    return _markdown(rows) + f"\n{note}\n"


def _slots(done: Sequence[Mapping[str, Any]]) -> str:
    """Conditional acceptance of every slot on held-out responses."""
    rows = [["slot", *(f"{result['variant']} {result['seed']}" for result in done)]]
    for slot in range(max(len(result["heldout"]["slots"]) for result in done)):
        found = [result["heldout"]["slots"][slot : slot + 1] for result in done]
        shown = [entry[0]["acceptance"] if entry and entry[0]["reached"] >= LEAST else None for entry in found]
        if any(share is not None for share in shown):
            rows.append([str(slot + 1), *_fixed(*shown)])
    note = (
        f"Conditional acceptance: the share of held-out steps that reached a slot and accepted it (of {LEAST} or more)."
    )
    return _markdown(rows) + f"\n{note}\n"


def _confidence(done: Sequence[Mapping[str, Any]]) -> str:
    """How far a draft's confidence is from the share of such drafts that are right, of those with any."""
    rows = [["variant", "seed", "confidence of", "ECE as trained", "ECE scaled", "temperature", "drafts"]]
    for result in done:
        found = result["heldout"].get("confidence")
        if found is not None:
            own = "a head" if result["asked"]["recipe"]["drafter"].get("confidence_head") else "its own chances"
            errors = (f"{found[name]:.3f}" for name in ("ece_before", "ece_after"))
            rows.append(
                [
                    result["variant"],
                    str(result["seed"]),
                    own,
                    *errors,
                    *_fixed(found["temperature"]),
                    str(found["drafts"]),
                ]
            )
    note = (
        "ECE: expected calibration error of held-out drafts, as trained and after the one temperature fitted to them."
    )
    return _markdown(rows) + f"\n{note}\n"


def _relative(result: Mapping[str, Any], first: Mapping[str, Any] | None) -> str:
    """How many steps of the first variant one of these replaces: tau's ratio over all answers together."""
    if first is None or first is result or first["answers"] != result["answers"]:
        return ""
    pairs = list(zip(first["decoding_steps"], result["decoding_steps"], strict=True))
    low, high = bootstrap_ratio(pairs)
    return f"{sum(a for a, _ in pairs) / sum(b for _, b in pairs):.3f} ({low:.3f} to {high:.3f})"


def _seconds(result: Mapping[str, Any]) -> float | None:
    """Of all steps, compilation and evaluation left out."""
    each = result["seconds_per_step"]
    return None if each is None else each * result["steps"]


def _fixed(*values: float | None) -> list[str]:
    return ["" if value is None else f"{value:.2f}" for value in values]


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ("| " + " | ".join(row) + " |\n" for row in rows)
    return head + "|" + "---|" * len(rows[0]) + "\n" + "".join(body)
