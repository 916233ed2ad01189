"""What the commands that measure speed are told: the device, the model, shapes, methods, replayed acceptance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from unmask.cli.loading import check_device, load
from unmask.cli.options import parse_method
from unmask.errors import UnmaskError, unknown

if TYPE_CHECKING:
    from unmask.bench.throughput import Contender
    from unmask.cli.output import Output
    from unmask.lm import LM


def device_of(asked: str | None) -> str:
    """The device to measure on: a GPU, or the CPU if it was asked for by name."""
    import torch

    from unmask.engine.parts import missing

    if asked is None and not torch.cuda.is_available():
        raise UnmaskError(
            "the speed of the GPU engine needs a GPU, and there is none here; --device cpu measures its plain form on "
            "the CPU"
        )
    check_device(asked or "cuda")
    device = torch.device(asked or "cuda")
    if device.type == "cuda":
        if device.index is not None:
            torch.cuda.set_device(device)
        if why := missing(device):
            raise UnmaskError(f"the engine does not run here: {why}")
    elif device.type != "cpu":
        raise UnmaskError(f"the engine is measured on cuda, or on cpu, not on {device.type}")
    return str(device)


@contextmanager
def enough_memory(device: str) -> Iterator[None]:
    """Makes one line of the error when the memory does not suffice."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UnmaskError(f"out of memory on {device}: {str(error).splitlines()[0]}") from None


@dataclass
class Subject:
    """The model that is measured. engine: arguments of the engine. endings: whether texts may end by themselves."""

    name: str
    out: Output
    device: str
    dtype: str
    engine: dict[str, Any]
    endings: bool = False
    random: bool = field(init=False)
    _lm: LM | None = None

    def __post_init__(self) -> None:
        from unmask.bench.dummy import has_no_weights

        self.random = has_no_weights(self.name)

    def lm(self) -> LM:
        """The model; a new one each time where the engine rounds its weights, which cannot be done twice."""
        import torch

        from unmask.bench.throughput import free_memory

        if self._lm is None or self.engine["quantise"]:
            self._lm = None
            free_memory(torch.device(self.device))  # before the next one is made
            with enough_memory(self.device):
                self._lm = self._made()
        return self._lm

    def _made(self) -> LM:
        import torch

        from unmask.bench.dummy import dummy, endless
        from unmask.models.checkpoint import DTYPES

        if not self.random:
            lm = load(self.name, self.out, adapter=None, device=self.device, dtype=self.dtype)
            return lm if self.endings else endless(lm)
        if self.dtype != "auto" and self.dtype not in DTYPES:
            raise unknown("dtype", self.dtype, ["auto", *DTYPES])
        usual = torch.float32 if self.device == "cpu" else torch.bfloat16
        with self.out.busy(f"making {self.name}"):
            return dummy(self.name, device=self.device, dtype=DTYPES.get(self.dtype, usual))


def numbers(text: str, option: str) -> list[int]:
    """Whole numbers from 1, separated by commas."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UnmaskError(f"{option} takes whole numbers from 1 separated by commas, not {text!r}")
    return found


def shapes(text: str) -> list[tuple[int, int]]:
    """Pairs batch x window, such as 1x1,8x32."""
    pairs = [part.lower().split("x") for part in text.split(",")]
    try:
        found = [(int(batch), int(window)) for batch, window in pairs]
    except ValueError:
        found = []
    if not found or min(map(min, found)) < 1:
        raise UnmaskError(f"--shapes takes BATCHxWINDOW separated by commas, such as 1x1,8x32, not {text!r}")
    return found


def methods(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Methods separated by commas, each with options behind a colon, which are separated by commas as well."""
    texts: list[str] = []
    for part in text.split(","):
        key, equals, _ = part.partition("=")
        if equals and ":" not in key and texts:
            texts[-1] += f",{part}"
        else:
            texts.append(part)
    found = [parse_method(part) for part in texts]
    for i, one in enumerate(found):
        if one in found[:i]:
            raise UnmaskError(f"{texts[i].strip()} is given twice")
    return found


def replays(text: str | None, names: Sequence[str]) -> dict[str, float]:
    """Tokens per forward by method, from name=number,...; of methods that are asked for."""
    found: dict[str, float] = {}
    for part in (text or "").split(",") if text is not None else []:
        name, _, value = (piece.strip() for piece in part.partition("="))
        try:
            rate = float(value)
        except ValueError:
            rate = 0.0
        if not 0 < rate < 1e6:
            raise UnmaskError(f"--replay takes METHOD=TOKENS_PER_FORWARD separated by commas, not {part!r}")
        if name not in names:
            raise unknown("method in --replay", name, names)
        if name == "autoregressive":
            raise UnmaskError("autoregressive decides one token a forward; there is nothing to replay")
        found[name] = rate
    return found


def contenders(asked: list[tuple[str, dict[str, Any]]], lm: LM, new_tokens: int) -> list[Contender]:
    """The methods, each checked with the model."""
    from unmask.bench.throughput import Contender
    from unmask.decoding import build

    found = [Contender(build(name, options), options) for name, options in asked]
    for one in found:
        one.method.bind(lm.family, new_tokens)
    return found


def replaying(
    found: list[Contender], rates: dict[str, float], lm: LM, random: bool, prompt: int, new_tokens: int
) -> list[Contender]:
    """The contenders with the acceptance that each is to have; random weights have none of their own."""
    from unmask.bench.replay import replayed
    from unmask.bench.throughput import Contender

    made = []
    for one in found:
        name = one.method.name
        rate = rates.get(name)
        if rate is None and random and name != "autoregressive":
            raise UnmaskError(
                f"{name}: random weights accept nothing; say how many tokens a forward it is to decide: "
                f"--replay {name}=2.5"
            )
        if rate is not None:
            method = replayed(one.method, rate, lm.family, prompt, new_tokens)
            one = Contender(method, one.options, rate)
        made.append(one)
    return made
