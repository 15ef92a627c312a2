"""python -m train.bench: the speed of a training step, with cached and with online features.

The last line is one JSON object {"cached": {...}, "online": {...}} with, for each,

    positions_per_second   block positions (anchors x width) trained on per second
    matmul_peak_fraction   model FLOP/s of the step (`train.flops`) over the float32 matmul peak of the same process
    peak_memory_bytes      peak resident memory of the process, data preparation included
    step_ms                {median, low, high}: median and quartiles over the timed steps

Each mode runs in a process of its own, on the recipe's real data; a small part of the prompts is enough.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, cast

from configs.console import command, say
from configs.schema import load_recipe

STEPS = 12
SMALL = ("prompts.limit=96", "prompts.heldout=8")


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.bench", description="Speed of a training step.")
    parser.add_argument("--config", default="wide_block.yaml", help="recipe (default: %(default)s)")
    parser.add_argument("--mode", choices=["cached", "online"], help="one mode, in this process")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    options = parser.parse_args(arguments)
    if options.mode:
        print(json.dumps(measure(options.config, [*SMALL, *options.overrides], options.mode)))
        return 0
    results = {}
    for mode in ("cached", "online"):
        say(f"bench: {mode} features")
        call = [sys.executable, "-m", "train.bench", "--config", options.config, "--mode", mode, *options.overrides]
        done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
        results[mode] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(results))
    return 0


def measure(config: str, overrides: Sequence[str], mode: str) -> dict[str, Any]:
    """Times the trainer's own compiled step on real batches."""
    import jax
    import numpy as np

    from configs.device import keep_freed_memory, peak_memory_bytes
    from models.sharding import make_mesh
    from pipelines.batches import train_batches
    from train.flops import step_flops
    from train.loss import Trainee, block_loss
    from train.run import assemble, loss_settings
    from train.trainer import DrafterTrainer, make_optimizer, make_plan

    keep_freed_memory()
    recipe = load_recipe(config, [*overrides, f"features.mode={mode}"])
    assembly, section = assemble(recipe), recipe.batches
    batches = train_batches(
        assembly.rows("train", section.row_length), section.blocks, rows=section.rows, seed=recipe.run.seed
    )
    settings = loss_settings(recipe)
    optimizer = make_optimizer(recipe.optimizer, recipe.train.steps)
    trainer = DrafterTrainer(
        assembly.trainee, optimizer, make_plan(recipe), make_mesh(recipe.mesh.data, recipe.mesh.fsdp)
    )
    trainer.with_loss_fn(lambda model, batch: block_loss(cast(Trainee, model), batch, settings), has_aux=True)
    trainer.with_gen_model_input_fn(lambda batch: {"batch": batch})
    step, _ = trainer.jit_train_and_eval_step(cache_nnx_graph=True)
    times, peaks = [], []
    for number in range(STEPS + 1):
        batch = next(batches)
        began = time.perf_counter()
        jax.block_until_ready(step(batch)[0])
        trainer.wait_for_parameters()
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
        soft=recipe.loss.soft > 0,
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
