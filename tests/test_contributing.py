"""CONTRIBUTING's worked example of a new method: short, and it works."""

from __future__ import annotations

import importlib
import re

from checkpoints import GOLDEN, tiny
from unmask.decoding import METHODS

EXAMPLE = re.search(
    r"```python\n# decoding/(\w+)\.py\n(.*?)```", (GOLDEN.parents[1] / "CONTRIBUTING.md").read_text(), re.DOTALL
)


def test_the_worked_example_is_at_most_sixty_lines_and_decodes(tmp_path, monkeypatch):
    assert EXAMPLE is not None
    name, source = EXAMPLE[1], EXAMPLE[2]
    assert len(source.splitlines()) <= 60
    file = tmp_path / f"{name}.py"
    file.write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module(name)
    try:
        lm = tiny("llada-tiny")
        prompts = [[5, 6, 7], [8] * 9]
        together = lm.generate(prompts, method=name, max_new_tokens=12, trace=True)
        for prompt, result in zip(prompts, together):
            assert len(result.ids) == 12 or result.finish_reason == "stop"
            assert lm.generate(prompt, method=name, max_new_tokens=12).ids == result.ids
        sure = lm.generate(prompts[0], method=name, max_new_tokens=12, early_exit=False)
        one_each = lm.generate(prompts[0], method=name, max_new_tokens=12, drop=0.0, early_exit=False)
        assert one_each.counters.forwards["denoise"] >= sure.counters.forwards["denoise"]
    finally:
        METHODS.pop(name, None)
