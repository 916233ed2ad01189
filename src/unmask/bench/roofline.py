"""What a device can do, measured, and the time below which no step can fall."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

import torch

from unmask.errors import UnmaskError
from unmask.models.config import DiTConfig, ModelConfig
from unmask.schema import number, optional

# Bytes of a copy, many times the last cache, and the side of the matrices of the product.
SIZES = {"cuda": (4 << 30, 8192), "cpu": (128 << 20, 512)}
REPEATS = 20  # of a measurement, at least

CEILINGS = {"copy": number(0.0), "product": number(0.0), "product8": optional(number(0.0))}
"""Fields of `Ceilings.as_dict`."""


@dataclass(frozen=True)
class Ceilings:
    """copy: bytes read plus bytes written per second. product: operations per second of a product in the model's dtype;
    product8: of one in float8, None where it was not measured."""

    copy: float
    product: float
    product8: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """For JSON."""
        return asdict(self)


def ceilings(device: torch.device, dtype: torch.dtype, quantised: bool = False) -> Ceilings:
    """Measures a large copy on the device, and a square matrix product of random numbers; with `quantised` one in
    float8 too, where the device has it."""
    size, side = SIZES[device.type]
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = 2 * size / seconds(device, partial(target.copy_, source))
    del source, target
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    product = 2 * side**3 / seconds(device, partial(torch.matmul, a, b, out=out))
    narrow = quantised and device.type == "cuda" and dtype == torch.bfloat16
    return Ceilings(copy, product, 2 * side**3 / seconds(device, _product8(a, b)) if narrow else None)


def _product8(a: torch.Tensor, b: torch.Tensor) -> Callable[[], Any]:
    """The product that `engine.linear` uses for float8."""
    scale = torch.ones(len(a), 1, device=a.device)
    left, right = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
    return partial(
        torch._scaled_mm,  # type: ignore[reportPrivateImportUsage]
        left,
        right,
        scale_a=scale,
        scale_b=scale.t().contiguous(),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def seconds(device: torch.device, call: Callable[[], Any], repeats: int = REPEATS) -> float:
    """The median time of a call on the device, the first ones left out.

    On a GPU calls follow each other without a pause for a second at least, as long as steps are timed: a card that gets
    warm runs slower, and a step has to be held against what the card does then.
    """
    for _ in range(3):
        call()
    if device.type != "cuda":
        return median(_on_host(call) for _ in range(repeats))
    once = _on_gpu(call, 1)[0]
    return median(_on_gpu(call, max(repeats, min(int(1 / once), 2000))))


def _on_gpu(call: Callable[[], Any], repeats: int) -> list[float]:
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    marks[-1].synchronize()
    return [a.elapsed_time(b) / 1000 for a, b in pairwise(marks)]


def _on_host(call: Callable[[], Any]) -> float:
    begun = perf_counter()
    call()
    return perf_counter() - begun


@dataclass(frozen=True)
class Work:
    """What a step must do at least.

    bytes: of weights, read once. operations: of all products in the model's dtype, attention's too; operations8: of
    those with float8 weights.
    """

    bytes: float
    operations: float
    operations8: float = 0.0

    def times(self, can: Ceilings) -> dict[str, float]:
        """Seconds that each of the two takes at least."""
        narrow = self.operations8 / (can.product8 or can.product)
        return {"bytes": self.bytes / can.copy, "operations": self.operations / can.product + narrow}

    def floor(self, can: Ceilings) -> float:
        """Seconds: the larger of the two times."""
        return max(self.times(can).values())

    def bound(self, can: Ceilings) -> str:
        """Which of the two it is."""
        times = self.times(can)
        return max(times, key=lambda name: times[name])


def work(
    config: ModelConfig, rows: int, window: int, context: int, asked: int, item: int = 2, quantised: bool = False
) -> Work:
    """The work of one step of a dense transformer.

    Args:
        rows, window: tokens of the step are rows * window.
        context: cached tokens a row reads.
        asked: tokens of a window whose logits are wanted.
        item: bytes of a weight.
        quantised: the weights of the layers and of the head are float8.

    Raises:
        UnmaskError: the network is another one.
    """
    if config.moe is not None or isinstance(config, DiTConfig):
        raise UnmaskError(f"the floor of a step is defined for dense transformers, not for family {config.family!r}")
    c, d = config.hidden_size, config.head_dim
    attention = c * d * (2 * config.num_heads + 2 * config.num_kv_heads)
    layers = config.num_layers * (attention + 3 * c * config.intermediate_size)
    head = config.vocab_size * c
    tokens = rows * window
    mixing = 4.0 * tokens * (context + window) * config.num_heads * d * config.num_layers
    products = 2.0 * (layers * tokens + head * rows * asked)
    if quantised:
        return Work(layers + head, mixing, products)
    return Work(item * (layers + head), products + mixing)
