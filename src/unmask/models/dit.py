"""The small DiT of MDLM, BD3-LM and DiDi-Instruct: an encoder whose layers are modulated by a noise level.

Papers: "Simple and Effective Masked Diffusion Language Models" (MDLM, arXiv 2406.07524), "Block Diffusion" (BD3-LM,
arXiv 2503.09573), "Ultra-Fast Language Generation via Discrete Diffusion Divergence Instruct" (arXiv 2509.25035).
Module names are the published ones without their prefix (`backbone.`), which `names` puts in front.

The published checkpoints were trained with `time_conditioning` off: the noise level sigma is 0 in every call, and so it
is here unless one is given. Only what was trained with another level should be called with it (the discriminator).
Dropout (0.1 on both residual branches of the official training) is left out.

Shape legend: see `layout`; K is the width of the condition vector.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.attention import Attend
from unmask.models.config import DiTConfig
from unmask.models.network import Network
from unmask.models.rope import Rope, rotate
from unmask.models.transformer import Angles

FREQUENCIES = 256  # width of the sinusoid of sigma, fixed in the published code


class LayerNorm(nn.Module):
    """Layer norm in float32 with a weight and no bias."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x.float(), self.weight.shape, eps=self.eps) * self.weight.float()
        return normed.to(x.dtype)


class TokenEmbedding(nn.Module):
    """The embedding table as a bare parameter."""

    def __init__(self, vocab: int, size: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocab, size))
        nn.init.kaiming_uniform_(self.embedding, a=math.sqrt(5))


class SigmaMap(nn.Module):
    """Noise level sigma [B] (nats, not negative) to the condition vector [B, K]."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, size), nn.SiLU(), nn.Linear(size, size))

    def forward(self, sigma_B: Tensor) -> Tensor:
        half = FREQUENCIES // 2
        index = torch.arange(half, device=sigma_B.device, dtype=torch.float32)
        angles = sigma_B.float()[:, None] * torch.exp(-math.log(10000) * index / half)
        waves = torch.cat([angles.cos(), angles.sin()], -1)
        return F.silu(self.mlp(waves.to(next(self.parameters()).dtype)))


class Block(nn.Module):
    """Attention and MLP, each with shift and scale before and a gate behind it, made from the condition vector."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        c, self.head_dim = config.hidden_size, config.head_dim
        self.norm1 = LayerNorm(c, config.rms_norm_eps)
        self.attn_qkv = nn.Linear(c, 3 * c, bias=False)
        self.attn_out = nn.Linear(c, c, bias=False)
        self.norm2 = LayerNorm(c, config.rms_norm_eps)
        inner = config.intermediate_size
        self.mlp = nn.Sequential(nn.Linear(c, inner), nn.GELU(approximate="tanh"), nn.Linear(inner, c))
        self.adaLN_modulation = nn.Linear(config.cond_dim, 6 * c)

    def forward(self, x_BWC: Tensor, cond_BK: Tensor, angles: Angles, layer: int, attend: Attend) -> Tensor:
        parts = self.adaLN_modulation(cond_BK).unsqueeze(1).chunk(6, dim=-1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        mixed = self.attention(self.norm1(x_BWC) * (1 + scale_a) + shift_a, angles, layer, attend)
        x_BWC = x_BWC + gate_a * mixed
        return x_BWC + gate_m * self.mlp(self.norm2(x_BWC) * (1 + scale_m) + shift_m)

    def attention(self, x_BWC: Tensor, angles: Angles, layer: int, attend: Attend) -> Tensor:
        """Fused projection in the order (q, k, v; head; head size), rotation of q and k, `attend`, output."""
        q, k, v = self.attn_qkv(x_BWC).unflatten(-1, (3, -1, self.head_dim)).unbind(2)
        q, k = rotate(q, *angles).to(v.dtype), rotate(k, *angles).to(v.dtype)
        mixed_BHWD = attend(layer, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.attn_out(mixed_BHWD.transpose(1, 2).flatten(2))


class OutputLayer(nn.Module):
    """Modulated final norm, and the head with a bias."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm_final = LayerNorm(config.hidden_size, config.rms_norm_eps)
        self.linear = nn.Linear(config.hidden_size, config.vocab_size)
        self.adaLN_modulation = nn.Linear(config.cond_dim, 2 * config.hidden_size)

    def norm(self, x_BWC: Tensor, cond_BK: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(cond_BK).unsqueeze(1).chunk(2, dim=-1)
        return self.norm_final(x_BWC) * (1 + scale) + shift


class Trunk(nn.Module):
    """Everything below the output layer: embedding, noise level, rotation, blocks. The discriminator has it too."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.vocab_embed = TokenEmbedding(config.vocab_size, config.hidden_size)
        self.sigma_map = SigmaMap(config.cond_dim)
        self.rotary_emb = Rope(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))

    @property
    def embedding(self) -> Tensor:
        """The input embedding [V, C]."""
        return self.vocab_embed.embedding

    def condition(self, sigma_B: Tensor | None) -> Tensor:
        """The condition vector [B, K], for None that of sigma 0, [1, K]."""
        return self.sigma_map(torch.zeros(1, device=self.embedding.device) if sigma_B is None else sigma_B)

    def run(self, x_BWC: Tensor, cond_BK: Tensor, positions_BW: Tensor, attend: Attend) -> Tensor:
        """What the output layer reads, from embeddings: [B, W, C]."""
        angles = self.rotary_emb(positions_BW)
        for index, block in enumerate(self.blocks):
            x_BWC = block(x_BWC, cond_BK, angles, index, attend)
        return x_BWC


class DiT(Trunk, Network):
    """The network. Weights start as PyTorch's defaults: call `init_weights` to train from nothing, or `load_weights`.

    Its logits are raw: the row of the mask token means nothing (see `decoding.mdlm.subs`).
    """

    embedding_name: ClassVar[str] = "vocab_embed.embedding"

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.config = config
        self.output_layer = OutputLayer(config)
        for name, value in zip(("sampling_eps_min", "sampling_eps_max"), config.sampling_eps or ()):
            self.register_buffer(name, torch.tensor(value))

    @torch.no_grad()
    def init_weights(self, std: float = 0.02, generator: torch.Generator | None = None) -> None:
        """The published initialisation (`std` has no part in it): uniform with bound 1 / sqrt(inputs), modulations and
        head zero, so that an untrained network is the identity in every block and gives uniform logits."""
        nn.init.kaiming_uniform_(self.vocab_embed.embedding, a=math.sqrt(5), generator=generator)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                zero = name.endswith(("adaLN_modulation", "output_layer.linear"))
                bound = 0.0 if zero else module.in_features**-0.5
                for weight in module.parameters():
                    weight.uniform_(-bound, bound, generator=generator)

    def hidden(
        self,
        tokens_BW: Tensor,
        positions_BW: Tensor,
        attend: Attend,
        embeddings_BWC: Tensor | None = None,
        sigma_B: Tensor | None = None,
    ) -> Tensor:
        """See `Network.hidden`. sigma_B: noise level of each row in nats, None: 0, as the models were trained."""
        x_BWC = self.embed(tokens_BW) if embeddings_BWC is None else embeddings_BWC
        cond_BK = self.condition(sigma_B)
        return self.output_layer.norm(self.run(x_BWC, cond_BK, positions_BW, attend), cond_BK)

    def head(self, hidden: Tensor) -> Tensor:
        return self.output_layer.linear(hidden)

    def constants(self) -> dict[str, Tensor]:
        return {"rotary_emb.inv_freq": self.rotary_emb.inv_freq}

    @torch.no_grad()
    def first_nonfinite(self, tokens_BW: Tensor, positions_BW: Tensor, attend: Attend) -> tuple[int, int, int] | None:
        x_BWC, cond_BK = self.embed(tokens_BW), self.condition(None)
        angles = self.rotary_emb(positions_BW)
        for index in range(self.config.num_layers + 1):
            bad_BW = ~x_BWC.isfinite().all(-1)
            if bad_BW.any():
                row, column = bad_BW.nonzero()[0].tolist()
                return index, row, column
            if index < self.config.num_layers:
                x_BWC = self.blocks[index](x_BWC, cond_BK, angles, index, attend)
        return None
