"""llama.cpp (PyPI `xllamacpp`) and our decoder on the same prompts in turn: milliseconds per token, accepted drafts.

Greedy, batch 1, all cores, prefill apart: llama.cpp's times are its own (`predicted_per_token_ms`). It reads the
target's GGUF file twice: as it is, and rewritten in float32, which are the very weights we compute with.
"""

import dataclasses
import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.console import progress
from models.drafters.artifact import Artifact
from models.drafters.gguf import write_gguf
from models.sources import EMBEDDED
from models.sources.gguf import copy_fields, embedded_file, open_gguf
from serve.session import Decoder

Plain = Callable[[Sequence[int]], tuple[list[int], float]]


def target_file(source: str) -> Path | None:
    """The GGUF file of the target named by `source`; None where it is no such file."""
    file = embedded_file() if source == EMBEDDED else Path(source)
    return file if file.suffix == ".gguf" else None


def llama_cpp_ms(file: Path, prompts: Sequence[Sequence[int]], plain: Plain) -> dict[str, Any] | None:
    """Medians over `prompts` (token ids), None where xllamacpp is not installed.

    `plain(ids)` answers one prompt with our loop: what it wrote, and its ms per token. llama.cpp then writes as many
    tokens, in float32 and from the file. Returns

        {f32_ms_per_token, file_ms_per_token, plain_ms_per_token, prompts, equal_outputs}

    equal_outputs: prompts whose answer in float32 is ours token by token, the last aside (eos, which theirs never is).
    """
    if importlib.util.find_spec("xllamacpp") is None:
        return None
    context = 1 << (max(map(len, prompts)) + 512).bit_length()
    times: dict[str, list[float]] = {"f32": [], "file": [], "plain": []}
    equal = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        progress("bench: ours and llama.cpp's", 2 * len(prompts), "prompts") as bar,
    ):
        files = {"f32": write_float32(file, Path(folder) / "float32.gguf"), "file": file}
        for name, source in files.items():
            server = LlamaCpp(source, context)  # one at a time: the idle threads of another would take its cores
            for ids in prompts:
                plain(ids)  # compiles
                written, ms = plain(ids)
                theirs = server.generate(ids, len(written))
                times["plain"].append(ms)
                times[name].append(theirs.ms_per_token)
                equal += name == "f32" and theirs.tokens[:-1] == written[:-1]
                bar.advance(1, f"{name} {theirs.ms_per_token:.1f}, ours {ms:.1f} ms")
            del server
    medians = {f"{name}_ms_per_token": round(float(np.median(values)), 2) for name, values in times.items()}
    return medians | {"prompts": len(prompts), "equal_outputs": equal}


def drafts_beside(
    file: Path,
    artifact: Artifact,
    ours: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    width: int,
    new: int,
    dtype: str = "float32",
) -> dict[str, Any]:
    """The drafter in llama.cpp, beside the target's GGUF `file` in float32, and in `ours`, after each of `prompts`.
    `dtype` is that of the drafter's own file.

        {tau, their_tau, equal_drafts, equal_outputs, their_speedup, speedup_spread, prompts, width}

    tau and their_tau: tokens a verify step; equal_drafts: prompts with as many drafts accepted there as here;
    equal_outputs: those with our answer token by token, the last aside; their_speedup: their milliseconds a token
    without the drafter over those with it, in `exact` caches (median, quartiles). Both start behind the token that
    prefill gives.
    """
    context = 1 << (max(map(len, prompts)) + new + width).bit_length()
    counts: dict[str, list[int]] = {name: [] for name in ("tokens", "steps", "their_steps")}
    equal, speedups = 0, []
    with (
        tempfile.TemporaryDirectory() as folder,
        progress("bench: drafts in llama.cpp", len(prompts), "prompts") as bar,
    ):
        float32, drafter = write_float32(file, Path(folder) / "float32.gguf"), Path(folder) / "drafter.gguf"
        write_gguf(artifact, file, drafter, dtype)
        plain = LlamaCpp(float32, context, exact=True)
        drafting = LlamaCpp(float32, context, drafter=drafter, width=width, exact=True)
        for ids in prompts:
            first = plain.generate(ids, 1).tokens
            (answer,) = ours.generate([[*ids, *first]], max_new_tokens=new - 1)
            alone, theirs = (server.generate(ids, len(answer.ids) + 1) for server in (plain, drafting))
            counts["tokens"].append(len(answer.ids))
            counts["steps"].append(len(answer.runs))
            counts["their_steps"].append(len(answer.ids) - theirs.accepted)
            equal += alone.tokens[:-1] == theirs.tokens[:-1] == [*first, *answer.ids[:-1]]
            speedups.append(alone.ms_per_token / theirs.ms_per_token)
            bar.advance(1, f"{theirs.accepted} of {theirs.drafted} accepted")
    tokens, steps, their_steps = map(np.array, counts.values())
    return {
        "tau": round(float(tokens.sum() / steps.sum()), 3),
        "their_tau": round(float(tokens.sum() / their_steps.sum()), 3),
        "equal_drafts": int((steps == their_steps).sum()),
        "equal_outputs": equal,
        "their_speedup": round(float(np.median(speedups)), 3),
        "speedup_spread": [round(float(value), 3) for value in np.percentile(speedups, [25, 75])],
        "prompts": len(prompts),
        "width": width,
    }


@dataclasses.dataclass(frozen=True)
class Written:
    """An answer of llama.cpp: its tokens, milliseconds a token (prefill apart), and what became of its drafts."""

    tokens: list[int]
    ms_per_token: float
    drafted: int
    accepted: int


class LlamaCpp:
    """llama.cpp's server in this process, one slot.

    With a drafter's GGUF file it drafts in blocks of `width`, the anchor counted; with `ngram`, by prompt lookup.
    `exact` keeps caches and attention in float32, where llama.cpp's own way is float16: what it writes then is what we
    write.
    """

    def __init__(
        self,
        file: Path,
        context: int,
        *,
        drafter: Path | None = None,
        width: int | None = None,
        ngram: bool = False,
        exact: bool = False,
    ):
        import xllamacpp as llama  # pyright: ignore[reportMissingImports] (in an environment of its own)

        parameters, threads = llama.CommonParams(), os.cpu_count() or 1
        parameters.model.path = str(file)
        parameters.n_ctx, parameters.n_parallel = context, 1
        parameters.cache_ram_mib, parameters.verbosity = 0, -1
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        draft = parameters.speculative.draft
        if drafter is not None:
            assert width is not None
            parameters.speculative.types = [llama.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_DFLASH]
            draft.mparams.path, draft.n_max = str(drafter), width - 1
            draft.cpuparams.n_threads = draft.cpuparams_batch.n_threads = threads
        if ngram:
            parameters.speculative.types = [llama.common_speculative_type.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
        if exact:
            parameters.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
            for caches in (parameters, draft):
                caches.cache_type_k = caches.cache_type_v = llama.ggml_type.GGML_TYPE_F32
        self.server = llama.Server(parameters)

    def generate(self, ids: Sequence[int], new: int) -> Written:
        """`new` greedy tokens, never eos."""
        greedy = {"temperature": 0, "top_k": 1, "samplers": ["top_k"], "ignore_eos": True}
        options = {"cache_prompt": False, "verbose": True, "return_tokens": True}  # verbose: ids in the answer
        found = self.server.handle_completions({"prompt": list(ids), "max_tokens": new, **greedy, **options})
        times = found["timings"]
        drafts = (times.get("draft_n", 0), times.get("draft_n_accepted", 0))
        return Written(found["__verbose"]["tokens"], times["predicted_per_token_ms"], *drafts)


def write_float32(source: Path, out: Path) -> Path:
    """The GGUF file `source` as `out`, every tensor dequantised and stored in float32; q and k stay in its order."""
    from gguf import GGUFWriter, quants

    reader = open_gguf(source)
    writer = GGUFWriter(out, reader.fields["general.architecture"].contents())
    changed = ("general.architecture", "general.file_type")  # the writer's own, and what this changes
    copy_fields(reader, writer, lambda name: not name.startswith("GGUF.") and name not in changed)
    writer.add_file_type(0)  # all float32
    for tensor in reader.tensors:
        value = quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
