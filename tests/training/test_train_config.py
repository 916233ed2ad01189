"""Training options: read from YAML, changed on the command line, anything unknown refused."""

from pathlib import Path

import pytest

from unmask.errors import UnmaskError
from unmask.training import load_config, main
from unmask.training.config import from_mapping
from unmask.training.setup import found

CONFIGS = Path(__file__).parents[2] / "configs"
BASE = {"recipe": {"name": "autoregressive"}, "tokenizer": "t", "output": "o", "model": "m"}


@pytest.mark.parametrize("path", sorted((CONFIGS / "nano").rglob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_config_loads(path):
    assert load_config(path).steps > 0


def test_numbers_may_be_written_in_ways_yaml_takes_for_text():
    config = from_mapping({**BASE, "learning_rate": "1e-3", "steps": 10.0, "betas": [0.9, "0.95"]})
    assert (config.learning_rate, config.steps, config.betas) == (1e-3, 10, (0.9, 0.95))


def test_changes_reach_top_level_and_nested_options(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("recipe: {name: autoregressive}\ntokenizer: t\noutput: o\nmodel: m\n")
    config = load_config(path, ["steps=7", "recipe.prompt_weight=0.5", "compile=true"])
    assert config.steps == 7 and config.compile
    assert config.recipe == {"name": "autoregressive", "prompt_weight": 0.5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rte": 1}, "did you mean 'learning_rate'"),
        ({"init": "x"}, "either model"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"steps": "many"}, "steps must be int"),
        ({"steps": 1.5}, "steps must be int"),
        ({"compile": "yes"}, "compile must be true or false"),
        ({"recipe": "autoregressive"}, "recipe must be a mapping"),
        ({"rows_per_step": 8, "rows_per_forward": 3}, "no multiple"),
        ({"ema": 1.0}, "ema must be at least 0 and below 1"),
        ({"ema": "much"}, "ema must be float"),
        ({"keep": "bst"}, "did you mean 'best'"),
        ({"eval_every": 0}, "eval_every must be at least 1"),
        ({"lora": {"rank": 4}}, "lora needs init"),
        ({"lora": {"rnk": 4}, "model": None, "init": "i"}, "did you mean 'rank'"),
        ({"lora": 4}, "lora must be a mapping"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(UnmaskError, match=message):
        from_mapping({**BASE, **changes})


def test_a_missing_option_is_named():
    with pytest.raises(UnmaskError, match="lacks 'output'"):
        from_mapping({k: v for k, v in BASE.items() if k != "output"})


def test_the_command_reports_a_mistake_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "none.yaml")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_may_start_from_a_shipped_checkpoint():
    config = found(from_mapping({"recipe": {"name": "autoregressive"}, "init": "nano-ar", "output": "x"}))
    assert (Path(config.init or "") / "config.json").is_file() and config.tokenizer == config.init
    with pytest.raises(UnmaskError, match=r"no folder nano-arr .* nor nano or nano-ar"):
        found(from_mapping({"recipe": {"name": "autoregressive"}, "init": "nano-arr", "output": "x"}))
