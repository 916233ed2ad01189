"""Reading published checkpoints: safetensors straight to the device, all checked against config.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unmask.errors import UnmaskError, unknown
from unmask.models.adapter import merge_adapter
from unmask.models.config import DiTConfig, ModelConfig
from unmask.models.dit import DiT
from unmask.models.families import Family, resolve
from unmask.models.hub import (
    read_config,
    read_json,
    read_json_if_there,
    read_tokenizer_facts,
    resolve_source,
)
from unmask.models.names import Piece, checkpoint_pieces, checkpoint_tensor, fitting_scheme
from unmask.models.network import Network
from unmask.models.rope import Rope
from unmask.models.transformer import Transformer

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Adjusts which experts run and was tuned in float32: stays as stored, whatever the dtype of the model.
_KEPT = ".expert_bias"
_STORED = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model and everything its files say about it."""

    model: Network
    config: ModelConfig
    family: Family
    config_json: dict[str, Any]
    generation_json: dict[str, Any] | None
    folder: Path


def load_model(
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    adapter: str | Path | None = None,
    check_base: bool = True,
    mask_token_id: int | None = None,
    eos_token_id: int | list[int] | None = None,
) -> Checkpoint:
    """Loads a checkpoint, in evaluation mode.

    Args:
        source: folder or hub name.
        device: where the weights go.
        dtype: "auto" (float32 on a CPU, elsewhere the checkpoint's), "stored" (the checkpoint's, tensor by
            tensor) or a name of `DTYPES`.
        revision: hub branch, tag or commit.
        adapter: folder or hub name of a LoRA adapter to merge.
        check_base: refuse an adapter that was trained on another model.
        mask_token_id, eos_token_id: replace what the checkpoint states.

    Raises:
        UnmaskError: anything wrong with the files or the arguments, in one line.
    """
    folder = resolve_source(source, revision=revision)
    config_json = read_config(folder)
    config = ModelConfig.from_json(config_json)
    generation_json = read_json_if_there(folder / "generation_config.json")
    family = resolve(config_json, generation_json, read_tokenizer_facts(folder))
    family = family.override(mask_token_id=mask_token_id, eos_token_id=eos_token_id)
    model = empty_model(config)
    load_weights(model, folder, device, dtype)
    if adapter is not None:
        base_names = [str(source), str(folder), str(config_json.get("_name_or_path", ""))] if check_base else None
        merge_adapter(model, resolve_source(adapter), base_names=base_names)
    return Checkpoint(model.eval(), config, family, config_json, generation_json, folder)


def new_model(config: ModelConfig) -> Network:
    """The network of a config, its weights not yet made (see `Network.init_weights`)."""
    return DiT(config) if isinstance(config, DiTConfig) else Transformer(config)


def empty_model(config: ModelConfig) -> Network:
    """The network without memory for its weights (meta device), for `load_weights`."""
    with torch.device("meta"):
        return new_model(config)


def load_weights(
    model: Network, folder: Path, device: torch.device | str = "cpu", dtype: str | torch.dtype = "auto"
) -> None:
    """Reads all weights of `folder` into `model`, straight to `device`. `dtype`: see `load_model`.

    Raises:
        UnmaskError: no safetensors, a missing or broken shard, or tensors that do not fit the config.
    """
    device = _device(device)
    files = tensor_files(folder)
    scheme = fitting_scheme(model.config.names, model.embedding_name, files)
    own = model.state_dict()
    expected = checkpoint_pieces(scheme, own)
    head = checkpoint_tensor(scheme, "lm_head.weight")
    spare = files.pop(head, None) if model.config.tied_head else None
    _check_names(files, expected)
    target = _target_dtype(dtype, device)
    state: dict[str, Tensor] = {}
    for path in sorted(set(files.values())):
        pieces = {n: expected[n] for n, f in files.items() if f == path and n in expected}
        wanted = {n: piece.of(own[piece.own]) for n, piece in pieces.items()}
        for name, tensor in _read_file(path, wanted, device, target):
            _place(state, name, pieces[name], tensor, own[pieces[name].own].shape)
    if target is None and dtype != "stored":
        # One dtype for all: a checkpoint with float32 norms among bfloat16 matrices would not multiply.
        common = state[model.embedding_name].dtype
        state = {name: tensor if name.endswith(_KEPT) else tensor.to(common) for name, tensor in state.items()}
    if spare is not None:
        _check_spare_head(spare, head, state[model.embedding_name])
    model.load_state_dict(state, assign=True)
    for module in model.modules():
        if isinstance(module, Rope):
            module.to_empty(device=device)


def _check_spare_head(path: Path, name: str, embedding: Tensor) -> None:
    """A tied checkpoint may store its head all the same; it is not read, so it must not say anything else."""
    ((_, stored),) = _read_file(path, {name: embedding}, embedding.device, embedding.dtype)
    if not torch.equal(stored, embedding):
        raise UnmaskError(f"config.json ties the head to the embedding, but {name} in {path.name} differs from it")


def tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name (the checkpoint's) to the safetensors file that holds it.

    Raises:
        UnmaskError: no safetensors, a shard missing or broken, an index that disagrees with the shards.
    """
    if (folder / INDEX).is_file():
        return _indexed_files(folder)
    single = folder / SINGLE
    if single.is_file():
        return dict.fromkeys(_keys(single), single)
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise UnmaskError(
            f"{folder} holds only {pickles[0]}; weights are read from .safetensors (pickles can run code)"
        )
    raise UnmaskError(f"no {SINGLE} or {INDEX} in {folder}")


def _indexed_files(folder: Path) -> dict[str, Path]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnmaskError(f"{folder / INDEX} has no weight_map")
    held: dict[str, Path] = {}
    for shard in sorted(set(weight_map.values())):
        # A path in the index could point outside the folder.
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise UnmaskError(f"{INDEX} names {shard}, which is not in {folder}")
        for name in _keys(folder / shard):
            if name in held:
                raise UnmaskError(f"tensor {name} is in {held[name].name} and again in {shard}")
            held[name] = folder / shard
    for name, shard in weight_map.items():
        if held.get(name) != folder / shard:
            raise UnmaskError(f"{INDEX} puts {name} in {shard}, which does not hold it")
    return held


def _keys(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise _broken(path, error) from None


def _broken(path: Path, error: Exception) -> UnmaskError:
    return UnmaskError(f"{path} is damaged or incomplete ({' '.join(str(error).split())}); fetch it again")


def _check_names(files: Mapping[str, Path], expected: Mapping[str, object]) -> None:
    missing = [n for n in expected if n not in files]
    # rotary_emb.inv_freq is a constant that old exporters saved.
    surplus = [n for n in files if n not in expected and not n.endswith("rotary_emb.inv_freq")]
    for verb, names in (("lack", missing), ("also hold", surplus)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UnmaskError(f"config does not fit the weights: the files {verb} {names[0]}{more}")


def _device(device: torch.device | str) -> torch.device:
    """The device, checked to be there; a plain "cuda" is the process's current one."""
    try:
        found = torch.device(device)
    except RuntimeError:
        raise unknown("device", device, ["cpu", "cuda", "cuda:0", "mps"]) from None
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type == "cuda":
        if (found.index or 0) >= torch.cuda.device_count():
            raise UnmaskError(f"no device {found}: this machine has {torch.cuda.device_count()} CUDA devices")
        return torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise UnmaskError("no device mps on this machine")
    return found


def _target_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype | None:
    """None: as stored."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "stored" or (dtype == "auto" and device.type != "cpu"):
        return None
    if dtype == "auto":
        return torch.float32
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, ["auto", "stored", *DTYPES])
    return DTYPES[dtype]


def _read_file(
    path: Path, wanted: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    """Some tensors of one file, one after the other. `wanted`: their names, each with a tensor of its shape."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            for name, due in wanted.items():
                _check_tensor(name, file.get_slice(name), due, path)
                tensor = file.get_tensor(name)
                yield name, tensor if dtype is None or name.endswith(_KEPT) else tensor.to(dtype)
    except (SafetensorError, OSError) as error:
        raise _broken(path, error) from None


def _place(state: dict[str, Tensor], name: str, piece: Piece, tensor: Tensor, whole: torch.Size) -> None:
    """Puts a tensor that was read into `state`: as it is, or into its place among the experts of its layer."""
    if piece.index is None:
        state[piece.own] = tensor
        return
    if piece.own not in state:
        state[piece.own] = torch.empty(whole, dtype=tensor.dtype, device=tensor.device)
    stack = state[piece.own]
    if stack.dtype != tensor.dtype:
        raise UnmaskError(f"{name} is stored as {tensor.dtype}, other experts of its layer as {stack.dtype}")
    piece.of(stack).copy_(tensor)


def _check_tensor(name: str, stored: Any, expected: Tensor, path: Path) -> None:
    shape = list(stored.get_shape())
    if shape != list(expected.shape):
        raise UnmaskError(
            f"config does not fit the weights: {name} is {shape} in {path.name}, {list(expected.shape)} by config.json"
        )
    if stored.get_dtype() not in _STORED:
        raise UnmaskError(f"{name} in {path.name} is stored as {stored.get_dtype()}; readable are {', '.join(_STORED)}")
