"""The engine gives what the eager loop gives: same tokens, same forwards, whatever comes and goes around a request."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from test_exact import RUNS
from torch.utils._python_dispatch import TorchDispatchMode
from traffic import LONGEST, NEW, check, engine

from checkpoints import GOLDEN, MASKS, tiny
from unmask.engine.step import step
from unmask.errors import UnmaskError
from unmask.lm import LM
from unmask.models.checkpoint import load_model

# One of each way to run: causal, block-causal, whole canvas, several windows, stale keys, memory of rules, experts.
FEW = (
    "autoregressive",
    "masked-llada-cfg",
    "block_diffusion-dynamic",
    "fast_dllm_v2-cache",
    "d2f-dream",
    "lopa-full",
    "block_diffusion-stop",
    "wedlm-verify",
    "mdlm",
    "freedave",
    "freedave-dream",
    "llada2-editing",
    "fast_dllm-dream-dual",
    "dinfer-credit",
    "jacobi_blocks-recycling",
)
READS = ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "_unique2", "unique_dim")


@cache
def on_gpu(name: str) -> LM:
    folder = GOLDEN / "models" / name
    return LM(load_model(folder, device="cuda", dtype=torch.float32, mask_token_id=MASKS.get(name)), None)


@pytest.mark.parametrize("name", FEW)
def test_requests_come_out_as_in_the_eager_loop(name, monkeypatch):
    monkeypatch.setattr("unmask.engine.engine.GRAIN", 1)  # packed wherever rows differ
    lm = tiny(RUNS[name][0])
    e = engine(lm, name)
    asked, run = [], e.runner
    monkeypatch.setattr(e, "runner", Noting(run, asked))
    check(lm, name, e, count=8, seed=1)
    packed = [tokens is not None and tokens < rows * width for rows, width, tokens in asked]
    assert any(packed) == (len(e.widths) > 1 and name != "masked-llada-cfg")


@pytest.mark.gpu
@pytest.mark.parametrize("name", RUNS)
def test_requests_come_out_of_captured_steps_as_in_the_eager_loop(name, monkeypatch):
    monkeypatch.setattr("unmask.engine.engine.GRAIN", 16)  # rows are narrow here
    lm = on_gpu(RUNS[name][0])
    torch.use_deterministic_algorithms(False)
    check(lm, name, engine(lm, name), count=44, seed=2)


class Noting:
    """A runner that notes rows, width and tokens of each step."""

    def __init__(self, runner, noted):
        self.runner, self.noted = runner, noted

    def __call__(self, rows, width, used, tokens):
        self.noted.append((rows, width, tokens))
        self.runner(rows, width, used, tokens)

    def __getattr__(self, name):
        return getattr(self.runner, name)


def test_the_tokens_of_a_step_are_rounded_up_to_few_kinds():
    e = engine(tiny("fast-dllm-v2-tiny"), "fast_dllm_v2-cache", rows=64)
    kinds = {e._tokens(64, 32, needed) for needed in range(1, 64 * 32 + 1)}
    assert len(kinds) <= 20 and max(kinds) == 64 * 32
    for needed in (1, 32, 33, 300, 700, 1500):
        assert needed <= e._tokens(64, 32, needed) <= max(1.25 * needed, 32 + needed)
    assert e._tokens(2, 32, 60) == 64  # little would be saved


class HostReads(TorchDispatchMode):
    """Notes the operations for which a GPU would have to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        index = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in READS or any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in index):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "packed"),
    [*((name, False) for name in RUNS), *((name, True) for name in FEW)],
    ids=lambda value: value if isinstance(value, str) else ("packed" if value else "all-columns"),
)
def test_a_step_reads_nothing_back_to_the_host(name, packed):
    if "moe" in RUNS[name][0]:
        pytest.skip("the loop over experts reads counts back on the CPU; on a GPU another path runs")
    lm = tiny(RUNS[name][0])
    e = engine(lm, name, rows=2, prefill_tokens=64)
    for seed in (1, 2):
        e.add([5, 6, 7, 8, 9][: 3 + seed], temperature=0.9, top_p=0.8, top_k=5, seed=seed)
    e.step()
    state = e.batch.view(2, (True, frozenset({"top_p", "top_k"})))
    if packed and (len(e.widths) == 1 or name == "masked-llada-cfg"):
        pytest.skip("its steps have one width, or two views of each row, and are not packed")
    with torch.inference_mode(), HostReads() as reads:
        step(e.parts, state, e.batch.status, e.batch.table, e.widths[-1], e.widths[-1] if packed else None)
    assert reads.found == []


@pytest.mark.gpu
def test_the_loop_never_waits_for_the_device():
    lm = on_gpu("dream-tiny")
    e = engine(lm, "d2f-dream", rows=2, max_new_tokens=256, max_prompt=LONGEST)
    for seed in range(2):
        e.add([5, 6, 7], seed=seed)
    for _ in range(4):  # captures
        e.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        e.add([9, 8, 7], seed=3)
        while not e.idle:
            e.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_request_that_does_not_fit_is_refused_in_one_line():
    e = engine(tiny("qwen2-tiny"), "autoregressive")
    with pytest.raises(UnmaskError, match="a prompt of 41 tokens; this engine takes 1 to 40"):
        e.add([1] * 41)
    with pytest.raises(UnmaskError, match="max_new_tokens 17: this engine gives 1 to 16"):
        e.add([1], max_new_tokens=17)
    planned = engine(tiny("llada-tiny"), "masked-llada")
    with pytest.raises(UnmaskError, match="plans by max_new_tokens: this engine gives 16, not 8"):
        planned.add([1], max_new_tokens=8)
    assert e.idle and planned.idle


def test_prompts_that_begin_alike_are_not_run_twice():
    lm = tiny("qwen2-tiny")
    e = engine(lm, "autoregressive")
    prompt = list(range(5, 5 + LONGEST))
    first = e.add(prompt)
    e.run()
    second = e.add(prompt)
    e.step()
    assert second.prefilled == LONGEST
    assert e.pool.hits(second.keys) == (LONGEST - 1) // 16
    e.run()
    assert first.canvas == second.canvas


def test_logits_that_are_not_finite_fail_their_request_alone():
    lm = LM(load_model(GOLDEN / "models" / "qwen2-tiny"), None)
    with torch.no_grad():
        lm.model.embedding[7] = torch.nan
    e = engine(lm, "autoregressive", share_prefixes=False)
    bad, good = e.add([7, 8]), e.add([8, 9])
    e.run()
    assert bad.error is not None and "not finite" in bad.error
    assert good.error is None and len(good.canvas) >= NEW
    assert e.pool.used_pages == 0
