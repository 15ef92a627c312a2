"""Arguments of the chat template go from the recipe through checkpoint and artifact to every decoder, which renders
chats as training did unless it is told otherwise."""

import json

import pytest

from models.sources import EMBEDDED
from models.tokenizer import load_tokenizer
from serve.load import load_engine
from serve.options import template_args_of
from tests.test_digests import THINKING
from tests.tiny_run import Tiny, called, make_tiny, write_tokenizer

CHAT = [{"role": "user", "content": "say 37"}]
OFF = "target.chat_template_args={enable_thinking: false}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A run trained with thinking off, and its artifact."""
    tiny = make_tiny(tmp_path_factory.mktemp("tiny"))
    write_tokenizer(tiny.root / "target", template=THINKING)
    small = ("train.steps=2", "train.eval_every=0", "responses.max_new_tokens=4", "responses.max_prompt_tokens=56")
    done = tiny.called(tiny.root / "run", OFF, *small)
    assert done.returncode == 0, done.stderr
    done = called(["train", "export", "--run", str(tiny.root / "run"), "--out", str(tiny.root / "artifact")])
    assert done.returncode == 0, done.stderr
    return tiny


def rendered(tiny: Tiny, **told: bool) -> str:
    _, tokenizer, _ = load_engine(str(tiny.root / "target"), tiny.root / "artifact", "float32", told)
    return tokenizer.decode(tokenizer.encode_chat(CHAT))


def test_they_travel_in_the_artifact(tiny: Tiny):
    config = json.loads((tiny.root / "artifact" / "config.json").read_text())
    assert config["wideblock"]["chat_template_args"] == {"enable_thinking": False}
    assert '{"enable_thinking": false}' in (tiny.root / "artifact" / "README.md").read_text()


def test_decoders_take_the_drafters_unless_told_otherwise(tiny: Tiny):
    assert rendered(tiny).endswith("assistant\n<think></think>")
    assert rendered(tiny, enable_thinking=True).endswith("assistant\n")


@pytest.mark.parametrize(("flags", "said"), [([], "False"), (["--chat-template-arg", "enable_thinking=true"], "True")])
def test_the_command_says_what_it_renders_with(tiny: Tiny, flags: list[str], said: str):
    engine = ["--target", str(tiny.root / "target"), "--drafter", str(tiny.root / "artifact"), "--width", "1"]
    done = called(["serve", "chat", *engine, "--message", "what", "--max-new-tokens", "2", *flags])
    assert done.returncode == 0, done.stderr
    assert f"chat template with enable_thinking={said}" in done.stdout


def test_a_run_goes_on_with_them_only(tiny: Tiny):
    run, template = tiny.root / "run", "responses.max_prompt_tokens=56"
    done = tiny.called(run, "train.steps=2", "responses.max_new_tokens=4", template, "--resume")
    assert done.returncode == 2
    assert "chat_template_args: checkpoint {'enable_thinking': False}, recipe {}" in done.stderr


def test_a_name_the_template_does_not_read_is_refused(tiny: Tiny):
    for source, name in ((str(tiny.root / "target"), "enable_thinkng"), (EMBEDDED, "enable_thinking")):
        with pytest.raises(ValueError, match=f"chat template argument '{name}': the template of .* reads nothing"):
            load_tokenizer(source, {name: False})
    with pytest.raises(ValueError, match="argument 'messages'"):
        load_tokenizer(EMBEDDED, {"messages": "mine"})


def test_options_are_read_as_yaml_reads_them():
    given = ["enable_thinking=false", "budget=3", "date=26 Jul", "name=a=b"]
    expected = {"enable_thinking": False, "budget": 3, "date": "26 Jul", "name": "a=b"}
    assert template_args_of(given) == expected
    for bad in ("enable_thinking", "=3", "a=[1]", "a=", "a=[", "a=2026-11-26"):
        with pytest.raises(ValueError, match="expected NAME=VALUE"):
            template_args_of([bad])
