"""Which way each projection is done and how attention is cut into tiles, measured on the card at hand before any step
is captured.

Layers of equal shape are measured together, one after the other inside a CUDA graph, as a forward runs them: so no
weight is still in the L2 cache when its turn comes again. Afterwards nothing changes any more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unmask.engine.linear import FLOAT8, LIBRARY, FastLinear, GatedLinear, Way
from unmask.kernels.shares import GROUP, STEP, shares, tile_tokens

if TYPE_CHECKING:
    from unmask.cache.paged import PagedCache
    from unmask.kernels.tiling import Tiling

LONGEST = 256  # tokens for which the kernels are tried: beyond, arithmetic rules and the library is made for it
SCALED_FROM = 65  # tokens from which they may be rounded to float8
ROTATED = 256 << 20  # bytes of weights between two uses of one, several times the L2 cache

# block_n, block_k, warps, stages for 16-bit weights, by tokens of a program: 8 to 48 KB under way in each program.
TILES: dict[int, tuple[tuple[int, int, int, int], ...]] = {
    16: ((16, 256, 4, 6), (32, 256, 4, 4), (64, 128, 4, 4), (64, 128, 4, 6), (64, 256, 4, 4), (128, 128, 8, 4)),
    32: ((32, 256, 4, 4), (64, 128, 4, 4), (64, 128, 4, 6), (64, 256, 4, 3), (128, 64, 4, 5), (128, 128, 8, 4)),
    64: ((64, 64, 4, 5), (64, 128, 4, 4), (128, 64, 4, 5), (128, 128, 8, 4), (256, 64, 8, 4)),
    128: ((64, 64, 4, 4), (128, 64, 4, 4), (128, 64, 8, 4), (128, 128, 8, 3), (256, 64, 8, 4)),
    256: ((128, 64, 8, 3), (128, 64, 8, 4), (64, 64, 4, 4)),
}
NEAR = 1.04  # of the fastest time
MOST_EVEN = 6  # even shares that are tried
MOST_STAGES = 8
AWAKE = 0.1  # seconds of work in which a card that was idle comes to its clock
MOST_THREADS = 16  # that compile: a third of it is Python, one thread at a time
VECTORS = ((4, 512, 4), (4, 1024, 4), (8, 512, 4), (16, 512, 8))


@dataclass(frozen=True)
class Card:
    """What of a GPU bounds the ways."""

    processors: int
    shared: int
    """Bytes of shared memory that a program may have."""
    capability: tuple[int, int]
    gluon: bool = True
    """See `kernels.has_gluon`."""


@dataclass(frozen=True)
class Timing:
    """One measurement: microseconds per product for each way tried, and the one that is used from now on."""

    outputs: int
    inputs: int
    item: int
    """Bytes of a weight."""
    tokens: int
    times: dict[Way, float]
    best: Way

    def __str__(self) -> str:
        rate = self.outputs * self.inputs * self.item / self.times[self.best] / 1e6
        ranked = ", ".join(f"{way} {us:.1f}" for way, us in sorted(self.times.items(), key=lambda item: item[1]))
        return f"[{self.outputs}, {self.inputs}] x {self.tokens}: {rate:.2f} TB/s of weights; microseconds: {ranked}"


def card(device: torch.device) -> Card:
    """The GPU of this device."""
    from unmask.kernels import has_gluon

    facts = torch.cuda.get_device_properties(device)
    capability = facts.major, facts.minor
    return Card(facts.multi_processor_count, facts.shared_memory_per_block_optin, capability, has_gluon())


def ways(linear: FastLinear, tokens: int, dtype: torch.dtype, card: Card) -> list[Way]:
    """The ways worth measuring; the library is the first."""
    outputs, inputs = linear.weight.shape
    if dtype not in (torch.bfloat16, torch.float16):
        return [LIBRARY]
    found = [LIBRARY]
    aligned = outputs % 16 == 0 and inputs % 16 == 0
    if linear.scale is not None and tokens >= SCALED_FROM and aligned and dtype == torch.bfloat16:
        found += [Way("scaled")] if card.capability >= (9, 0) else []
    # Rows must begin at whole 16 bytes, or loads would be narrow.
    if tokens > LONGEST or inputs % 16:
        return found
    if linear.scale is None and linear.adds and _makes_parts(linear.weight):
        found += [Way("parts", splits=s) for s in (2, 4, 8) if inputs % (64 * s) == 0]
    eight, tile = linear.weight.dtype == FLOAT8, _tile(tokens)
    gated = isinstance(linear, GatedLinear) and tile < 256  # two sums of so many tokens would not fit
    whole = inputs % GROUP == 0 or not eight
    if whole and tokens > 1 and card.gluon and card.capability[0] == 9:
        shape = outputs, inputs, tokens, eight
        found += _even(*shape, gated, card) or _even(*shape, False, card)
    if tokens == 1:
        wide = ((n, min(1024, 2 * k) if eight else k, warps) for n, k, warps in VECTORS)
        found += [Way("vector", n, k, warps=warps, gated=gated) for n, k, warps in wide]
    for n, k, warps, stages in TILES[tile]:
        # As many bytes under way in every case, while registers last: gated programs have two tiles of weights.
        if gated and tile <= 32:
            n = max(16, n // 2)
        elif eight and tile <= 32:
            k = min(256, 2 * k)
        way = Way("thin", n, k, warps=warps, stages=stages, gated=gated)
        if _shared(way, tile, linear.weight.element_size()) <= card.shared and _sums(way, tile) <= 128:
            splits = [1] if gated else _splits(outputs, inputs, way, card.processors)
            found += [replace(way, splits=s) for s in splits]
    return list(dict.fromkeys(found))


def _makes_parts(weight: Tensor) -> bool:
    """Whether PyTorch has batches of products that stay in float32, as it has from 2.8 on for GPUs."""
    return weight.is_cuda and "dtype" in torch.ops.aten.bmm.overloads()


def _even(outputs: int, inputs: int, tokens: int, eight: bool, gated: bool, card: Card) -> list[Way]:
    """The ways that share the outputs out evenly, those with the least to do for each processor."""
    kind, step, item = ("narrow", GROUP, 1) if eight else ("even", STEP, 2)
    block_t, steps, sums = tile_tokens(tokens), -(-inputs // step), 2 if gated else 1
    # Registers of a thread for sums: float8 takes as many again for what a step finds.
    registers = 80 if eight else 160
    found: dict[Way, float] = {}
    for splits in range(1, 2 if gated else min(max(steps // 3, 1), 12) + 1):
        tile = shares(outputs // sums, card.processors // -(-tokens // block_t) // splits)
        # As few warps as have the registers: they wait for each other at every step.
        warps = 4 if block_t == 64 and tile and sum(tile) * sums * block_t <= 4 * 32 * registers else 8
        most = registers * 32 * warps // (block_t * sums)
        if (tile is None or sum(tile) > most) and splits == 1 and eight and not gated:
            tile = min(256, 1 << most.bit_length() - 1), 0  # a processor has several turns
        if tile is None or not 64 <= sum(tile) <= most:
            continue
        wide, part = sum(tile) * sums, -(-steps // splits)
        stages = min((card.shared - 2048) // (step * (wide + block_t) * item), MOST_STAGES, part)
        if stages < min(3, part):
            continue
        # Too much at once holds up the kernel that is waited for.
        early = max(1, min(card.shared // 2 // (step * wide * item), stages))
        way = Way(kind, tile[0], splits=splits, warps=warps, stages=stages, gated=gated, rest=tile[1], early=early)
        # Steps of a processor by what each loads; parts are written and read again.
        found[way] = part * (wide + block_t / 3) + 80 * splits
    return sorted(found, key=lambda way: found[way])[:MOST_EVEN]


def _tile(tokens: int) -> int:
    """Tokens of a program."""
    return next(size for size in TILES if tokens <= size)


def _shared(way: Way, tile: int, item: int) -> int:
    """Bytes of shared memory of a program, at most."""
    return way.stages * way.block_k * (way.block_n * (2 if way.gated else 1) * item + tile * 2)


def _sums(way: Way, tile: int) -> int:
    """Registers of a thread that hold sums, of 255 it has."""
    return way.block_n * (2 if way.gated else 1) * tile // (32 * way.warps)


def _splits(outputs: int, inputs: int, way: Way, processors: int) -> list[int]:
    """Into how many parts the sum may be cut: as many as give each processor a program or nearly, and twice that where
    it is still few."""
    tiles, steps = -(-outputs // way.block_n), -(-inputs // way.block_k)
    least = 1
    while tiles * least < processors and 2 * least <= min(steps // 2, 32):
        least *= 2
    more = tiles * least < 3 * processors and 2 * least <= steps // 2
    once = min(
        max(processors // tiles, 1), max(steps // 2, 1)
    )  # one program a processor, where a second turn would be mostly idle
    return list(dict.fromkeys([once, least, 2 * least] if more else [once, least]))


def tune(group: Sequence[FastLinear], tokens: int, dtype: torch.dtype) -> Timing:
    """Measures the ways for projections of one shape, on a GPU, and sets the fastest for all of them.

    Once per process: every later network with such projections gets the same choice.

    Args:
        group: the projections of that shape, all with a bias or none.
        dtype: of the tokens.
    """
    first = group[0]
    weight = first.weight
    key = (weight.device, type(first), weight.shape, weight.dtype, first.bias is None, first.adds, tokens, dtype)
    if key not in _measured:
        _measured[key] = _measure(group, tokens, dtype)
    for linear in group:
        linear.ways[tokens] = _measured[key].best
    return _measured[key]


_measured: dict[object, Timing] = {}


def tune_attention(
    cache: PagedCache, heads: int, rows: int, width: int, tokens: int, per_row: int
) -> dict[Tiling, float]:
    """Measures the tilings of attention for steps of one shape, on a GPU, and keeps the fastest for this process: each
    with the rotation ahead of it, as in a step. Rows have three quarters of their pages full; layers take turns, so
    that none finds its keys in the L2 cache.

    Args:
        cache: what is in it is read, and matters to nobody.
        heads, rows, width, tokens: of a step; fewer tokens than rows * width are packed.
        per_row: pages of a row.

    Returns:
        Microseconds of a layer, the rotation's among them, for each tiling tried; nothing where it was measured before
        or there is no choice.
    """
    from unmask.kernels.attention import attend
    from unmask.kernels.rope import rotate_and_store
    from unmask.kernels.tiling import candidates, fastest, shape_on

    (layers, _, kv_heads, size), slots = cache.keys.shape, per_row * cache.page_size
    device, dtype = cache.keys.device, cache.keys.dtype
    packed = tokens if tokens < rows * width else None
    sizes = (rows, width, heads, kv_heads, size, slots, dtype.itemsize)
    shape = shape_on(device, cache.page_size, *sizes, packed=packed)
    tilings = candidates(shape)
    if shape in fastest or len(tilings) == 1:
        return {}

    def integers(*sizes: int, value: int = 0) -> Tensor:
        return torch.full(sizes, value, dtype=torch.int32, device=device)

    pages = cache.keys.shape[1] // cache.page_size - 1
    table = torch.arange(rows * per_row, device=device).remainder(max(pages, 1)).add(min(pages, 1))
    seen = integers(rows, value=3 * slots // 4 if pages else 0)
    readable = (torch.arange(slots, device=device) < seen[:, None]).int()
    starts = None
    if packed is not None:
        edges = torch.arange(rows + 1, device=device, dtype=torch.int32) * tokens // rows
        starts = (edges[:-1], edges.diff())
    shapes = (rows, width) if packed is None else (1, tokens)
    mixed = torch.randn(*shapes, heads + 2 * kv_heads, size, device=device, dtype=dtype)
    q, k, v = mixed.split([heads, kv_heads, kv_heads], 2)
    cos, sin = (torch.full((tokens, size), value, device=device) for value in (1.0, 0.0))
    rotation = (None, cos, sin, None, None, 0.0, heads, kv_heads, size)  # turns nothing, stores nothing
    nowhere = torch.full((tokens,), -1, device=device)
    zero = integers(rows, width)  # order, lane and segment: each token of a window sees all others
    rest = (table.int().view(rows, per_row), cache.page_size, seen, seen, readable, zero, zero, zero, starts)

    def call(layer: int, tiling: Tiling) -> Callable[[], Tensor]:
        def both() -> Tensor:
            held = cache.keys[layer], cache.values[layer]
            rotate_and_store(mixed.view(tokens, -1), *rotation, *held, nowhere)
            return attend(q, k, v, *held, *rest, tiling)

        return both

    precompile([call(0, tiling) for tiling in tilings], device)
    times = {tiling: microseconds([call(layer, tiling) for layer in range(layers)]) for tiling in tilings}
    fastest[shape] = min(times, key=lambda tiling: times[tiling])
    return times


def _measure(group: Sequence[FastLinear], tokens: int, dtype: torch.dtype) -> Timing:
    first = group[0]
    outputs, inputs = first.weight.shape
    device = first.weight.device
    x_TK = torch.randn(tokens, inputs, device=device, dtype=dtype)
    rotation = _rotation(group)
    found = ways(first, tokens, dtype, card(device))
    # The library keeps memory for each thread that calls it.
    precompile([_call(first, way, x_TK) for way in found if way.kind not in ("library", "parts", "scaled")], device)
    times = {way: microseconds([_call(linear, way, x_TK) for linear in rotation]) for way in found}
    return Timing(outputs, inputs, first.weight.element_size(), tokens, times, chosen(times))


def chosen(times: dict[Way, float]) -> Way:
    """The fastest way; of those of its kind that are as fast but for what differs from run to run, the one with most
    weights ahead of the wait, then the one listed first. Alone nothing keeps a product waiting, so that these look
    equal; in a step they differed by up to 4 %."""
    best = min(times, key=lambda way: times[way])
    if best.kind not in ("even", "narrow", "parts"):
        return best
    near = [way for way in times if way.kind == best.kind and times[way] <= NEAR * times[best]]
    return max(near, key=lambda way: way.early * way.splits)


def _call(linear: FastLinear, way: Way, x_TK: Tensor) -> Callable[[], Tensor]:
    if way.kind != "narrow":
        return lambda: linear.run(way, x_TK)
    from unmask.kernels.groups import narrowed

    narrow = narrowed(x_TK)  # as whoever makes the tokens does
    return lambda: linear.run(way, narrow)


def _rotation(group: Sequence[FastLinear]) -> list[FastLinear]:
    """The group, with copies where its weights would fit into the L2 cache together, though those of a model do
    not."""
    weight = group[0].weight
    size = weight.numel() * weight.element_size()
    copies = min(-(-ROTATED // size), 64) - len(group)
    return [*group, *(replace(group[0], weight=weight.clone()) for _ in range(copies))]


def precompile(calls: Sequence[Callable[[], object]], device: torch.device) -> None:
    """Makes each call once, several at a time: what takes long is that kernels are compiled; afterwards the first one
    again, until the card is at its clock. Off a GPU makes none."""
    if device.type != "cuda":
        return

    def one(call: Callable[[], object]) -> None:
        with torch.inference_mode(), torch.cuda.device(device):
            call()

    def bind() -> None:
        torch.zeros(1, device=device)  # a thread has no CUDA context before its first kernel

    with ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS), initializer=bind) as pool:
        list(pool.map(one, calls))
    # The card was idle meanwhile: what is measured next would look slower than what comes after.
    begun = perf_counter()
    while calls and perf_counter() - begun < AWAKE:
        one(calls[0])
        torch.cuda.synchronize(device)


def microseconds(calls: Iterable[Callable[[], object]]) -> float:
    """The median time of a call when all are replayed in one CUDA graph, one after the other."""
    calls = list(calls)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles kernels and sets the libraries up
        calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    return median(milliseconds(graph) for _ in range(7)) * 1000 / len(calls)


def milliseconds(graph: torch.cuda.CUDAGraph) -> float:
    """The time of a replay on the device, which is waited for."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)
