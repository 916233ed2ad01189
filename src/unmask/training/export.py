"""From the weights of a run to a checkpoint in the published layout, or to a LoRA adapter in PEFT's.

    unmask export RUN OUT --which best --merge

A run leaves its checkpoint in its output by itself; this makes one from a state that was saved on the way.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from unmask.errors import UnmaskError, unknown
from unmask.models.checkpoint import DTYPES, empty_model
from unmask.models.config import ModelConfig
from unmask.models.network import Network
from unmask.models.rope import Rope
from unmask.models.writing import EXTRAS, save
from unmask.training.adapters import Adapters
from unmask.training.objective import Objective
from unmask.training.setup import Start

Form = Literal["merged", "adapter"]
TOKENIZER = tuple(pattern for pattern in EXTRAS if pattern != "generation_config.json")
_NETWORK = "network."


def form_of(start: Start, objective: Objective) -> Form:
    """What a run writes at its end: the adapter it trained, or a whole checkpoint, as it must be where a mask token was
    added (PEFT's file has no place for its row that the loader reads) or the model became one of another class."""
    alone = objective.mask_row is None and not start.renamed
    return "adapter" if objective.adapters is not None and alone else "merged"


@torch.no_grad()
def whole_weights(objective: Objective, keep: bool) -> dict[str, Tensor]:
    """The state dict of the objective on the CPU, sharded tensors put together.

    Args:
        keep: False in the processes that only take part; they get nothing.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in objective.state_dict().items():
        if name.startswith("frozen."):
            continue
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            out[name] = full.detach().cpu()
    return out


def write_checkpoint(
    start: Start, objective: Objective, weights: Mapping[str, Tensor], folder: Path, form: Form
) -> None:
    """Writes a checkpoint or an adapter that `unmask.load` takes; whole, or not at all.

    Args:
        weights: of the objective, as `whole_weights` gives them.

    Raises:
        UnmaskError: the folder cannot be written; what was there is left as it was.
    """
    if form == "adapter":
        assert objective.adapters is not None
        _write_adapter(start, objective.adapters, weights, folder)
        return
    network = _network(weights) if objective.adapters is None else objective.adapters.merged(_network(weights))
    if objective.mask_row is not None:
        table = objective.network.embedding_name
        network[table] = network[table].float().clone()
        network[table][objective.mask_id] = weights["mask_row"]
    config = start.config
    model = _filled(ModelConfig.from_json(start.config_json), network, DTYPES[config.dtype])

    def extras(draft: Path) -> None:
        _copy_texts(start, draft)
        _write_modules(weights, draft)

    config_json = {**start.config_json, "torch_dtype": config.dtype}
    save(model, folder, config_json, shard_bytes=config.shard_megabytes * 10**6, extras=extras)


def _filled(sizes: ModelConfig, network: Mapping[str, Tensor], dtype: torch.dtype) -> Network:
    model = empty_model(sizes)
    kept = {name: t if name.endswith(".expert_bias") else t.to(dtype) for name, t in network.items()}
    model.load_state_dict(kept, assign=True)
    for module in model.modules():
        if isinstance(module, Rope):
            module.to_empty(device="cpu")
    return model


def _network(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the network alone."""
    return {name.removeprefix(_NETWORK): t for name, t in weights.items() if name.startswith(_NETWORK)}


def _write_modules(weights: Mapping[str, Tensor], folder: Path) -> None:
    """The recipe's own modules, each in a file of its name."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if name.startswith("modules_of_recipe."):
            _, module, rest = name.split(".", 2)
            found.setdefault(module, {})[rest] = tensor.contiguous()
    for module, tensors in found.items():
        save_file(tensors, folder / f"{module}.safetensors", metadata={"format": "pt"})


def _copy_texts(start: Start, draft: Path) -> None:
    """Generation settings and tokenizer; one that got a mask token is written anew."""
    if start.config.init is not None:
        _copy(Path(start.config.init), draft, ["generation_config.json"])
    if start.mask.said:
        start.tokenizer.save_pretrained(draft)
    elif start.config.tokenizer is not None:
        _copy(Path(start.config.tokenizer), draft, TOKENIZER)


def _copy(source: Path, target: Path, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, target / path.name)


def _write_adapter(start: Start, adapters: Adapters, weights: Mapping[str, Tensor], folder: Path) -> None:
    network = _network(weights)
    base = str(start.config_json.get("_name_or_path") or start.config.init)

    def fill(draft: Path) -> None:
        adapters.write(draft, network, base)
        _write_modules(weights, draft)

    into(folder, fill)


def into(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fills a draft and moves its files into the folder.

    Raises:
        UnmaskError: it cannot be written; what was there is left as it was.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            draft.chmod(0o755)
            fill(draft)
            folder.mkdir(exist_ok=True)
            for path in draft.iterdir():
                path.replace(folder / path.name)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise UnmaskError(f"cannot write {folder}: {error.strerror or error}") from None


def check_new(folder: Path) -> None:
    """Refuses a folder that holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UnmaskError(f"{folder} is there already; export into a new folder, nothing is overwritten")


def export(run: str | Path, out: str | Path, which: str = "last", form: Form | None = None) -> dict[str, Any]:
    """Makes a checkpoint of a run's saved state.

    Args:
        run: its output folder.
        which: "last" or "best".
        form: "merged" or "adapter"; None: what the run itself would leave.

    Returns:
        What was written: step, form, folder.

    Raises:
        UnmaskError: there is no such state, `out` holds something, or the run has no adapter.
    """
    from unmask.training.build import rebuilt
    from unmask.training.resume import Saved, newest

    if which not in ("last", "best"):
        raise unknown("state", which, ["last", "best"])
    check_new(Path(out))
    folder = newest(Path(run), "state" if which == "last" else "best")
    if folder is None:
        hint = "set save_every" if which == "last" else "set keep to best"
        left = f"; what the run left at its end is in {run} itself" if Path(run, "config.json").is_file() else ""
        raise UnmaskError(f"{run} holds no {which} state to export ({hint} in the training config){left}")
    saved = Saved.open(folder)
    start, objective = rebuilt(saved.meta["config"])
    kind = "average" if any(name.startswith("average/") for name in saved.held) else "weight"
    weights = dict(objective.state_dict())
    for name in [n for n in weights if f"{kind}/{n}" in saved.held]:
        weights[name] = saved.read(f"{kind}/{name}")
    chosen = form or form_of(start, objective)
    if chosen == "adapter" and form_of(start, objective) != "adapter":
        raise UnmaskError(f"{run} was trained without an adapter that could stand alone; leave out --adapter")
    write_checkpoint(start, objective, weights, Path(out), chosen)
    return {"step": saved.meta["done"], "form": chosen, "folder": str(out)}
