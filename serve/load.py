"""From names and command-line options to a decoder, and to what its chooser needs to know."""

import argparse
import dataclasses
from pathlib import Path
from types import MappingProxyType

import yaml

from configs import schema
from configs.console import say
from configs.device import describe_device, keep_compiled_programs
from configs.errors import UserError
from configs.paths import path
from models.decode import GREEDILY, Engine, Speculation, make_engine
from models.drafters.artifact import Artifact, check_fit, read_artifact
from models.sampling import Sampling
from models.sharding import make_mesh
from models.sources import load_target
from models.tokenizer import TemplateArgs, Tokenizer, load_tokenizer
from serve.choose import Chooser, Way
from serve.cost import Cost, candidate_widths, kept_cost, surroundings, time_steps
from serve.session import Decoder, context_capacity

ONE_DEVICE = schema.Mesh(data=1, fsdp=1, tensor=1)


def open_decoder(
    target: str,
    drafter: str | Path,
    *,
    dtype: str = "float32",
    way: Way | None = None,
    how: Speculation = GREEDILY,
    context: int = 1024,
    chat_template_args: TemplateArgs = MappingProxyType({}),
    mesh: schema.Mesh = ONE_DEVICE,
) -> Decoder:
    """A decoder for a target (`models.sources` says what may be named) and a drafter artifact.

    `how` says how to sample, and to draft and verify while sampling. Who drafts how much is chosen while decoding
    unless `way` fixes it; the first time on a device that takes a timing of steps with `context` positions, which drops
    the process's other compiled programs. Programs are kept on disk. The chat template takes the arguments that the
    drafter was trained with, but for those named here.
    Raises:
      UserError: no such target or drafter, one that does not fit the other, a width beyond the trained one.
    """
    keep_compiled_programs()
    drafter = path(str(drafter))
    engine, tokenizer, artifact = load_engine(target, drafter, dtype, chat_template_args, mesh)
    if way is not None:
        check_way(way, artifact, drafter)
        how = dataclasses.replace(how, width=way.width, drafts=way.drafts, copy=way.copy)
        return Decoder(engine, tokenizer, how, sampling=how.sampling)
    chooser = Chooser(step_cost(engine, artifact, context, how), artifact.acceptance)
    return Decoder(engine, tokenizer, how, chooser=chooser, sampling=how.sampling)


def load_engine(
    target: str,
    drafter: Path,
    dtype: str,
    chat_template_args: TemplateArgs = MappingProxyType({}),
    mesh: schema.Mesh = ONE_DEVICE,
) -> tuple[Engine, Tokenizer, Artifact]:
    """The engine of a target and a drafter, and their tokenizer: its template takes the drafter's arguments, but for
    those given here.

    Raises:
      UserError: no such target or drafter, or one that does not fit the other or the mesh.
    """
    artifact = read_artifact(drafter)
    say(f"serve: loading {target} and {drafter}")
    loaded = load_target(target, dtype, make_mesh(mesh))
    check_fit(artifact, loaded, drafter)
    template_args = {**artifact.chat_template_args, **chat_template_args}
    if template_args:
        say(f"serve: chat template with {', '.join(f'{name}={value}' for name, value in template_args.items())}")
    return make_engine(loaded, artifact), load_tokenizer(target, template_args), artifact


def template_args_of(options: argparse.Namespace) -> TemplateArgs:
    """The chat template's arguments that the options name; values are read as YAML reads them."""
    found = {}
    for text in options.chat_template_arg:
        name, equals, value = text.partition("=")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            found[name] = None
        if not (name and equals and type(found[name]) in (bool, int, float, str)):
            raise UserError(
                f"--chat-template-arg {text}: expected NAME=VALUE with a truth value, a number or a text, such as "
                "enable_thinking=false"
            )
    return found


def mesh_of(options: argparse.Namespace) -> schema.Mesh:
    """The mesh that the options name: data=..,fsdp=..,tensor=.., each 1 unless given.

    Raises:
      UserError: other words than these, or rows to be split where rows are written one at a time.
    """
    sizes = dataclasses.asdict(ONE_DEVICE)
    for word in filter(None, options.mesh.split(",")):
        axis, _, size = word.partition("=")
        if axis not in sizes or not size.isdecimal() or int(size) < 1:
            raise UserError(f"--mesh {options.mesh}: {word!r}: expected data=N, fsdp=N or tensor=N, N at least 1")
        sizes[axis] = int(size)
    if sizes["data"] * sizes["fsdp"] > 1:
        raise UserError(
            f"--mesh {options.mesh}: data and fsdp split rows, and answers are written one row at a time; expected "
            "data=1,fsdp=1; split the model by tensor=N"
        )
    return schema.Mesh(**sizes)


def how_of(options: argparse.Namespace) -> Speculation:
    """How the options want tokens sampled, and drafted and verified while sampling."""
    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.min_p)
    return Speculation(1, sampling=sampling, deterministic=options.deterministic, block=options.block_verification)


def way_of(options: argparse.Namespace) -> Way | None:
    """The one way of drafting that was asked for; None where it is to be chosen while decoding."""
    if options.width is None and options.drafts != "drafter":
        raise UserError(f"--drafts {options.drafts}: expected --width with it, got none; add --width 4")
    return None if options.width is None else Way(options.drafts, options.width)


def check_way(way: Way, artifact: Artifact, drafter: Path) -> None:
    """Raises UserError for a width beyond the one the drafter was trained at, which buffers have room for."""
    width = artifact.config.width
    for name, asked, least in (("width", way.width, 1), ("copy", way.copy, 0)):
        if not least <= asked <= width:
            raise UserError(f"{name}: expected {least} to {width} (what {drafter} was trained at), got {asked}")


def step_cost(engine: Engine, artifact: Artifact, tokens: int, how: Speculation = GREEDILY) -> Cost:
    """What steps cost that sample as `how` says, for answers that fill `tokens` of context; measured once."""
    config = engine.drafter.config
    capacity = context_capacity(tokens, config.width)
    widths = candidate_widths(config.width)
    identity = {
        "device": describe_device(),
        "target": engine.target.fingerprint,
        "drafter": artifact.shape_digest(),
        "dtype": str(engine.target.dtype),
        "capacity": capacity,
        "widths": widths,
        **surroundings(how),
    }
    if engine.target.mesh is not None:
        identity["mesh"] = dict(engine.target.mesh.shape)

    def measure() -> Cost:
        say(f"cost: timing plain, draft and verify steps at widths {', '.join(map(str, widths))} (once on this device)")
        return time_steps(engine, capacity, widths, how)

    return kept_cost(identity, measure)
