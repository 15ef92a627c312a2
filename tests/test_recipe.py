"""A recipe is read strictly: shipped ones load, overrides apply, every mistake is named with its key and a remedy."""

from pathlib import Path

import pytest
import yaml

from configs.schema import RecipeError, load_recipe

SHIPPED = ["wide_block.yaml", "smoke.yaml"]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_load_by_bare_name(name: str):
    recipe = load_recipe(name)
    assert recipe.run_dir == Path("runs") / name.removesuffix(".yaml")
    assert max(recipe.batches.blocks) == recipe.drafter.width


def test_wide_block_is_wide():
    assert load_recipe("wide_block").drafter.width >= 32


def test_overrides():
    recipe = load_recipe("smoke.yaml", ["train.steps=3", "run.dir=/tmp/x", "batches.blocks={2: 1, 8: 2}"])
    assert recipe.train.steps == 3
    assert recipe.run_dir == Path("/tmp/x")
    assert recipe.batches.blocks == {2: 1, 8: 2}


def test_template_arguments_keep_their_types():
    given = {"enable_thinking": False, "budget": 3, "share": 0.5, "date": "26 Jul"}
    override = "target.chat_template_args={enable_thinking: false, budget: 3, share: 0.5, date: 26 Jul}"
    found = load_recipe("smoke.yaml", [override]).target.chat_template_args
    assert found == given
    assert [type(value) for value in found.values()] == [bool, int, float, str]


def test_a_type_without_a_head():
    with pytest.raises(RecipeError, match=r"drafter.markov_head_type=rnn: expected a drafter.markov_rank, got null"):
        load_recipe("smoke.yaml", ["drafter.markov_head_type=rnn", "drafter.markov_rank=null"])


def test_resolved_recipe_reads_back(tmp_path: Path):
    recipe = load_recipe("wide_block.yaml", ["drafter.target_layer_ids=[1, 2, 3]"])
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    assert load_recipe(str(tmp_path / "again.yaml")) == recipe


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.step=3", ["train.step", "did you mean steps?"]),
        ("trian.steps=3", ["no section 'trian'", "did you mean train?"]),
        ("train.steps=many", ["train.steps", "expected int", "'many'"]),
        ("train.steps=3.0", ["train.steps", "expected int", "3.0"]),
        ("features.attention=flash", ["features.attention", "expected one of dense, splash", "'flash'"]),
        ("train.remat=1", ["train.remat", "expected bool"]),
        ("optimizer.learning_rate=6e-4", ["optimizer.learning_rate", "expected float", "6.0e-4"]),
        ("features.mode=cache", ["features.mode", "one of cached, online", "did you mean cached?"]),
        ("prompts.sources=own", ["prompts.sources", "expected a list"]),
        ("stride=3", ["section.field=value", "MaxText"]),
        ("run.seed=4294967296", ["run.seed", "at most 4294967295", "4294967296"]),
        ("run.seed=-1", ["run.seed", "at least 0", "-1"]),
        ("batches.blocks={}", ["batches.blocks", "got {}"]),
        ("target.chat_template_args={1: true}", ["target.chat_template_args", "expected str", "1"]),
        ("target.chat_template_args={a: [1]}", ["target.chat_template_args[a]", "bool, int, float, str", "[1]"]),
        ("target.chat_template_args={a: null}", ["target.chat_template_args[a]", "bool, int, float, str", "None"]),
        ("train.steps=0", ["train.steps", "at least 1", "0"]),
        ("drafter.width=1", ["drafter.width", "at least 2"]),
        ("batches.blocks={4: 4}", ["batches.blocks", "drafter.width", "4"]),
        ("optimizer.warmup_fraction=1.5", ["optimizer.warmup_fraction", "1.5"]),
        ("loss.ce=2.0", ["loss.ce", "2.0"]),
        ("loss.ce=0.25", ["loss.ce + loss.kl + loss.tv", "expected 1, got 1.15"]),
        ("drafter.markov_size=16", ["drafter.markov_rank and drafter.markov_size", "at most one"]),
        ("drafter.markov_rank=0", ["drafter.markov_rank", "at least 1", "got 0"]),
        ("drafter.markov_size=0", ["drafter.markov_size", "at least 1", "got 0"]),
        ("drafter.draft_vocab_size=0", ["drafter.draft_vocab_size", "at least 2", "got 0"]),
        ("drafter.mask_token_id=-1", ["drafter.mask_token_id", "at least 0", "got -1"]),
        ("drafter.target_layer_ids=[]", ["drafter.target_layer_ids", "expected a value", "()"]),
        ("run.name=''", ["run.name", "expected a value"]),
        ("run.dir=''", ["run.dir", "expected a value"]),
        ("optimizer.learning_rate=.nan", ["optimizer.learning_rate", "expected a number", "nan"]),
        ("optimizer.learning_rate=.inf", ["optimizer.learning_rate", "expected a finite number", "inf"]),
        ("optimizer.b1=1.0", ["optimizer.b1", "below 1.0", "1.0"]),
    ],
)
def test_mistakes_in_overrides(override: str, words: list[str]):
    with pytest.raises(RecipeError) as caught:
        load_recipe("smoke.yaml", [override])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_what_splash_cannot_take():
    with pytest.raises(RecipeError, match=r"^[^\n]*features.attention=splash: [^\n]* 128 divides, got 200;[^\n]*$"):
        load_recipe("smoke.yaml", ["features.attention=splash", "batches.row_length=200"])
    load_recipe("smoke.yaml", ["features.attention=splash", "mesh.data=2"])


@pytest.mark.parametrize(("dtype", "most"), [("float32", 8192), ("bfloat16", 16384)])
def test_a_row_that_the_block_kernel_cannot_hold(dtype: str, most: int):
    chosen = ["drafter.attention=flash", f"train.dtype={dtype}"]
    said = rf"drafter.attention=flash: [^\n]* at most {most} with train.dtype={dtype} [^\n]* got {most + 128};"
    with pytest.raises(RecipeError, match=rf"^[^\n]*{said}[^\n]*$"):
        load_recipe("smoke.yaml", [*chosen, f"batches.row_length={most + 128}"])
    load_recipe("smoke.yaml", [*chosen, f"batches.row_length={most}"])
    load_recipe("smoke.yaml", [f"batches.row_length={most + 128}"])


def test_missing_and_unknown_keys_name_the_file(tmp_path: Path):
    raw = load_recipe("smoke.yaml").to_dict()
    del raw["train"]["steps"]
    file = tmp_path / "cut.yaml"
    file.write_text(yaml.safe_dump(raw))
    with pytest.raises(RecipeError, match=r"cut\.yaml: missing key train\.steps"):
        load_recipe(str(file))
    raw["train"] |= {"steps": 1, "speed": 2}
    file.write_text(yaml.safe_dump(raw))
    with pytest.raises(RecipeError, match=r"cut\.yaml: unknown key train\.speed"):
        load_recipe(str(file))


def test_no_such_recipe_and_no_yaml(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"no recipe 'wide\.yaml'.*wide_block\.yaml"):
        load_recipe("wide.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1,")
    with pytest.raises(RecipeError, match=r"bad\.yaml: not valid YAML"):
        load_recipe(str(tmp_path / "bad.yaml"))
