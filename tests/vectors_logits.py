"""The official logits of a tiny checkpoint against ours: `check_logits(golden, "llada-tiny")`.

Each family's record names its patterns in its own words; the functions below turn them into layouts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from unmask.attention.dense import DenseAttention, sdpa
from unmask.cache.contiguous import ContiguousCache
from unmask.layout import (
    Layout,
    block_causal,
    block_index,
    causal,
    full,
    jacobi_clean,
    jacobi_noise,
    visible,
    wedlm_streams,
)
from unmask.models import load_model
from unmask.models.network import Network
from vectors_dit import DITS, check_dit

DENSE = (
    "llada-tiny",
    "llada-tiny-train",
    "dream-tiny",
    "dream-tiny-eos",
    "dream-tiny-train",
    "fast-dllm-v2-tiny",
    "sdar-tiny",
    "qwen2-tiny",
    "wedlm-tiny",
    "wedlm-qwen2-tiny",
    "llada-moe-tiny",
    "llada2-moe-tiny",
)


class PlainAttention(DenseAttention):
    """Dense attention with PyTorch's plain kernel, the mask left out where it hides nothing."""

    def __call__(self, layer: int, q_BHWD: Tensor, k_BGWD: Tensor, v_BGWD: Tensor) -> Tensor:
        mask = None if bool(self.mask.all()) else self.mask
        with sdpa_kernel(SDPBackend.MATH):
            return sdpa(q_BHWD, k_BGWD, v_BGWD, mask)


@dataclass(frozen=True)
class Case:
    """A recorded tensor: tokens [B, W], layout, official logits [B, W, V].

    `compare`: bool [B, W] where they count. `mask`: [W, W] as recorded. `lora`: with the adapter.
    """

    name: str
    tokens: Tensor
    layout: Layout
    logits: Tensor
    compare: Tensor | None = None
    mask: Tensor | None = None
    lora: bool = False


def check_logits(folder: Path, name: str) -> list[str]:
    """The failures, one line each; empty when all of the record `<name>-logits.json` in `folder` agrees.

    Args:
        folder: holds the record and `models/`.
        name: one of `DENSE` or `DITS`.
    """
    if name in DITS:
        return check_dit(folder, name)
    record = json.loads((folder / f"{name}-logits.json").read_text())
    tensors = load_file(folder / f"{name}-logits.safetensors")
    atol = next((record[k] for k in ("tolerance_abs", "tolerance", "suggested_atol") if k in record), None)
    models = {False: load_model(folder / "models" / name).model}
    if "adapter" in record:
        models[True] = load_model(folder / "models" / name, adapter=folder / "models" / record["adapter"]).model
    cases = list(CASES[name](record, tensors))
    failures = [f for case in cases for f in _failures(models[case.lora], case, atol)]
    if "stale.input_ids" in tensors:
        failures += list(_stale(models[False], record["inputs"]["stale"], tensors, atol))
    unread = _logit_names(tensors) - {case.name for case in cases}
    return failures + [f"{tensor}: recorded but not compared" for tensor in sorted(unread)]


def _logit_names(tensors: dict[str, Tensor]) -> set[str]:
    inputs = (".input_ids", ".attention_mask")
    return {n for n in tensors if not n.endswith(inputs) and not n.startswith("stale.")}


@torch.inference_mode()
def _failures(model: Network, case: Case, atol: float | None) -> Iterator[str]:
    if case.mask is not None and not torch.equal(case.mask.bool(), visible(case.layout, case.layout)):
        yield f"{case.name}: the layout's mask is not the recorded one"
    layout = case.layout.batch(len(case.tokens)) if case.layout.order.dim() == 1 else case.layout
    # The official codes ran either kernel; logits reach 60 here, where the two differ by the tolerance itself. One
    # must agree.
    found = []
    for attention in (DenseAttention, PlainAttention):
        logits = model(case.tokens, layout.positions, attention(layout))
        found.append(list(_compare(case.name, logits, case.logits.reshape(logits.shape), atol, case.compare)))
    yield from min(found, key=len)


def _default_tolerance() -> float:
    """1e-4; before torch 2.13, which made the records, other kernels ran: logits differ by up to 1.07e-4
    there, less than the 1.3e-4 by which the records themselves lie from float64."""
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    return 1e-4 if (major, minor) >= (2, 13) else 1.5e-4


def _compare(
    name: str, ours: Tensor, official: Tensor, atol: float | None, where: Tensor | None = None
) -> Iterator[str]:
    allowed = _default_tolerance() if atol is None else atol
    excess = ((ours - official).abs() - allowed).amax(-1)
    worst = float(excess.max() if where is None else excess[where].max())
    if not worst <= 0:
        yield f"{name}: differs by {worst:.2g} more than allowed"


def _llada(record: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[Case]:
    for name, entry in record["inputs"].items():
        if name == "stale":
            continue
        tokens = tensors[f"{name}.input_ids"]
        layout, valid = full(tokens.shape[1]), tensors.get(f"{name}.attention_mask")
        if "block_size" in entry:
            layout = block_causal(tokens.shape[1], entry["block_size"], anchor=entry["prompt_length"])
        if valid is not None:
            valid = valid.bool()
            layout = layout.batch(len(tokens)).with_padding(valid)
        yield Case(f"{name}.logits", tokens, layout, tensors[f"{name}.logits"], valid)


@torch.inference_mode()
def _stale(model: Network, entry: dict[str, Any], tensors: dict[str, Tensor], atol: float | None) -> Iterator[str]:
    """Keys of an earlier forward outside the window (Fast-dLLM's two caches, dInfer's vicinity refresh)."""
    refresh, tokens = tensors["stale.refresh_input_ids"], tensors["stale.input_ids"]
    c, length = model.config, tokens.shape[1]
    layout, slots = full(length).batch(1), torch.arange(length).unsqueeze(0)
    for kind in ("prefix", "dual", "vicinity"):
        start, stop = entry[f"{kind}_window"]
        cache = ContiguousCache(c.num_layers, 1, c.num_kv_heads, length, c.head_dim)
        model(refresh, slots, cache.window(layout, torch.zeros(1, dtype=torch.long), slots))
        seen = torch.tensor([start if kind == "prefix" else length])
        store = slots[:, start:stop]
        window = replace(full(stop - start), positions=store[0]).batch(1)
        logits = model(tokens[:, start:stop], store, cache.window(window, seen, store))
        yield from _compare(f"stale.{kind}", logits, tensors[f"stale.{kind}_logits"], atol)


def _dream(record: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[Case]:
    for name, entry in record["inputs"].items():
        tokens = torch.tensor(entry["input_ids"])
        for pattern in entry["patterns"]:
            layout, valid = _dream_layout(pattern, entry, tokens.shape[1]), None
            if "attention_mask" in entry:
                valid = torch.tensor(entry["attention_mask"]).bool()
                positions = torch.tensor(entry["position_ids"])
                layout = replace(layout.batch(len(tokens)).with_padding(valid), positions=positions)
            key = f"{name}.{pattern}"
            yield Case(key, tokens, layout, tensors[key], valid)


def _dream_layout(pattern: str, entry: dict[str, Any], length: int) -> Layout:
    if pattern.startswith("block_causal_"):
        return block_causal(length, int(pattern.rpartition("_")[2]), anchor=entry["prompt_length"])
    return {"full": full, "full_left_padded": full, "causal": causal}[pattern](length)


def _blocks(record: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[Case]:
    for index, ids in enumerate(record["inputs"]):
        for pattern in record["patterns"]:
            key = f"in{index}.{pattern}"
            layout = {"causal": causal, "full": full}.get(pattern, _absolute_blocks(pattern))(len(ids))
            yield Case(key, torch.tensor([ids]), layout, tensors[key])


def _absolute_blocks(pattern: str) -> Any:
    return lambda length: block_causal(length, int(pattern.removeprefix("block")))


def _train(record: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[Case]:
    for name, entry in record["inputs"].items():
        tokens = torch.tensor(entry["tokens"])
        rows, length = tokens.shape
        anchors = torch.tensor(entry["prompt_lengths"]).unsqueeze(1)
        order = block_index(torch.arange(length).expand(rows, -1), entry["block_size"], anchors)
        plain = full(length).batch(rows)
        patterns = {"full": plain, f"block{entry['block_size']}": replace(plain, order=order)}
        for pattern, layout in patterns.items():
            for suffix in ("", ".lora"):
                key = f"{name}.{pattern}{suffix}"
                yield Case(key, tokens, layout, tensors[key], lora=bool(suffix))


def _ordered(record: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[Case]:
    for name, entry in record["inputs"].items():
        ids = torch.tensor([entry["input_ids"]])
        layout = replace(
            _ordered_layout(entry["attention"], ids.shape[1]), positions=torch.tensor(entry["position_ids"])
        )
        mask = torch.tensor([[int(c) for c in row] for row in entry["mask"]]) if "mask" in entry else None
        yield Case(name, ids, layout, tensors[name], mask=mask)


def _ordered_layout(attention: str, length: int) -> Layout:
    if attention.startswith("causal"):
        return causal(length)
    numbers = [int(n) for n in re.findall(r"\d+", attention)]
    if attention.startswith("dual stream"):
        return wedlm_streams(numbers[1], numbers[0])
    prompt, block, count = numbers
    return _interleaved_pairs(attention.startswith("noise-conditioned"), prompt, block, count)


def _interleaved_pairs(noise: bool, prompt: int, block: int, count: int) -> Layout:
    """Jacobi Forcing's packed row: prompt, then for each block its noisy and its clean (or teacher's) copy."""
    length = block * count
    first, second = torch.arange(length).view(count, block), torch.arange(length).view(count, block)
    if noise:
        base = jacobi_noise(prompt, length)
        first, second = first + prompt, second + prompt + length
    else:
        base = jacobi_clean(prompt + length, [prompt + block * i for i in range(count)], block)
        first, second = first + prompt + length, second + prompt
    column = torch.cat([torch.arange(prompt), torch.cat([first, second], dim=1).flatten()])
    return Layout(*(x[column] for x in (base.order, base.lane, base.segment, base.positions)))


CASES: dict[str, Any] = {
    "llada-tiny": _llada,
    "llada-tiny-train": _train,
    "dream-tiny": _dream,
    "dream-tiny-eos": _dream,
    "dream-tiny-train": _train,
    "fast-dllm-v2-tiny": _blocks,
    "sdar-tiny": _blocks,
    "qwen2-tiny": _ordered,
    "wedlm-tiny": _ordered,
    "wedlm-qwen2-tiny": _ordered,
    "llada-moe-tiny": _llada,
    "llada2-moe-tiny": _blocks,
}
