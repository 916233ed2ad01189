"""Result files: every one in the repository is sound, and one that is not is refused by the field at fault."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from dummies import TRAIN, tiny_dummy, train_entry

from unmask import UnmaskError
from unmask.bench import results, throughput
from unmask.bench.memory import measure as measure_memory
from unmask.bench.roofline import Ceilings
from unmask.bench.steps import measure as measure_step
from unmask.bench.throughput import Contender, prompts_of
from unmask.decoding import build

FILES = sorted((Path(__file__).parents[2] / "bench" / "results").glob("*.json"))
SPEED = [path for path in FILES if '"bench":' in path.read_text()]


@cache
def sample(kind: str) -> dict[str, Any]:
    """A result of each kind; read-only."""
    lm, one = tiny_dummy(), Contender(build("autoregressive", {}), {})
    asked = {
        "step": {"context": 16, "steps": 3},
        "throughput": {"prompt": 8, "new_tokens": 8, "task": None},
        "memory": {"prompt": 8, "new_tokens": 8, "device_bytes": None},
        "train": TRAIN,
    }[kind]
    data = results.head(kind, lm, "tiny", random=True, engine={"tune": False, "quantise": None}, asked=asked)
    if kind == "step":
        data["ceilings"] = Ceilings(1e9, 1e10).as_dict()
        data["results"] = [measure_step(lm, Ceilings(1e9, 1e10), 1, 4, context=16, steps=3).as_dict()]
    elif kind == "train":
        data["ceilings"] = Ceilings(1e9, 1e10).as_dict()
        data["results"] = [train_entry(lm, block_size=16)]
    elif kind == "throughput":
        data["results"] = [throughput.measure(lm, one, prompts_of(lm, 2, 8), 8), one.about(9) | {"reason": "full"}]
    else:
        data["results"] = [measure_memory(lm, one, 2, 8, 8)]
    return data


@pytest.mark.parametrize("path", SPEED, ids=lambda path: path.name)
def test_the_files_of_this_repository_are_sound(path: Path) -> None:
    assert results.read(path)["results"]


@pytest.mark.parametrize("kind", results.KINDS)
def test_what_is_measured_is_sound_and_comes_back(kind: str, tmp_path: Path) -> None:
    path, data = tmp_path / "new" / "result.json", sample(kind)
    results.write(path, data)
    assert results.read(path) == json.loads(json.dumps(data))
    short = results.summary(data)
    assert len(short["results"]) == len(data["results"]) and not set(results.RAW) & set(short["results"][0])
    assert results.RAW[0] in data["results"][0] or kind == "memory"


def places(data: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every field of an object."""
    for key, value in data.items():
        yield (*where, key)
        if isinstance(value, dict) and key not in ("engine", "options", "forwards"):
            yield from places(value, (*where, key))
        if key == "results":
            yield from places(value[0], (*where, key, 0))


@pytest.mark.parametrize("kind", results.KINDS)
def test_a_field_that_is_missing_or_wrong_is_named(kind: str) -> None:
    for *path, name in list(places(sample(kind))):
        for bad in (None, object()):
            data = deepcopy(sample(kind))
            inner = data
            for key in path:
                inner = inner[key]
            del inner[name]
            if bad is not None:
                inner[name] = bad
            with pytest.raises(UnmaskError) as error:
                results.check(data)
            shown = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in (*path, name))[1:]
            assert str(error.value).startswith(f"{shown} is missing" if bad is None else f"{shown} must be ")


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text, message in (("[]", "must be an object"), ("{", "x.json: Expecting"), ("{}", "schema is missing")):
        path.write_text(text)
        with pytest.raises(UnmaskError, match=message):
            results.read(path)
    with pytest.raises(UnmaskError, match="No such file"):
        results.read(tmp_path / "none.json")


def test_an_unsound_result_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with pytest.raises(UnmaskError, match="results"):
        results.write(path, sample("memory") | {"results": None})
    assert not path.exists()
