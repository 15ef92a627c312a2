"""python -m serve.bench_peers: the same drafter, target and prompts in z-lab's PyTorch decoder (PyPI `dflash`) and in
llama.cpp (PyPI `xllamacpp`).

Runs in an environment that has them (`make bench-peers` makes one). With z-lab's the drafter's plain part alone is
compared, since that is all plain DFlash computes: a draft vocabulary and a head are left off for both. The target is
handed to PyTorch as a Hugging Face model with our weights. Prompts alternate between the two decoders. With llama.cpp
they are left off where it does not compute them. The last line is

    {"peers": {"zlab": {tokens_per_second_ratio, ratio_spread, equal_steps_fraction, steps, equal_outputs, prompts,
                        width, tokens_per_second, their_tokens_per_second},
               "llama_cpp": {plain: whether they were left off, and what `serve.bench_llama_cpp.drafts_beside` gives}}}

llama_cpp is null for a target that is not in a GGUF file.

tokens_per_second_ratio is ours over theirs (median over prompts; spread: quartiles), decoding alone, prefill apart.
equal_steps_fraction is the share of verify steps with equal accepted lengths, prompt by prompt, those nearer to the
token limit than a block left out: there z-lab's decoder shrinks its block.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.console import command, progress, say
from configs.errors import UserError
from serve.bench import parser_of


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of("bench_peers", "Against other decoders.", prompts=3, new=96, typed=False)
    parser.add_argument("--width", type=int, default=8, help="block size of all (default %(default)s)")
    options = parser.parse_args(arguments)
    print(json.dumps({"peers": measure(options)}))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from configs.device import keep_compiled_programs
    from models.decode import make_engine
    from models.drafters import Draft
    from models.drafters.artifact import read_artifact
    from models.drafters.gguf import not_carried
    from models.sources import load_target
    from models.tokenizer import load_tokenizer
    from pipelines.prompt_files import encode_prompt, load_tasks
    from serve.bench_llama_cpp import drafts_beside, target_file
    from serve.session import Decoder

    keep_compiled_programs()
    artifact = read_artifact(options.drafter)
    plain, target = plain_part(artifact), load_target(options.target, "float32")
    if plain.config.sample_from_anchor:
        raise UserError(f"{options.drafter}: drafts from the anchor's slot, as z-lab's decoder does not; pass another")
    tokenizer = load_tokenizer(options.target, artifact.chat_template_args)
    tasks = load_tasks(options.tasks, options.task_dir, options.prompts)
    prompts = [encode_prompt(tokenizer, prompt) for prompts in tasks.values() for prompt in prompts]
    say(f"bench: {len(prompts)} prompts, width {options.width}, both decoders in turn")

    def decoder(artifact: Any) -> Decoder:
        return Decoder(make_engine(target, artifact), tokenizer, Draft("drafter", options.width), capacity=512)

    new, width, file = options.max_new_tokens, options.width, target_file(options.target)
    zlab = beside_zlab(decoder(plain), Theirs(target, plain, width), prompts, new)
    if file is None:
        return {"zlab": zlab, "llama_cpp": None}
    taken = plain if not_carried(artifact) else artifact
    beside = drafts_beside(file, taken, decoder(taken), prompts, width=width, new=new)
    return {"zlab": zlab, "llama_cpp": {"plain": taken is plain, **beside}}


def beside_zlab(ours: Any, theirs: "Theirs", prompts: Sequence[list[int]], new: int) -> dict[str, Any]:
    rows = []
    with progress("bench: ours and z-lab's", len(prompts), "prompts") as bar:
        for prompt in prompts:
            rows.append(one_prompt(ours, theirs, prompt, new))
            bar.advance(1, f"{rows[-1]['ratio']:.2f}x")
    ratios = [row["ratio"] for row in rows]
    steps = sum(row["steps"] for row in rows)
    return {
        "tokens_per_second_ratio": round(float(np.median(ratios)), 3),
        "ratio_spread": [round(float(value), 3) for value in np.percentile(ratios, [25, 75])],
        "equal_steps_fraction": round(sum(row["equal"] for row in rows) / steps, 4),
        "steps": steps,
        "equal_outputs": sum(row["same"] for row in rows),
        "prompts": len(rows),
        "width": theirs.width,
        "tokens_per_second": round(float(np.median([row["ours"] for row in rows])), 1),
        "their_tokens_per_second": round(float(np.median([row["theirs"] for row in rows])), 1),
    }


def plain_part(artifact: Any) -> Any:
    """`artifact` without draft vocabulary and heads."""
    without = {"draft_vocab_size": None, "markov_size": None, "markov_rank": None, "markov_head_type": "vanilla"}
    config = dataclasses.replace(artifact.config, **without, confidence_head=False)
    heads = ("markov", "mixing", "confidence")
    weights = {name: value for name, value in artifact.weights.items() if not name.startswith(heads)}
    return dataclasses.replace(artifact, config=config, weights=weights, draft_vocab=None)


def one_prompt(ours: Any, theirs: "Theirs", ids: list[int], new: int) -> dict[str, Any]:
    """Both decode `ids`. Their first token comes from prefill, so ours starts behind it too."""
    found = theirs.generate(ids, new)
    begun = [*ids, found.tokens[0]]
    ours.generate([begun], max_new_tokens=new - 1)  # compiles what this shape needs
    (answer,) = ours.generate([begun], max_new_tokens=new - 1)
    again = theirs.generate(ids, new)
    mine, other = (whole_steps(runs, new - 1, theirs.width) for runs in (answer.runs, found.runs))
    counted = max(len(mine), len(other))
    rate, their_rate = 1e3 / answer.ms_per_token, len(again.tokens) / again.seconds
    return {
        "ratio": rate / their_rate,
        "ours": rate,
        "theirs": their_rate,
        "steps": counted,
        "equal": sum(a == b for a, b in zip(mine, other, strict=False)),
        "same": answer.ids == found.tokens[1:],
    }


def whole_steps(runs: Sequence[int], limit: int, width: int) -> list[int]:
    """The runs of an answer's steps but the last that began a whole block or more before the token limit.

    Example: runs 2 1 3 1, limit 7, width 4 -> 2 1 3 (begun with 7, 5 and 4 tokens to go).
    """
    begun = np.cumsum([0, *runs])
    return [run for run, done in zip(runs[:-1], begun, strict=False) if limit - done >= width]


@dataclasses.dataclass(frozen=True)
class Found:
    tokens: list[int]
    runs: list[int]
    seconds: float


class Theirs:
    """z-lab's `dflash_generate` over PyTorch copies of our target and drafter."""

    def __init__(self, target: Any, artifact: Any, width: int):
        import tempfile

        import dflash.model  # pyright: ignore[reportMissingImports] (in an environment of its own)
        import torch

        from models.drafters.artifact import write_artifact

        # dflash 0.1.0 times itself with torch.cuda.synchronize, which a CPU build does not have.
        dflash.model._cuda_time = time.perf_counter
        self.generate_tokens, self.width = dflash.model.dflash_generate, width
        self.target = torch_target(target)
        self.eos = list(target.config.eos_ids)
        with tempfile.TemporaryDirectory() as folder:
            write_artifact(artifact, Path(folder))
            self.drafter = dflash.model.DFlashDraftModel.from_pretrained(folder, dtype=torch.float32).eval()

    def generate(self, ids: list[int], new: int) -> Found:
        import torch

        found = self.generate_tokens(
            self.drafter, self.target, torch.tensor([ids]), new, self.eos, block_size=self.width, return_stats=True
        )
        tokens = found.output_ids[0, len(ids) :].tolist()
        seconds = found.time_per_output_token * found.num_output_tokens
        return Found(tokens, list(found.acceptance_lengths), seconds)


def torch_target(target: Any) -> Any:
    """Our target (Llama family) as a transformers model on the CPU."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = target.config
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.mlp_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=shape.rms_eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        max_position_embeddings=shape.max_positions,
        tie_word_embeddings=shape.tied_head,
    )
    model = LlamaForCausalLM(config)
    named = {"model.embed_tokens.weight": target.embedding, "model.norm.weight": target.norm}
    tensors = {name: np.asarray(value[...]) for name, value in named.items()}
    for index, layer in enumerate(target.layers):
        base = f"model.layers.{index}"
        qkv = np.asarray(layer.matrix("qkv")).reshape(shape.hidden_size, shape.num_kv_heads, -1, shape.head_dim)
        heads = np.split(qkv, [-2, -1], axis=2)
        parts = {part: value.reshape(len(value), -1) for part, value in zip("qkv", heads, strict=True)}
        parts["o"] = np.asarray(layer.matrix("out"))
        tensors |= {f"{base}.self_attn.{part}_proj.weight": value.T for part, value in parts.items()}
        mlp = {part: np.asarray(layer.matrix(part)) for part in ("gate", "up", "down")}
        tensors |= {f"{base}.mlp.{part}_proj.weight": value.T for part, value in mlp.items()}
        tensors[f"{base}.input_layernorm.weight"] = np.asarray(layer.attention_norm[...])
        tensors[f"{base}.post_attention_layernorm.weight"] = np.asarray(layer.mlp_norm[...])
    state = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model.eval()


if __name__ == "__main__":
    raise SystemExit(main())
