"""What acceptance is worth: tau over the width, what it would be with better acceptance or wider blocks, and the
speedup that follows from what steps cost.

Survival s_j is the share of blocks whose drafts were accepted up to slot j, and c_j = s_j / s_{j-1} a slot's
conditional acceptance, so that tau(W) = 1 + s_1 + ... + s_{W-1}. Were all c_j the same a, tau(W) = (1 - a^W) / (1 - a),
which never passes 1 / (1 - a) however wide the block (Leviathan et al., arXiv 2211.17192, equation 1).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from configs.errors import UserError
from models.drafters import TREES
from serve.choose import supposed
from serve.cost import expected_tau
from serve.cost_study import Curve

BETTER = 0.04  # of conditional acceptance: about what a better objective or head gains


def survivals_of(report: Mapping[str, Any], where: str) -> dict[str, list[float]]:
    """Survival by task of a report (`serve.report`).

    Raises:
      UserError: it has no task.
    """
    tasks = {name: task["survival"] for name, task in report["tasks"].items()}
    if not tasks:
        raise UserError(f"{where}: expected a report with at least one task, got none; run serve eval to its end")
    return tasks


def mean_survival(survivals: Mapping[str, Sequence[float]]) -> list[float]:
    """Every task counting the same."""
    return np.mean(list(survivals.values()), axis=0).tolist()


def conditional(survival: Sequence[float]) -> list[float]:
    """Each slot's acceptance where the slots before it were accepted; 0 where none ever were."""
    return [after / before if before else 0.0 for before, after in zip([1.0, *survival], survival, strict=False)]


def geometric(survival: Sequence[float]) -> float:
    """The one conditional acceptance that fits all slots best: accepted over tried, its maximum likelihood."""
    return sum(survival) / sum([1.0, *survival[:-1]])


def geometric_tau(width: int, acceptance: float) -> float:
    """(1 - a^W) / (1 - a)."""
    return float(sum(acceptance**slot for slot in range(width)))


def better(survival: Sequence[float], by: float = BETTER) -> list[float]:
    """Survival if every slot that was ever reached were accepted that much more often."""
    raised = [min(1.0, chance + by) if chance else 0.0 for chance in conditional(survival)]
    return np.cumprod(raised).tolist()


def extended(survival: Sequence[float], num_slots: int) -> list[float]:
    """Survival of more slots than were measured, each accepted as often as the geometric fit says."""
    last, acceptance = survival[-1], geometric(survival)
    more = [last * acceptance**slot for slot in range(1, num_slots - len(survival) + 1)]
    return [*survival, *more][:num_slots]


def fitted(survival: Sequence[float]) -> dict[str, Any]:
    """One task's tau at its full width, the geometric acceptance that fits it, and where that one's tau ends."""
    acceptance = geometric(survival)
    ceiling = 1 / (1 - acceptance) if acceptance < 1 else None
    tau = expected_tau(len(survival) + 1, survival)
    return {"survival": list(survival), "geometric_acceptance": acceptance, "ceiling": ceiling, "tau": tau}


def scaling(survival: Sequence[float]) -> dict[str, Any]:
    """tau over the width, by the slots as measured, by the geometric fit, with better acceptance, and at twice the
    width; and the ceilings they go to."""
    acceptance, trained = geometric(survival), len(survival) + 1
    widths = [width for width in (2**power for power in range(1, 12)) if width < trained] + [trained]
    rows = [
        {
            "width": width,
            "tau": expected_tau(width, survival),
            "geometric_tau": geometric_tau(width, acceptance),
            "tau_better": expected_tau(width, better(survival)),
            "tau_twice_as_wide": expected_tau(2 * width, extended(survival, 2 * width)),
        }
        for width in widths
    ]
    return fitted(survival) | {
        "conditional": conditional(survival),
        "ceiling_better": 1 / (1 - acceptance - BETTER) if acceptance + BETTER < 1 else None,
        "better_by": BETTER,
        "widths": rows,
    }


def speedup(curve: Curve, width: int, survival: Sequence[float]) -> float:
    """Of steps of that width over single tokens; the width lies within the curve's."""
    return expected_tau(width, survival) * curve.verify_ms[1] / (at(curve.verify_ms, width) + drafting(curve, width))


def tree_speedup(curve: Curve, nodes: int, survival: Sequence[float]) -> float:
    """The same of a tree of so many nodes, accepted as `serve.choose.supposed` says; building it is not counted."""
    depth = TREES[nodes]
    passed = np.cumprod(supposed(conditional(survival), nodes)).tolist()
    taken = at(curve.verify_ms, nodes + 1) + drafting(curve, depth)
    return expected_tau(depth, passed) * curve.verify_ms[1] / taken


def drafting(curve: Curve, width: int) -> float:
    """Milliseconds of a block's drafting: nothing at width 1, else at least what the narrowest block that was timed
    takes, since a drafter's weights are read whatever its width."""
    return 0.0 if width == 1 else at({each: ms for each, ms in curve.draft_ms.items() if each > 1}, width)


def at(ms: Mapping[int, float], width: int) -> float:
    """Milliseconds at a width between those measured, along the line; 0 where nothing was."""
    widths = sorted(ms)
    return float(np.interp(width, widths, [ms[each] for each in widths])) if widths else 0.0


def predicted(curve: Curve, survival: Sequence[float]) -> dict[str, Any]:
    """Speedups per width and per tree budget at one batch and context, and the best of them.

    `better`: by width, if acceptance were BETTER higher. `drafting`: whether what it takes is counted.
    """
    widest = max(curve.verify_ms)
    widths = [width for width in curve.verify_ms if width <= len(survival) + 1]
    chains = {width: speedup(curve, width, survival) for width in widths}
    raised = {width: speedup(curve, width, better(survival)) for width in widths}
    trees = {
        nodes: tree_speedup(curve, nodes, survival)
        for nodes, depth in TREES.items()
        if nodes < widest and depth <= len(survival) + 1
    }
    best = max(chains, key=lambda width: chains[width])
    tree = max(trees, key=lambda nodes: trees[nodes], default=None)
    return {
        "batch": curve.batch,
        "context": curve.context,
        "drafting": bool(curve.draft_ms),
        "widths": chains,
        "better": raised,
        "trees": trees,
        "best": {"width": best, "speedup": chains[best], "speedup_better": raised[best]},
        "best_tree": None if tree is None else {"nodes": tree, "speedup": trees[tree]},
    }
