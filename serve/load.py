"""From command-line options to an engine, and to what the chooser needs to know about it."""

import argparse

from configs.console import say
from configs.device import describe_device
from models.artifact import Artifact, check_fit, read_artifact
from models.sampling import Sampling
from models.sources import load_target
from models.target import fingerprint
from models.tokenizer import Tokenizer, load_tokenizer
from serve.choose import Chooser, Way
from serve.cost import Cost, candidate_widths, kept_cost, time_steps
from serve.decoder import Engine, Speculation, make_engine
from serve.session import Decoder, context_capacity


def load_engine(options: argparse.Namespace) -> tuple[Engine, Tokenizer, Artifact]:
    """The engine `options` name.

    Raises:
      ValueError: no such target or drafter, one that does not fit the other, a width beyond the trained one.
    """
    artifact = read_artifact(options.drafter)
    width = artifact.config.width
    if options.width is not None and not 1 <= options.width <= width:
        raise ValueError(f"--width: expected 1 to {width} (what {options.drafter} was trained at), got {options.width}")
    say(f"{options.command}: loading {options.target} and {options.drafter}")
    target = load_target(options.target, options.dtype)
    check_fit(artifact, target, options.drafter)
    return make_engine(target, artifact), load_tokenizer(options.target), artifact


def sampling_of(options: argparse.Namespace) -> Sampling:
    return Sampling(options.temperature, options.top_k, options.top_p, options.min_p)


def way_of(options: argparse.Namespace) -> Way | None:
    """The one way of drafting that was asked for; None where it is to be chosen while decoding."""
    if options.width is None and options.drafts != "drafter":
        raise ValueError(f"--drafts {options.drafts}: expected --width with it, got none; add --width 4")
    return None if options.width is None else Way(options.drafts, options.width)


def step_cost(engine: Engine, artifact: Artifact, tokens: int) -> Cost:
    """What steps cost for answers that fill `tokens` of context; measured once on this device."""
    config = engine.drafter.config
    capacity = context_capacity(tokens, config.width)
    widths = candidate_widths(config.width)
    identity = {
        "device": describe_device(),
        "target": fingerprint(engine.target),
        "drafter": artifact.shape_digest(),
        "dtype": str(engine.target.dtype),
        "capacity": capacity,
        "widths": widths,
    }

    def measure() -> Cost:
        say(f"cost: timing plain, draft and verify steps at widths {', '.join(map(str, widths))} (once on this device)")
        return time_steps(engine, capacity, widths)

    return kept_cost(identity, measure)


def load_decoder(options: argparse.Namespace) -> Decoder:
    """A decoder as `options` describe it, choosing its widths unless one is given."""
    engine, tokenizer, artifact = load_engine(options)
    sampling, way = sampling_of(options), way_of(options)
    if way is not None:
        return Decoder(engine, tokenizer, Speculation(way.width, way.drafts), sampling=sampling)
    chooser = Chooser(step_cost(engine, artifact, options.max_new_tokens), artifact.acceptance)
    return Decoder(engine, tokenizer, Speculation(1), chooser=chooser, sampling=sampling)
