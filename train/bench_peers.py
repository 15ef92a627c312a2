"""python -m train.bench_peers: a training step against that of `speculators` 0.9.0 (PyTorch), both on this machine.

Runs in an environment that has it (`make bench-peers` makes one). The last line is

    {"peers": {"speculators": {positions_per_second_ratio, ratio_spread, positions_per_second,
                               their_positions_per_second, positions, rounds}}}

positions_per_second_ratio is ours over theirs: the median over rounds of one step each, the two taking turns in one
process (ratio_spread: quartiles). Positions are block positions, anchors x width.

Equal: the plain drafter (no Markov head) of the recipe's shape and its weights, the target's embedding and draft
vocabulary, rows, features, number and width of blocks, float32, all cores, the label (the target's whole distribution:
their kl_div, our kl=1; both run the target's final hidden states through the head), the weight of slots
(exponential decay), and a whole update: forward, backward, clipping by global norm, AdamW.

Not equal: theirs packs the rows into one sequence and attends over all of it under a mask, ours row by row; it draws
the anchors inside its step, ours in the data pipeline. Theirs is its model's own `forward`, unpatched, with the
optimizer that its trainer builds, called as `Trainer.train_epoch` calls them, without logging and the learning rate's
schedule. Of the three kinds of attention it offers, "sdpa" is the quickest that trains on a CPU (torch has no backward
pass of flex attention there); of its two losses the eager one (the other is a GPU kernel). That both compute the same
gradients is tested (tests/test_peers_speculators.py).
"""

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.console import command, progress, say
from configs.schema import Recipe, load_recipe

# The recipe's plain part on equal terms.
PLAIN = (
    *("features.mode=cached", "drafter.markov_rank=null", "drafter.markov_size=null", "loss.weighting=decay"),
    *("drafter.markov_head_type=vanilla", "drafter.confidence_head=false", "drafter.sample_from_anchor=false"),
    *("loss.ce=0.0", "loss.kl=1.0", "loss.tv=0.0"),
)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.bench_peers", description="Against speculators' trainer.")
    parser.add_argument("--config", default="wide_block.yaml", help="recipe of both (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each (default %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    options = parser.parse_args(arguments)
    recipe = load_recipe(options.config, [*PLAIN, *options.overrides])
    print(json.dumps({"peers": {"speculators": measure(recipe, options.rounds)}}))
    return 0


def measure(recipe: Recipe, rounds: int) -> dict[str, Any]:
    from configs.device import keep_compiled_programs, keep_freed_memory
    from models.sources import load_target
    from models.tokenizer import load_tokenizer
    from train.bench import compiled_step

    keep_compiled_programs()
    keep_freed_memory()
    target = load_target(recipe.target.source, recipe.target.dtype)
    trainee = make_trainee(recipe, target, load_tokenizer(recipe.target.source))
    width, anchors = equal_blocks(recipe)
    batch, final = make_batch(recipe, target, trainee, anchors)
    theirs = Theirs(trainee, target, recipe)
    step = compiled_step(recipe, trainee)
    ours, other = timed(lambda: step(batch)), timed(lambda: theirs.step(batch, final))
    positions = recipe.batches.rows * anchors * width
    say(f"bench: {positions} positions a step ({recipe.batches.rows} rows, {anchors} blocks of {width}), in turn")
    seconds = []
    with progress("bench: ours and speculators'", rounds + 1, "rounds") as bar:
        for number in range(rounds + 1):
            pair = ours(), other()
            seconds += [pair] if number else []  # the first one compiles
            bar.advance(1, f"{pair[1] / pair[0]:.2f}x")
    mine, their = np.array(seconds).T
    low, median, high = (round(float(value), 3) for value in np.percentile(their / mine, [25, 50, 75]))
    return {
        "positions_per_second_ratio": median,
        "ratio_spread": [low, high],
        "positions_per_second": round(positions / float(np.median(mine)), 1),
        "their_positions_per_second": round(positions / float(np.median(their)), 1),
        "positions": positions,
        "rounds": rounds,
    }


def timed(call: Callable[[], Any]) -> Callable[[], float]:
    """Seconds that one call takes."""

    def measured() -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    return measured


def equal_blocks(recipe: Recipe) -> tuple[int, int]:
    """One width, the recipe's, and as many blocks a row as make its positions; theirs has one width only.

    Example: wide_block.yaml's rows of 90 blocks of 4 and 2 of 32 -> 13 blocks of 32.
    """
    positions = sum(width * count for width, count in recipe.batches.blocks.items())
    return recipe.drafter.width, positions // recipe.drafter.width


def make_trainee(recipe: Recipe, target: Any, tokenizer: Any) -> Any:
    """Our trainee as the recipe has it, over an arbitrary draft vocabulary."""
    from train.objectives.dflash_build import drafter_config, new_drafter
    from train.objectives.trainee import Trainee

    config = drafter_config(recipe, target, tokenizer)
    size = config.draft_vocab_size or config.vocab_size
    config = dataclasses.replace(config, draft_vocab_size=size)
    vocab = np.sort(np.random.default_rng(recipe.run.seed).permutation(config.vocab_size)[:size]).astype(np.int32)
    return Trainee(new_drafter(recipe, config, target, vocab), target, vocab, online=False)


def make_batch(recipe: Recipe, target: Any, trainee: Any, anchors: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A batch of `pipelines.batches` with random features and tokens of the draft vocabulary, one document a row and
    blocks that fit in it; the target's final states before its norm, which theirs applies itself."""
    import jax.numpy as jnp

    rng, section, config = np.random.default_rng(recipe.run.seed), recipe.batches, trainee.drafter.config
    vocab = np.flatnonzero(np.asarray(trainee.draft_index[...]) >= 0)
    shape = (section.rows, section.row_length)
    taps = rng.standard_normal((*shape, config.feature_size), np.float32)
    final = rng.standard_normal((*shape, config.target_hidden_size), np.float32)
    places = [np.sort(rng.permutation(section.row_length - config.width)[:anchors]) for _ in range(section.rows)]
    batch = {
        "tokens": rng.choice(vocab, shape).astype(np.int32),
        "positions": np.tile(np.arange(section.row_length, dtype=np.int32), (section.rows, 1)),
        "segments": np.ones(shape, np.int32),
        "features": np.concatenate([taps, np.asarray(target.normed(jnp.asarray(final)))], axis=-1),
        f"anchors_w{config.width}": np.array(places, np.int32),
    }
    return batch, final


class Theirs:
    """speculators' DFlash model with our drafter's weights, and its trainer's step."""

    def __init__(self, trainee: Any, target: Any, recipe: Recipe):
        import torch
        from speculators.losses import resolve_loss_config  # pyright: ignore[reportMissingImports]
        from speculators.models.dflash import (  # pyright: ignore[reportMissingImports]
            DFlashDraftModel,
            DFlashSpeculatorConfig,
        )
        from speculators.train.optimizers import build_optimizers  # pyright: ignore[reportMissingImports]
        from speculators.train.trainer import TrainerConfig  # pyright: ignore[reportMissingImports]

        config, self.width = trainee.drafter.config, recipe.drafter.width
        self.clip, self.features = recipe.optimizer.clip, config.feature_size
        self.model = DFlashDraftModel(
            DFlashSpeculatorConfig(
                transformer_layer_config=layer_config(config),
                draft_vocab_size=config.draft_vocab_size,
                block_size=self.width,
                aux_hidden_state_layer_ids=list(config.target_layer_ids),
                mask_token_id=config.mask_token_id,
            )
        ).float()
        index = np.asarray(trainee.draft_index[...])
        head = np.asarray(trainee.head[...])
        given = drafter_tensors(trainee.drafter) | {
            "embed_tokens.weight": np.asarray(trainee.embedding[...]),
            "lm_head.weight": head,
            "verifier_lm_head.weight": head,
            "verifier_norm.weight": np.asarray(target.norm[...]),
            "t2d": index >= 0,
            "d2t": np.flatnonzero(index >= 0) - np.arange(len(head)),
        }
        self.model.load_state_dict({name: torch.tensor(value) for name, value in given.items()})
        section = recipe.optimizer
        settings = TrainerConfig(section.learning_rate, 1, "", weight_decay=section.weight_decay)
        self.optimizers = build_optimizers(self.model, settings)
        loss = resolve_loss_config("kl_div", "eager")
        self.options = {"loss_config": loss, "gamma": recipe.loss.gamma, "per_position_loss_weight": "fixed-exp-decay"}
        self.model.train()

    def loss(self, batch: dict[str, np.ndarray], final: np.ndarray) -> Any:
        """The loss of a batch, whose rows are packed into one; as many anchors as ours has, drawn anew."""
        import torch

        rows, length = batch["tokens"].shape
        taps = batch["features"][..., : self.features]
        return self.model(
            hidden_states=torch.from_numpy(taps.reshape(1, rows * length, -1)),
            input_ids=torch.tensor(batch["tokens"].reshape(1, -1)).long(),
            loss_mask=torch.ones(1, rows * length),
            verifier_last_hidden_states=torch.from_numpy(final.reshape(1, rows * length, -1)),
            document_ids=torch.arange(rows).repeat_interleave(length)[None],
            position_ids=torch.tensor(batch["positions"].reshape(1, -1)).long(),
            max_anchors=batch[f"anchors_w{self.width}"].size,
            **self.options,
        )[1]

    def step(self, batch: dict[str, np.ndarray], final: np.ndarray) -> float:
        """One update, as `Trainer.train_epoch` makes it; the loss before it."""
        import torch

        loss = self.loss(batch, final)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        return float(loss.detach())


def layer_config(config: Any) -> Any:
    """The drafter's layers as the transformers config that theirs is made from."""
    from transformers import Qwen3Config

    made = Qwen3Config(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.mlp_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        max_position_embeddings=config.max_positions,
    )
    made._attn_implementation = "sdpa"
    return made


def drafter_tensors(drafter: Any) -> dict[str, np.ndarray]:
    """The drafter's weights by the names that artifacts and their model share."""
    from flax import nnx
    from safetensors.numpy import load_file

    from models.drafters.artifact import Artifact, write_artifact
    from train.export import drafter_weights

    weights = drafter_weights({"drafter": nnx.to_pure_dict(nnx.state(drafter, nnx.Param))})
    config = dataclasses.replace(drafter.config, draft_vocab_size=None)
    with tempfile.TemporaryDirectory() as folder:
        write_artifact(Artifact(config, weights, None, {}), Path(folder))
        return load_file(Path(folder) / "model.safetensors")


if __name__ == "__main__":
    raise SystemExit(main())
