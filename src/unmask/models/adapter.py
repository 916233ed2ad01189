"""LoRA adapters in PEFT's layout, merged into the weights: W += scale * B @ A, in float32.

Nothing in an adapter is skipped silently: what does not fit the model or is not built is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from unmask.errors import UnmaskError
from unmask.models.hub import read_json
from unmask.models.names import checkpoint_pieces
from unmask.models.network import Network

PREFIX = "base_model.model."
_TENSOR = re.compile(re.escape(PREFIX) + r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# Features that need more than a product of two matrices added; the values that switch them off.
_OFF: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "fan_in_fan_out": (False, None),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "use_qalora": (False, None),
    "alora_invocation_tokens": (None, []),
    "lora_bias": (False, None),
    "corda_config": (None, {}),
}


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter: settings, and for each module (the checkpoint's name) its A [r, in] and B [out, r]."""

    folder: Path
    settings: dict[str, Any]
    pairs: dict[str, tuple[Tensor, Tensor]]

    def scale(self, module: str) -> float:
        """alpha / r of a module (alpha / sqrt(r) with rsLoRA), patterns respected."""
        rank = _pattern(self.settings.get("rank_pattern"), module, self.settings["r"])
        alpha = _pattern(self.settings.get("alpha_pattern"), module, self.settings["lora_alpha"])
        return alpha / sqrt(rank) if self.settings.get("use_rslora") else alpha / rank


def read_adapter(folder: Path) -> Adapter:
    """Reads adapter_config.json and adapter_model.safetensors.

    Raises:
        UnmaskError: not LoRA, an unsupported feature, or tensors that are not LoRA pairs.
    """
    settings = read_json(folder / "adapter_config.json")
    if settings.get("peft_type") != "LORA":
        raise UnmaskError(f"adapter {folder.name} is of type {settings.get('peft_type')!r}; only 'LORA' is supported")
    for key, off in _OFF.items():
        if key in settings and settings[key] not in off:
            raise UnmaskError(f"adapter {folder.name} uses {key} = {settings[key]!r}, which is not supported")
    for key in ("r", "lora_alpha", "target_modules"):
        if settings.get(key) is None:
            raise UnmaskError(f"adapter_config.json of {folder.name} lacks {key!r}")
    return Adapter(folder, settings, _read_pairs(folder))


def _read_pairs(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        raise UnmaskError(f"no {path.name} in {folder} (pickled adapters are not read)")
    sides: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                match = _TENSOR.fullmatch(name)
                if match is None:
                    raise UnmaskError(f"{path}: {name} is not a LoRA matrix of a linear layer")
                sides.setdefault(match["module"], {})[match["side"]] = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise UnmaskError(f"{path} is damaged or incomplete ({' '.join(str(error).split())})") from None
    for module, pair in sides.items():
        if len(pair) != 2:
            raise UnmaskError(f"{path}: {module} has lora_{next(iter(pair))} alone")
    return {module: (pair["A"], pair["B"]) for module, pair in sides.items()}


def merge_adapter(model: Network, folder: Path, *, base_names: Sequence[str] | None) -> None:
    """Merges the adapter in `folder` into `model`, in place. Nothing is changed when it does not fit.

    Args:
        base_names: what the model is called (hub name, folder, `_name_or_path`); None: any base will do.

    Raises:
        UnmaskError: another base, an unsupported feature, or tensors that do not fit the model.
    """
    adapter = read_adapter(folder)
    if base_names is not None:
        _check_base(adapter, base_names)
    weights = _linear_weights(model)
    _check_targets(adapter, list(weights))
    steps: list[tuple[Tensor, Tensor, Tensor, float]] = []
    for module, (a, b) in adapter.pairs.items():
        weight = weights.get(module)
        if weight is None:
            raise UnmaskError(f"adapter {folder.name} changes {module}, which is not a linear layer of the model")
        _check_shapes(adapter, module, a, b, weight)
        steps.append((weight, a, b, adapter.scale(module)))
    for weight, a, b, scale in steps:
        _merge(weight, a, b, scale)


def _linear_weights(model: Network) -> dict[str, Tensor]:
    """The weight [out, in] of each linear layer by the checkpoint's name of the layer, single experts among them."""
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    state = model.state_dict()
    pieces = checkpoint_pieces(model.config.names, state)
    return {
        name.removesuffix(".weight"): piece.of(state[piece.own])
        for name, piece in pieces.items()
        if piece.own in linear or piece.index is not None
    }


@torch.no_grad()
def _merge(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
    delta = b.to(weight.device, torch.float32) @ a.to(weight.device, torch.float32)
    weight.copy_(weight.float().add_(delta, alpha=scale))


def _check_base(adapter: Adapter, names: Sequence[str]) -> None:
    trained_on = str(adapter.settings.get("base_model_name_or_path") or "")
    if not trained_on:
        raise UnmaskError(
            f"adapter {adapter.folder.name} does not say which model it was trained on; check_base=False uses it anyway"
        )
    known = {_last(name) for name in names if name}
    if _last(trained_on) not in known:
        raise UnmaskError(f"adapter {adapter.folder.name} was trained on {trained_on}, not on {names[0]}")


def _last(name: str) -> str:
    """Last component of a path or hub name; for a folder of the hub's cache the model it caches."""
    cached = re.search(r"models--[^/]+?--([^/]+)/snapshots/", name + "/")
    return (cached[1] if cached else name.rstrip("/").rpartition("/")[2]).lower()


def _check_targets(adapter: Adapter, modules: Sequence[str]) -> None:
    """Every target of the settings needs tensors, and so does every module of the model that it names."""
    settings = adapter.settings
    targets = settings["target_modules"]
    if isinstance(targets, str):
        return  # a pattern or "all-linear": the tensors themselves say what is meant
    partial = any(settings.get(key) for key in ("layers_to_transform", "layers_pattern", "exclude_modules"))
    for target in targets:
        if not any(_names(target, module) for module in adapter.pairs):
            raise UnmaskError(f"adapter {adapter.folder.name} targets {target!r} but holds no tensor for it")
        lost = [m for m in modules if _names(target, m) and m not in adapter.pairs]
        if lost and not partial:
            raise UnmaskError(f"adapter {adapter.folder.name} targets {target!r} but holds no tensor for {lost[0]}")


def _names(target: str, module: str) -> bool:
    return module == target or module.endswith(f".{target}")


def _check_shapes(adapter: Adapter, module: str, a: Tensor, b: Tensor, weight: Tensor) -> None:
    rank = _pattern(adapter.settings.get("rank_pattern"), module, adapter.settings["r"])
    fits = {"lora_A": (a, (rank, weight.shape[1])), "lora_B": (b, (weight.shape[0], rank))}
    for name, (tensor, shape) in fits.items():
        if tuple(tensor.shape) != shape:
            raise UnmaskError(
                f"adapter {adapter.folder.name}: {module}.{name} is {list(tensor.shape)}, "
                f"the model and r need {list(shape)}"
            )


def _pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern (PEFT: a regular expression on the end of the name), or the default."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
