"""Recorded likelihoods and greedy checks of LLaDA's code against ours, for conform.py and the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from unmask.likelihood import greedy_answer, loglikelihood
from unmask.models.checkpoint import load_model

Case = dict[str, Any]


def check_likelihood(folder: Path, case: Case) -> str:
    """Empty if value (within 1e-3, as the record asks) and forwards are the recorded ones, else what differs."""
    o, e = case["options"], case["expect"]
    read = load_model(folder / "models" / case["model"], dtype=torch.float32, mask_token_id=o["mask_id"])
    if o.get("check") == "greedy":
        ids, forwards = greedy_answer(
            read.model, read.family, case["prompt"], len(case["answer"]), cfg_scale=o["cfg_scale"]
        )
        ours, same = ids == case["answer"], (ids == case["answer"]) == e["is_greedy"]
    else:
        masks = o["masked_answer_positions"]
        assert sum(map(len, masks)) == o["mc_num"]
        found = loglikelihood(
            read.model, read.family, case["prompt"], case["answer"], masks=masks, cfg_scale=o["cfg_scale"]
        )
        ours, forwards = found.value, found.forwards
        same = abs(ours - e["log_likelihood"]) < 1e-3
    if same and forwards == e["forwards"]:
        return ""
    return f"expected {e}, got {ours} after {forwards} forwards"


LIKELIHOODS: dict[str, Callable[[Path, Case], str]] = {"likelihood-llada": check_likelihood}
