"""One decoder-only transformer for every dense family; masks and caches arrive as the `attend` argument.

Modules carry the names of the Hugging Face Llama layout, so a state dict of this class is a published
one (`names` maps LLaDA's).
Shape legend: see `layout`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.attention import Attend
from unmask.models.config import ModelConfig
from unmask.models.rope import Rope, rotate

Angles = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    """x / rms(x) * weight; the division in float32, rounded before the weight as the published models do."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return self.weight * F.rms_norm(x.float(), self.weight.shape, None, self.eps).to(x.dtype)


class Attention(nn.Module):
    """Projections, optional norm per head, rotation; the attention itself is `attend`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c, self.head_dim = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(c, config.num_heads * self.head_dim, bias=config.qkv_bias)
        self.k_proj = nn.Linear(c, config.num_kv_heads * self.head_dim, bias=config.qkv_bias)
        self.v_proj = nn.Linear(c, config.num_kv_heads * self.head_dim, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.num_heads * self.head_dim, c, bias=config.o_bias)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else None

    def forward(self, x_BWC: Tensor, angles: Angles, layer: int, attend: Attend) -> Tensor:
        q, k, v = (
            project(x_BWC).unflatten(-1, (-1, self.head_dim)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, *angles).to(v.dtype), rotate(k, *angles).to(v.dtype)
        mixed_BHWD = attend(layer, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.o_proj(mixed_BHWD.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(c, inner, bias=config.mlp_bias)
        self.up_proj = nn.Linear(c, inner, bias=config.mlp_bias)
        self.down_proj = nn.Linear(inner, c, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x_BWC: Tensor, angles: Angles, layer: int, attend: Attend) -> Tensor:
        x_BWC = x_BWC + self.self_attn(self.input_layernorm(x_BWC), angles, layer, attend)
        return x_BWC + self.mlp(self.post_attention_layernorm(x_BWC))


class Decoder(nn.Module):
    """Embedding, layers and final norm: the part below the head (`model.` in tensor names)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rope = Rope(config)


class Transformer(nn.Module):
    """The network: token ids and positions in, hidden states or logits out.

    Weights start as PyTorch's defaults: call `init_weights` to train from nothing, or `load_weights`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = None if config.tied_head else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' data type."""
        return self.model.embed_tokens.weight.dtype

    def init_weights(self, std: float = 0.02, generator: torch.Generator | None = None) -> None:
        """Normal weights of this standard deviation, zero biases; norms stay at one."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=std, generator=generator)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def embed(self, tokens_BW: Tensor) -> Tensor:
        """Input embeddings [B, W, C] of token ids [B, W]."""
        return self.model.embed_tokens(tokens_BW)

    def hidden(
        self, tokens_BW: Tensor, positions_BW: Tensor, attend: Attend, embeddings_BWC: Tensor | None = None
    ) -> Tensor:
        """Hidden states [B, W, C] after the final norm.

        Args:
            tokens_BW: token ids, int64.
            positions_BW: RoPE positions, int64.
            attend: the attention; sees every layer's rotated queries and keys.
            embeddings_BWC: replaces the embedding of the tokens where given (mixed embeddings).
        """
        x_BWC = self.embed(tokens_BW) if embeddings_BWC is None else embeddings_BWC
        angles = self.model.rope(positions_BW)
        for index, layer in enumerate(self.model.layers):
            x_BWC = layer(x_BWC, angles, index, attend)
        return self.model.norm(x_BWC)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., C]."""
        weight = self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return F.linear(hidden, weight)

    def forward(
        self,
        tokens_BW: Tensor,
        positions_BW: Tensor,
        attend: Attend,
        rows_BR: Tensor | None = None,
        embeddings_BWC: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, R, V] of the window columns `rows_BR` (int64, >= 0), or [B, W, V]. See `hidden`."""
        hidden = self.hidden(tokens_BW, positions_BW, attend, embeddings_BWC)
        if rows_BR is not None:
            hidden = hidden.gather(1, rows_BR.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        return self.head(hidden)

    def count_parameters(self) -> int:
        """Number of weights; a tied head counts once."""
        return sum(p.numel() for p in self.parameters())

    @torch.no_grad()
    def first_nonfinite(self, tokens_BW: Tensor, positions_BW: Tensor, attend: Attend) -> tuple[int, int, int] | None:
        """Where numbers first go wrong: (layer, row, column) of the first layer input with a NaN or infinity.

        Layer `num_layers` is the final norm's input. None if all are finite. `attend` works as in a forward.
        """
        x_BWC = self.embed(tokens_BW)
        angles = self.model.rope(positions_BW)
        for index in range(self.config.num_layers + 1):
            bad_BW = ~x_BWC.isfinite().all(-1)
            if bad_BW.any():
                row, column = bad_BW.nonzero()[0].tolist()
                return index, row, column
            if index < self.config.num_layers:
                x_BWC = self.model.layers[index](x_BWC, angles, index, attend)
        return None
