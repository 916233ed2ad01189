"""The discriminator of DiDi-Instruct while it is trained: spectral norm on its head, lower blocks frozen.

Its state dict has the names of the published file, so that it can be saved as it is; see `models.discriminator`.
On purpose different from PyTorch's spectral norm: the singular vectors are computed anew from the weight in every
training forward, so that they depend on nothing but the weight and no cut of a step changes them.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.attention.dense import DenseAttention
from unmask.decoding.didi import Scorer
from unmask.errors import UnmaskError
from unmask.layout import Layout
from unmask.models.config import DiTConfig
from unmask.models.discriminator import Discriminator
from unmask.models.network import Network

SQUARINGS = 12  # as many power iterations as 2 to this power


class SpectralLinear(nn.Module):
    """A linear layer whose weight is divided by its largest singular value; initialised from a plain one.

    In evaluation the singular vectors are those last used in training, or loaded.
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.weight_orig, self.bias = nn.Parameter(plain.weight.detach().clone()), plain.bias
        u, v = singular_vectors(self.weight_orig.detach())
        self.register_buffer("weight_u", u)
        self.register_buffer("weight_v", v)

    def forward(self, x: Tensor) -> Tensor:
        u, v = self.weight_u, self.weight_v
        if self.training:
            u, v = singular_vectors(self.weight_orig.detach().float())
            self.weight_u.copy_(u)
            self.weight_v.copy_(v)
        norm = (u[:, None] * self.weight_orig * v).sum()
        return F.linear(x, (self.weight_orig / norm).to(x.dtype), self.bias.to(x.dtype))


@torch.no_grad()
def singular_vectors(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The left and right vector [out], [in] of the largest singular value, by power iteration on W'W, squared."""
    if len(weight) < weight.shape[1]:
        v, u = singular_vectors(weight.T)
        return u, v
    with torch.autocast(weight.device.type, enabled=False):
        power = weight.T @ weight
        for _ in range(SQUARINGS):
            power = power / power.norm()
            power = power @ power
        # Every column is a multiple of v now, up to rounding; the longest has the least of it.
        v = F.normalize(power[:, power.norm(dim=0).argmax()], dim=0)
        return F.normalize(weight @ v, dim=0), v


def new_discriminator(network: Network, trained_blocks: int) -> Discriminator:
    """A discriminator that begins with the embedding and blocks of `network`.

    Args:
        network: a DiT, as the run starts with it.
        trained_blocks: so many of the last blocks are trained, with the head; all else is frozen.

    Raises:
        UnmaskError: the network is no DiT.
    """
    config = network.config
    if not isinstance(config, DiTConfig):
        raise UnmaskError(f"the discriminator needs a DiT (mdlm) to start from, got a {config.family} model")
    model = Discriminator(config).to(network.device)
    trunk = {name: tensor for name, tensor in network.state_dict().items() if name in model.state_dict()}
    model.load_state_dict({n: t for n, t in trunk.items() if not n.startswith("output_layer.")}, strict=False)
    main = model.output_layer.main
    draw = torch.Generator().manual_seed(0)
    for index in (0, 2):
        plain = main[index]
        assert isinstance(plain, nn.Linear)
        _start(plain, draw)
        main[index] = SpectralLinear(plain)
    model.requires_grad_(False)
    model.output_layer.requires_grad_(True)
    for block in list(model.blocks)[max(len(model.blocks) - trained_blocks, 0) :]:
        block.requires_grad_(True)
    return model.train()


def judged(judge: nn.Module, layout: Layout, tokens: Tensor, sigma_N: Tensor) -> Tensor:
    """Logits [K N, W] float32 of K corrupted canvases for each of N rows, tokens [K N, W]; layout [N, W] or [W]."""
    count = len(tokens) // len(sigma_N)
    if layout.order.dim() == 2:
        layout = layout.map(lambda x: x.repeat(count, 1))
    scorer, positions = cast("Scorer", judge), layout.positions.expand_as(tokens)
    return scorer(scorer.embed(tokens), sigma_N.repeat(count), positions, DenseAttention(layout)).float()


@torch.no_grad()
def _start(layer: nn.Linear, draw: torch.Generator) -> None:
    """PyTorch's usual start, uniform with bound 1 / sqrt(inputs), from a generator of its own."""
    bound = layer.in_features**-0.5
    for tensor in (layer.weight, layer.bias):
        tensor.copy_(torch.rand(tensor.shape, generator=draw) * 2 * bound - bound)
