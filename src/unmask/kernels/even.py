"""Products whose outputs are shared out evenly, in Gluon: as many programs as the GPU runs at once, each with as much
to do, so that none is left with a second tile while the others wait.

A program's outputs are a power of two and, where that fits better, a smaller one beside it: 37,888 outputs are 132
times 287, and a tile of 256 + 32 holds them. Tiles come through the copy engine (TMA) and the tokens are the left
operand, so that the matrix units take any such number of outputs. Few outputs are shared out by splitting the sum too;
parts are added in order.

What a product multiplies with is known before the kernel ahead of it has ended: each program first asks for some of its
weights, then waits for that kernel, then asks for tokens. So the memory is busy while norms, rotation and attention
wait for each other. What they read waits behind those weights: more than half of the shared memory did not pay.

Weights may be float8 (e4m3) with a scale per output. Then the tokens are float8 as well, with a scale for each group of
128 inputs (`kernels.groups`): a step of the sum is one group, the matrix units add up its products, and what they found
is scaled and added in float32. That each program rounds the tokens it needs for itself was tried and was slower.

Shapes: T tokens, K inputs, N outputs, P parts of a split sum.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from unmask.kernels.copies import gluon_tiles
from unmask.kernels.gemm import _finish, _gate, merge_parts
from unmask.kernels.groups import Narrow
from unmask.kernels.overlap import overlapped, release, wait
from unmask.kernels.shares import GROUP, STEP, tile_tokens


def even(
    x: Tensor | Narrow,
    weight_NK: Tensor,
    bias_N: Tensor | None = None,
    scale_N: Tensor | None = None,
    dtype: torch.dtype | None = None,
    *,
    block_n: int = 128,
    rest: int = 0,
    splits: int = 1,
    warps: int = 8,
    stages: int = 4,
    early: int = 4,
    gated: bool = False,
    merge: bool = True,
) -> Tensor:
    """x W^T + b: [T, N].

    Args:
        x: [T, K], contiguous, of 16 bits or float8.
        weight_NK: contiguous, of x's dtype, K a multiple of 8 (float8: of 128).
        bias_N, scale_N: of the result's dtype; float32, for float8 alone. [2N] with `gated`.
        dtype: of the result where x is float8.
        block_n, rest: outputs of a program are their sum; powers of two, `rest` the smaller or 0.
        splits: parts of the sum at most.
        warps: 4 or 8 of a program for up to 64 tokens, else 8.
        stages, early: steps whose tiles are on their way at once, and whose weights do not wait for the kernel ahead.
        gated: the weight is gate above up, [2N, K], and the result silu(gate) * up; allows one part only.
        merge: False returns the parts of a split sum [P, T, N] in float32, scaled, without bias.
    """
    narrow = isinstance(x, Narrow)
    x_TK, step = (x.values, GROUP) if narrow else (x, STEP)
    assert x_TK.is_contiguous() and weight_NK.is_contiguous() and not (gated and splits > 1)
    tokens, inputs = x_TK.shape
    outputs = len(weight_NK) // 2 if gated else len(weight_NK)
    steps = triton.cdiv(inputs, step)
    part = triton.cdiv(steps, splits)
    parts = triton.cdiv(steps, part)
    block_t = tile_tokens(tokens)
    out = x_TK.new_empty(tokens, outputs, dtype=dtype)
    sums = out if parts == 1 else x_TK.new_empty(parts, tokens, outputs, dtype=torch.float32)
    none = out  # a pointer that no program follows
    # Token tiles of one weight tile run side by side, so that the weight comes from memory once.
    _even[(triton.cdiv(tokens, block_t), triton.cdiv(outputs, block_n + rest), parts)](
        gluon_tiles(x_TK, block_t, step),
        gluon_tiles(weight_NK, block_n, step),
        gluon_tiles(weight_NK, rest or block_n, step),
        x.scales if isinstance(x, Narrow) else none,
        none if bias_N is None else bias_N,
        none if scale_N is None else scale_N,
        sums,
        tokens,
        outputs,
        steps,
        part,
        NARROW=narrow,
        BIAS=bias_N is not None and parts == 1,
        SUMS=2 if gated else 1,
        BLOCK_T=block_t,
        BLOCK_N=block_n,
        REST=rest,
        STEP=step,
        STAGES=stages,
        EARLY=min(early, stages),
        num_warps=warps,
        **overlapped(x_TK.is_cuda),
    )
    return sums if parts == 1 or not merge else merge_parts(sums, bias_N, None, out)


@gluon.jit(do_not_specialize=["tokens"])  # one compilation for all numbers of tokens of a tile
def _even(
    x_block: tma.tensor_descriptor,  # [T, K]
    weight_block: tma.tensor_descriptor,  # [N, K] or, gated, [2N, K]
    rest_block: tma.tensor_descriptor,
    x_scale_ptr: gl.tensor,  # [T, K / STEP]
    bias_ptr: gl.tensor,  # [N] or [2N]
    scale_ptr: gl.tensor,
    out_ptr: gl.tensor,  # [T, N], or the parts [P, T, N]
    tokens: gl.tensor,
    outputs: gl.tensor,
    steps: gl.tensor,
    part: gl.tensor,  # steps of one part
    NARROW: gl.constexpr,
    BIAS: gl.constexpr,
    SUMS: gl.constexpr,  # 2 with `gated`
    BLOCK_T: gl.constexpr,
    BLOCK_N: gl.constexpr,
    REST: gl.constexpr,
    STEP: gl.constexpr,
    STAGES: gl.constexpr,
    EARLY: gl.constexpr,
    OVERLAP: gl.constexpr,
    num_warps: gl.constexpr,
) -> None:
    dtype: gl.constexpr = x_block.dtype
    BYTES: gl.constexpr = STEP * (BLOCK_T + SUMS * (BLOCK_N + REST)) * (dtype.primitive_bitwidth // 8)
    first_t = gl.program_id(0) * BLOCK_T
    first_n = gl.program_id(1) * (BLOCK_N + REST)
    first = gl.program_id(2) * part
    count = gl.minimum(part, steps - first)

    xs = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_T, STEP], x_block.layout)
    weights = gl.allocate_shared_memory(dtype, [STAGES * SUMS, BLOCK_N, STEP], weight_block.layout)
    rests = weights
    if REST:
        rests = gl.allocate_shared_memory(dtype, [STAGES * SUMS, REST, STEP], rest_block.layout)
    bars = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(bars.index(stage), count=1)
    hopper.fence_async_shared()
    release(OVERLAP)
    tiles = (weight_block, rest_block, weights, rests, bars)
    for stage in gl.static_range(EARLY):
        _fetch(tiles, first_n, outputs, first + stage, stage, stage < count, SUMS, REST, BYTES)
    wait(OVERLAP)
    for stage in gl.static_range(STAGES):
        at = [first_t, (first + stage) * STEP]
        tma.async_copy_global_to_shared(x_block, at, bars.index(stage), xs.index(stage), stage < count)
    for stage in gl.static_range(EARLY, STAGES):
        _fetch(tiles, first_n, outputs, first + stage, stage, stage < count, SUMS, REST, BYTES)

    x = (x_block, xs, x_scale_ptr, first_t, tokens, steps)
    sums = _summed(tiles, x, first_n, outputs, first, count, NARROW, SUMS, REST, STAGES, BYTES)
    out_ptr += gl.program_id(2).to(gl.int64) * tokens * outputs
    one = (sums[0], sums[2], out_ptr, bias_ptr, scale_ptr)
    _write(one, first_t, first_n, tokens, outputs, NARROW, BIAS, SUMS)
    if REST:
        one = (sums[1], sums[3], out_ptr, bias_ptr, scale_ptr)
        _write(one, first_t, first_n + BLOCK_N, tokens, outputs, NARROW, BIAS, SUMS)


@gluon.jit
def _summed(
    tiles: gl.tuple,
    x: gl.tuple,
    first_n: gl.tensor,
    outputs: gl.tensor,
    first: gl.tensor,
    count: gl.tensor,
    NARROW: gl.constexpr,
    SUMS: gl.constexpr,
    REST: gl.constexpr,
    STAGES: gl.constexpr,
    BYTES: gl.constexpr,
) -> gl.tuple:
    """The sums of `count` steps from `first` on, the first STAGES of which are on their way."""
    _, _, weights, rests, bars = tiles
    x_block, xs, x_scale_ptr, first_t, tokens, steps = x
    BLOCK_T: gl.constexpr = xs.shape[1]
    BLOCK_N: gl.constexpr = weights.shape[1]
    STEP: gl.constexpr = xs.shape[2]
    DEPTH: gl.constexpr = 256 // x_block.dtype.primitive_bitwidth
    DOWN: gl.constexpr = BLOCK_T // 64 * 4  # warps along the tokens
    ACROSS: gl.constexpr = gl.num_warps() // DOWN
    WIDE: gl.constexpr = REST or 16 * ACROSS
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [DOWN, ACROSS], [16, BLOCK_N // ACROSS, DEPTH])
    layout_rest: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [DOWN, ACROSS], [16, WIDE // ACROSS, DEPTH])
    none = gl.zeros([BLOCK_T, BLOCK_N], gl.float32, layout)
    none_rest = gl.zeros([BLOCK_T, WIDE], gl.float32, layout_rest)
    zero = (none, none_rest, none, none_rest)
    sums = zero
    t = first_t + gl.arange(0, BLOCK_T, gl.SliceLayout(1, layout))
    x_scale_at = x_scale_ptr + t.to(gl.int64) * steps + first
    x_scale = gl.zeros([BLOCK_T], gl.float32, gl.SliceLayout(1, layout))
    if NARROW:
        x_scale = gl.load(x_scale_at, mask=(t < tokens) & (count > 0), other=0.0)
    for step in range(count):
        following = x_scale
        if NARROW:
            following = gl.load(x_scale_at + step + 1, mask=(t < tokens) & (step + 1 < count), other=0.0)
        place = step % STAGES
        mbarrier.wait(bars.index(place), (step // STAGES) & 1)
        found = _multiply(xs.index(place), weights, rests, place, zero if NARROW else sums, SUMS, REST, not NARROW)
        # Of 16 bits these go on while the tiles of the step before are replaced; of float8 they are scaled first.
        found = _finished(found, SUMS, REST, 0 if NARROW else 1)
        done = step if NARROW else step - 1
        ahead = done + STAGES
        more = (done >= 0) & (ahead < count)
        _fetch(tiles, first_n, outputs, first + ahead, ahead % STAGES, more, SUMS, REST, BYTES)
        at = [first_t, (first + ahead) * STEP]
        tma.async_copy_global_to_shared(x_block, at, bars.index(ahead % STAGES), xs.index(ahead % STAGES), more)
        sums = _add(sums, found, x_scale, SUMS, REST) if NARROW else found
        x_scale = following
    return _finished(sums, SUMS, REST, 0)


@gluon.jit
def _fetch(
    tiles: gl.tuple,
    first_n: gl.tensor,
    outputs: gl.tensor,
    step: gl.tensor,
    stage: gl.tensor,
    real: gl.tensor,
    SUMS: gl.constexpr,
    REST: gl.constexpr,
    BYTES: gl.constexpr,
) -> None:
    """Asks for the weights of a step, where it is `real`; the tokens are to follow."""
    weight_block, rest_block, weights, rests, bars = tiles
    bar = bars.index(stage)
    mbarrier.expect(bar, BYTES, real)
    for of in gl.static_range(SUMS):
        at = [first_n + of * outputs, step * weight_block.block_shape[1]]
        tma.async_copy_global_to_shared(weight_block, at, bar, weights.index(stage * SUMS + of), real)
        if REST:
            at = [first_n + of * outputs + weight_block.block_shape[0], step * weight_block.block_shape[1]]
            tma.async_copy_global_to_shared(rest_block, at, bar, rests.index(stage * SUMS + of), real)


@gluon.jit
def _multiply(
    x: gl.shared_memory_descriptor,
    weights: gl.shared_memory_descriptor,
    rests: gl.shared_memory_descriptor,
    stage: gl.tensor,
    sums: gl.tuple,
    SUMS: gl.constexpr,
    REST: gl.constexpr,
    ADD: gl.constexpr,
) -> gl.tuple:
    """The products of a step, under way: added to the sums, or alone."""
    acc, acc_rest, up, up_rest = sums
    place = stage * SUMS
    acc = hopper.warpgroup_mma(x, weights.index(place).permute((1, 0)), acc, use_acc=ADD, is_async=True)
    if REST:
        acc_rest = hopper.warpgroup_mma(x, rests.index(place).permute((1, 0)), acc_rest, use_acc=ADD, is_async=True)
    if SUMS == 2:
        up = hopper.warpgroup_mma(x, weights.index(place + 1).permute((1, 0)), up, use_acc=ADD, is_async=True)
        if REST:
            up_rest = hopper.warpgroup_mma(
                x, rests.index(place + 1).permute((1, 0)), up_rest, use_acc=ADD, is_async=True
            )
    return acc, acc_rest, up, up_rest


@gluon.jit
def _finished(sums: gl.tuple, SUMS: gl.constexpr, REST: gl.constexpr, STEPS: gl.constexpr) -> gl.tuple:
    """The sums when the products of all but the last so many steps are in them."""
    acc, acc_rest, up, up_rest = sums
    if SUMS == 2 and REST:
        acc, acc_rest, up, up_rest = hopper.warpgroup_mma_wait(4 * STEPS, deps=[acc, acc_rest, up, up_rest])
    elif SUMS == 2:
        acc, up = hopper.warpgroup_mma_wait(2 * STEPS, deps=[acc, up])
    elif REST:
        acc, acc_rest = hopper.warpgroup_mma_wait(2 * STEPS, deps=[acc, acc_rest])
    else:
        acc = hopper.warpgroup_mma_wait(STEPS, deps=[acc])
    return acc, acc_rest, up, up_rest


@gluon.jit
def _add(sums: gl.tuple, found: gl.tuple, x_scale: gl.tensor, SUMS: gl.constexpr, REST: gl.constexpr) -> gl.tuple:
    """Float8 products added to the sums, scaled by token."""
    acc, acc_rest, up, up_rest = sums
    acc += found[0] * x_scale[:, None]
    if SUMS == 2:
        up += found[2] * x_scale[:, None]
    if REST:
        scale = gl.convert_layout(x_scale, gl.SliceLayout(1, acc_rest.type.layout))[:, None]
        acc_rest += found[1] * scale
        if SUMS == 2:
            up_rest += found[3] * scale
    return acc, acc_rest, up, up_rest


@gluon.jit
def _write(
    one: gl.tuple,
    first_t: gl.tensor,
    first_n: gl.tensor,
    tokens: gl.tensor,
    outputs: gl.tensor,
    SCALE: gl.constexpr,
    BIAS: gl.constexpr,
    SUMS: gl.constexpr,
) -> None:
    """What becomes of the sums of outputs from `first_n` on, stored."""
    acc, up, out_ptr, bias_ptr, scale_ptr = one
    layout: gl.constexpr = acc.type.layout
    dtype: gl.constexpr = out_ptr.dtype.element_ty
    t = first_t + gl.arange(0, acc.shape[0], gl.SliceLayout(1, layout))
    n = first_n + gl.arange(0, acc.shape[1], gl.SliceLayout(0, layout))
    column = gl.minimum(n, outputs - 1)[None, :]
    acc = _finish(acc, column, bias_ptr, scale_ptr, BIAS, SCALE)
    if SUMS == 2:
        acc = _gate(acc, _finish(up, outputs + column, bias_ptr, scale_ptr, BIAS, SCALE), dtype)
    at = t.to(gl.int64)[:, None] * outputs + n[None, :]
    gl.store(out_ptr + at, acc.to(dtype), mask=(t < tokens)[:, None] & (n < outputs)[None, :])
