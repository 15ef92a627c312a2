"""The training loop: Tunix's PeftTrainer behind one adapter. The only file that knows Tunix.

Tunix runs the step (gradient, accumulation, optimizer update, in-flight throttling, mesh). Everything between two
updates is decided in one place, `_Between`: held-out evaluation, checkpoint, signal, end, next batch. Tunix's own
checkpoints would hold the frozen target and its resume would read past batches again, so both stay unused.
"""

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax import nnx
from tunix.sft import hooks, peft_trainer

from configs import schema
from configs.console import progress, say
from configs.errors import UserError
from configs.processes import alone, stop_agreed
from models.sharding import global_rows, make_mesh, placed, shard
from pipelines.batches import TrainBatches
from train.acceptance import Acceptance
from train.checkpoint import Checkpoints
from train.curriculum import Curriculum
from train.metrics import Metrics

FINAL_RATE = 0.02  # of the peak learning rate, at the last update
MUON_MOMENTUM, MUON_RMS = 0.95, 0.2  # as `speculators` has them; the second is AdamW's usual update at a rate of 1
VOCABULARY = frozenset({"markov_w1", "markov_w2", "lm_head"})  # matrices with a row for every token
LossFn = Callable[..., tuple[Any, dict[str, Any]]]
CHECKED = ("loss", "gradient_norm")  # of every update
Evaluate = Callable[[nnx.Module, int], Acceptance]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long to train and how often to look."""

    steps: int
    accumulation: int
    eval_every: int
    checkpoint_every: int
    keep: int
    log_every: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Where training stopped, and the signal that stopped it early, if one did."""

    step: int
    interrupted: signal.Signals | None


def learning_rate(section: schema.Optimizer, steps: int) -> optax.Schedule:
    """AdamW's rate of update 0, 1, ...: up in equal parts over `warmup_fraction` of them, then along a cosine.

    Example, 10 updates, 4 of them warm-up: 1/4, 2/4, 3/4 and the peak itself, ..., FINAL_RATE of the peak at update 9.
    """
    return _schedule(section.learning_rate, section, steps)


def make_optimizer(section: schema.Optimizer, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW; or Muon for the layers' matrices and AdamW for the rest.

    Norm scales (1-D) are not decayed. Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) turns a matrix's
    momentum M = U S V^T into about U V^T; scaled by 0.2 sqrt(max(in, out)) its entries are as large as AdamW's
    (Moonlight, arXiv 2502.16982), as `speculators` and MaxText have it.
    """

    def decayed(params: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    adamw = optax.adamw(
        learning_rate(section, steps),
        b1=section.b1,
        b2=section.b2,
        weight_decay=section.weight_decay,
        mask=decayed,
    )
    if section.muon_learning_rate is None:
        return optax.chain(optax.clip_by_global_norm(section.clip), adamw)
    muon = optax.contrib.muon(
        _schedule(section.muon_learning_rate, section, steps),
        beta=MUON_MOMENTUM,
        weight_decay=section.weight_decay,
        consistent_rms=MUON_RMS,
    )
    return optax.chain(
        optax.clip_by_global_norm(section.clip), optax.partition({"muon": muon, "adamw": adamw}, _optimized_by)
    )


def _optimized_by(params: Any) -> Any:
    """Which of Muon and AdamW each array of `params` is for: matrices, but for those with a row for every token."""

    def label(path: Any, leaf: Any) -> str:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        return "adamw" if leaf.ndim != 2 or min(leaf.shape) == 1 or VOCABULARY.intersection(names) else "muon"

    return jax.tree_util.tree_map_with_path(label, params)


def _schedule(peak: float, section: schema.Optimizer, steps: int) -> optax.Schedule:
    warmup = max(1, round(section.warmup_fraction * steps))
    return optax.warmup_cosine_decay_schedule(
        peak / warmup, peak, warmup - 1, max(warmup, steps - 1), FINAL_RATE * peak
    )


class Diverged(UserError):
    """An update, or what it made of the parameters, is not finite."""


class DrafterTrainer(peft_trainer.PeftTrainer):
    """PeftTrainer with its checkpointing unused, parameters sharded by us, and the loss's scalars kept."""

    def __init__(
        self,
        model: nnx.Module,
        optimizer: optax.GradientTransformation,
        plan: Plan,
        mesh: jax.sharding.Mesh | None,
    ):
        config = peft_trainer.TrainingConfig(
            eval_every_n_steps=plan.steps + 1,
            gradient_accumulation_steps=plan.accumulation if plan.accumulation > 1 else None,
            data_sharding_axis=(("data", "fsdp"),),  # pyright: ignore[reportArgumentType] (one entry, two axes)
            checkpoint_root_directory=None,
        )
        shard(model, mesh)
        super().__init__(model, optimizer, config)
        shard(self.optimizer, mesh)
        self.scalars: dict[str, Any] = {}
        self._unchecked: list[tuple[int, dict[str, Any]]] = []

    def start_at(self, step: int) -> None:
        """Counts on from `step` updates."""
        self._train_steps = step
        self._iter_steps = step * self.config.get_with_default("gradient_accumulation_steps", 1)

    @property
    def between_updates(self) -> bool:
        """Whether no microbatch of an update is pending."""
        return self._iter_steps % self.config.get_with_default("gradient_accumulation_steps", 1) == 0

    def fault(self) -> str | None:
        """What is not finite of the updates since the last call, or of what they made of the parameters."""
        unchecked, self._unchecked = jax.device_get(self._unchecked), []
        for step, values in unchecked:
            for name in CHECKED:
                if not np.isfinite(values[name]):
                    return f"step {step}: {name} is {values[name]}"
        if not _all_finite(_trees(self)):
            return f"step {self._train_steps}: parameters or optimizer state are not finite"
        return None

    def wait_for_parameters(self) -> None:
        """Returns when the last update has been computed."""
        jax.block_until_ready(nnx.state(self.model, nnx.Param))

    def _shard_optimizer(self, mesh: jax.sharding.Mesh) -> None:
        """Done already, next to the parameters."""

    def _post_process_train_step(self, aux: Any) -> None:
        buffered = self._buffered_train_metrics
        assert buffered is not None
        self.scalars = {**aux, "gradient_norm": buffered.additional_metrics["grad_norm"][0][-1]}
        self._unchecked.append((self._train_steps + 1, {name: self.scalars[name] for name in CHECKED}))

    def _log_metrics(self, *arguments: Any, **named: Any) -> None:
        """Ours are written between updates (this one would call every loss a perplexity)."""


def lower_step(
    recipe: schema.Recipe,
    target: Any,
    make_trainee: Callable[[Any], nnx.Module],
    loss_fn: LossFn,
    batch: Any,
    mesh: jax.sharding.Mesh,
) -> tuple[Any, dict[str, Any]]:
    """The step that `fit` runs, lowered for the devices of `mesh` and never run; and its arguments by kind.

    `target` and `batch` are abstract; `make_trainee` makes the trainee of a target, and is traced alone.
    """
    plan, made = make_plan(recipe), []

    def build(target: Any) -> tuple[nnx.Module, Any]:
        made.append(DrafterTrainer(make_trainee(target), make_optimizer(recipe.optimizer, plan.steps), plan, None))
        return made[0].model, made[0].optimizer

    model, optimizer = placed(nnx.eval_shape(build, target), mesh)
    trainer = made[0].with_loss_fn(loss_fn, has_aux=True).with_gen_model_input_fn(lambda batch: {"batch": batch})
    with mesh:
        lowered = nnx.jit(trainer.create_train_step_fn(), donate_argnames=("optimizer",)).lower(model, optimizer, batch)
    parameters, frozen = nnx.state(model, nnx.Param), nnx.state(model, nnx.Not(nnx.Param))
    return lowered, {"parameters": parameters, "optimizer": nnx.state(optimizer), "target": frozen, "batch": batch}


class _Between(hooks.DataHooks):
    """Everything that happens between two updates; hands out the next batch, or None to end."""

    def __init__(self, act: Callable[[int], bool], batches: Iterator[Any], mesh: jax.sharding.Mesh | None):
        self._act, self._batches, self._mesh = act, batches, mesh
        self._seen: int | None = None

    def load_next_train_batch(self, train_ctx: DrafterTrainer) -> Any:
        step = train_ctx.train_steps
        if train_ctx.between_updates and step != self._seen:
            self._seen = step
            if not self._act(step):
                return None
        return global_rows(next(self._batches), self._mesh)  # placed here, where Tunix would copy what does not divide

    def load_next_eval_batch(self, train_ctx: DrafterTrainer) -> None:
        return None


def fit(
    trainee: nnx.Module,
    loss_fn: LossFn,
    batches: TrainBatches,
    *,
    recipe: schema.Recipe,
    identity: Mapping[str, Any],
    evaluate: Evaluate,
) -> Outcome:
    """Trains `trainee` in place, from the run's last checkpoint where there is one.

    `loss_fn(trainee, batch)` returns (loss, scalars with "loss"); `evaluate(trainee, step)` its held-out acceptance.
    The widest of `batches` grow as the recipe's curriculum has it.
    Writes checkpoints, metrics.jsonl and events under the run's directory. SIGTERM and SIGINT finish the step, save
    and return. Raises UserError for a checkpoint that does not fit and for an update that is not finite, OSError when
    the disk refuses; what was being saved is on disk before it does.
    """
    plan = make_plan(recipe)
    mesh = make_mesh(recipe.mesh)
    trainer = DrafterTrainer(trainee, make_optimizer(recipe.optimizer, plan.steps), plan, mesh)
    trainer.with_loss_fn(loss_fn, has_aux=True).with_gen_model_input_fn(lambda batch: {"batch": batch})
    with closing(Checkpoints(recipe.run_dir / "checkpoints", keep=plan.keep)) as checkpoints:
        curriculum = Curriculum(recipe.batches)
        begun = _go_on(trainer, checkpoints, batches, identity, curriculum)
        batches.widest = curriculum.width
        about, rate = {"seed": plan.seed, "identity": dict(identity)}, learning_rate(recipe.optimizer, plan.steps)
        saved, tau = begun, None

        def act(step: int) -> bool:
            nonlocal saved, tau
            if stop_agreed(step):
                received.append(signal.SIGTERM)
                say(f"train: SIGTERM: saving after step {step}")
            ends = step >= plan.steps or bool(received)
            measures = due(step, plan.eval_every) or step == plan.steps
            logs, saves = due(step, plan.log_every) or ends, measures or due(step, plan.checkpoint_every) or ends
            if step == begun:
                return not ends
            if logs or saves:
                _refuse_not_finite(trainer, checkpoints)
            bar.advance(1, _note(trainer.scalars, tau) if logs else "")
            if logs:
                values = {name: float(value) for name, value in trainer.scalars.items()}
                metrics.write(step, "train", values | {"learning_rate": float(np.asarray(rate(step - 1)))})
            acceptance = evaluate(trainer.model, step) if measures else None
            if acceptance is not None:
                tau = acceptance.tau
                metrics.write(step, "heldout", acceptance.scalars())
                if step < plan.steps:
                    curriculum.consider(step, acceptance)
            if saves:
                trained = {"width": batches.widest, "grown": list(curriculum.grown)} | _measured(acceptance)
                checkpoints.save(step, _trees(trainer), batches, about | trained)
                saved, batches.widest = step, curriculum.width
            return not ends

        trainer.with_data_hooks(_Between(act, batches, mesh))
        bars = progress("train", plan.steps - begun, "steps")
        metrics = Metrics(recipe.run_dir, step=begun)
        with closing(metrics), _signals() as received, bars as bar, mesh or nullcontext():
            trainer.train([])
    return Outcome(saved, received[0] if received and saved < plan.steps else None)


def _go_on(
    trainer: DrafterTrainer,
    checkpoints: Checkpoints,
    batches: TrainBatches,
    identity: Mapping[str, Any],
    curriculum: Curriculum,
) -> int:
    """The step to begin at: that of the last checkpoint, which is restored, or 0."""
    if checkpoints.last_step is None:
        return 0
    step, trees = checkpoints.restore(_trees(trainer), batches, identity)
    nnx.update(trainer.model, trees["params"])
    nnx.update(trainer.optimizer, trees["optimizer"])
    trainer.start_at(step)
    curriculum.go_on(checkpoints.directory / str(step))
    say(f"train: going on from step {step} ({checkpoints.directory})")
    return step


def _measured(acceptance: Acceptance | None) -> dict[str, Any]:
    """What a checkpoint says of its own parameters."""
    if acceptance is None:
        return {"tau": None, "acceptance": None}
    return {"tau": acceptance.tau, "acceptance": acceptance.to_dict()}


def make_plan(recipe: schema.Recipe) -> Plan:
    """The recipe's numbers that shape the loop."""
    section = recipe.train
    return Plan(
        steps=section.steps,
        accumulation=recipe.optimizer.accumulation,
        eval_every=section.eval_every,
        checkpoint_every=section.checkpoint_every,
        keep=section.keep,
        log_every=section.log_every,
        seed=recipe.run.seed,
    )


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _trees(trainer: DrafterTrainer) -> dict[str, Any]:
    """What a checkpoint holds of the trainer, as plain dictionaries of arrays."""
    return {
        "params": nnx.to_pure_dict(nnx.state(trainer.model, nnx.Param)),
        "optimizer": nnx.to_pure_dict(nnx.state(trainer.optimizer)),
    }


def _note(scalars: Mapping[str, Any], tau: float | None) -> str:
    loss = f"loss {float(scalars['loss']):.3f}"
    return loss if tau is None else f"{loss}, held-out tau {tau:.2f}"


def _refuse_not_finite(trainer: DrafterTrainer, checkpoints: Checkpoints) -> None:
    fault, last = trainer.fault(), checkpoints.last_step
    if fault is not None:
        kept = "no checkpoint was written yet" if last is None else f"the checkpoint of step {last} is kept"
        raise Diverged(f"{fault}; {kept}; lower optimizer.learning_rate or optimizer.clip and start another run")


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


@contextmanager
def _signals() -> Iterator[list[signal.Signals]]:
    """A list that the first SIGTERM or SIGINT is added to, while open; a second one acts as ever.

    With several processes SIGTERM is JAX's, so that all stop at the same step (`stop_agreed`), and SIGINT sends one.
    """
    received: list[signal.Signals] = []

    def note(number: int, _: Any) -> None:
        received.append(signal.Signals(number))
        say(f"train: {received[0].name}: saving after this step")
        signal.signal(number, previous[number])

    previous: dict[int, Any]
    if alone():
        previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    else:
        previous = {signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
