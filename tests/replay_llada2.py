"""How the recorded cases of LLaDA2.0 and LLaDA2.1 are run here; see `replay`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from replay import Case, Replay, Trace, cut, prompts_of, run
from unmask.decoding.forward import State
from unmask.models.checkpoint import Checkpoint

KINDS = {"denoise": "denoise", "draft": "post"}
PLAIN = ("block_length", "threshold", "steps", "minimal_topk")
EDITING = ("block_length", "threshold", "editing_threshold", "max_post_steps", "num_to_transfer", "eos_early_stop")


def llada2(checkpoint: Checkpoint, case: Case) -> Replay:
    """The official code has no cache, so our prefill and commits are not in the record. What a forward wrote is read
    off the canvas: with editing a token is written before it is final."""
    o = case["options"]
    editing = "editing_threshold" in o
    options = {k: o[k] for k in (EDITING if editing else PLAIN)}
    options |= {"editing": editing, "fused_commit": False} | ({} if editing else {"early_exit": False})
    canvases: list[Tensor] = []

    def observe(numbers: list[int], state: State) -> None:
        canvases.append(state.canvas[0])

    (row,) = run(
        checkpoint,
        case,
        "llada2",
        options,
        new_tokens=o["gen_length"],
        eos=(o["eos_id"],),
        mask=o["mask_id"],
        temperature=o["temperature"],
        observe=observe,
    )
    prompt = len(prompts_of(case)[0])
    blank = canvases[0].new_full(canvases[0].shape, o["mask_id"])
    trace: Trace = []
    kinds: list[str] = []
    for step, before, after in zip(row.trace, [blank, *canvases], canvases):
        if step.kind not in KINDS:
            assert step.kind == "prefill" or bool((before == after).all())
            continue
        before, after = before[prompt:], after[prompt:]
        written = (before != after).nonzero()[:, 0]
        if len(written):
            trace.append([len(kinds), written.tolist(), after[written].tolist()])
        kinds.append(KINDS[step.kind])
        if not editing and o["eos_early_stop"] and _stops(after, written, o):
            break
    return Replay([cut(row.canvas[: o["gen_length"]], (o["eos_id"],))], [trace], kinds)


def _stops(answer: Tensor, written: Tensor, o: dict[str, Any]) -> bool:
    """LLaDA2.0's early stop, which looks only at forwards that write an end token (ours at every forward)."""
    ends = written[answer[written] == o["eos_id"]]
    return len(ends) > 0 and bool((answer[: int(ends[0])] != o["mask_id"]).all())


REPLAYS: dict[str, Callable[[Checkpoint, Case], Replay]] = {"llada2-block": llada2}
