"""Replays of the WeDLM engine and of its Hugging Face helper."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from replay import Case, Replay, Trace, prompts_of, run
from unmask.decoding.loop import Row
from unmask.models.checkpoint import Checkpoint

# Settings that the engine takes for each request; a method here has one for all rows.
PER_ROW = {
    "entropy_threshold": "wedlm_entropy_threshold",
    "position_penalty": "wedlm_pos_penalty_factor",
    "max_new_tokens": "max_tokens",
}


def settings(options: dict[str, Any], row: int) -> dict[str, Any]:
    """The engine's options of one request under our names, and what makes our forwards its own."""
    values = {ours: options[theirs] for ours, theirs in PER_ROW.items()}
    fixed = {"window_size": options["wedlm_window_size"], "own_prefill": True, "early_exit": False}
    return {k: v[row] if isinstance(v, list) else v for k, v in values.items()} | fixed


def engine(checkpoint: Checkpoint, case: Case) -> Replay:
    """Rows with the same settings run as a batch, others alone: the engine's rows do not depend on each other.

    The engine cuts the text at max_tokens and at stop sequences after the forward that commits them.
    """
    o, prompts = case["options"], prompts_of(case)
    each = [settings(o, i) for i in range(len(prompts))]
    numbers = range(len(prompts))
    rows: list[Row] = []
    for group in [list(numbers)] if all(s == each[0] for s in each) else [[i] for i in numbers]:
        options = dict(each[group[0]])
        new_tokens, eos = options.pop("max_new_tokens"), tuple(o["stop_token_ids"])
        part = case | {"prompt": [prompts[i] for i in group]}
        rows += run(checkpoint, part, "wedlm", options, new_tokens=new_tokens, eos=eos, mask=o["mask_token_id"])
    out = [
        _stopped(row, prompt, s["max_new_tokens"], o["stop_token_ids"], o["stop_sequences"])
        for row, prompt, s in zip(rows, prompts, each)
    ]
    longest = max(len(trace) for _, trace in out)
    return Replay([ids for ids, _ in out], [trace for _, trace in out], ["prefill"] + ["denoise"] * longest)


def _stopped(
    row: Row, prompt: list[int], new_tokens: int, eos: list[int], sequences: list[list[int]]
) -> tuple[list[int], Trace]:
    """Text and trace up to where the engine's scheduler stops: after the forward whose committed tokens end in a stop
    token, in a stop sequence (it looks back into the prompt) or at the length wanted."""
    steps = [s for s in row.trace if s.kind != "prefill"]
    ids: list[int] = []
    trace: Trace = []
    for step, following in zip(steps, [*steps[1:], None]):
        trace.append([step.forward, step.positions, step.tokens])
        committed = new_tokens if following is None else following.visible - len(prompt)
        for token in row.canvas[len(ids) : committed]:
            ids.append(token)
            text = prompt + ids
            if token in eos or any(text[-len(s) :] == s for s in sequences) or len(ids) == new_tokens:
                return ids, trace
    return ids, trace


class Warm(nn.Module):
    """A model whose logits are divided by a temperature."""

    def __init__(self, model: Any, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature
        self.config, self.device, self.dtype = model.config, model.device, model.dtype

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(*inputs) / self.temperature


def helper(checkpoint: Checkpoint, case: Case) -> Replay:
    """`generate_wedlm`: its temperature scales the confidences and draws nothing, its rows run one after the other, and
    it runs the prompt in every forward, so the first is one like the others. No threshold (0): one token a forward."""
    o, tau = case["options"], case["options"]["confidence_threshold"]
    scaled = replace(checkpoint, model=Warm(checkpoint.model, o["temperature"]))  # type: ignore[arg-type]
    select = f"threshold:tau={tau},strict=false" if tau else "static"
    options = {"block_size": o["block_size"], "schedule": "block", "select": select}
    new_tokens, mask = o["max_new_tokens"], o["mask_token_id"]
    rows = [
        run(scaled, case | {"prompt": prompt}, "wedlm", options, new_tokens=new_tokens, eos=(), mask=mask)[0]
        for prompt in prompts_of(case)
    ]
    trace = [[[s.forward + 1, s.positions, s.tokens] for s in row.trace] for row in rows]
    return Replay([row.canvas for row in rows], trace, ["full"] * sum(map(len, trace)))


REPLAYS = {"wedlm-hf-causal": helper, "wedlm-causal": engine}
