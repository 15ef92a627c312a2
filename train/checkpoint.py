"""Checkpoints: what a run needs to go on exactly, on Orbax, written asynchronously and atomically.

Owned here: RUN/checkpoints/<step>/ with the items

    params      the drafter's parameters (never the target's), a tree of arrays
    optimizer   the optimizer's state, a tree of arrays
    batches     the grain iterator's state, JSON
    metadata    {"step", "seed", "identity": {field: value}, "width": of the widest blocks up to this step,
                 "grown": [steps at which they grew (`train.curriculum`)], "tau": held-out tau or null,
                 "acceptance": held-out acceptance of these parameters (`train.acceptance`) or null}

The seed is all the randomness there is: batches, anchors and first weights are functions of it, of the step and of
when blocks grew. A step's directory appears under its name only when it is whole; what a killed run left half-written
is removed by the next one. The last `keep` checkpoints and the one with the highest tau stay.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from configs.errors import DiskError, UserError
from configs.files import write_json
from models.drafters.dflash import DrafterConfig

LAYOUT = 3  # raised when the drafter's weights are laid out otherwise
POSITION = "process_0-of-1.json"  # as grain's own handler names it


class BatchesHandler(ocp.CheckpointHandler):
    """Keeps a grain iterator's state in one file, by whichever number of processes: all of them stand at one batch."""

    def save(self, directory: epath.Path, args: "BatchesArgs") -> None:
        if jax.process_index() == 0:
            write_json(Path(directory) / POSITION, args.item.get_state())

    def restore(self, directory: epath.Path, args: "BatchesArgs") -> Any:
        args.item.set_state(json.loads((directory / POSITION).read_text()))
        args.item.start_prefetch()
        return args.item


@ocp.args.register_with_handler(BatchesHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class BatchesArgs(ocp.args.CheckpointArgs):
    """The iterator whose state is saved or set."""

    item: Any


ITEMS = {
    "params": ocp.StandardCheckpointHandler,
    "optimizer": ocp.StandardCheckpointHandler,
    "batches": BatchesHandler,
    "metadata": ocp.JsonCheckpointHandler,
}


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, directory: Path, *, keep: int):
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        best = policies.BestN(get_metric_fn=_tau, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        handlers = {name: handler() for name, handler in ITEMS.items()}
        self._manager = ocp.CheckpointManager(directory.resolve(), options=options, item_handlers=handlers)

    @property
    def last_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, trees: Mapping[str, Any], batches: Any, metadata: Mapping[str, Any]) -> None:
        """Starts saving `trees` ({"params", "optimizer"}), the iterator and the metadata as `step`.

        Raises:
          OSError: the disk is full or not writable; earlier checkpoints stay (this may surface at the next call).
        """
        tau = metadata.get("tau")
        with disk_errors(self.directory):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(trees["params"]),
                    optimizer=ocp.args.StandardSave(trees["optimizer"]),
                    batches=BatchesArgs(batches),
                    metadata=ocp.args.JsonSave({"step": step, **metadata}),
                ),
                metrics=None if tau is None else {"tau": tau},
                force=True,
            )

    def restore(
        self, trees: Mapping[str, Any], batches: Any, identity: Mapping[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        """(step, trees like the given ones) of the last checkpoint, `batches` set to where it stood.

        Raises:
          UserError: no checkpoint, a damaged one, or one of another identity (every differing field is named).
        """
        step = find_step(self.directory, "last")
        check_identity(self.directory / str(step), identity)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, dict(trees))
        with damage(self.directory / str(step)):
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(abstract["params"]),
                    optimizer=ocp.args.StandardRestore(abstract["optimizer"]),
                    batches=BatchesArgs(batches),
                ),
            )
        return step, {name: restored[name] for name in trees}

    def wait(self) -> None:
        """Returns when everything started is on disk."""
        with disk_errors(self.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        with disk_errors(self.directory):
            self._manager.close()


def _tau(metrics: Any) -> float:
    return metrics["tau"]


def whole_steps(directory: Path) -> list[int]:
    """Steps of the whole checkpoints, ascending; half-written ones carry another name."""
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdecimal())


def find_step(directory: Path, which: str | int) -> int:
    """The step of the "last" or "best" checkpoint, or the given one.

    Best means highest held-out tau; where none was measured, the last.
    Raises:
      UserError: there is no such checkpoint.
    """
    steps = whole_steps(directory)
    if not steps:
        raise UserError(f"{directory}: no checkpoint; expected <step>/ directories that training writes")
    if isinstance(which, int):
        if which not in steps:
            raise UserError(f"{directory}: no checkpoint of step {which}; there are {', '.join(map(str, steps))}")
        return which
    if which == "best":
        taus = {step: read_metadata(directory / str(step)).get("tau") for step in steps}
        measured = {step: tau for step, tau in taus.items() if tau is not None}
        if measured:
            return max(measured, key=lambda step: measured[step])
    return steps[-1]


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata item of a checkpoint.

    Raises:
      UserError: the checkpoint is damaged or not one of ours.
    """
    file = path / "metadata" / "metadata"
    try:
        return json.loads(file.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not a whole wideblock checkpoint ({file.name}: {error}); use another step") from error


def check_identity(path: Path, identity: Mapping[str, Any]) -> None:
    """Raises UserError naming every field in which checkpoint and recipe disagree."""
    check_layout(path)
    wanted = json.loads(json.dumps(dict(identity)))
    before = {name: value for name, value in DrafterConfig.before.items() if name in wanted}
    saved = before | read_metadata(path).get("identity", {})
    differing = [name for name in {**saved, **wanted} if saved.get(name) != wanted.get(name)]
    if differing:
        listed = "; ".join(f"{n}: checkpoint {saved.get(n)!r}, recipe {wanted.get(n)!r}" for n in differing)
        raise UserError(f"{path}: made by another recipe ({listed}); restore these values or choose another run.dir")


def check_layout(path: Path) -> None:
    """Raises UserError for a checkpoint whose parameters are laid out otherwise than today."""
    layout = read_metadata(path).get("identity", {}).get("layout", 1)
    if layout != LAYOUT:
        raise UserError(
            f"{path}: its parameters have layout {layout}; expected {LAYOUT}: go on with it, or export it, by the "
            "revision that wrote it (what is exported is read by every revision)"
        )


def load_params(directory: Path, which: str | int) -> tuple[dict[str, Any], dict[str, Any], int]:
    """(parameters as a nested dict of numpy arrays, metadata, step), without a model to fill.

    Raises:
      UserError: no such checkpoint, or a damaged one.
    """
    step = find_step(directory, which)
    path = directory / str(step)
    check_layout(path)
    metadata = read_metadata(path)
    return read_tree(path / "params"), metadata, step


def read_tree(path: Path) -> dict[str, Any]:
    """The arrays of one Orbax item, on the first device, wherever they were saved from.

    Raises:
      UserError: damaged, or not an Orbax item.
    """
    item = epath.Path(path.resolve())
    with damage(path), contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=local),
            handler.metadata(item).tree,
        )
        how = ocp.checkpoint_utils.construct_restore_args(abstract)
        return handler.restore(item, args=ocp.args.PyTreeRestore(item=abstract, restore_args=how))


def write_tree(tree: Mapping[str, Any], path: Path) -> None:
    """Writes arrays as one Orbax item, in place of what was there.

    Raises:
      OSError: the disk refuses.
    """
    with disk_errors(path), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.resolve(), tree, force=True)


@contextlib.contextmanager
def damage(path: Path) -> Iterator[None]:
    """Turns what Orbax raises on missing, truncated or foreign files into one UserError."""
    try:
        yield
    except (ValueError, KeyError, FileNotFoundError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: damaged or foreign checkpoint ({reason}); use another step") from error


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns what Orbax raises when the disk refuses into one OSError."""
    signs = ("RESOURCE_EXHAUSTED", "No space left", "Permission denied", "Read-only", "File too large", "Errno")
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        if not isinstance(error, OSError) and not any(sign in str(error) for sign in signs):
            raise
        reason = " ".join(str(error).split())[:160]
        raise DiskError(
            f"{path}: cannot write a checkpoint ({reason}); earlier checkpoints are kept; free space or choose "
            "another run.dir, then go on with --resume"
        ) from error
