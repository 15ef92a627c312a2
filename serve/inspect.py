"""What a directory is: a drafter or a target, its shape in one screen, and whether the two fit."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.console import say
from models.drafters.artifact import Artifact, check_fit, read_artifact
from models.drafters.artifact_config import is_drafter
from models.sources import load_target
from models.target import Target


def inspect(paths: Sequence[str]) -> int:
    """Prints every path, and whether each drafter fits each target; the exit code is 1 where one does not."""
    drafters: dict[str, Artifact] = {}
    targets: dict[str, Target] = {}
    for path in paths:
        if is_drafter(Path(path)):
            drafters[path] = read_artifact(Path(path))
            show(f"{path}: a drafter", drafter_lines(drafters[path]))
        else:
            targets[path] = load_target(path, "float32")
            show(f"{path}: a target", target_lines(targets[path]))
    fits = True
    for name, artifact in drafters.items():
        for other, target in targets.items():
            try:
                check_fit(artifact, target, Path(name))
                say(f"{name} fits {other}")
            except ValueError as error:
                fits = False
                say(f"{error}")
    return 0 if fits else 1


def drafter_lines(artifact: Artifact) -> dict[str, Any]:
    """Name -> value, in the order to show; widths in every engine's way of counting."""
    import jax

    config, origin = artifact.config, artifact.origin
    parameters = sum(leaf.size for leaf in jax.tree.leaves(artifact.weights))
    drafted = config.width - 1
    return {
        "width": f"{config.width}: 1 anchor + {drafted} drafted (vLLM: num_speculative_tokens={drafted})",
        "layers": f"{config.num_layers} of hidden size {config.hidden_size}, {parameters / 1e6:.1f} M parameters",
        "taps": f"{list(config.target_layer_ids)} of {config.num_target_layers or 'the'} target layers",
        "vocabulary": config.vocab_size,
        **artifact.details(),
        f"beyond plain {artifact.title}": ", ".join(artifact.beyond_plain().values()) or "nothing",
        "target": f"{origin.get('target', 'not named')} ({origin.get('target_fingerprint', 'no fingerprint')})",
        "chat template": ", ".join(f"{k}={v}" for k, v in artifact.chat_template_args.items()) or "no arguments",
        "held-out acceptance": origin.get("heldout_acceptance", "not known"),
    }


def target_lines(target: Target) -> dict[str, Any]:
    config = dataclasses.asdict(target.config)
    shown = ("num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "mlp_size", "vocab_size")
    known = {name: config[name] for name in (*shown, "rope_theta", "rope_scaling", "max_positions", "eos_ids")}
    return {"name": config["name"], **known, "fingerprint": target.fingerprint}


def show(title: str, lines: dict[str, Any]) -> None:
    say(title)
    for name, value in lines.items():
        say(f"  {name:20} {value}")
