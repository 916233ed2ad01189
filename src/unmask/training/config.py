"""The options of a training run, from a YAML file: every key is a field below, anything else is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from unmask.errors import UnmaskError, unknown
from unmask.training.lora import LoraOptions

Schedule = Literal["cosine", "linear", "constant"]
Precision = Literal["fp32", "bf16"]
AttentionKind = Literal["dense", "flex"]
Keep = Literal["last", "best"]
TooLong = Literal["refuse", "drop", "cut"]
Turns = Literal["each", "last"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """A training run. Paths are relative to the working directory."""

    recipe: dict[str, Any]
    """`name` (a file of `recipes`) and that recipe's options."""
    tokenizer: str | None = None
    """Folder of the tokenizer, copied into the checkpoint; None: that of `init`, if the data need one."""
    output: str
    """Folder of the checkpoint, the log and the state."""
    model: str | None = None
    """A config.json to train from nothing; give this or `init`."""
    init: str | None = None
    """A checkpoint to start from: a folder or a hub name."""
    config_changes: dict[str, Any] = field(default_factory=dict)
    """Entries of config.json to add or replace (architecture, block size, mask id of a converted model)."""
    mask_init: Literal["mean", "keep"] = "keep"
    """"mean": the mask token's embedding starts as the mean of all others, for models that never saw it."""

    task: str = "wordmath"
    """What is trained on, made by program (see `unmask.tasks`), where `data` is not given."""
    data: str | None = None
    """A file of rows (.jsonl, .json, .parquet), or a folder of such: chats, prompts with responses, texts, or what
    `unmask distil` wrote; see `sources.chat`."""
    validation_data: str | None = None
    """The same to validate on; None: rows of `data` are held out."""
    columns: dict[str, str] = field(default_factory=dict)
    """What the files call our columns: {prompt: question, response: answer}."""
    turns: Turns = "each"
    """Which of the assistant's turns of a chat are learnt."""
    drafts: dict[str, Any] = field(default_factory=dict)
    """For recipes of trajectories: which states are shown (window, low, high, strategy; see `NoiseSchedule`)."""
    problems: int = 400_000
    """At most so many problems, or rows of `data`."""
    row_tokens: int = 384
    fill_end: bool = False
    """Fill the last block of each sample with supervised end tokens; see `packing`."""
    answer_tokens: int = 0
    """Above 0: every answer is filled to this many tokens with supervised end tokens."""
    extra_ends: int = 0
    """Supervised end tokens behind each answer's own."""
    too_long: TooLong = "refuse"
    """What becomes of a sample that does not fit: an error, left out, or the end of its answer cut off."""
    workers: int = 0
    """Processes that generate data; 0: one for each core."""

    rows_per_step: int = 128
    """Rows behind one update, over all processes."""
    rows_per_forward: int = 128
    """Rows of one forward and backward of one process."""
    steps: int = 3000
    max_minutes: float = 0.0
    """Above 0: the schedule ends after this time if the steps take longer (then a run is not repeatable). The first
    update, which compiles, is not counted."""
    learning_rate: float = 1e-3
    final_rate: float = 0.02
    """Learning rate at the end of a cosine or linear schedule, as a share of `learning_rate`."""
    schedule: Schedule = "cosine"
    warmup_steps: int = 100
    weight_decay: float = 0.1
    """On matrices; not on norms and biases."""
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    """Largest norm of the gradient; the recipe's own networks are clipped each by itself."""
    ema: float | None = None
    """Decay of a moving average of the weights, with which the run is measured and its checkpoint is made."""
    ema_ramp: bool = False
    """The decay is at most (1 + n) / (10 + n) in update n."""
    lora: dict[str, Any] | None = None
    """Train low-rank adapters alone: rank, alpha, dropout, targets, rslora; see `adapters.LoraOptions`."""
    seed: int = 0

    precision: Precision = "fp32"
    """bf16: matrices are multiplied, and layers hand on what they computed, in bfloat16; trained weights, their
    gradients and moments stay float32, frozen ones become bfloat16."""
    compile: bool = False
    """Compile the layers; rows of a forward must then be as many in every step, which they are."""
    attention: AttentionKind = "dense"
    """flex: skips what nobody sees, on a GPU."""
    recompute: bool = False
    """Run each layer again in the backward pass instead of keeping what it computed: a third more work, far less
    memory."""
    shard: bool = False
    """With several processes: each holds a piece of weights, gradients and moments (FSDP2), not all of them (DDP)."""

    log_every: int = 20
    eval_every: int = 500
    eval_problems: int = 1000
    """Held-out samples on which the loss is measured."""
    decode_problems: int = 64
    """Held-out problems of the task that are answered by the recipe's decoder at every measurement; 0: none."""
    decode_tokens: int = 0
    """New tokens of an answer at most; 0: 256, or what the context leaves."""
    decode_batch: int = 32
    """Problems decoded together."""
    keep: Keep = "last"
    """Which weights the checkpoint has at the end: those of the end, or the best measured (accuracy, then tokens per
    forward; validation loss where nothing is decoded)."""
    plot: bool = True
    """Draw curves.png at the end."""
    save_every: int = 0
    """Above 0: every so many steps, and at the end, the state is written, for `resume` and `unmask export`."""
    resume: bool = False
    """Go on from the newest state in `output`, if there is one."""
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
        if self.ema is not None and not 0 <= self.ema < 1:
            raise UnmaskError(f"ema must be at least 0 and below 1, got {self.ema}")
        for name in _COUNTS:
            if values[name] < 1:
                raise UnmaskError(f"{name} must be at least 1, got {values[name]}")
        if self.lora is not None:
            if self.init is None:
                raise UnmaskError("lora needs init: adapters of a network that learnt nothing are of no use")
            LoraOptions.of(self.lora)


_COUNTS = ("rows_per_step", "rows_per_forward", "steps", "log_every", "eval_every", "decode_batch")
_CHOICES: dict[str, tuple[str, ...]] = {
    "schedule": get_args(Schedule),
    "precision": get_args(Precision),
    "attention": get_args(AttentionKind),
    "keep": get_args(Keep),
    "mask_init": ("mean", "keep"),
    "too_long": get_args(TooLong),
    "turns": get_args(Turns),
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
    if kind.endswith(" | None"):
        return None if value is None else _convert(name, kind.removesuffix(" | None"), value)
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
    return from_mapping(_changed(values, changes))


def recipe_config(name: str, changes: Sequence[str] = ()) -> TrainConfig:
    """The defaults with a recipe of this name; the changes must say at least `init` and `output`."""
    return from_mapping(_changed({"recipe": {"name": name}}, changes))


def _changed(values: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    import yaml

    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise UnmaskError(f"{change!r} is not of the form key=value")
        key, _, option = name.partition(".")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UnmaskError(f"{change!r} holds no YAML value") from None
        if option:
            values[key] = {**(values.get(key) or {}), option: value}
        else:
            values[key] = value
    return values
