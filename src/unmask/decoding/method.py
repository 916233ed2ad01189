"""The contract of a decoding method, and the registry of methods.

A method is a frozen dataclass of its paper's options with pure batched functions `start`, `prefill`, `plan` and
`commit`. It sees no model and no cache, loops over no rows and reads nothing back to the host, so the same object
runs in the eager loop and inside a captured GPU graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from unmask.decoding.forward import Forward, S, State
from unmask.decoding.sampling import ScoreRule, Scores
from unmask.decoding.specs import Specs
from unmask.errors import UnmaskError, unknown

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

    from unmask.models.families import Family


def option(
    default: Any,
    help: str,
    *,
    alias: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | dict[str, str] = (),
    specs: Specs | None = None,
    parse: Callable[[Any], Any] | None = None,
) -> Any:
    """A dataclass field of a method with what `unmask methods` shows and what bad values are checked against.

    Args:
        alias: the official codes' names for it.
        low, high: allowed range, both inclusive.
        choices: allowed strings; a dict maps the official codes' values to ours.
        specs: the rules that the value is one of, given as an object or as text.
        parse: turns what was given into the value otherwise; raises on what it cannot read.
    """
    parse = specs.parse if specs is not None else parse
    meta = {"help": help, "alias": alias, "low": low, "high": high, "choices": choices, "specs": specs, "parse": parse}
    return field(default=default, metadata=meta)


@dataclass(frozen=True, kw_only=True)
class Method(Generic[S]):
    """Base of all methods.

    Class attributes: name, title (of the paper) and arxiv are set by `register`; `cached` says whether K/V slots are
    needed; `fixed` is why the method takes neither a selection nor a stop rule, where it takes none. For the engine:
    `any_length` says that rows with different numbers of new tokens can share a batch; `no_engine` is why a method runs
    in the eager loop alone, where it does.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    arxiv: ClassVar[str] = ""
    cached: ClassVar[bool] = True
    fixed: ClassVar[str] = "it decides by itself which positions are committed"
    any_length: ClassVar[bool] = False
    no_engine: ClassVar[str] = ""

    early_exit: bool = option(
        True, "stop a row as soon as its text up to the first end token is final (never changes the text)"
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            parse = f.metadata.get("parse")
            if parse is not None:  # the way for a frozen dataclass to convert what it was given
                object.__setattr__(self, f.name, parse(getattr(self, f.name)))
            _check_value(self.name, f, getattr(self, f.name))

    def bind(self, family: Family, new_tokens: int) -> Self:
        """Fills options left at None from the checkpoint and the request, and refuses unsound combinations."""
        return self

    def score_rule(self, state: S) -> ScoreRule:
        """How scores are to be made."""
        return ScoreRule(ban=(state.facts.mask_id,) if state.facts.mask_id >= 0 else ())

    def limit(self, prompt: int, new_tokens: int) -> int:
        """Where the canvas of a row ends: the end of its text, rounded up to whole blocks."""
        return prompt + new_tokens

    def slots(self, limit: int) -> int:
        """Cache slots of a row whose canvas ends at `limit`: those of its positions, and scratch behind them."""
        return limit

    def grain(self) -> int | None:
        """Where a prompt's keys stop to depend on what follows: at multiples of this, where it may be cut into several
        forwards, and whose keys serve every prompt that begins alike. 0: only where it ends. None: nowhere."""
        return None

    def reaches(self, new_tokens: int) -> tuple[int, ...]:
        """How far rows can be told to look by the load (`State.reach`), in tokens of a forward, the least first; 1: one
        token a forward, as autoregressive decoding. Fewer than two: it takes no notice of it."""
        return ()

    def start(self, state: State) -> S:
        """The method's own state from the blank one."""
        raise NotImplementedError

    def prefill(self, state: S) -> Forward | None:
        """The forward over the prompt, None if there is none."""
        return None

    def plan(self, state: S) -> Forward:
        """Which tokens run next, what they see, what is stored."""
        raise NotImplementedError

    def adjust(self, state: S, forward: Forward, logits: Tensor) -> tuple[S, Tensor]:
        """Changes logits [B, R, V] before they are scored. Called outside of inference mode."""
        return state, logits

    def commit(self, state: S, forward: Forward, scores: Scores) -> S:
        """Which positions become tokens and how far the window moves. Called after the prefill too."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Blockwise(Method[S]):
    """Base of methods that work through blocks at absolute multiples of a size the model was trained with."""

    any_length: ClassVar[bool] = True

    block_size: int | None = option(None, "tokens a block; None: as trained", alias=("block_length", "bd_size"), low=1)

    @property
    def size(self) -> int:
        """The block size after `bind`."""
        return resolve(self.block_size, 1)

    def limit(self, prompt: int, new_tokens: int) -> int:
        return round_up(prompt + new_tokens, self.size)

    def grain(self) -> int | None:
        return self.size

    def first_block(self, state: State) -> Tensor:
        """Where the first block with an open position begins [B]; the prompt tokens before it are whole blocks."""
        return state.prompt // self.size * self.size


def doubling(first: int, last: int) -> tuple[int, ...]:
    """first, 2 first, 4 first ... below `last`, and `last`."""
    out = []
    while first < last:
        out.append(first)
        first *= 2
    return (*out, last)


def extend(cls: type[S], state: State, **more: Any) -> S:
    """A subclass of State with the fields of `state` and these more."""
    return cls(**{f.name: getattr(state, f.name) for f in fields(state)}, **more)


def _check_value(method: str, f: Field[Any], value: Any) -> None:
    meta = f.metadata
    if not meta or (value is None and f.default is None):
        return
    if value is None:
        raise UnmaskError(f"{method}: {f.name} needs a value (default {f.default!r})")
    if meta["choices"] and value not in meta["choices"]:
        raise unknown(f"value of {f.name} ({method})", value, meta["choices"])
    if isinstance(f.default, bool) and not isinstance(value, bool):
        raise UnmaskError(f"{method}: {f.name} must be true or false, not {value!r}")
    if meta["low"] is None and meta["high"] is None:
        return
    low, high = meta["low"], meta["high"]
    whole = isinstance(low, int) and not isinstance(low, bool)
    least = f"{'of ' if whole else ''}at least {low}"
    span = least if high is None else f"between {low} and {high}"
    fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and isfinite(value)
    if not fits or (low is not None and value < low) or (high is not None and value > high):
        raise UnmaskError(f"{method}: {f.name} must be {'a whole number ' if whole else ''}{span}, not {value!r}")


METHODS: dict[str, type[Method[Any]]] = {}
M = TypeVar("M", bound=type[Method[Any]])


def register(name: str, *, title: str, arxiv: str) -> Callable[[M], M]:
    """Class decorator: makes a method known under `name` (that of its file)."""

    def add(cls: M) -> M:
        cls.name, cls.title, cls.arxiv = name, title, arxiv
        METHODS[name] = cls
        return cls

    return add


def method_class(name: str) -> type[Method[Any]]:
    """The class registered under a name; unknown names raise with the nearest one."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def aliases(cls: type[Method[Any]]) -> dict[str, str]:
    """Official option names of a method and ours."""
    return {a: f.name for f in fields(cls) for a in f.metadata.get("alias", ())}


def build(name: str, options: dict[str, Any]) -> Method[Any]:
    """A method by name with options under our names or the official ones.

    Raises:
        UnmaskError: unknown method or option (with the nearest name), a value out of range, one option given twice.
    """
    cls = method_class(name)
    known = {f.name: f for f in fields(cls)}
    other = aliases(cls)
    values: dict[str, Any] = {}
    for key, value in options.items():
        target = other.get(key, key)
        if target in ("select", "stop") and target not in known:
            raise UnmaskError(f"{name}: no {'selection' if target == 'select' else 'stop'} rule fits: {cls.fixed}")
        if target not in known:
            raise unknown(f"option of {name}", key, [*known, *other])
        if target in values:
            raise UnmaskError(f"{name}: {key!r} and {target!r} are the same option; give one of them")
        choices = known[target].metadata.get("choices", ())
        values[target] = choices.get(value, value) if isinstance(choices, dict) else value
    return cls(**values)


def describe(cls: type[Method[Any]]) -> list[dict[str, Any]]:
    """Name, default, help, aliases and allowed values of each option, for `unmask methods`."""
    out = []
    for f in fields(cls):
        default = None if f.default is MISSING else f.default
        meta = f.metadata
        allowed = sorted(set(meta["choices"].values())) if isinstance(meta["choices"], dict) else list(meta["choices"])
        allowed = sorted(meta["specs"].known) if meta["specs"] else allowed
        out.append(
            {
                "name": f.name,
                "default": default,
                "help": meta["help"],
                "alias": list(meta["alias"]),
                "choices": allowed,
            }
            | {"low": meta["low"], "high": meta["high"]}
        )
    return out


def need_mask(method: str, family: Family) -> None:
    """Refuses checkpoints that fill no masks, or fill them under a causal mask alone."""
    if family.attention == "causal":
        masks = family.mask_id is not None
        what = "was trained with causal attention; use wedlm or" if masks else "has no mask token; use"
        raise UnmaskError(f"{method}: this {family.name} checkpoint {what} autoregressive")
    if family.mask_id is not None:
        return
    raise UnmaskError(f"{method}: this {family.name} checkpoint names no mask token; load it with mask_token_id=...")


def need_full(method: str, family: Family) -> None:
    """Refuses checkpoints that do not fill masks anywhere on a canvas under full attention."""
    need_mask(method, family)
    if family.attention != "full":
        raise UnmaskError(
            f"{method}: this {family.name} model was trained with {family.attention} attention, this method shows it "
            f"the whole canvas; use {'fast_dllm_v2' if family.shift else 'block_diffusion'}"
        )


def need_next_token(method: str, family: Family) -> None:
    """Refuses checkpoints whose rows of real tokens do not speak of the next one."""
    if not family.next_token:
        raise UnmaskError(
            f"{method}: this {family.name} model predicts masked tokens in place, not the next token; "
            "use masked, block_diffusion or d2f"
        )


def resolve(value: int | None, fallback: int) -> int:
    """`value`, or `fallback` where it is None."""
    return fallback if value is None else value


def round_up(position: int, block: int) -> int:
    """The next multiple of `block` at or behind `position`."""
    return -(-position // block) * block
