"""The recorded vectors of the official codes, all of them, through the same program that users run."""

from __future__ import annotations

import pytest

from checkpoints import GOLDEN
from conform import conform, judge

BUILT = {
    "ar-causal.jsonl": 18,
    "d2f-dream.jsonl": 20,
    "d2f-llada.jsonl": 18,
    "didi-rgas.jsonl": 6,
    "dinfer-llada.jsonl": 38,
    "dinfer-llada-moe.jsonl": 4,
    "dparallel-dream.jsonl": 15,
    "dparallel-llada.jsonl": 14,
    "fast-dllm-v1-dream.jsonl": 26,
    "fast-dllm-v1-llada.jsonl": 30,
    "fast-dllm-v2-batch-block.jsonl": 5,
    "fast-dllm-v2-block.jsonl": 30,
    "fast-dllm-v2-training-block.jsonl": 3,
    "freedave-block.jsonl": 33,
    "freedave-dream.jsonl": 28,
    "freedave-llada.jsonl": 30,
    "jacobi-causal.jsonl": 18,
    "jacobi-loss-causal.jsonl": 19,
    "jacobi-mr-causal.jsonl": 17,
    "jacobi-trajectory-causal.jsonl": 8,
    "jacobi-window-causal.jsonl": 10,
    "likelihood-llada.jsonl": 12,
    "llada2-block.jsonl": 31,
    "lopa-dream.jsonl": 19,
    "mdlm-sampler.jsonl": 7,
    "sched-dream.jsonl": 26,
    "sdar-block.jsonl": 32,
    "sdar-training-block.jsonl": 3,
    "training-bd3lm.jsonl": 20,
    "training-d2f.jsonl": 32,
    "training-didi.jsonl": 13,
    "training-dparallel.jsonl": 19,
    "training-llada.jsonl": 11,
    "training-mdlm.jsonl": 15,
    "vanilla-dream.jsonl": 21,
    "vanilla-llada.jsonl": 18,
    "vanilla-llada-moe.jsonl": 4,
    "wedlm-causal.jsonl": 45,
    "wedlm-hf-causal.jsonl": 13,
    "wedlm-loss-causal.jsonl": 14,
}


FILES = sorted(p.name for p in GOLDEN.iterdir() if p.suffix == ".jsonl" or p.name.endswith("-logits.json"))


@pytest.mark.parametrize("name", FILES)
def test_every_required_vector_passes_and_no_file_lost_a_case(name):
    outcome = judge(GOLDEN, GOLDEN / name)
    assert not outcome.not_built
    assert outcome.failures == []
    assert outcome.passed == BUILT.get(name, 1)


def test_no_file_of_recorded_runs_is_missing():
    assert {name for name in FILES if name.endswith(".jsonl")} == set(BUILT)


def test_a_wrong_token_is_reported_with_its_forward(tmp_path):
    line = (GOLDEN / "d2f-llada.jsonl").read_text().splitlines()[0]
    (tmp_path / "models").symlink_to(GOLDEN / "models")
    (tmp_path / "d2f-llada.jsonl").write_text(line.replace("[18],[172]", "[18],[171]"))
    (outcome,) = conform(tmp_path)
    assert outcome.passed == 0
    assert "first differing forward" in outcome.failures[0]
    (tmp_path / "d2f-llada.jsonl").write_text(line.replace('"forwards":13', '"forwards":12'))
    assert "forwards: expected 12, got 13" in conform(tmp_path)[0].failures[0]


def test_files_of_methods_that_are_not_built_are_listed_and_not_passed(tmp_path):
    (tmp_path / "some-new-method.jsonl").write_text("{}\n")
    (outcome,) = conform(tmp_path)
    assert outcome.not_built
    assert outcome.passed == 0
    assert "not built" in outcome.line()
