"""What is put around the networks of a run: recomputation and compilation of layers, DDP, FSDP2."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from unmask.errors import UnmaskError
from unmask.models.dit import DiT
from unmask.models.network import Network
from unmask.models.transformer import Transformer
from unmask.training.ranks import Ranks


def layers_of(network: Network) -> Sequence[nn.Module]:
    """The layers that a network runs one after the other."""
    if isinstance(network, Transformer):
        return list(network.model.layers)
    assert isinstance(network, DiT)
    return list(network.blocks)


class Layered:
    """A layer's forward while it is trained: compiled, and run a second time in the backward pass instead of keeping
    what it computes. Decoding runs the plain layer, whose shapes change with every forward.

    random: the layer draws random numbers, which the second run must draw again.
    """

    def __init__(self, forward: Callable[..., Tensor], compiled: bool, recomputed: bool) -> None:
        self.plain, self.recomputed, self.random = forward, recomputed, False
        self.inner = torch.compile(forward, dynamic=False) if compiled else forward

    def __call__(self, *given: Any) -> Tensor:
        if torch.is_inference_mode_enabled():
            return self.plain(*given)
        *inputs, _, attend = given
        # Without a cache the attention asks for no layer's number; one number for all lets all share a graph.
        given = (*inputs, 0, attend)
        if self.recomputed and torch.is_grad_enabled():
            return checkpoint(self.inner, *given, use_reentrant=False, preserve_rng_state=self.random)
        return self.inner(*given)


def wrap_layers(network: Network, *, compiled: bool, recomputed: bool) -> list[Layered]:
    """Puts a `Layered` around each layer of the network."""
    if not (compiled or recomputed):
        return []
    around = []
    for layer in layers_of(network):
        layer.forward = Layered(layer.forward, compiled, recomputed)
        around.append(layer.forward)
    return around


def shard(objective: nn.Module, networks: Sequence[Network], ranks: Ranks, low: bool) -> None:
    """Cuts all parameters into one piece for each process (FSDP2): layer by layer, then what is left as one.

    Args:
        low: layers are gathered and run in bfloat16; pieces, their gradients and sums stay float32.
    """
    if ranks.count == 1:
        raise UnmaskError("shard: true needs several processes (torchrun --nproc-per-node 8 -m unmask.training ...)")
    mesh = init_device_mesh(ranks.device.type, (ranks.count,))
    # RoPE's angles are inputs of a layer and must not be rounded.
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if low:
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for network in networks:
        for layer in layers_of(network):
            fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(objective, mesh=mesh, mp_policy=policy)


def replicate(objective: nn.Module, ranks: Ranks) -> nn.Module:
    """A whole copy of the parameters in each process (DDP)."""
    if ranks.count == 1:
        return objective
    devices = [ranks.device] if ranks.device.type == "cuda" else None
    with warnings.catch_warnings():
        # Newer versions of PyTorch have another name for `broadcast_buffers`, which older ones do not know.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            objective, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )


@contextmanager
def gathered(objective: nn.Module, network: Network) -> Iterator[None]:
    """The network with whole weights in each process, so that each may run it as often as it likes."""
    if not isinstance(objective, FSDPModule):
        yield
        return
    layers = [layer for layer in layers_of(network) if isinstance(layer, FSDPModule)]
    for layer in layers:
        layer.set_reshard_after_forward(False)
    for part in (objective, *layers):
        part.unshard()
    try:
        yield
    finally:
        for layer in layers:
            layer.reshard()
            layer.set_reshard_after_forward(True)
        forget(objective)


def forget(objective: nn.Module) -> None:
    """Drops whole weights that a forward without a backward pass left behind: they may be out of date soon."""
    if isinstance(objective, FSDPModule):
        objective.reshard()


def piece(rows: int, index: int, count: int) -> slice:
    """The rows of a sharded tensor that process `index` of `count` owns."""
    size = math.ceil(rows / count)
    start = min(size * index, rows)
    return slice(start, min(start + size, rows))
