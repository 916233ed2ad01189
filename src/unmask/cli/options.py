"""Options shared by commands: `key=value` settings, the options common to all methods, and their checks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unmask.errors import UnmaskError, unknown

if TYPE_CHECKING:
    from unmask.lm import LM


@dataclass(frozen=True, slots=True)
class Common:
    """An option that every method takes; the fields are those of `decoding.describe`."""

    name: str
    default: Any
    help: str
    low: float | None
    high: float | None = None
    alias: tuple[str, ...] = ()

    def check(self, value: Any) -> None:
        """Refuses a value of the wrong type or range."""
        whole = isinstance(self.low, int)
        fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        above = self.low is not None and fits and not value >= self.low
        if not fits or above or (self.high is not None and value > self.high):
            span = f"at least {self.low}" if self.high is None else f"between {self.low} and {self.high}"
            raise UnmaskError(f"{self.name} must be {'a whole number, ' if whole else ''}{span}, not {value!r}")


LENGTH_NAMES = ("gen_length", "max_gen_length", "max_tokens")
COMMON = {
    c.name: c
    for c in (
        Common("max_new_tokens", None, "longest answer; None: 256, or what the context leaves", 1, alias=LENGTH_NAMES),
        Common("temperature", 0.0, "0 takes the best token, above it samples", 0.0),
        Common("top_p", 1.0, "sample from the most likely tokens of this total probability", 0.0, 1.0),
        Common("top_k", 0, "sample from this many most likely tokens; 0: all", 0),
        Common("seed", 0, "equal seeds give equal text", 0),
    )
}
# Arguments of LM.generate that are no options of a method.
RESERVED = ("method", "prompt", "raw", "streamer", "trace", "engine")


def parse_value(text: str) -> Any:
    """A bool, None, int, float or string, as it reads."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.strip().lower() in words:
        return words[text.strip().lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def parse_pair(text: str, where: str = "--set") -> tuple[str, Any]:
    """Key and value of `key=value`."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or not value.strip():
        raise UnmaskError(f"{where} takes key=value, not {text!r}")
    return key.strip().replace("-", "_"), parse_value(value.strip())


def parse_ids(text: str) -> list[int]:
    """Token ids separated by spaces or commas."""
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise UnmaskError(f"--ids takes token ids separated by spaces or commas, not {text!r}") from None


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of `name:key=value,key=value`; a value that holds commas itself stands in parentheses.

    Raises:
        UnmaskError: an unknown method or option (with the nearest), bad syntax, an option that all methods share.
    """
    from unmask.decoding import build, method_class

    name, _, rest = (part.strip() for part in text.partition(":"))
    method_class(name)
    options: dict[str, Any] = {}
    for part in _parts(rest, name):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key or not value:
            raise UnmaskError(f"method {name}: {part!r} is not of the form key=value")
        key = key.replace("-", "_")
        if canonical(key) in COMMON or key in RESERVED:
            raise UnmaskError(f"method {name}: {key} is no option of a method; it is the same for all of them")
        if key in options:
            raise UnmaskError(f"method {name}: {key} is given twice")
        inner = value[1:-1] if value.startswith("(") and value.endswith(")") else value
        options[key] = parse_value(inner)
    build(name, options)
    return name, options


def _parts(text: str, name: str) -> list[str]:
    """What stands between commas that are in no parentheses."""
    parts, depth = [""], 0
    for char in text:
        depth += (char == "(") - (char == ")")
        if depth < 0:
            break
        if char == "," and not depth:
            parts.append("")
        else:
            parts[-1] += char
    if depth:
        raise UnmaskError(f"method {name}: the parentheses in {text!r} do not match")
    return [part for part in parts if part.strip()]


def canonical(key: str) -> str:
    """Our name of a common option given under an official one; other names stay."""
    return next((c.name for c in COMMON.values() if key in c.alias), key)


def flags(
    max_new_tokens: int | None, temperature: float | None, top_p: float | None, top_k: int | None, seed: int | None
) -> dict[str, Any]:
    """The options of `COMMON` as a command was given them, by name; None: not given."""
    return {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
    }


@dataclass
class Settings:
    """Method and options of the next request.

    method: None is the checkpoint's own. common: those of `COMMON` that were given. options: those of the method,
    under any of their names.
    """

    method: str | None = None
    common: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def given(cls, method: str | None, pairs: Iterable[str], **common: Any) -> Settings:
        """From the command line: `common` are flags (None: not given), `pairs` the --set entries.

        Raises:
            UnmaskError: bad syntax, an option given twice, an unknown method; with a method also its bad options.
        """
        settings = cls(method)
        for key, value in common.items():
            if value is not None:
                settings.set(key, value)
        for pair in pairs:
            key, value = parse_pair(pair)
            if canonical(key) in (settings.common | settings.options):
                raise UnmaskError(f"{canonical(key)} is given twice")
            settings.set(key, value)
        if method is not None:
            settings.check(method)
        return settings

    def set(self, key: str, value: Any) -> None:
        """Adds or replaces an option; common ones are checked at once."""
        key = canonical(key)
        if key in COMMON:
            COMMON[key].check(value)
            self.common[key] = value
        else:
            self.options[key] = value

    def unset(self, key: str) -> None:
        """Forgets an option."""
        given = self.common | self.options
        if canonical(key) not in given:
            raise unknown("setting", key, given) if given else UnmaskError("nothing is set")
        self.common.pop(canonical(key), None)
        self.options.pop(key, None)

    def check(self, default: str) -> None:
        """Refuses an unknown method and options it does not take."""
        from unmask.decoding import build, method_class

        name = self.method or default
        method_class(name)
        for key in self.options:
            if key in RESERVED:
                raise UnmaskError(f"{key} is not an option of a method and cannot be set")
        build(name, self.options)

    def arguments(self, lm: LM) -> dict[str, Any]:
        """Keyword arguments for LM.generate."""
        self.check(lm.default_method)
        return {"method": self.method, **self.common, **self.options}

    def for_method(self, name: str) -> tuple[Settings, list[str]]:
        """The same for another method, with the options it knows, and the names of those left out."""
        from unmask.decoding import describe, method_class

        known = {n for o in describe(method_class(name)) for n in (o["name"], *o["alias"])}
        kept = {k: v for k, v in self.options.items() if k in known}
        return Settings(name, dict(self.common), kept), [k for k in self.options if k not in known]


def to_json(value: Any) -> str:
    """One line of JSON."""
    return json.dumps(value, ensure_ascii=False)


def readable(value: Any) -> str:
    """A value as it is typed after `--set key=`."""
    return (
        {True: "true", False: "false"}[value]
        if isinstance(value, bool)
        else str(value).lower()
        if value is None
        else str(value)
    )


ModelArg = Annotated[str, typer.Argument(help="nano, nano-ar, a checkpoint's folder, or a hub id.", show_default=False)]
MethodOpt = Annotated[
    str | None, typer.Option("--method", "-m", help="Decoding method; default: the checkpoint's own.")
]
TokensOpt = Annotated[int | None, typer.Option("--max-new-tokens", "-n", help="Longest answer, in tokens.")]
TemperatureOpt = Annotated[float | None, typer.Option(help="0 takes the best token; above it samples.")]
TopPOpt = Annotated[float | None, typer.Option(help="Sample from the most likely tokens of this total probability.")]
TopKOpt = Annotated[int | None, typer.Option(help="Sample from this many most likely tokens.")]
SeedOpt = Annotated[int | None, typer.Option(help="Equal seeds give equal text.")]
SetOpt = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="An option of the method (see `unmask methods`); repeatable."),
]
AdapterOpt = Annotated[str | None, typer.Option(help="A LoRA adapter to merge: folder or hub id.")]
DeviceOpt = Annotated[str | None, typer.Option(help="cuda, cpu, ...; default: cuda where there is one.")]
DtypeOpt = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
LiveOpt = Annotated[
    bool | None, typer.Option("--live/--no-live", help="Show the text while it resolves; default: on a terminal.")
]
QuietOpt = Annotated[bool, typer.Option("--quiet", "-q", help="Leave out the counters.")]
EngineOpt = Annotated[
    bool, typer.Option("--engine", help="Decode in the GPU engine; without a GPU for it the eager loop decodes.")
]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
