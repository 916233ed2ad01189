"""Where the engine's memory goes, and how many rows fit.

    unmask bench memory fast-dllm-v2-7b --methods autoregressive,fast_dllm_v2 --batch 32

An engine of that many rows is filled with prompts of the longest length and makes some steps: once so that every kind
of step they need exists, and on a GPU once more, measured. In bytes:

    weights   all tensors of the model, shared ones once
    K/V       all pages; `per_row` are those of a row of the longest length, the spare page is nobody's
    state     what is remembered of the rows between steps
    graphs    the private pool of the captured steps: their activations and logits
    other     the largest amount PyTorch has reserved less all of these: prefill, workspaces, what the allocator rounds
    outside   what the device has given to anyone else: the CUDA context, libraries, other processes

A row takes its pages and state and its share of the graphs. As many rows fit as fill the device's memory less weights,
other and outside; no margin is kept. Off the GPU graphs, other and outside are not known, nor is the device's memory.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from unmask.bench.steps import random_ids, synchronise
from unmask.bench.throughput import Contender, free_memory
from unmask.engine.engine import Engine
from unmask.engine.fused import FusedTransformer
from unmask.engine.request import Request
from unmask.lm import LM
from unmask.schema import count, optional, record, scalar, table, text, whole

STEPS = 8
MOST = 1 << 50

ENTRY = {
    "method": text,
    "options": table(scalar),
    "batch": whole(1, MOST),
    "reason": optional(text),
}
"""Fields of every entry. reason: why nothing was measured, null where it was."""
MEASURED = {
    "weights": count(MOST),
    "pages": record,
    "state": count(MOST),
    "graphs": optional(count(MOST)),
    "captured": count(MOST),
    "other": optional(count(MOST)),
    "outside": optional(count(MOST)),
    "peak_allocated": optional(count(MOST)),
    "peak_reserved": optional(count(MOST)),
    "per_row": count(MOST),
    "device": optional(count(MOST)),
    "rows_fit": optional(count(MOST)),
}
"""Fields of an entry that was measured, in bytes but for `rows_fit` and `captured`, the number of graphs."""
PAGES = {name: count(MOST) for name in ("bytes", "pages", "page_size", "per_page", "per_row")}
"""Fields of `pages`, in bytes but for the number of pages and the slots of each."""


def measure(lm: LM, contender: Contender, batch: int, prompt: int, new_tokens: int, **more: Any) -> dict[str, Any]:
    """One entry: a method at a batch size. Where the memory does not suffice the entry says so.

    Args:
        prompt, new_tokens: of each row at most.
        more: further arguments of the engine, and `device_bytes`: the memory of the device that rows are to fit in,
            None for this one's.
    """
    free_memory(lm.model.device)
    about = {k: v for k, v in contender.about(batch).items() if k != "replayed_tpf"}
    try:
        return about | _measured(lm, contender, batch, prompt, new_tokens, more)
    except torch.OutOfMemoryError as error:
        reason = f"out of memory: {str(error).splitlines()[0]}"
    return about | {"reason": reason}


def _measured(
    lm: LM, contender: Contender, batch: int, prompt: int, new_tokens: int, more: dict[str, Any]
) -> dict[str, Any]:
    device_bytes = more.pop("device_bytes", None)
    sizes = {"rows": batch, "max_prompt": prompt, "max_new_tokens": new_tokens}
    engine = Engine(lm, contender.method, **sizes, share_prefixes=False, **more)
    work(engine, lm, batch, prompt)
    cuda = engine.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(engine.device)
        work(engine, lm, batch, prompt)
    pages, state = _pages(engine), _bytes([*engine.batch.named.values(), engine.batch.status, engine.batch.table])
    found: dict[str, Any] = {"weights": weights(engine), "pages": pages, "state": state}
    found["captured"] = len(engine.runner.captured)
    found |= _on_gpu(engine, found["weights"] + pages["bytes"] + state) if cuda else _unknown()
    shared = (state + (found["graphs"] or 0)) // batch
    per_row = pages["per_row"] + shared
    device = device_bytes if device_bytes is not None else found["device"]
    fixed = found["weights"] + (found["other"] or 0) + (found["outside"] or 0)
    fit = None if device is None else max(0, device - fixed) // per_row
    return found | {"per_row": per_row, "device": device, "rows_fit": fit}


def work(engine: Engine, lm: LM, rows: int, prompt: int) -> None:
    """Fills the engine, makes some steps of all rows, and empties it."""
    draw = random.Random(0)
    requests: list[Request] = [engine.add(random_ids(draw, lm, prompt)) for _ in range(rows)]
    while len(engine.scheduler.running) < rows and not any(r.status.ended for r in requests):
        engine.step()
    for _ in range(STEPS):
        engine.step()
    for request in requests:
        engine.abort(request)
    engine.run()
    synchronise(engine.device)


def weights(engine: Engine) -> int:
    """Bytes of the model's tensors, storage that several share counted once."""
    model = engine.parts.model
    found = [*engine.lm.model.parameters(), *engine.lm.model.buffers()]
    if isinstance(model, FusedTransformer):
        linears = [linear for layer in model.layers for linear in layer.linears()] + [model.output]
        found += [x for linear in linears for x in (linear.weight, linear.bias, linear.scale) if x is not None]
    return _bytes(found)


def _bytes(tensors: list[Tensor]) -> int:
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return sum(storages.values())


def _pages(engine: Engine) -> dict[str, int]:
    cache, method = engine.parts.cache, engine.method
    total = _bytes([cache.keys, cache.values])
    pages = cache.keys.shape[1] // cache.page_size
    slots = method.slots(engine.width) if method.cached else 0
    per_page = total // pages
    needed = engine.pool.pages_for(slots)
    return {
        "bytes": total,
        "pages": pages,
        "page_size": cache.page_size,
        "per_page": per_page,
        "per_row": needed * per_page,
    }


def _on_gpu(engine: Engine, known: int) -> dict[str, int | None]:
    """What PyTorch and the device say. known: bytes accounted for otherwise."""
    pool = engine.runner.pool
    segments = [] if pool is None else torch.cuda.memory_snapshot()
    graphs = sum(s["total_size"] for s in segments if s.get("segment_pool_id") == pool)
    free, device = torch.cuda.mem_get_info(engine.device)
    reserved = torch.cuda.max_memory_reserved(engine.device)
    return {
        "graphs": graphs,
        "other": max(0, reserved - known - graphs),
        "outside": max(0, device - free - torch.cuda.memory_reserved(engine.device)),
        "peak_allocated": torch.cuda.max_memory_allocated(engine.device),
        "peak_reserved": reserved,
        "device": device,
    }


def _unknown() -> dict[str, int | None]:
    return dict.fromkeys(("graphs", "other", "outside", "peak_allocated", "peak_reserved", "device"))
