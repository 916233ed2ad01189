"""Replays of SchED, its Prophet, and LoPA; see `replay`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from replay import Case, Replay, in_step, prompts_of, run, trace_of
from unmask.decoding.forward import State
from unmask.decoding.lopa import BranchState
from unmask.models.checkpoint import Checkpoint

# Official option names that the methods know.
GATE = ("min_progress", "patience_steps", "stat", "q", "average_over_masked", "max_change_ratio")
LEVELS = {
    "schedule": ("sched", ("tau_mode", "tau_high", "tau_low", "tau_k")),
    "prophet": ("prophet", ("early_threshold", "mid_threshold", "late_threshold")),
}


def sched(checkpoint: Checkpoint, case: Case) -> Replay:
    """answer_start and answer_end are positions in prompt + answer, ours count from the end of the prompt."""
    o = case["options"]
    method, levels = LEVELS[o["generator"]]
    options = {k: o[k] for k in (*levels, *GATE, "steps", "alg", "answer_region")}
    if o["answer_start"] is not None:
        first = o["answer_start"] - len(prompts_of(case)[0])
        options |= {"answer_region": "span", "first": first, "count": o["answer_end"] - o["answer_start"]}
    rows = run(
        checkpoint,
        case,
        method,
        options | {"schedule": "timestep", "early_exit": False},
        new_tokens=o["max_new_tokens"],
        eos=(o["eos_token_id"],),
        mask=o["mask_token_id"],
        temperature=o["temperature"],
    )
    return in_step(rows, {"denoise": "denoise"})


LOPA = (
    "block_size",
    "block_add_threshold",
    "decoded_token_threshold",
    "skip_threshold",
    "sampling_strategy",
    "branch_topp",
    "selection_conf_alpha",
    "use_full_attention",
)


def lopa(checkpoint: Checkpoint, case: Case) -> Replay:
    """The official loop forwards each branch by itself, here a round is one forward: the record's calls and branches
    are compared with what our forward held, and its rounds with our forwards.

    Raises:
        AssertionError: branches, winners, windows or rounds differ.
    """
    o, expect = case["options"], case["expect"]
    size, prompt = o["block_size"], len(prompts_of(case)[0])
    options = {k: o[k] for k in LOPA} | {"early_exit": False}
    alone = o["branching_factor"] == 1 or not (o["use_uncertainty_logic"] and o["base_branch_competition"])
    options["num_lookahead"] = 0 if alone else o["branching_factor"]
    if o["verification_force_base_winner"]:  # the anchor's confidence is 1, so it alone decides
        options["selection_conf_alpha"] = 1.0
    calls, branches = [[prompt + size, 0, prompt]], [None]
    log: list[dict[str, Any]] = []
    rounds = [calls]

    def observe(numbers: list[int], state: State) -> None:
        nonlocal branches
        assert isinstance(state, BranchState)
        log.append({"branches": branches, "winner": min(int(state.winner[0]), len(branches) - 1)})
        made = [[int(p) - prompt, int(t)] for p, t in zip(state.place[0], state.guess[0]) if p >= 0]
        branches = [*made, None]
        base, stored = int(state.cached[0]) * size, int(state.ready[0] - state.cached[0]) * size
        if not bool(state.done[0]):
            rounds.append([[n * size - base, prompt + base, stored] for n in state.lengths[0].tolist() if n])

    (row,) = run(
        checkpoint,
        case,
        "lopa",
        options,
        new_tokens=o["max_new_tokens"] // size * size,
        eos=(o["eos_token_id"],),
        mask=o["mask_token_id"],
        temperature=o["temperature"],
        top_p=o["top_p"] or 1.0,
        top_k=o["top_k"] or 0,
        observe=observe,
    )
    ours = [call for calls in rounds for call in calls]
    if "rounds" in expect:
        theirs = [{k: entry[k] for k in ("branches", "winner")} for entry in expect["round_log"]]
        assert len(row.trace) == expect["rounds"], f"rounds: expected {expect['rounds']}, got {len(row.trace)}"
        assert log == theirs, f"branches or winners: expected {theirs}, got {log}"
        assert ours == expect["calls"], f"calls: expected {expect['calls']}, got {ours}"
    tokens = [t for t, is_open in zip(row.canvas, row.open) if not is_open]
    kinds = ["with_cache_update" if stored else "without_cache_update" for _, _, stored in ours]
    return Replay([tokens], [trace_of(row.trace)], kinds)


REPLAYS: dict[str, Callable[[Checkpoint, Case], Replay]] = {"sched-dream": sched, "lopa-dream": lopa}
