"""Floating-point operations of one training step, counted from the shapes (a multiply-add is two).

Model FLOPs in the usual sense: what the mathematics of forward and backward needs, no recomputation. Frozen weights
get no gradient, so DFlash's LM head, the target's, costs one backward matmul instead of two, and the target only its
forward.
"""

import math

from models.drafters.dflash import DrafterConfig
from models.drafters.eagle3 import Eagle3Config
from models.target import TargetConfig
from train.objectives.dflash import ROUNDS


def step_flops(
    config: DrafterConfig | Eagle3Config,
    target: TargetConfig,
    *,
    rows: int,
    row_length: int,
    blocks: dict[int, int],
    online: bool,
    taught: bool,
) -> float:
    """FLOPs of one step over `rows` packed rows with `blocks` (width -> anchors per row); `taught`: with a loss that
    needs the target's distributions."""
    taps = config.feature_size
    total = 4.0 * row_length * taps * config.hidden_size
    if isinstance(config, Eagle3Config):
        total += _chains(config, row_length, blocks, taught)
    else:
        total += _blocks(config, row_length, blocks, taught)
    if online:
        num_layers = target.num_layers if taught else max(config.target_layer_ids) + 1
        total += row_length * _target_forward(target, num_layers, row_length)
    return rows * total


def _blocks(config: DrafterConfig, row_length: int, blocks: dict[int, int], taught: bool) -> float:
    """DFlash: whole blocks over a context that every layer has keys and values of."""
    vocab, d = config.draft_vocab_size or config.vocab_size, config.hidden_size
    layer = d * (config.q_size + 2 * config.kv_size) + config.q_size * d + 3 * d * config.mlp_size
    total = 6.0 * row_length * config.num_layers * d * 2 * config.kv_size
    for width, anchors in blocks.items():
        slots = config.slots(width)
        matmuls = 6 * layer * config.num_layers
        attention = 12 * (row_length + width) * config.q_size * config.num_layers
        reads = 1 + ROUNDS if config.refines else 1  # with a bias; a refiner's logits without one come to these
        head = (4 * (reads + config.refines) + 2 * taught) * d * vocab
        slot = head + reads * 6 * (config.markov_rank or 0) * vocab + 6 * 3 * d * (config.markov_size or 0)
        total += anchors * slots * (matmuls + attention + _mixing(config, slots, reads)) + anchors * (width - 1) * slot
    return total


def _mixing(config: DrafterConfig, slots: int, passes: int) -> float:
    """Per slot: what a Markov head mixes the token before with; a refiner reads hidden states once, the rest anew."""
    shapes = config.mixing_shapes
    once = math.prod(shapes.pop("down_h", (0,)))  # the block's mean (down_g) is one row
    again = sum(math.prod(shape) for name, shape in shapes.items() if len(shape) == 2 and name != "down_g")
    mixer = (config.markov_rank or 0) * slots if config.refines else 0
    return 6.0 * (once + passes * (again + mixer))


def _chains(config: Eagle3Config, row_length: int, blocks: dict[int, int], taught: bool) -> float:
    """EAGLE-3: one layer, read step after step, with an LM head of its own that is trained."""
    vocab, d = config.draft_vocab_size or config.vocab_size, config.hidden_size
    layer = 2 * d * (config.q_size + 2 * config.kv_size) + config.q_size * d + 3 * d * config.mlp_size
    total = 6.0 * row_length * 2 * d * 2 * config.kv_size
    for width, anchors in blocks.items():
        attention = 12 * (row_length + width / 2) * config.q_size  # the last step sees all before it
        head = (8 if taught else 6) * d * vocab
        total += anchors * (width - 1) * (6 * layer + attention + head)
    return total


def _target_forward(target: TargetConfig, num_layers: int, row_length: int) -> float:
    """Per token: the matmuls of the layers that are read, and causal attention over half a row."""
    d, q = target.hidden_size, target.num_heads * target.head_dim
    matmuls = 2 * (d * target.qkv_size + q * d + 3 * d * target.mlp_size)
    return num_layers * (matmuls + 4 * q * row_length / 2)
