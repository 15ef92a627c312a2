"""The model card of an exported drafter: what it is, what it gained, how to serve it where."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from configs.console import say
from configs.errors import UserError
from models.drafters.artifact import Artifact, read_artifact
from models.drafters.gguf import not_carried
from models.sources import EMBEDDED


def card(run: Path, out: Path, *, dtype: str, acceptance: Mapping[str, Any] | None) -> str:
    """README.md of the artifact at `out`, from what the run directory knows of just this drafter.

    `acceptance` is its held-out acceptance (`train.acceptance`), where it was measured.
    """
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    provenance = json.loads((run / "provenance.json").read_text())
    artifact = read_artifact(out)
    origin = artifact.origin
    lines = [
        *_what(artifact, dtype),
        f"Trained by wideblock, recipe `{recipe['run']['name']}`, step {origin['step']}, on the target's own responses "
        f"to prompts from {', '.join(recipe['prompts']['sources'])}; revision {provenance['revision']}, on "
        f"{provenance['device']}.",
        "",
        *_heldout(acceptance),
        *_decoded(run / "report.json", artifact.digest()),
        *_serving(out, artifact),
    ]
    return "\n".join(lines) + "\n"


def bare_card(source: Path, out: Path, artifact: Artifact, dtype: str) -> str:
    """README.md of an artifact written anew from another one, of which no run is known."""
    lines = [
        *_what(artifact, dtype),
        f"Written by wideblock from {source}.",
        "",
        *_serving(out, artifact),
    ]
    return "\n".join(lines) + "\n"


def _what(artifact: Artifact, dtype: str) -> list[str]:
    config, origin = artifact.config, artifact.origin
    target = origin.get("target", "a target it does not name")
    weights = f" (weights {origin['target_fingerprint']})" if "target_fingerprint" in origin else ""
    return [
        f"# {artifact.title} drafter for {target}",
        "",
        f"Width {config.width} (1 anchor + {config.width - 1} drafted tokens), {config.num_layers} layers, taps "
        f"{list(config.target_layer_ids)}, {dtype}. It drafts for {target} alone{weights} and owns {artifact.owns}.",
        "",
        *_template(origin),
    ]


def _template(origin: Mapping[str, Any]) -> list[str]:
    """How to render chats as its training did, where the template was given arguments."""
    held = origin.get("chat_template_args")
    if not held:
        return []
    return [
        f"It was trained on chats rendered with the template arguments `{json.dumps(held)}`; wideblock takes them from "
        "here, other engines with every request (`chat_template_kwargs`). Rendered otherwise, fewer drafts are kept.",
        "",
    ]


def _serving(out: Path, artifact: Artifact) -> list[str]:
    plain = {"dflash": _plain_commands, "eagle3": _eagle3_commands}[artifact.kind]
    commands = _own_commands if artifact.beyond_plain() else plain
    return ["## Serve it", "", *commands(out, artifact, shlex.quote(artifact.origin.get("target", "TARGET")))]


def _heldout(acceptance: Mapping[str, Any] | None) -> list[str]:
    if acceptance is None:
        return []
    lines = [
        f"Held-out acceptance length (greedy walk, width {acceptance['width']}):",
        "",
        "| task | tau |",
        "|---|---|",
    ]
    lines += [f"| {name} | {task['tau']:.2f} |" for name, task in acceptance["tasks"].items()] + [""]
    return lines + _confidence(acceptance.get("confidence"))


def _confidence(fitted: Mapping[str, Any] | None) -> list[str]:
    if fitted is None:
        return []
    return [
        f"Confidence (the chance of a slot's likeliest token) on {fitted['drafts']:,} held-out drafts: ECE "
        f" {fitted['ece_before']:.3f}, {fitted['ece_after']:.3f} at temperature {fitted['temperature']:.2f}.",
        "",
    ]


def _decoded(report: Path, digest: str) -> list[str]:
    """The figures of an evaluation, where it was of the drafter that `digest` names."""
    if not report.is_file():
        return []
    try:
        raw = json.loads(report.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{report}: not JSON ({error}); delete it, or evaluate again") from error
    if raw["drafter_info"].get("digest") != digest:
        say(
            f"export: {report} is of another drafter; its figures stay out of the card (python -m serve eval adds them)"
        )
        return []
    lines = [f"Decoded on {raw['device']} ({raw['dtype']}, batch 1):", ""]
    lines += ["| task | tau | speedup |", "|---|---|---|"]
    return lines + [f"| {name} | {t['tau']:.2f} | {t['speedup']:.2f}x |" for name, t in raw["tasks"].items()] + [""]


def _own_commands(out: Path, artifact: Artifact, target: str) -> list[str]:
    held, place = " and ".join(artifact.beyond_plain().values()), shlex.quote(str(out))
    (name,) = artifact.described("float32")["architectures"]
    return [
        f"This drafter has {held}, beyond plain {artifact.title}: its architecture is named {name} so that no other "
        "engine loads it and silently runs it wrong.",
        "",
        f"    python -m serve eval --target {target} --drafter {place} --tasks word-problems,code --out report",
        *_llama_cpp(out, artifact),
    ]


def _llama_cpp(out: Path, artifact: Artifact) -> list[str]:
    """How to take it there, where it can be."""
    if not_carried(artifact):
        return []
    return [
        "    # llama.cpp, from a GGUF file; counts drafted tokens",
        f"    python -m train export --drafter {shlex.quote(str(out))} --out drafter.gguf --format gguf",
        "    llama-server -m TARGET.gguf -md drafter.gguf --spec-type draft-dflash "
        f"--spec-draft-n-max {artifact.config.width - 1}",
    ]


def _eagle3_commands(out: Path, artifact: Artifact, target: str) -> list[str]:
    drafted, place = artifact.config.width - 1, shlex.quote(str(out))
    spec = shlex.quote(json.dumps({"method": "eagle3", "model": str(out), "num_speculative_tokens": drafted}))
    elsewhere = _elsewhere(target)
    return [
        f"Its training unrolled {drafted} steps; it may draft fewer.",
        "",
        "    # wideblock",
        f"    python -m serve eval --target {target} --drafter {place} --tasks word-problems,code --out report",
        "    # vLLM",
        f"    vllm serve {elsewhere} --speculative-config {spec}",
        "    # SGLang",
        f"    python -m sglang.launch_server --model-path {elsewhere} --speculative-algorithm EAGLE3 \\\n"
        f"        --speculative-draft-model-path {place} --speculative-num-steps {drafted} \\\n"
        f"        --speculative-eagle-topk 1 --speculative-num-draft-tokens {drafted + 1}",
        "",
        "The commands for other engines are theirs as documented in November 2026; only the first is run by our tests.",
    ]


def _elsewhere(target: str) -> str:
    """What other engines call it."""
    return {EMBEDDED: "HuggingFaceTB/SmolLM2-135M-Instruct"}.get(target, target)


def _plain_commands(out: Path, artifact: Artifact, target: str) -> list[str]:
    """Each engine counts width its own way: block_size W includes the anchor, num_speculative_tokens does not."""
    config = artifact.config
    drafted, width, place = config.width - 1, config.width, shlex.quote(str(out))
    spec = shlex.quote(json.dumps({"method": "dflash", "model": str(out), "num_speculative_tokens": drafted}))
    elsewhere = _elsewhere(target)
    sglang = (
        f"--model-path {elsewhere} --speculative-algorithm DFLASH \\\n"
        f"        --speculative-draft-model-path {place} --speculative-num-draft-tokens {width}"
    )
    return [
        f"W = {width} counts the anchor (`block_size`); vLLM counts drafted tokens, {drafted}.",
        "",
        "    # wideblock",
        f"    python -m serve eval --target {target} --drafter {place} --tasks word-problems,code --out report",
        "    # vLLM (not on TPU: tpu-inference ignores the windows of its layers)"
        if any(config.windows)
        else "    # vLLM, and vLLM on TPU (tpu-inference)",
        f"    vllm serve {elsewhere} --speculative-config {spec}",
        "    # SGLang; counts the anchor",
        f"    python -m sglang.launch_server {sglang}",
        "    # sglang-jax (TPU); counts the anchor, takes no RoPE scaling",
        f"    python -m sgl_jax.launch_server {sglang}",
        "    # z-lab's transformers backend (PyPI dflash); takes block_size from config.json",
        f"    DFlashDraftModel.from_pretrained({str(out)!r}).spec_generate(target, input_ids, 256, [eos])",
        *_llama_cpp(out, artifact),
        "",
        "The commands for other engines are theirs as documented in November 2026; only the first is run by our tests.",
    ]
