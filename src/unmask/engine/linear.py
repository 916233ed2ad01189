"""Products with a fixed weight, each done the way that was measured to be fastest for its number of tokens.

Ways: the library (cuBLAS through PyTorch), Triton kernels for few tokens (`kernels.gemm`), and for float8 weights
PyTorch's scaled product. Until `tuning.tune` has measured, and always in float32 and off the GPU, it is the library.

Shapes: T tokens, K inputs, N outputs, I inner width of an MLP.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.kernels import runs_kernels

if TYPE_CHECKING:
    from unmask.kernels.groups import Narrow

FLOAT8 = torch.float8_e4m3fn
LARGEST = 448.0  # of FLOAT8


@dataclass(frozen=True, slots=True)
class Way:
    """How a product is done. The numbers are those of the kernels `gemm.thin`, `gemm.vector` and `even.even`."""

    kind: Literal["library", "parts", "scaled", "narrow", "even", "thin", "vector"] = "library"
    """parts: the library makes the parts of a split sum as a batch of products. scaled, narrow: float8 times float8,
    tokens rounded to it by rows or by groups of inputs (`kernels.groups`). The other kinds round weights alone. narrow
    and even are the kernel `even.even`."""
    block_n: int = 0
    block_k: int = 0
    splits: int = 1
    warps: int = 4
    stages: int = 4
    gated: bool = False
    """The kernel finishes silu(gate) * up itself."""
    rest: int = 0
    early: int = 0
    """Steps whose weights do not wait for the kernel ahead (`even.even`)."""

    def __str__(self) -> str:
        if self.kind in ("library", "scaled"):
            return self.kind
        if self.kind == "parts":
            return f"parts /{self.splits}"
        tile = f"{self.block_n}{f'+{self.rest}' if self.rest else ''}{f'x{self.block_k}' if self.block_k else ''}"
        early = f"e{self.early}" if self.kind in ("even", "narrow") else ""
        pipeline = "" if self.kind == "vector" else f" s{self.stages}{early} /{self.splits}"
        return f"{self.kind} {tile} w{self.warps}{pipeline}{' gated' if self.gated else ''}"


LIBRARY = Way()


@dataclass(eq=False)
class FastLinear:
    """x W^T + b for x [T, K].

    Attributes:
        weight: [N, K], contiguous; of the model's dtype, or float8 with `scale`.
        bias: [N], of the model's dtype.
        scale: [N], float32, what outputs are multiplied by (see `quantise`).
        dtype: of the outputs where tokens come in float8.
        adds: who takes the result adds up the parts of a sum, and then the bias.
        ways: the way for each number of tokens that was measured.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: Tensor | None = None
    dtype: torch.dtype = torch.bfloat16
    adds: bool = False
    ways: dict[int, Way] = field(default_factory=dict)

    def __call__(self, x_TK: Tensor | Narrow) -> Tensor:
        """[T, N]; with `adds`, where that saves a pass, the parts of its sums [P, T, N] in float32 without bias.

        Tokens may be given in float8 where `narrow` says so.
        """
        return self.run(self.way(len(x_TK)), x_TK)

    def whole(self, x_TK: Tensor | Narrow) -> Tensor:
        """[T, N], also with `adds`."""
        return replace(self, adds=False)(x_TK)

    def way(self, tokens: int) -> Way:
        """How the product of so many tokens is done."""
        return self.ways.get(tokens, LIBRARY)

    def narrow(self, tokens: int) -> bool:
        """Whether the product of so many tokens takes them in float8: whoever makes them saves a pass then."""
        return self.way(tokens).kind == "narrow"

    def run(self, way: Way, x_TK: Tensor | Narrow) -> Tensor:
        """The product done this way."""
        if way.kind in ("narrow", "even"):
            return self._even(way, x_TK)
        assert isinstance(x_TK, Tensor)
        if way.kind == "library":
            return F.linear(x_TK, self.wide(x_TK.dtype), self.bias)
        if way.kind == "parts":
            return self._parts(way, x_TK)
        if way.kind == "scaled":
            return self._scaled(x_TK)
        from unmask.kernels import gemm

        weight = self.weight, self.bias, self.scale
        sizes = {"block_n": way.block_n, "block_k": way.block_k, "warps": way.warps, "gated": way.gated}
        if way.kind == "vector":
            return gemm.vector(x_TK, *weight, **sizes)
        merge = not self.adds or self.scale is not None
        return gemm.thin(x_TK, *weight, **sizes, splits=way.splits, stages=way.stages, merge=merge)

    def wide(self, dtype: torch.dtype) -> Tensor:
        """The weight in the model's dtype."""
        return self.weight if self.scale is None else dequantise(self.weight, self.scale, dtype)

    def _even(self, way: Way, x_TK: Tensor | Narrow) -> Tensor:
        from unmask.kernels.even import even
        from unmask.kernels.groups import narrowed

        x = narrowed(x_TK) if way.kind == "narrow" and isinstance(x_TK, Tensor) else x_TK
        dtype = self.dtype if way.kind == "narrow" else None
        sizes = {"block_n": way.block_n, "rest": way.rest, "splits": way.splits, "gated": way.gated}
        sizes |= {"warps": way.warps, "stages": way.stages, "early": way.early}
        return even(x, self.weight, self.bias, self.scale, dtype, **sizes, merge=not self.adds)

    def _parts(self, way: Way, x_TK: Tensor) -> Tensor:
        x_PTK = x_TK.unflatten(1, (way.splits, -1)).transpose(0, 1)
        weight_PKN = self.weight.unflatten(1, (way.splits, -1)).permute(1, 2, 0)
        sums_PTN = torch.bmm(x_PTK, weight_PKN, out_dtype=torch.float32)
        if self.adds:
            return sums_PTN
        from unmask.kernels.gemm import merge_parts

        return merge_parts(sums_PTN, self.bias, None, x_TK.new_empty(len(x_TK), len(self.weight)))

    def _scaled(self, x_TK: Tensor) -> Tensor:
        from unmask.kernels.float8 import quantise_rows

        assert self.scale is not None
        narrow, scale_T = quantise_rows(x_TK)
        out = torch._scaled_mm(  # type: ignore[reportPrivateImportUsage]
            narrow,
            self.weight.t(),
            scale_a=scale_T[:, None],
            scale_b=self.scale[None],
            out_dtype=x_TK.dtype,
            use_fast_accum=True,
        )
        return out if self.bias is None else out + self.bias


class GatedLinear(FastLinear):
    """silu(gate) * up of one weight [2I, K], gate above up: [T, I], rounded as in `models.mlp.MLP`."""

    def activate(self, x_TK: Tensor | Narrow, narrow: bool) -> Tensor | Narrow:
        """[T, I]; `narrow`: in float8, unless the product itself finishes it."""
        way = self.way(len(x_TK))
        return self._finished(way, FastLinear.run(self, way, x_TK), narrow)

    def run(self, way: Way, x_TK: Tensor | Narrow) -> Tensor:
        out = self._finished(way, FastLinear.run(self, way, x_TK), narrow=False)
        assert isinstance(out, Tensor)
        return out

    def _finished(self, way: Way, out: Tensor, narrow: bool) -> Tensor | Narrow:
        if way.gated:
            return out
        if runs_kernels(out.is_cuda):
            from unmask.kernels.norm import silu_mul

            return silu_mul(out, narrow)
        gate, up = out.chunk(2, -1)
        return F.silu(gate) * up


def quantise(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """A weight as float8 (e4m3) and one float32 scale per output: weight = float8 * scale, up to rounding.

    The largest weight of an output becomes 448, the largest float8. Outputs of zeros have scale 1.
    """
    narrow = torch.empty_like(weight_NK, dtype=FLOAT8)
    scale_N = weight_NK.new_empty(len(weight_NK), dtype=torch.float32)
    # By parts: a head in float32 would be gigabytes.
    for start in range(0, len(weight_NK), 8192):
        part = weight_NK[start : start + 8192].float()
        scale = part.abs().amax(1) / LARGEST
        scale = torch.where(scale > 0, scale, 1.0)
        scale_N[start : start + 8192] = scale
        narrow[start : start + 8192] = (part / scale[:, None]).clamp(-LARGEST, LARGEST).to(FLOAT8)
    return narrow, scale_N


def dequantise(narrow_NK: Tensor, scale_N: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight that `quantise` rounded."""
    return (narrow_NK.float() * scale_N[:, None]).to(dtype)
