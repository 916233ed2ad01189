"""The transformer of the engine: joint projections, fused norms and activations, on the weights of a `Transformer`.

Per layer: joint q/k/v product, rotation with the write to the paged cache, attention, output product, residual sum
with norm, joint gate/up product with SiLU, down product, residual sum with norm. On a GPU the small steps are Triton
kernels; elsewhere plain PyTorch. Everything rounds where the eager network rounds. Nothing reads back to the host.

Shapes: see `layout`; besides T = B * W tokens, I inner width, X = (H + 2G) * D.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from unmask.attention import Attend
from unmask.attention.paged import paged_attention
from unmask.cache.paged import PagedWindow
from unmask.engine.linear import FLOAT8, FastLinear, GatedLinear
from unmask.engine.linear import quantise as to_float8
from unmask.engine.tuning import Timing, tune
from unmask.errors import UnmaskError, unknown
from unmask.kernels import runs_kernels
from unmask.models.mlp import MLP
from unmask.models.network import Network
from unmask.models.rope import rotate
from unmask.models.transformer import Angles, Attention, Layer, RMSNorm, Transformer

if TYPE_CHECKING:
    from unmask.kernels.groups import Narrow


def fuse(network: Network, quantise: str | None = None) -> Network:
    """The network made fast for decoding; one that is no `Transformer` as it is.

    The weights are taken over, not copied: those of `network` become views of the joint ones, so it still runs, and
    a change to either shows in both. Neither may be moved or converted afterwards. A second call shares them again.

    Args:
        quantise: "fp8" rounds the head and the projections of attention and of dense MLPs (not experts, nor the
            embedding, so a head tied to it is held twice) to float8 with a scale per output. `network` then no longer
            runs by itself.

    Raises:
        UnmaskError: a number format that is not built, or not for this network or GPU; the network was rounded by an
            earlier call with `quantise`.
    """
    if quantise not in (None, "fp8"):
        raise unknown("quantisation", quantise, ["fp8"])
    if not isinstance(network, Transformer):
        if quantise:
            raise UnmaskError(f"fp8 is built for transformers, not for family {network.config.family!r}")
        return network
    if any(weight.dtype == FLOAT8 for weight in network.parameters()):
        raise UnmaskError("this network was rounded to fp8 by an earlier fuse and cannot be fused again: load it again")
    if quantise and network.device.type == "cuda":
        capability = torch.cuda.get_device_capability(network.device)
        if capability < (8, 9):
            raise UnmaskError(f"fp8 needs a GPU of compute capability 8.9 or higher, this one has {capability}")
    return FusedTransformer(network, quantise is not None)


class FusedTransformer(Network):
    """See `fuse` and the module's text."""

    embedding_name: ClassVar[str] = Transformer.embedding_name

    @torch.no_grad()
    def __init__(self, network: Transformer, quantised: bool) -> None:
        super().__init__()
        self.config = network.config
        self.network = network
        self.angles = network.model.rope.forward
        self.asked = asked
        self.layers = [FusedLayer(layer, network, quantised) for layer in network.model.layers]  # type: ignore[arg-type]
        weight = network.embedding if network.lm_head is None else network.lm_head.weight
        self.output = FastLinear(weight.detach())
        if quantised:
            narrow, scale = to_float8(weight.detach())
            self.output = FastLinear(narrow, None, scale)
            if network.lm_head is not None:
                network.lm_head.weight.data = self.output.weight

    @property
    def embedding(self) -> Tensor:
        return self.network.embedding

    def init_weights(self, std: float = 0.02, generator: torch.Generator | None = None) -> None:
        raise UnmaskError("weights are made before a network is fused")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FusedTransformer:
        raise UnmaskError("a fused network cannot be moved or converted: do that before it is fused")

    def hidden(
        self, tokens_BW: Tensor, positions_BW: Tensor, attend: Attend, embeddings_BWC: Tensor | None = None
    ) -> Tensor:
        last = self._last(tokens_BW, positions_BW, attend, embeddings_BWC)
        return normed(*last, self.network.model.norm).view(*tokens_BW.shape, -1)

    def head(self, hidden: Tensor) -> Tensor:
        return self.output(hidden.flatten(0, -2)).unflatten(0, hidden.shape[:-1])

    def forward(
        self,
        tokens_BW: Tensor,
        positions_BW: Tensor,
        attend: Attend,
        rows_BR: Tensor | None = None,
        embeddings_BWC: Tensor | None = None,
    ) -> Tensor:
        if rows_BR is None:
            return self.head(self.hidden(tokens_BW, positions_BW, attend, embeddings_BWC))
        last = self._last(tokens_BW, positions_BW, attend, embeddings_BWC)
        asked_TC = self.asked(*last, rows_BR, tokens_BW.shape[1])
        return self.output(normed(*asked_TC, self.network.model.norm)).unflatten(0, rows_BR.shape)

    @torch.no_grad()
    def first_nonfinite(self, tokens_BW: Tensor, positions_BW: Tensor, attend: Attend) -> tuple[int, int, int] | None:
        # By the numbers of this network: those of the eager one are rounded elsewhere, and may be finite.
        for layer, (x_TC, update_TC) in enumerate(self._run(tokens_BW, positions_BW, attend, None)):
            total = x_TC if update_TC is None else x_TC + update_TC.view(-1, *x_TC.shape).sum(0)
            bad_BW = ~total.isfinite().all(-1).view_as(tokens_BW)
            if bad_BW.any():
                row, column = bad_BW.nonzero()[0].tolist()
                return layer, row, column
        return None

    def _run(
        self, tokens_BW: Tensor, positions_BW: Tensor, attend: Attend, embeddings_BWC: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The input of each layer and of the final norm: the residual stream [T, C] and what is still to be added."""
        x_BWC = self.embed(tokens_BW) if embeddings_BWC is None else embeddings_BWC
        shape = tokens_BW.shape
        x_TC, update_TC = x_BWC.reshape(-1, x_BWC.shape[-1]), None
        angles = self.angles(positions_BW)
        for index, layer in enumerate(self.layers):
            yield x_TC, update_TC
            x_TC, normed_TC = add_norm(x_TC, update_TC, layer.attention_norm, layer.qkv.narrow(len(x_TC)))
            update_TC = layer.attention(normed_TC, angles, index, attend, shape)
            x_TC, normed_TC = add_norm(x_TC, update_TC, layer.mlp_norm, layer.narrow_mlp(len(x_TC)))
            update_TC = layer.mlp(normed_TC)
        yield x_TC, update_TC

    def _last(self, *forward: Any) -> tuple[Tensor, Tensor | None]:
        """The last of `_run`, nothing before it kept."""
        last = deque(self._run(*forward), maxlen=1)
        return last[0]

    def tune(self, tokens: Iterable[int], asked: Iterable[int]) -> list[Timing]:
        """Measures which way each projection is fastest, once per process and shape, and keeps it; a no-op off the GPU.
        Returns what was measured.

        Args:
            tokens: numbers of tokens T = B * W of the forwards to come.
            asked: numbers of rows B * R whose logits they ask for.
        """
        if self.device.type != "cuda":
            return []
        groups: defaultdict[object, list[FastLinear]] = defaultdict(list)
        for linear in (linear for layer in self.layers for linear in layer.linears()):
            kind = type(linear), linear.weight.shape, linear.weight.dtype, linear.bias is None, linear.adds
            groups[kind].append(linear)
        work = [(group, t) for t in sorted(set(tokens)) for group in groups.values()]
        work += [([self.output], t) for t in sorted(set(asked))]
        with torch.inference_mode():
            return [tune(group, t, self.dtype) for group, t in work]


class FusedLayer:
    """One layer on joint weights; a plain object, whose tensors belong to the original layer's parameters."""

    def __init__(self, layer: Layer, network: Transformer, quantised: bool) -> None:
        config, attention = network.config, layer.self_attn
        self.heads, self.head_dim, self.eps = attention.heads, config.head_dim, config.rms_norm_eps
        self.attention_norm, self.mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.qkv = FastLinear(*_joined(_qkv(attention), quantised), adds=True)
        self.o = _summed(attention.o_proj, quantised)
        mlp = layer.mlp
        self.mlp = FusedMLP(mlp, quantised) if isinstance(mlp, MLP) else mlp
        if network.device.type == "cuda":
            torch.cuda.empty_cache()  # the separate weights, of other sizes than those that come next

    def linears(self) -> list[FastLinear]:
        """The projections with a `FastLinear` of their own."""
        mlp = [self.mlp.gate_up, self.mlp.down] if isinstance(self.mlp, FusedMLP) else []
        return [self.qkv, self.o, *mlp]

    def narrow_mlp(self, tokens: int) -> bool:
        """Whether the MLP takes so many tokens in float8."""
        return isinstance(self.mlp, FusedMLP) and self.mlp.gate_up.narrow(tokens)

    def attention(self, x_TC: Tensor | Narrow, angles: Angles, layer: int, attend: Attend, shape: torch.Size) -> Tensor:
        """The update of the residual stream, [T, C]; `shape` is [B, W]."""
        if isinstance(attend, PagedWindow) and runs_kernels(self.qkv.weight.is_cuda):
            mixed_BWHD = self._paged(self.qkv(x_TC), angles, layer, attend, shape)
        else:
            q, k, v = self.qkv.whole(x_TC).view(*shape, -1, self.head_dim).split(self.heads, -2)
            if self.q_norm is not None and self.k_norm is not None:
                q, k = self.q_norm(q), self.k_norm(k)
            q, k = rotate(q, *angles).to(v.dtype), rotate(k, *angles).to(v.dtype)
            mixed_BWHD = attend(layer, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
        return self.o(mixed_BWHD.reshape(len(x_TC), -1))

    def _paged(self, qkv: Tensor, angles: Angles, layer: int, attend: PagedWindow, shape: torch.Size) -> Tensor:
        from unmask.kernels.rope import rotate_and_store

        keys_SGD, values_SGD = attend.cache.keys[layer], attend.cache.values[layer]
        heads, kv_heads, _ = self.heads
        cos, sin = angles
        tokens = qkv.shape[-2]
        qkv_TX = rotate_and_store(
            qkv,
            self.qkv.bias,
            cos.view(tokens, -1),
            sin.view(tokens, -1),
            None if self.q_norm is None else self.q_norm.weight,
            None if self.k_norm is None else self.k_norm.weight,
            self.eps,
            heads,
            kv_heads,
            self.head_dim,
            keys_SGD,
            values_SGD,
            attend.view.store_M,
        )
        q_BWHD, k_BWGD, v_BWGD = qkv_TX.view(*shape, -1, self.head_dim).split(self.heads, -2)
        return paged_attention(q_BWHD, k_BWGD, v_BWGD, keys_SGD, values_SGD, attend.view)


class FusedMLP:
    """SwiGLU on a joint gate and up weight."""

    def __init__(self, mlp: MLP, quantised: bool) -> None:
        self.gate_up = GatedLinear(*_joined([mlp.gate_proj, mlp.up_proj], quantised))
        self.down = _summed(mlp.down_proj, quantised)

    def __call__(self, x_TC: Tensor | Narrow) -> Tensor:
        return self.down(self.gate_up.activate(x_TC, self.down.narrow(len(x_TC))))


def asked(x_TC: Tensor, update_TC: Tensor | None, rows_BR: Tensor, width: int) -> tuple[Tensor, Tensor | None]:
    """Of rows of `width` tokens these ones alone, flattened: [B * R, C]."""
    start_B = torch.arange(0, len(rows_BR) * width, width, device=rows_BR.device)
    places = (start_B.unsqueeze(1) + rows_BR).flatten()
    return x_TC[places], None if update_TC is None else update_TC[..., places, :]


def add_norm(
    x_TC: Tensor, update_TC: Tensor | None, norm: RMSNorm, narrow: bool = False
) -> tuple[Tensor, Tensor | Narrow]:
    """x + update and its norm: both [T, C], new tensors. The update may be parts of a sum [P, T, C] (`FastLinear`).

    `narrow`: the norm in float8 (`FastLinear.narrow`).
    """
    if runs_kernels(x_TC.is_cuda):
        from unmask.kernels.norm import add_norm as kernel

        return kernel(x_TC, update_TC, norm.weight, norm.eps, narrow)
    total = x_TC if update_TC is None else x_TC + update_TC
    return total, norm(total)


def normed(x_TC: Tensor, update_TC: Tensor | None, norm: RMSNorm) -> Tensor:
    """The norm of x + update alone, [T, C]."""
    _, out_TC = add_norm(x_TC, update_TC, norm)
    assert isinstance(out_TC, Tensor)
    return out_TC


def _summed(part: nn.Linear, quantised: bool) -> FastLinear:
    """A projection onto the residual stream: `add_norm` adds up the parts of its sums, but no bias."""
    return FastLinear(*_joined([part], quantised), adds=part.bias is None)


def _qkv(attention: Attention) -> list[nn.Linear]:
    return [attention.qkv_proj] if attention.fused else [attention.q_proj, attention.k_proj, attention.v_proj]


def _joined(parts: list[nn.Linear], quantised: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Weight, bias and scales of several projections of one input as one; theirs become views of it."""
    sizes = [part.out_features for part in parts]
    weight = _join([part.weight for part in parts], sizes)
    biases = [part.bias for part in parts if part.bias is not None]
    bias = _join(biases, sizes) if biases else None
    if not quantised:
        return weight, bias, None
    narrow, scale = to_float8(weight)
    for part, rows in zip(parts, narrow.split(sizes)):
        part.weight.data = rows
    return narrow, bias, scale


def _join(parts: Sequence[Tensor], sizes: list[int]) -> Tensor:
    first, at = parts[0].detach(), parts[0].storage_offset()
    adjacent = True
    for part in parts:
        adjacent &= part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        adjacent &= part.storage_offset() == at and part.is_contiguous()
        at += part.numel()
    if adjacent:  # a single one, or joined by an earlier call
        return first.as_strided((sum(sizes), *first.shape[1:]), first.stride())
    joint = torch.cat([part.detach() for part in parts])
    for part, rows in zip(parts, joint.split(sizes)):
        part.data = rows
    return joint
