"""A target, prompts and a recipe so small that a whole training command takes seconds.

Not tests: what the tests of training share. The target is a random Llama of two layers with a byte-level tokenizer.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

# Eight devices made of few cores. XLA gives them as many threads as there are cores or devices (NPROC says otherwise);
# each waits in a collective, and whatever else needs one waits for ever: so one program at a time, and threads enough.
EIGHT = {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    "JAX_CPU_ENABLE_ASYNC_DISPATCH": "0",
    "NPROC": "32",
}
SPECIAL = ("<|end|>", "<|im_start|>", "<|im_end|>", "<|spare|>")
VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, MLP = 256 + len(SPECIAL), 32, 2, 4, 2, 48
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_target(path: Path, seed: int = 0) -> Path:
    """A Hugging Face directory with random Llama weights, a byte-level tokenizer and a ChatML template."""
    from safetensors.numpy import save_file

    path.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    kv = HIDDEN // HEADS * KV_HEADS
    shapes = {"model.embed_tokens": (VOCAB, HIDDEN), "lm_head": (VOCAB, HIDDEN), "model.norm": (HIDDEN,)}
    for index in range(LAYERS):
        base = f"model.layers.{index}"
        parts = {"q": (HIDDEN, HIDDEN), "k": (kv, HIDDEN), "v": (kv, HIDDEN), "o": (HIDDEN, HIDDEN)}
        shapes |= {f"{base}.self_attn.{part}_proj": shape for part, shape in parts.items()}
        shapes |= {f"{base}.mlp.{part}_proj": (MLP, HIDDEN) for part in ("gate", "up")}
        shapes |= {f"{base}.mlp.down_proj": (HIDDEN, MLP)}
        shapes |= {f"{base}.{norm}_layernorm": (HIDDEN,) for norm in ("input", "post_attention")}
    tensors = {
        f"{name}.weight": (np.ones(shape) if len(shape) == 1 else 0.3 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "eos_token_id": 256,
        "dtype": "float32",
    }
    (path / "config.json").write_text(json.dumps(config))
    write_tokenizer(path)
    return path


def write_tokenizer(
    path: Path, special: Sequence[str] = SPECIAL, template: str = TEMPLATE, *, added: Sequence[str] = (), **named: str
) -> None:
    """tokenizer.json of single bytes, the special tokens and `added` ones that are not; tokenizer_config.json with the
    chat template, and with the special tokens that have a name (eos_token unless given)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    backend.save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL[0],
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        **named,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config))


def write_prompts(path: Path, count: int = 24) -> Path:
    """`count` short prompts of two tasks."""
    rows = [
        {"task": ("sums", "words")[i % 2], "id": str(i), "messages": [{"role": "user", "content": f"say {i * 37}"}]}
        for i in range(count)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def on_disk(folder: Path, responses: Sequence[Any], size: int = 16) -> Any:
    """`pipelines.records.Responses` of the given ones, written to `folder` in shards of `size`."""
    from pipelines.records import Responses, write_responses

    for index, first in enumerate(range(0, len(responses), size)):
        write_responses(folder, index, responses[first : first + size])
    return Responses(folder)


def recipe(root: Path) -> dict[str, dict[str, Any]]:
    """The tiny recipe: 12 steps of width 4 over the target and prompts in `root`."""
    return {
        "run": {"name": "tiny", "dir": str(root / "runs/tiny"), "data_dir": str(root / "data"), "seed": 0},
        "target": {"source": str(root / "target"), "dtype": "float32", "chat_template_args": {}},
        "prompts": {"sources": [str(root / "prompts.jsonl")], "limit": 20, "heldout": 4, "seed": 0},
        "responses": {
            "regenerate": True,
            "server": None,
            "max_prompt_tokens": 40,
            "max_new_tokens": 20,
            "temperatures": [0.0],
            "batch": 8,
            "shard_size": 8,
        },
        "features": {"mode": "cached", "dtype": "float32", "attention": "dense"},
        "drafter": {
            "kind": "dflash",
            "num_layers": 1,
            "target_layer_ids": None,
            "width": 4,
            "causal": False,
            "attention": "dense",
            "sliding_window": None,
            "mask_token_id": None,
            "draft_vocab_size": None,
            "markov_rank": None,
            "markov_size": None,
            "confidence_head": False,
            "sample_from_anchor": False,
            "markov_head_type": "vanilla",
            "init": "random",
            "init_from": None,
        },
        "batches": {"responses": None, "rows": 2, "row_length": 128, "blocks": {3: 4, 4: 4}, "curriculum": {}},
        "loss": {"weighting": "dpace", "gamma": 4.0, "ce": 0.5, "kl": 0.5, "tv": 0.0, "head_chunk": 64},
        "optimizer": {
            "learning_rate": 3.0e-3,
            "muon_learning_rate": None,
            "weight_decay": 0.01,
            "warmup_fraction": 0.1,
            "clip": 1.0,
            "b1": 0.9,
            "b2": 0.95,
            "accumulation": 1,
        },
        "train": {
            "steps": 12,
            "remat": False,
            "dtype": "float32",
            "eval_every": 6,
            "checkpoint_every": 3,
            "keep": 2,
            "log_every": 1,
        },
        "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
    }


@dataclasses.dataclass(frozen=True)
class Tiny:
    """The files of a tiny world, and commands run on them as a user would."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "tiny.yaml"

    def train(self, run: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """`python -m train --config tiny.yaml run.dir=RUN ...`, to its end."""
        return command(["train", "--config", str(self.config), f"run.dir={run}", *arguments], **options)

    def called(self, run: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The same in this process, which is sooner."""
        return called(["train", "--config", str(self.config), f"run.dir={run}", *arguments])

    def start(self, run: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """The same, not waited for."""
        return start(["train", "--config", str(self.config), f"run.dir={run}", *arguments], **options)


def make_tiny(root: Path) -> Tiny:
    """Target, prompts and tiny.yaml under `root`."""
    write_target(root / "target")
    write_prompts(root / "prompts.jsonl")
    tiny = Tiny(root)
    tiny.config.write_text(yaml.safe_dump(recipe(root), sort_keys=False))
    return tiny


def command(arguments: Sequence[str], *, seconds: float = 180, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python -m ...` in a process of its own, its output kept."""
    process = start(arguments, **options)
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def called(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The same in this process, which is sooner."""
    main = importlib.import_module(f"{arguments[0]}.__main__").main
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments[1:]))
    return subprocess.CompletedProcess(list(arguments), code, out.getvalue(), err.getvalue())


def start(
    arguments: Sequence[str], *, environment: dict[str, str] | None = None, prepare: Callable[[], None] | None = None
) -> subprocess.Popen[str]:
    """A `python -m ...` process; `prepare` runs in it before Python starts."""
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=Path(__file__).resolve().parent.parent,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )


def signal_when(
    process: subprocess.Popen[str], number: signal.Signals, ready: Callable[[], bool], *, again: float | None = None
) -> tuple[str, str]:
    """Sends the signal as soon as `ready()`, waits for the end; (stdout, stderr).

    A signal that comes right before a call that blocks is noted and interrupts nothing: with `again`, it is sent once
    more where the program has not ended after so many seconds.
    """
    deadline = time.monotonic() + 120
    with process:
        try:
            while not ready():
                assert process.poll() is None, f"it ended before it could be stopped: {process.communicate()}"
                assert time.monotonic() < deadline, "never got ready"
                time.sleep(0.002)
            process.send_signal(number)
            try:
                return process.communicate(timeout=again or 120)
            except subprocess.TimeoutExpired:
                if again is None:
                    raise
            process.send_signal(number)
            return process.communicate(timeout=120)
        finally:
            process.kill()


def logged_step(run: Path) -> int:
    """The last whole step in RUN/metrics.jsonl, 0 before the first."""
    file = run / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.is_file() else []
    return max((json.loads(line)["step"] for line in lines), default=0)


def checkpoint_arrays(run: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by its path, read by plain Orbax: "params/drafter/fc" and so on."""
    import jax
    import orbax.checkpoint as ocp

    out = {}
    for item in ("params", "optimizer"):
        with ocp.PyTreeCheckpointer() as checkpointer:
            path = (run / "checkpoints" / str(step) / item).resolve()
            tree = checkpointer.metadata(path).item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            restored = checkpointer.restore(path, ocp.args.PyTreeRestore(restore_args=as_numpy))
        for keys, leaf in jax.tree_util.tree_flatten_with_path(restored)[0]:
            name = "/".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in keys)
            out[f"{item}/{name}"] = np.asarray(leaf)
    return out


def assert_same_arrays(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Equal names, types and bits."""
    assert sorted(got) == sorted(expected)
    different = [
        name
        for name, value in expected.items()
        if got[name].dtype != value.dtype or got[name].tobytes() != value.tobytes()
    ]
    assert not different
