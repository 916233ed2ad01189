"""From a config to the samples of a run: tasks, the grammar without a tokenizer, files, trajectories."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from unmask.errors import UnmaskError
from unmask.models.checkpoint import load_model
from unmask.tasks.grammar import Grammar
from unmask.training import run
from unmask.training.config import from_mapping
from unmask.training.data import Packed, load_data, make_format, marks_of
from unmask.training.plot import read_log
from unmask.training.recipes import make_recipe
from unmask.training.recipes.base import IGNORE
from unmask.training.sources.problems import grammar_samples

TOKENIZER = Path(__file__).parents[2] / "configs" / "nano" / "tokenizer"
NANO = json.loads((TOKENIZER.parent / "model" / "config.json").read_text())
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def config(tmp_path):
    """A config for a tiny model, with changes."""

    def make(sizes=None, **changes):
        model = tmp_path / "config.json"
        model.write_text(json.dumps(NANO | SMALL | {"num_key_value_heads": 2} | (sizes or {})))
        base = {
            "recipe": {"name": "autoregressive"},
            "model": str(model),
            "output": str(tmp_path / "out"),
            "workers": 1,
        }
        return from_mapping(base | {"tokenizer": str(TOKENIZER)} | changes)

    return make


def loaded(config):
    marks = marks_of(config)
    recipe = make_recipe(config.recipe, mask_id=marks.mask_id)
    return load_data(config, recipe, make_format(config, recipe, marks))


def test_samples_of_the_grammar_fill_a_row_and_each_split_has_its_own():
    train, test = (grammar_samples(Grammar(), 16, split, 50, seed=1) for split in ("train", "test"))
    assert train.prompts.tolist() == [0] * 50 and train.lengths.tolist() == [16] * 50
    ids = torch.from_numpy(train.tokens).long().view(50, 16)
    assert torch.equal(ids, Grammar().sample(50, 16, seed=4)) and Grammar().log_prob(ids).isfinite().all()
    assert not np.array_equal(train.tokens, test.tokens)


def test_a_run_on_the_grammar_needs_no_tokenizer(config):
    made = config(
        {"vocab_size": 33, "eos_token_id": None},
        task="grammar",
        tokenizer=None,
        problems=64,
        eval_problems=16,
        row_tokens=16,
        rows_per_step=16,
        rows_per_forward=16,
        steps=12,
        learning_rate=3e-2,
        warmup_steps=2,
        log_every=1,
        dtype="float32",
    )
    figures = run(made)
    losses = [entry["loss"] for entry in read_log(Path(made.output) / "log.jsonl") if "loss" in entry]
    assert losses[0] == pytest.approx(np.log(33), abs=0.3) and losses[-1] < 3.1 and figures["step"] == 12
    assert load_model(made.output).config.vocab_size == 33
    assert not (Path(made.output) / "tokenizer.json").exists()


def test_the_grammars_rows_learn_every_token(config):
    made = config(task="grammar", tokenizer=None, problems=4, eval_problems=2, row_tokens=16)
    train, held = loaded(made)
    assert (len(train), len(held)) == (4, 2) and set(train.lengths) == {16}
    with pytest.raises(UnmaskError, match="no end token to fill with"):
        loaded(config(task="grammar", tokenizer=None, fill_end=True))


def test_a_task_may_be_one_kind_of_list(config):
    train, held = loaded(config(task="lists:reverse", problems=20, eval_problems=5))
    assert (len(train), len(held)) == (20, 5)
    with pytest.raises(UnmaskError, match="did you mean 'lists:reverse'"):
        loaded(config(task="lists:revers"))
    with pytest.raises(UnmaskError, match="needs a tokenizer"):
        loaded(config(task="lists", tokenizer=None))


def test_answers_are_filled_and_long_ones_refused_as_the_config_says(config):
    changes = {"task": "lists", "problems": 50, "eval_problems": 5}
    with pytest.raises(UnmaskError, match=r"of lists has an answer of \d+ tokens .* answer_tokens is 8; \d+ of 5"):
        loaded(config(**changes, answer_tokens=8))
    train, _ = loaded(config(**changes, answer_tokens=8, too_long="drop"))
    assert 0 < len(train) < 50 and len(train) + train.dropped == 50 and train.answers.max() <= 8
    with pytest.raises(UnmaskError, match="the model's context is 24"):
        loaded(config({"max_position_embeddings": 24}, **changes))


def answers(path, count=20, **more):
    """A file as `unmask distil` writes it."""
    rows = []
    for n in range(count):
        row = {"index": n, "prompt_ids": [1, 300 + n], "response_ids": [400 + n, 401, 402, 403, 404, 2]}
        rows.append(json.dumps(row | {name: value(row) for name, value in more.items()}) + "\n")
    path.write_text("".join(rows))
    return str(path)


def test_a_models_own_answers_are_data(config, tmp_path):
    train, held = loaded(config(data=answers(tmp_path / "a.jsonl"), eval_problems=2))
    assert (len(train), len(held)) == (18, 2) and train.drafts is None
    firsts = sorted(train.tokens[train.starts[:-1] + 1].tolist() + held.tokens[held.starts[:-1] + 1].tolist())
    assert firsts == list(range(300, 320)) and set(train.prompts) == {2}
    other = answers(tmp_path / "b.jsonl", 3)
    train, held = loaded(config(data=answers(tmp_path / "a.jsonl"), validation_data=other, problems=7))
    assert (len(train), len(held)) == (7, 3)


def test_ids_of_another_tokenizer_are_refused(config, tmp_path):
    path = answers(tmp_path / "a.jsonl", prompt=lambda row: "Hi")
    with pytest.raises(UnmaskError, match=r"a\.jsonl holds token ids of another tokenizer"):
        loaded(config(data=path))


def test_recipes_of_trajectories_get_drafts_and_nothing_else(config, tmp_path):
    recipe = {"name": "jacobi_forcing", "block_size": 4}
    blocks = {
        "block_size": lambda row: 4,
        "blocks": lambda row: [[[row["response_ids"][0], 9, 9, 9], row["response_ids"][:4]], [[404, 2, 7, 7]]],
    }
    path = answers(tmp_path / "t.jsonl", **blocks)
    train, held = loaded(config(data=path, recipe=recipe, drafts={"window": 1, "low": 0.75, "high": 0.75}))
    assert train.drafts is not None and held.drafts is not None
    assert train.drafts[:8].tolist() == [*train.tokens[:3].tolist(), 9, 9, 9, 404, 2]
    with pytest.raises(UnmaskError, match="this recipe needs trajectories: data made by"):
        loaded(config(recipe=recipe))
    with pytest.raises(UnmaskError, match=r"row \d+ of a\.jsonl holds no trajectory"):
        loaded(config(data=answers(tmp_path / "a.jsonl"), recipe=recipe))
    with pytest.raises(UnmaskError, match="did you mean 'window'"):
        loaded(config(data=path, recipe=recipe, drafts={"windows": 2}))


def test_no_label_is_lost_between_config_and_batch(config):
    """All answer tokens of all samples are labels of one epoch, once."""
    made = config(task="lists", problems=40, eval_problems=5, row_tokens=128, recipe={"name": "autoregressive"})
    marks = marks_of(made)
    recipe = make_recipe(made.recipe)
    form = make_format(made, recipe, marks)
    train, _ = load_data(made, recipe, form)
    packed = Packed(train, form, 1, 0)
    labels = 0
    for epoch, rows in packed.steps():
        if epoch:
            break
        labels += int((packed.batch(rows).labels != IGNORE).sum())
    assert labels == int(train.answers.sum())
