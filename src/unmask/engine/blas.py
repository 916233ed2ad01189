"""Products by cuBLASLt with any of the kernels it proposes.

For a shape the library proposes a handful of kernels, by rules and not by trying, and PyTorch takes the first. For few
tokens a later one is often faster, so `tuning` measures them all. The library is the one that PyTorch has loaded.

Shapes: T tokens, K inputs, N outputs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ctypes import byref, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p, sizeof
from functools import cache
from typing import Any

import torch
from torch import Tensor

# Numbers of the library's enumerations.
_TYPES = {torch.bfloat16: 14, torch.float16: 2}
_FLOAT32, _COMPUTE_FLOAT32 = 0, 68
_TRANSPOSE_A, _EPILOGUE, _BIAS_POINTER = 3, 7, 8
_ADD_BIAS = 4
_WORKSPACE, _REDUCTION = 1, 3
_ALIGNMENTS = (5, 6, 7, 8)
_IN_FLOAT32 = 2  # of the parts of a split sum; others would be added up in the type of the result

WORKSPACES = (32 << 20, 0)
"""Bytes that a kernel may work in. Without any, sums are not split, and other kernels are proposed."""
MOST = 16  # proposals asked for at a time
ALIGNED = 16  # bytes at which all tensors begin


class _Proposal(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", c_uint64 * 8),
        ("workspace", c_size_t),
        ("status", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


def proposals(weight_NK: Tensor, tokens: int, biased: bool) -> int:
    """How many kernels are proposed for so many tokens; 0 off the GPU, or where the library is not found."""
    if not weight_NK.is_cuda or weight_NK.dtype not in _TYPES or weight_NK.data_ptr() % ALIGNED or _library() is None:
        return 0
    return len(_proposed(weight_NK.device, weight_NK.dtype, *weight_NK.shape, tokens, biased))


def multiply(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, number: int) -> Tensor:
    """x W^T + b: [T, N], by the proposal of this number, of `proposals` with this shape. All contiguous."""
    assert x_TK.is_contiguous() and weight_NK.is_contiguous() and x_TK.data_ptr() % ALIGNED == 0
    (outputs, inputs), tokens, device = weight_NK.shape, len(x_TK), x_TK.device
    proposal = _proposed(device, x_TK.dtype, outputs, inputs, tokens, bias_N is not None)[number]
    out_TN = x_TK.new_empty(tokens, outputs)
    # From PyTorch's memory, so that it may be used again only by what comes later in the same stream or graph.
    workspace = torch.empty(proposal.workspace, dtype=torch.uint8, device=device)
    room = c_void_p(workspace.data_ptr()), c_size_t(proposal.workspace)
    stream = c_void_p(torch.cuda.current_stream(device).cuda_stream)
    bias = 0 if bias_N is None else bias_N.data_ptr()
    with torch.cuda.device(device), _described(x_TK.dtype, outputs, inputs, tokens, bias) as (product, *layouts):
        places = (c_void_p(x.data_ptr()) for x in (weight_NK, x_TK, out_TN))
        left, right, result = zip(places, layouts)
        factors = byref(c_float(1.0)), byref(c_float(0.0))
        sums = product, factors[0], *left, *right, factors[1], *result, *result
        _do("Matmul", _handle(device), *sums, byref(proposal.algorithm), *room, stream)
    return out_TN


@cache
def _library() -> Any:
    """None where PyTorch has none."""
    if torch.version.cuda is None:
        return None
    try:
        return ctypes.CDLL(f"libcublasLt.so.{torch.version.cuda.split('.')[0]}")
    except OSError:
        return None


def _do(name: str, *arguments: Any) -> None:
    status = getattr(_library(), f"cublasLt{name}")(*arguments)
    if status:
        raise RuntimeError(f"cublasLt{name} failed with status {status}")


@cache
def _handle(device: torch.device) -> c_void_p:
    with torch.cuda.device(device):
        handle = c_void_p()
        _do("Create", byref(handle))
    return handle


@cache
def _proposed(
    device: torch.device, dtype: torch.dtype, outputs: int, inputs: int, tokens: int, biased: bool
) -> tuple[_Proposal, ...]:
    found: dict[bytes, _Proposal] = {}
    with torch.cuda.device(device), _described(dtype, outputs, inputs, tokens, ALIGNED * biased) as (product, *layouts):
        for workspace in WORKSPACES:
            for proposal in _asked(device, product, layouts, workspace):
                found.setdefault(bytes(proposal.algorithm), proposal)
    return tuple(found.values())


def _asked(device: torch.device, product: c_void_p, layouts: list[c_void_p], workspace: int) -> list[_Proposal]:
    results, count = (_Proposal * MOST)(), c_int()
    with _made("MatmulPreference") as preference:
        limits = [(_WORKSPACE, c_size_t(workspace)), (_REDUCTION, c_uint32(_IN_FLOAT32))]
        for attribute, value in [*limits, *((a, c_uint32(ALIGNED)) for a in _ALIGNMENTS)]:
            _set("MatmulPreference", preference, attribute, value)
        where = *layouts, layouts[-1], preference, c_int(MOST), results, byref(count)
        status = _library().cublasLtMatmulAlgoGetHeuristic(_handle(device), product, *where)
    # A status other than 0 says that it has nothing for this shape.
    return [result for result in results[: count.value] if result.status == 0] if status == 0 else []


@contextmanager
def _described(
    dtype: torch.dtype, outputs: int, inputs: int, tokens: int, bias: int
) -> Iterator[tuple[c_void_p, c_void_p, c_void_p, c_void_p]]:
    """Descriptions of the product, the weight, the tokens and the result. bias: where it is in memory, 0: nowhere.

    Matrices are stored by columns for the library: it sees out^T [N, T] = W x^T.
    """
    kind = c_int(_TYPES[dtype])
    with ExitStack() as held:
        product = held.enter_context(_made("MatmulDesc", c_int(_COMPUTE_FLOAT32), c_int(_FLOAT32)))
        _set("MatmulDesc", product, _TRANSPOSE_A, c_int32(1))
        if bias:
            _set("MatmulDesc", product, _EPILOGUE, c_uint32(_ADD_BIAS))
            _set("MatmulDesc", product, _BIAS_POINTER, c_void_p(bias))
        sizes = (inputs, outputs), (inputs, tokens), (outputs, tokens)
        weight, x, out = (
            held.enter_context(_made("MatrixLayout", kind, c_uint64(rows), c_uint64(columns), c_int64(rows)))
            for rows, columns in sizes
        )
        yield product, weight, x, out


@contextmanager
def _made(name: str, *arguments: Any) -> Iterator[c_void_p]:
    """An object of the library, for as long as it is needed."""
    made = c_void_p()
    _do(f"{name}Create", byref(made), *arguments)
    try:
        yield made
    finally:
        _do(f"{name}Destroy", made)


def _set(name: str, of: c_void_p, attribute: int, value: Any) -> None:
    _do(f"{name}SetAttribute", of, c_int(attribute), byref(value), c_size_t(sizeof(value)))
