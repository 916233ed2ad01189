"""The options of a training run, from a YAML file: every key is a field below, anything else is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from unmask.errors import UnmaskError, unknown

Schedule = Literal["cosine", "constant"]
Precision = Literal["fp32", "bf16"]
AttentionKind = Literal["dense", "flex"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """A training run. Paths are relative to the working directory."""

    recipe: dict[str, Any]
    """`name` (a file of `recipes`) and that recipe's options."""
    tokenizer: str
    """Folder of the tokenizer; copied into the checkpoint."""
    output: str
    """Folder of the checkpoint, the log and the state."""
    model: str | None = None
    """A config.json to train from nothing; give this or `init`."""
    init: str | None = None
    """A checkpoint folder to start from."""
    config_changes: dict[str, Any] = field(default_factory=dict)
    """Entries of config.json to add or replace (architecture, block size, mask id of a converted model)."""
    mask_init: Literal["mean", "keep"] = "keep"
    """"mean": the mask token's embedding starts as the mean of all others, for models that never saw it."""

    task: str = "wordmath"
    problems: int = 400_000
    row_tokens: int = 384
    fill_end: bool = False
    """Fill the last block of each sample with supervised end tokens; see `data`."""
    workers: int = 0
    """Processes that generate data; 0: one for each core."""

    rows_per_step: int = 128
    """Rows behind one update, over all processes."""
    rows_per_forward: int = 128
    """Rows of one forward and backward of one process."""
    steps: int = 3000
    max_minutes: float = 0.0
    """Above 0: the schedule ends after this time if the steps take longer (then a run is not repeatable)."""
    learning_rate: float = 1e-3
    final_rate: float = 0.02
    """Learning rate at the end of a cosine schedule, as a share of `learning_rate`."""
    schedule: Schedule = "cosine"
    warmup_steps: int = 100
    weight_decay: float = 0.1
    """On matrices; not on norms and biases."""
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    """Largest norm of the gradient."""
    seed: int = 0

    precision: Precision = "fp32"
    compile: bool = False
    attention: AttentionKind = "dense"

    log_every: int = 20
    eval_every: int = 500
    eval_problems: int = 1000
    save_every: int = 0
    """Above 0: every so many steps the state (weights, optimiser, step) is written, for `resume`."""
    resume: bool = False
    """Go on from the state in `output`, if there is one."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the saved checkpoint."""
    shard_megabytes: int = 5000

    def __post_init__(self) -> None:
        if (self.model is None) == (self.init is None):
            raise UnmaskError("give either model (a config.json to train from nothing) or init (a checkpoint)")
        values = asdict(self)
        for name, allowed in _CHOICES.items():
            value = values[name]
            if value not in allowed:
                raise unknown(name, value, allowed)
        if self.rows_per_step % self.rows_per_forward:
            raise UnmaskError(
                f"rows_per_step {self.rows_per_step} is no multiple of rows_per_forward {self.rows_per_forward}"
            )


_CHOICES: dict[str, tuple[str, ...]] = {
    "schedule": get_args(Schedule),
    "precision": get_args(Precision),
    "attention": get_args(AttentionKind),
    "mask_init": ("mean", "keep"),
    "dtype": ("float32", "bfloat16"),
}


def from_mapping(values: Mapping[str, Any]) -> TrainConfig:
    """A config from plain values; numbers may be written as text ("1e-3", which YAML reads as text).

    Raises:
        UnmaskError: an unknown or missing key, or a value of the wrong kind.
    """
    known = {f.name: f for f in fields(TrainConfig)}
    for name in values:
        if name not in known:
            raise unknown("training option", name, known)
    for name, f in known.items():
        if name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise UnmaskError(f"the training config lacks {name!r}")
    return TrainConfig(**{name: _convert(name, str(known[name].type), value) for name, value in values.items()})


def _convert(name: str, kind: str, value: Any) -> Any:
    try:
        if kind == "float":
            return float(value)
        if kind == "int":
            if isinstance(value, bool) or int(value) != float(value):
                raise ValueError
            return int(value)
        if kind == "tuple[float, float]":
            low, high = value
            return float(low), float(high)
    except (TypeError, ValueError):
        raise UnmaskError(f"{name} must be {kind}, got {value!r}") from None
    if kind == "bool" and not isinstance(value, bool):
        raise UnmaskError(f"{name} must be true or false, got {value!r}")
    if kind.startswith("dict") and not isinstance(value, Mapping):
        raise UnmaskError(f"{name} must be a mapping, got {value!r}")
    return value


def load_config(path: str | Path, changes: Sequence[str] = ()) -> TrainConfig:
    """Reads a YAML file and applies changes like "steps=100" or "recipe.block_size=16"."""
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UnmaskError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UnmaskError(f"{path} holds no options")
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise UnmaskError(f"{change!r} is not of the form key=value")
        key, _, option = name.partition(".")
        value = yaml.safe_load(text)
        if option:
            values[key] = {**(values.get(key) or {}), option: value}
        else:
            values[key] = value
    return from_mapping(values)
