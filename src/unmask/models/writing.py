"""Writing checkpoints back in their published layout: a folder is written whole or left as it was."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from unmask.errors import UnmaskError
from unmask.models.checkpoint import INDEX, SINGLE, tensor_files
from unmask.models.names import checkpoint_pieces, checkpoint_tensor, fitting_scheme
from unmask.models.network import Network

SHARD_BYTES = 5 * 10**9
# What belongs to a checkpoint beside its weights and config.json: generation settings and the tokenizer.
EXTRAS = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
)


def save(
    model: Network,
    folder: Path,
    config_json: Mapping[str, Any],
    *,
    like: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    extras: Callable[[Path], None] | None = None,
) -> None:
    """Writes config.json and the weights under the checkpoint's own tensor names.

    Args:
        model: the weights, written in the dtype they have.
        folder: made if missing; the weights of an earlier checkpoint in it are replaced.
        config_json: the source's config, written as it is but for the dtype.
        like: a checkpoint folder whose shards are kept and whose tokenizer and generation config are copied.
        shard_bytes: largest file, where `like` does not decide.
        extras: puts further files into the folder it is given, which become part of the checkpoint.

    Raises:
        UnmaskError: the folder cannot be written. What was there before is left alone.
    """
    tensors = _named_tensors(model, like)
    shards = _shards_like(tensors, like) or _shards_by_size(tensors, shard_bytes)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            draft.chmod(0o755)  # mkdtemp's 0700 would stay with the finished folder
            _write(draft, tensors, shards)
            (draft / "config.json").write_text(json.dumps(_with_dtype(config_json, model), indent=2) + "\n")
            if like is not None:
                _copy_extras(like, draft)
            if extras is not None:
                extras(draft)
            _publish(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise UnmaskError(f"cannot write {folder}: {error.strerror or error}") from None


def _named_tensors(model: Network, like: Path | None) -> dict[str, Tensor]:
    """State dict under checkpoint names; a tied head is written only if the source had it written."""
    source = {} if like is None else tensor_files(like)
    scheme = fitting_scheme(model.config.names, model.embedding_name, source)
    state = model.state_dict()
    tensors = {name: piece.of(state[piece.own]) for name, piece in checkpoint_pieces(scheme, state).items()}
    for name, tensor in model.constants().items():
        written = checkpoint_tensor(scheme, name)
        if like is None or written in source:
            tensors[written] = tensor
    head = checkpoint_tensor(scheme, "lm_head.weight")
    if model.config.tied_head and head in source:
        tensors[head] = model.embedding.detach().clone()
    return tensors


def _shards_like(tensors: Mapping[str, Tensor], like: Path | None) -> dict[str, list[str]] | None:
    if like is None:
        return None
    source = tensor_files(like)
    if not all(name in source for name in tensors):
        return None
    shards: dict[str, list[str]] = {}
    for name in tensors:
        shards.setdefault(source[name].name, []).append(name)
    return shards


def _shards_by_size(tensors: Mapping[str, Tensor], limit: int) -> dict[str, list[str]]:
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": g for i, g in enumerate(groups, 1)}


def _write(folder: Path, tensors: Mapping[str, Tensor], shards: Mapping[str, list[str]]) -> None:
    for file, names in shards.items():
        content = {name: tensors[name].detach().cpu().contiguous() for name in names}
        save_file(content, folder / file, metadata={"format": "pt"})
    if list(shards) == [SINGLE]:
        return
    index = {
        "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
        "weight_map": {name: file for file, names in shards.items() for name in names},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _with_dtype(config_json: Mapping[str, Any], model: Network) -> dict[str, Any]:
    """The config with the dtype entry it has (either spelling) set to what is written."""
    dtype = str(model.dtype).removeprefix("torch.")
    return {key: dtype if key in ("torch_dtype", "dtype") else value for key, value in config_json.items()}


def _copy_extras(source: Path, target: Path) -> None:
    for pattern in EXTRAS:
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, target / path.name)


def _publish(draft: Path, folder: Path) -> None:
    """Moves finished files into place: a new folder at once, an old one file by file, then old weights go."""
    if not folder.exists():
        draft.rename(folder)
        return
    written = {path.name for path in draft.iterdir()}
    for name in sorted(written, key=lambda n: n in (INDEX, "config.json")):
        os.replace(draft / name, folder / name)  # noqa: PTH105 - replaces on Windows too
    if INDEX not in written:
        (folder / INDEX).unlink(missing_ok=True)
    for path in folder.glob("model*.safetensors"):
        if path.name not in written:
            path.unlink()
