"""The registry of training recipes: one file per paper, the name in a config is the file's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from importlib import import_module
from typing import Any

from unmask.errors import UnmaskError, unknown
from unmask.training.recipes.base import Recipe

RECIPES = {
    "autoregressive": "Autoregressive",
    "block_diffusion": "BlockDiffusion",
    "d2f": "D2f",
    "didi_instruct": "DidiInstruct",
    "dparallel": "DParallel",
    "fast_dllm_v2": "FastDllmV2",
    "jacobi_forcing": "JacobiForcing",
    "masked": "Masked",
    "mdlm": "Mdlm",
    "wedlm": "WeDlm",
}


def recipe_class(name: object) -> type[Recipe]:
    """The class of a recipe; its file is imported now."""
    if not isinstance(name, str) or name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    found = getattr(import_module(f"{__name__}.{name}"), RECIPES[name])
    assert issubclass(found, Recipe)
    return found


def make_recipe(options: Mapping[str, Any], mask_id: int | None = None) -> Recipe:
    """The recipe `options["name"]` with the other entries as its options.

    Args:
        options: the `recipe` entry of a config.
        mask_id: the tokenizer's mask token, for recipes that need one and are given none.

    Raises:
        UnmaskError: unknown name or option, or a missing one.
    """
    given = dict(options)
    name = given.pop("name", None)
    kind: Any = recipe_class(name)
    known = {f.name: f for f in fields(kind)}
    for option in given:
        if option not in known:
            raise unknown(f"option of recipe {name!r}", option, known)
    if "mask_id" in known and mask_id is not None:
        given.setdefault("mask_id", mask_id)
    missing = [n for n, f in known.items() if f.default is MISSING and n not in given]
    if missing:
        raise UnmaskError(f"recipe {name!r} needs the option {missing[0]!r}")
    return kind(**given)
