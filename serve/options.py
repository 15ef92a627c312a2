"""Options that several commands of serve share, and what they say."""

import argparse
from collections.abc import Sequence
from typing import Any

from configs import schema
from configs.errors import UserError
from configs.paths import at_home, path


def add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target",
        required=True,
        type=at_home,
        help="smollm2-135m, a Hugging Face directory, a .gguf file, or a MaxText config",
    )
    parser.add_argument("--drafter", required=True, type=path, help="a drafter artifact directory")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="(default %(default)s)")
    parser.add_argument(
        "--chat-template-arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="such as enable_thinking=false (repeatable; default: what the drafter was trained with)",
    )
    parser.add_argument("--mesh", default="", metavar="tensor=N", help="split the model over N devices (default: one)")


def add_engine(parser: argparse.ArgumentParser) -> None:
    add_models(parser)
    add_draft(parser)
    add_sampling(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the draws when sampling (default %(default)s)")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy (default %(default)s)")
    parser.add_argument("--top-k", type=int, help="sample among the k most likely tokens (default: all)")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling (default %(default)s)")
    parser.add_argument("--min-p", type=float, default=0.0, help="fraction of the likeliest (default %(default)s)")
    parser.add_argument("--deterministic", action="store_true", help="sampling: draft the drafter's likeliest tokens")
    parser.add_argument("--block-verification", action="store_true", help="sampling: verify blocks, not single tokens")


def add_draft(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--width", type=int, help="one block width to decode with (default: chosen while decoding)")
    parser.add_argument(
        "--drafts",
        choices=["both", "drafter", "ngram"],
        help="who drafts: the drafter, n-gram copies of the text, or both (the default; with --width: the drafter)",
    )
    parser.add_argument(
        "--tree",
        type=int,
        choices=[7, 16, 32, 64],
        help="draft trees of so many tokens from a block, of --width if given (default: chosen while decoding)",
    )


def template_args_of(given: Sequence[str]) -> dict[str, bool | int | float | str]:
    """The chat template's arguments in NAME=VALUE words; values are read as YAML reads them."""
    import yaml

    found = {}
    for text in given:
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


def sizes_of(given: str) -> schema.Mesh:
    """The mesh in the words data=..,fsdp=..,tensor=.., each 1 unless given; raises UserError for other words."""
    sizes = {"data": 1, "fsdp": 1, "tensor": 1}
    for word in filter(None, given.split(",")):
        axis, _, size = word.partition("=")
        if axis not in sizes or not size.isdecimal() or int(size) < 1:
            raise UserError(f"--mesh {given}: {word!r}: expected data=N, fsdp=N or tensor=N, N at least 1")
        sizes[axis] = int(size)
    return schema.Mesh(**sizes)


def mesh_of(given: str) -> schema.Mesh:
    """The same, for rows that are written one at a time; raises UserError where it would split them."""
    sizes = sizes_of(given)
    if sizes.data * sizes.fsdp > 1:
        raise UserError(
            f"--mesh {given}: data and fsdp split rows, and answers are written one row at a time; expected "
            "data=1,fsdp=1; split the model by tensor=N"
        )
    return sizes


def speculation_of(options: argparse.Namespace) -> Any:
    """How the options want tokens sampled, and drafted and verified while sampling."""
    from models.sampling import Sampling
    from models.verify import Speculation

    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.min_p)
    return Speculation(sampling, options.deterministic, options.block_verification)


def draft_of(options: argparse.Namespace) -> Any:
    """The one draft that was asked for; None where it is to be chosen while decoding."""
    from models.drafters import TREES, Draft

    if options.tree is not None:
        if options.drafts == "ngram":
            raise UserError(f"--tree {options.tree}: expected the drafter's blocks, got --drafts ngram; drop one")
        if options.width == 1:
            raise UserError(f"--tree {options.tree}: expected --width 2 or more, got 1, a block without drafts")
        return Draft("drafter", options.width or TREES[options.tree], tree=options.tree)
    if options.width is not None and options.drafts == "both":
        raise UserError(f"--width {options.width}: expected one who drafts, got --drafts both; name drafter or ngram")
    return None if options.width is None else Draft(options.drafts or "drafter", options.width)
