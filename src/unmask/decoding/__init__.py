"""Decoding methods, one file per paper, on shared parts. Importing this package registers all of them."""

from unmask.decoding import autoregressive, block_diffusion, d2f, fast_dllm_v2, masked
from unmask.decoding.method import METHODS, Method, build, describe, method_class

__all__ = [
    "METHODS",
    "Method",
    "autoregressive",
    "block_diffusion",
    "build",
    "d2f",
    "describe",
    "fast_dllm_v2",
    "masked",
    "method_class",
]
