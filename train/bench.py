"""python -m train.bench: the speed of a training step, with cached and with online features.

The last line is one JSON object {"cached": {...}, "online": {...}} with, for each,

    positions_per_second   block positions (anchors x width) trained on per second
    matmul_peak_fraction   model FLOP/s of the step (`train.flops`) over the float32 matmul peak of the same process
    peak_memory_bytes      peak resident memory of the process that trains: target and data loaded, steps done
    step_ms                {median, low, high}: median and quartiles over the timed steps

On the recipe's real data; a small part of the prompts is enough. Each mode prepares them in one process and trains in
another, since a process's peak cannot be told apart by part.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from configs.console import command, say
from configs.schema import Recipe, load_recipe

STEPS = 12
SMALL = ("prompts.limit=96", "prompts.heldout=8")


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.bench", description="Speed of a training step.")
    parser.add_argument("--config", default="wide_block.yaml", help="recipe (default: %(default)s)")
    parser.add_argument("--mode", choices=["cached", "online"], help="one mode, in this process, its data prepared")
    parser.add_argument("--prepare", choices=["cached", "online"], help="one mode's data, and no step")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    options = parser.parse_args(arguments)
    overrides = [*SMALL, *options.overrides]
    if options.prepare:
        from train.run import assemble

        assemble(load_recipe(options.config, [*overrides, f"features.mode={options.prepare}"]))
        return 0
    if options.mode:
        print(json.dumps(measure(options.config, overrides, options.mode)))
        return 0
    results = {}
    for mode in ("cached", "online"):
        say(f"bench: {mode} features: preparing the data")
        _apart(["--prepare", mode], options)
        say(f"bench: {mode} features: training, in a process of its own")
        results[mode] = json.loads(_apart(["--mode", mode], options).splitlines()[-1])
    print(json.dumps(results))
    return 0


def _apart(part: Sequence[str], options: argparse.Namespace) -> str:
    """What this command prints for one part of its work, in a process of its own."""
    call = [sys.executable, "-m", "train.bench", "--config", options.config, *part, *options.overrides]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)  # it has said why
    return done.stdout


def measure(config: str, overrides: Sequence[str], mode: str) -> dict[str, Any]:
    """Times the trainer's own compiled step on real batches."""
    import numpy as np

    from configs.device import keep_freed_memory, peak_memory_bytes
    from pipelines.batches import TrainBatches
    from train.flops import step_flops
    from train.run import assemble

    keep_freed_memory()
    recipe = load_recipe(config, [*overrides, f"features.mode={mode}"])
    assembly, section = assemble(recipe), recipe.batches
    batches = TrainBatches(recipe, assembly.rows("train", section))
    step = compiled_step(recipe, assembly.trainee)
    times, peaks = [], []
    for number in range(STEPS + 1):
        batch = next(batches)
        began = time.perf_counter()
        step(batch)
        if number:  # the first one compiles
            times.append(time.perf_counter() - began)
            peaks.append(matmul_peak())
    flops = step_flops(
        assembly.config,
        assembly.target,
        rows=section.rows,
        row_length=section.row_length,
        blocks=section.blocks,
        online=mode == "online",
        taught=recipe.loss.taught,
    )
    low, median, high = (float(value) for value in np.percentile(times, [25, 50, 75]))
    positions = section.rows * sum(width * anchors for width, anchors in section.blocks.items())
    return {
        "positions_per_second": positions / median,
        "matmul_peak_fraction": flops / median / max(peaks),
        "peak_memory_bytes": peak_memory_bytes(),
        "step_ms": {"median": median * 1e3, "low": low * 1e3, "high": high * 1e3},
        "step_flops": flops,
        "matmul_peak_flops": max(peaks),
    }


def compiled_step(recipe: Recipe, trainee: Any) -> Callable[[Any], Any]:
    """The trainer's own step as a function of a batch: it updates `trainee`, waits for it and returns the loss."""
    import jax

    from models.sharding import global_rows, make_mesh
    from train.objectives import objective_of
    from train.trainer import DrafterTrainer, make_optimizer, make_plan

    loss, optimizer = (
        objective_of(recipe.drafter.kind).loss_of(recipe),
        make_optimizer(recipe.optimizer, recipe.train.steps),
    )
    mesh = make_mesh(recipe.mesh)
    trainer = DrafterTrainer(trainee, optimizer, make_plan(recipe), mesh)
    trainer.with_loss_fn(loss, has_aux=True)
    trainer.with_gen_model_input_fn(lambda batch: {"batch": batch})
    train_step, _ = trainer.jit_train_and_eval_step(cache_nnx_graph=True)

    def step(batch: Any) -> Any:
        loss = jax.block_until_ready(train_step(global_rows(batch, mesh))[0])
        trainer.wait_for_parameters()
        return loss

    return step


def matmul_peak(size: int = 2048) -> float:
    """FLOP/s of one square float32 matmul."""
    import jax
    import jax.numpy as jnp

    matrix = jnp.ones((size, size), jnp.float32)
    multiply = jax.jit(jnp.matmul)
    multiply(matrix, matrix).block_until_ready()
    began = time.perf_counter()
    multiply(matrix, matrix).block_until_ready()
    return 2 * size**3 / (time.perf_counter() - began)


if __name__ == "__main__":
    sys.exit(main())
