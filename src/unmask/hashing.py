"""Random numbers as a function of what they are for, never of a generator's state.

A draw depends on its keys alone (seed and forward and position when sampling; seed, epoch, sample and position when
noising), so it is the same in any batch, on any rank or device, and after a restart. The mixing is the finaliser of
splitmix64 (Steele, Lea and Flood, 2014) on wrapping int64.
"""

from __future__ import annotations

from torch import Tensor


def _signed(value: int) -> int:
    """The same 64 bits as an int64."""
    return value - (1 << 64) if value >> 63 else value


_GOLDEN, _FIRST, _SECOND = (_signed(v) for v in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (PyTorch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ shift(x, 30)) * _FIRST
    x = (x ^ shift(x, 27)) * _SECOND
    return x ^ shift(x, 31)


def hashed(seed: Tensor, *keys: Tensor | int) -> Tensor:
    """64 well mixed bits for each entry of seed and keys (int64, broadcast together)."""
    state = seed * _GOLDEN + 1
    for key in keys:
        state = _mix((state ^ key) * _SECOND + _GOLDEN)
    return state
