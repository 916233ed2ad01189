"""One decoder-only transformer for every family but the DiTs; masks and caches arrive as the `attend` argument.

Modules carry the names of the Hugging Face Llama layout, so a state dict of this class is a published
one (`names` maps LLaDA's).
Shape legend: see `layout`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.attention import Attend
from unmask.models.config import ModelConfig
from unmask.models.mlp import MLP
from unmask.models.moe import Experts, MoE
from unmask.models.network import Network
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
        self.heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        self.fused = config.fused_qkv
        if self.fused:
            self.qkv_proj = nn.Linear(c, sum(self.heads) * self.head_dim, bias=config.qkv_bias)
        else:
            self.q_proj = nn.Linear(c, config.num_heads * self.head_dim, bias=config.qkv_bias)
            self.k_proj = nn.Linear(c, config.num_kv_heads * self.head_dim, bias=config.qkv_bias)
            self.v_proj = nn.Linear(c, config.num_kv_heads * self.head_dim, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.num_heads * self.head_dim, c, bias=config.o_bias)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else None

    def forward(self, x_BWC: Tensor, angles: Angles, layer: int, attend: Attend) -> Tensor:
        if self.fused:
            q, k, v = self.qkv_proj(x_BWC).unflatten(-1, (-1, self.head_dim)).split(self.heads, -2)
        else:
            q, k, v = (
                project(x_BWC).unflatten(-1, (-1, self.head_dim)) for project in (self.q_proj, self.k_proj, self.v_proj)
            )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, *angles).to(v.dtype), rotate(k, *angles).to(v.dtype)
        mixed_BHWD = attend(layer, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.o_proj(mixed_BHWD.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        if config.moe is None or index in config.moe.dense_layers:
            self.mlp = MLP(config.hidden_size, config.intermediate_size, config.mlp_bias)
        else:
            self.mlp = MoE(config.hidden_size, config.moe)
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
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rope = Rope(config)


class Transformer(Network):
    """The network: token ids and positions in, hidden states or logits out.

    Weights start as PyTorch's defaults: call `init_weights` to train from nothing, or `load_weights`.
    """

    embedding_name: ClassVar[str] = "model.embed_tokens.weight"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = None if config.tied_head else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def embedding(self) -> Tensor:
        return self.model.embed_tokens.weight

    def init_weights(self, std: float = 0.02, generator: torch.Generator | None = None) -> None:
        """Normal weights of this standard deviation, zero biases; norms stay at one."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=std, generator=generator)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, Experts):
                for stack in module.parameters():
                    nn.init.normal_(stack, std=std, generator=generator)

    def hidden(
        self, tokens_BW: Tensor, positions_BW: Tensor, attend: Attend, embeddings_BWC: Tensor | None = None
    ) -> Tensor:
        x_BWC = self.embed(tokens_BW) if embeddings_BWC is None else embeddings_BWC
        angles = self.model.rope(positions_BW)
        for index, layer in enumerate(self.model.layers):
            x_BWC = layer(x_BWC, angles, index, attend)
        return self.model.norm(x_BWC)

    def head(self, hidden: Tensor) -> Tensor:
        weight = self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return F.linear(hidden, weight)

    @torch.no_grad()
    def first_nonfinite(self, tokens_BW: Tensor, positions_BW: Tensor, attend: Attend) -> tuple[int, int, int] | None:
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
