"""Replays recorded vectors of the official codes against this library.

    python tests/conform.py DIR

DIR is laid out like tests/golden: models/<name>/ with config.json and safetensors, <method>-<family>.jsonl with one
case a line, <name>-logits.json + .safetensors. Prints a line per file and, last, `N passed, M failed` (counted in
cases). Files of methods or models that are not built are listed as such and count for nothing; neither do cases
marked "bug" or "required": false.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch

import replay
import replay_dream
import replay_freedave
import replay_full
import replay_jacobi
import replay_llada2
import replay_wedlm
from replay import Case, Replay
from replay_likelihood import LIKELIHOODS
from unmask.errors import UnmaskError
from unmask.models.checkpoint import Checkpoint, load_model
from vectors_block_diffusion import check_bd3lm, check_sdar
from vectors_d2f import check_d2f
from vectors_didi import check_didi
from vectors_dparallel import check_dparallel
from vectors_jacobi_forcing import check_jacobi_forcing
from vectors_logits import check_logits
from vectors_masked import check_llada
from vectors_mdlm import check_mdlm
from vectors_samplers import SAMPLERS
from vectors_training import check_fast_dllm_v2
from vectors_wedlm import check_wedlm


@dataclass
class Outcome:
    """What became of one file."""

    name: str
    passed: int = 0
    failures: list[str] = field(default_factory=list)
    skipped: int = 0
    not_built: str = ""

    def line(self) -> str:
        if self.not_built:
            return f"--   {self.name}: not built ({self.not_built})"
        extra = f", {self.skipped} documented only" if self.skipped else ""
        head = f"{'FAIL' if self.failures else 'ok  '} {self.name}: {self.passed} passed{extra}"
        return "\n".join([head + (f", {len(self.failures)} failed" if self.failures else ""), *self.failures])


# Recorded runs: a function of the checkpoint and the case. The first entry that a file's name begins with replays it.
REPLAYS: dict[str, Callable[[Checkpoint, Case], Replay]] = {
    **replay.REPLAYS,
    **replay_dream.REPLAYS,
    **replay_freedave.REPLAYS,
    **replay_full.REPLAYS,
    **replay_jacobi.REPLAYS,
    **replay_llada2.REPLAYS,
    **replay_wedlm.REPLAYS,
}
# What is no decoding: a function of the folder and the case, empty if all agrees.
CHECKS: dict[str, Callable[[Path, Case], str]] = LIKELIHOODS | SAMPLERS | replay_jacobi.TRAJECTORIES
# Recorded training forwards, in the same way.
TRAINING: dict[str, Callable[[Path, Case], str]] = {
    "fast-dllm-v2-training": check_fast_dllm_v2,
    "jacobi-loss": check_jacobi_forcing,
    "sdar-training": check_sdar,
    "training-bd3lm": check_bd3lm,
    "training-d2f": check_d2f,
    "training-didi": check_didi,
    "training-dparallel": check_dparallel,
    "training-llada": check_llada,
    "training-mdlm": check_mdlm,
    "wedlm-loss": check_wedlm,
}


@cache
def checkpoint(folder: Path) -> Checkpoint:
    return load_model(folder, device="cpu", dtype=torch.float32)


def first_difference(expect: list[list[object]], got: list[list[object]], kinds: list[str]) -> str:
    """Names the first trace entry that differs."""
    for i in range(max(len(expect), len(got))):
        a = expect[i] if i < len(expect) else None
        b = got[i] if i < len(got) else None
        if a != b:
            entry = a or b or [0]
            number = entry[0]
            kind = kinds[number] if isinstance(number, int) and number < len(kinds) else "?"
            return f"first differing forward {number} ({kind}): expected {a}, got {b}"
    return "traces agree"


def compare(case: Case, got: Replay) -> str:
    """Empty if the replay equals the record, else what differs."""
    e = case["expect"]
    batch = isinstance(e["tokens"][0], list) if e["tokens"] else False
    tokens = e["tokens"] if batch else [e["tokens"]]
    traces = e["trace"] if batch else [e["trace"]]
    trouble = []
    for row, (a, b) in enumerate(zip(traces, got.trace)):
        # The order of positions inside one forward carries no meaning.
        a, b = ([[n, *map(list, zip(*sorted(zip(p, t))))] for n, p, t in x] for x in (a, b))
        if a != b:
            where = f"row {row}: " if batch else ""
            trouble.append(where + first_difference(a, b, got.kinds))
    if tokens != got.tokens:
        trouble.append(f"tokens differ: expected {tokens}, got {got.tokens}")
    if e["forwards"] != len(got.kinds):
        trouble.append(f"forwards: expected {e['forwards']}, got {len(got.kinds)}")
    by_kind = {k: n for k, n in e.get("forwards_by_kind", {}).items() if n}
    if by_kind and by_kind != {k: n for k, n in got.by_kind.items() if n}:
        trouble.append(f"forwards by kind: expected {by_kind}, got {got.by_kind}")
    kinds = e.get("forward_kinds") or e.get("kind_sequence")
    ours = "".join(k[0] for k in got.kinds) if isinstance(kinds, str) else got.kinds
    if kinds and kinds != ours:
        trouble.append(f"order of kinds differs: expected {kinds}, got {ours}")
    return "; ".join(trouble)


def _models_known(folder: Path, names: set[str]) -> str:
    """Why a model cannot be loaded, empty if all can."""
    for name in sorted(names):
        try:
            checkpoint(folder / "models" / name)
        except UnmaskError as error:
            return str(error)
    return ""


def replay_file(folder: Path, path: Path) -> Outcome:
    """All cases of a .jsonl file."""
    outcome = Outcome(path.name)
    run = next((f for stem, f in REPLAYS.items() if path.stem.startswith(stem)), None)
    train = next((f for stem, f in (CHECKS | TRAINING).items() if path.stem.startswith(stem)), None)
    if run is None and train is None:
        outcome.not_built = "method"
        return outcome
    cases: list[Case] = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    outcome.not_built = _models_known(folder, {c["model"] for c in cases if c["model"]})
    if outcome.not_built:
        return outcome
    for case in cases:
        if case.get("bug") or case.get("required") is False:
            outcome.skipped += 1
            continue
        try:
            if train is not None:
                difference = train(folder, case)
            else:
                assert run is not None
                difference = compare(case, run(checkpoint(folder / "models" / case["model"]), case))
        except Exception as error:  # one bad case must not hide the others
            difference = f"{type(error).__name__}: {error}"
        if difference:
            outcome.failures.append(f"     {case['id']}: {difference}")
        else:
            outcome.passed += 1
    return outcome


def logits_file(folder: Path, path: Path) -> Outcome:
    """The recorded logits of one model."""
    name = path.name.removesuffix("-logits.json")
    outcome = Outcome(path.name)
    outcome.not_built = _models_known(folder, {name})
    if not outcome.not_built:
        outcome.failures = [f"     {f}" for f in check_logits(folder, name)]
        outcome.passed = 0 if outcome.failures else 1
    return outcome


def judge(folder: Path, path: Path) -> Outcome:
    """What became of one file of a folder."""
    return replay_file(folder, path) if path.suffix == ".jsonl" else logits_file(folder, path)


def conform(folder: Path) -> list[Outcome]:
    """Replays everything in a folder."""
    torch.set_num_threads(1)
    found = [p for p in sorted(folder.iterdir()) if p.suffix == ".jsonl" or p.name.endswith("-logits.json")]
    return [judge(folder, path) for path in found]


def main() -> int:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        print("usage: python tests/conform.py DIR   (DIR as tests/golden)", file=sys.stderr)
        return 2
    outcomes = conform(Path(sys.argv[1]))
    for outcome in outcomes:
        print(outcome.line())
    failed = sum(len(o.failures) for o in outcomes)
    print(f"{sum(o.passed for o in outcomes)} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
