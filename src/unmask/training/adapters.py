"""LoRA by PEFT: low-rank matrices beside the linear layers of a network, saved as PEFT saves them.

    lora: {rank: 32, alpha: 32, dropout: 0.05, targets: [q_proj, v_proj]}

Targets bear the names of the published checkpoint (LLaDA's `attn_out` is what others call `o_proj`), as the file does
that is written; `models.adapter` reads it back. A target that no layer has is an error: PEFT leaves it out silently,
which cost dParallel's published LLaDA half of its adapters.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unmask.errors import UnmaskError, unknown
from unmask.models.adapter import PREFIX
from unmask.models.names import checkpoint_module, checkpoint_pieces
from unmask.models.network import Network
from unmask.training.lora import ALL, LoraOptions

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

NAME = "default"  # PEFT's own name of an adapter that is given none
HEADS = ("lm_head", "output_layer.linear")


def linear_layers(network: Network) -> dict[str, str]:
    """The published name of each linear layer that can be adapted, by our name."""
    # Subclasses (routers) do more than multiply.
    own = [name for name, module in network.named_modules() if type(module) is nn.Linear and name not in HEADS]
    return {name: checkpoint_module(network.config.names, name) for name in own}


def chosen(layers: Mapping[str, str], targets: Sequence[str]) -> dict[str, str]:
    """The layers that the targets name.

    Raises:
        UnmaskError: a target that names none; the message has the allowed names and the nearest.
    """
    found: dict[str, str] = {}
    ends = {published.rpartition(".")[2] for published in layers.values()}
    for target in targets:
        here = {own: name for own, name in layers.items() if target == ALL or f".{name}".endswith(f".{target}")}
        if not here:
            meant = {name.rpartition(".")[2] for own, name in layers.items() if own.endswith(f".{target}")}
            if meant:
                known = ", ".join(sorted(ends))
                raise UnmaskError(
                    f"unknown LoRA target {target!r}; this checkpoint calls it {meant.pop()!r} (known: {known})"
                )
            raise unknown("LoRA target", target, [ALL, *ends])
        found.update(here)
    return {own: layers[own] for own in layers if own in found}


class Adapters:
    """The adapters of a network; making it puts them in, and freezes everything else."""

    def __init__(self, network: Network, options: LoraOptions, seed: int) -> None:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        self.options = options
        scheme = network.config.names
        layers = linear_layers(network)
        self.published = chosen(layers, options.targets)
        """The published name of each adapted layer, by our name."""
        tensors = checkpoint_pieces(scheme, network.state_dict())
        self.target_modules = _targets(self.published.values(), {name.rpartition(".")[0] for name in tensors})
        network.requires_grad_(False)
        config = LoraConfig(
            r=options.rank,
            lora_alpha=options.rank if options.alpha is None else options.alpha,  # type: ignore[arg-type]
            lora_dropout=options.dropout,
            target_modules=list(self.published),
            use_rslora=options.rslora,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, network, adapter_name=NAME)
        self.layers: list[LoraLayer] = [m for m in network.modules() if isinstance(m, LoraLayer)]
        assert len(self.layers) == len(self.published)

    @contextmanager
    def off(self) -> Iterator[None]:
        """The network as it was before."""
        # PEFT's own switch would also change which parameters are trained.
        for layer in self.layers:
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer in self.layers:
                layer._disable_adapters = False

    def pairs(self, state: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """A [rank, in] and B [out, rank] of each layer by its published name, from the network's state dict."""
        sides = {own: [state[f"{own}.lora_{side}.{NAME}.weight"] for side in "AB"] for own in self.published}
        return {self.published[own]: (a, b) for own, (a, b) in sides.items()}

    def merged(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of the network without adapters, their products added in float32."""
        out: dict[str, Tensor] = {}
        for name, tensor in state.items():
            if ".lora_" in name:
                continue
            plain = name.replace(".base_layer.", ".")
            own, _, leaf = plain.rpartition(".")
            if own in self.published and leaf == "weight":
                a, b = (state[f"{own}.lora_{side}.{NAME}.weight"].float() for side in "AB")
                tensor = tensor.float().add(b @ a, alpha=self.options.scale)
            out[plain] = tensor
        return out

    def write(self, folder: Path, state: Mapping[str, Tensor], base: str) -> None:
        """adapter_model.safetensors (float32) and adapter_config.json.

        Args:
            base: what the network was before; those who load the adapter are held to it.
        """
        tensors = {}
        for module, (a, b) in self.pairs(state).items():
            tensors[f"{PREFIX}{module}.lora_A.weight"] = a.float().cpu().contiguous()
            tensors[f"{PREFIX}{module}.lora_B.weight"] = b.float().cpu().contiguous()
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        options = self.options
        alpha = options.rank if options.alpha is None else options.alpha
        settings = {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": base,
            "r": options.rank,
            "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "lora_dropout": options.dropout,
            "target_modules": self.target_modules,
            "use_rslora": options.rslora,
            "bias": "none",
            "fan_in_fan_out": False,
            "modules_to_save": None,
            "init_lora_weights": True,
            "inference_mode": True,
        }
        (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _targets(adapted: Iterable[str], modules: Iterable[str]) -> list[str]:
    """`target_modules` of adapted layers among all modules of a checkpoint: the ends of their names where these mean no
    other module (LLaDA's head ends like its down projection), else the whole names."""
    adapted = set(adapted)
    ends = {name.rpartition(".")[2] for name in adapted}
    clash = {name.rpartition(".")[2] for name in modules if name not in adapted}
    return sorted(adapted if clash & ends else ends)
