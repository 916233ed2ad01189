"""Loading a checkpoint for a command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.cli.output import Output
    from unmask.lm import LM


def load(name: str, out: Output, *, adapter: str | None, device: str | None, dtype: str) -> LM:
    """`unmask.load` with a sign of life on a terminal, and a check that the device is there."""
    with out.loading(name):
        from unmask.lm import load as load_lm

        if device is not None:
            check_device(device)
        return load_lm(name, adapter=adapter, device=device, dtype=dtype)


def check_device(name: str) -> None:
    """Refuses a device that torch does not know or this machine does not have."""
    import torch

    try:
        torch.device(name)
    except RuntimeError:
        raise UnmaskError(f"unknown device {name!r} (for example cpu, cuda, cuda:1, mps)") from None
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0].split(". ")[0]
        raise UnmaskError(f"device {name!r} cannot be used here: {reason}") from None
