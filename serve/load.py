"""From names to a decoder, and to what its chooser needs to know."""

from pathlib import Path
from types import MappingProxyType
from typing import Any

from configs import schema
from configs.console import say
from configs.device import describe_device, keep_compiled_programs, round_as_written
from configs.errors import UserError
from configs.paths import path
from models.decode import Engine, make_engine
from models.drafters import Draft
from models.drafters.artifact import Artifact, check_fit, read_artifact
from models.sharding import make_mesh, platform
from models.sources import load_target
from models.tokenizer import TemplateArgs, Tokenizer, load_tokenizer
from models.verify import GREEDILY, Speculation
from serve.choose import Chooser, Who
from serve.cost import Cost, candidate_widths, kept_cost, surroundings, time_steps
from serve.engine import batch_sizes, page_size
from serve.session import Decoder, context_capacity

BATCH_WIDTHS = (1, 2, 4, 8)  # timed where rows are several: each is some programs to compile for every number of rows
BATCH_TOKENS = 384  # of context, there
ONE_DEVICE = schema.Mesh(data=1, fsdp=1, tensor=1)


def open_decoder(
    target: str,
    drafter: str | Path,
    *,
    dtype: str = "float32",
    draft: Draft | None = None,
    who: Who = "both",
    speculation: Speculation = GREEDILY,
    context: int = 1024,
    chat_template_args: TemplateArgs = MappingProxyType({}),
    mesh: schema.Mesh = ONE_DEVICE,
) -> Decoder:
    """A decoder for a target (`models.sources` says what may be named) and a drafter artifact.

    `speculation` says how to sample, and to draft and verify while sampling. How much is drafted, and by whom of `who`,
    is chosen while decoding unless `draft` fixes it; the first time on a device that takes a timing of steps with
    `context` positions, which drops the process's other compiled programs. Programs are kept on disk. The chat template
    takes the arguments that the drafter was trained with, but for those named here.
    Raises:
      UserError: no such target or drafter, one that does not fit the other, a width beyond the trained one.
    """
    keep_compiled_programs()
    drafter = path(str(drafter))
    engine, tokenizer, artifact = load_engine(target, drafter, dtype, chat_template_args, mesh)
    if draft is not None:
        check_draft(draft, engine.drafter, drafter)
        return Decoder(engine, tokenizer, draft, speculation)
    cost = step_cost(engine, artifact, context, speculation)
    cuts = getattr(engine.drafter, "temperature", None) is not None
    return Decoder(engine, tokenizer, Chooser(cost, artifact.acceptance, who=who, cuts=cuts), speculation)


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
    if dtype == "bfloat16":
        round_as_written()
    artifact = read_artifact(drafter)
    say(f"serve: loading {target} and {drafter}")
    loaded = load_target(target, dtype, make_mesh(mesh))
    check_fit(artifact, loaded, drafter)
    template_args = {**artifact.chat_template_args, **chat_template_args}
    if template_args:
        say(f"serve: chat template with {', '.join(f'{name}={value}' for name, value in template_args.items())}")
    return make_engine(loaded, artifact), load_tokenizer(target, template_args), artifact


def check_draft(draft: Draft, kind: Any, drafter: Path) -> None:
    """Raises UserError for a width beyond the one the drafter was trained at, which buffers have room for, and for a
    tree of a drafter that drafts none."""
    if draft.tree and not hasattr(kind, "propose_tree"):
        raise UserError(
            f"tree: expected a drafter whose kind drafts trees, such as dflash, got {drafter}; leave it out"
        )
    width, more = kind.width, "; name one with --width" if draft.tree else ""
    for name, asked, least in (("width", draft.width, 1), ("copy", draft.copy, 0)):
        if not least <= asked <= width:
            raise UserError(f"{name}: expected {least} to {width} (what {drafter} was trained at), got {asked}{more}")


def batch_costs(engine: Engine, artifact: Artifact, tokens: int, rows: int) -> dict[int, Cost]:
    """What greedy steps of more than one row cost by how many they are, up to `rows`, over pages, or over slots where
    rows that write are read from those (`serve.engine`); measured once."""
    sizes = [size for size in batch_sizes(rows, engine.target.mesh) if size > 1]
    mesh = engine.target.mesh
    few, page = min(tokens, BATCH_TOKENS), None if platform(mesh) == "cpu" else page_size(mesh)
    return {size: step_cost(engine, artifact, few, rows=size, page=page) for size in sizes}


def step_cost(
    engine: Engine,
    artifact: Artifact,
    tokens: int,
    speculation: Speculation = GREEDILY,
    *,
    rows: int = 1,
    page: int | None = None,
) -> Cost:
    """What steps cost that sample as `speculation` says, for answers that fill `tokens` of context; measured once."""
    capacity = context_capacity(tokens, artifact.config.width)
    widths = candidate_widths(artifact.config.width)
    if rows > 1:
        widths = [width for width in widths if width in BATCH_WIDTHS]
    identity = {
        "device": describe_device(),
        "target": engine.target.fingerprint,
        "drafter": artifact.shape_digest(),
        "dtype": str(engine.target.dtype),
        "capacity": capacity,
        "widths": widths,
        **surroundings(speculation),
    }
    if rows > 1:
        identity |= {"rows": rows, "page": page}
    if engine.target.mesh is not None:
        identity["mesh"] = dict(engine.target.mesh.shape)

    def measure() -> Cost:
        together = f", {rows} rows together," if rows > 1 else ""
        say(
            f"cost: timing plain, draft and verify steps at widths {', '.join(map(str, widths))}{together} "
            "(once on this device)"
        )
        return time_steps(engine, capacity, widths, speculation, rows=rows, page=page)

    return kept_cost(identity, measure)
