"""llama.cpp (PyPI `xllamacpp`) and our plain loop on the same prompts in turn: milliseconds per token.

Greedy, batch 1, all cores, prefill apart: llama.cpp's times are its own (`predicted_per_token_ms`). It reads the
target's GGUF file twice: as it is, and rewritten in float32, which are the very weights we compute with.
"""

import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.console import progress

Plain = Callable[[Sequence[int]], tuple[list[int], float]]


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
                theirs, their_ms = server.generate(ids, len(written))
                times["plain"].append(ms)
                times[name].append(their_ms)
                equal += name == "f32" and theirs[: len(written) - 1] == written[:-1]
                bar.advance(1, f"{name} {their_ms:.1f}, ours {ms:.1f} ms")
            del server
    medians = {f"{name}_ms_per_token": round(float(np.median(values)), 2) for name, values in times.items()}
    return medians | {"prompts": len(prompts), "equal_outputs": equal}


class LlamaCpp:
    """llama.cpp's server in this process, one slot."""

    def __init__(self, file: Path, context: int):
        import xllamacpp  # pyright: ignore[reportMissingImports] (in an environment of its own)

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(file)
        parameters.n_ctx, parameters.n_parallel = context, 1
        parameters.cache_ram_mib, parameters.verbosity = 0, -1
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = os.cpu_count() or 1
        self.server = xllamacpp.Server(parameters)

    def generate(self, ids: Sequence[int], new: int) -> tuple[list[int], float]:
        """`new` greedy tokens (never eos) and ms per token, prefill apart."""
        greedy = {"temperature": 0, "top_k": 1, "samplers": ["top_k"], "ignore_eos": True}
        options = {"cache_prompt": False, "verbose": True, "return_tokens": True}  # verbose: ids in the answer
        found = self.server.handle_completions({"prompt": list(ids), "max_tokens": new, **greedy, **options})
        return found["__verbose"]["tokens"], found["timings"]["predicted_per_token_ms"]


def write_float32(source: Path, out: Path) -> Path:
    """The GGUF file `source` as `out`, every tensor dequantised and stored in float32; q and k stay in its order."""
    from gguf import GGUFValueType, GGUFWriter, quants

    from models.sources.gguf import open_gguf

    reader = open_gguf(source)
    writer = GGUFWriter(out, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue  # the writer's own, and what this changes
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    writer.add_file_type(0)  # all float32
    for tensor in reader.tensors:
        value = quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
