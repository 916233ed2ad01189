"""Forwards of every method, beside the official code's: the table of docs/papers.md, from one command.

    python tests/forwards.py                       prints the table
    python tests/forwards.py --write               writes bench/results/forwards.json and the table in docs/papers.md
    python tests/forwards.py --write --count 50    on more word problems (default 5)

Two measurements. On the recorded runs of the official codes (tests/golden, single rows): forwards the record counts,
ours under the settings of the record, and ours with what only this library does left on (early exit, fused commit,
sliding verification ...). On the shipped checkpoints: every method that is sound on them, with its defaults, on
problems of the test split of wordmath.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch

import replay
from conform import REPLAYS, checkpoint
from unmask.bench.compare import compare
from unmask.bench.record import environment, write
from unmask.lm import load
from unmask.models.checkpoint import Checkpoint
from unmask.tasks import get_task

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
BEGIN, END = "<!-- forwards: begin -->", "<!-- forwards: end -->"


@dataclass
class Vectors:
    """Sums over the required single-row cases of a file. Forwards with prefill, TPF without."""

    file: str
    methods: list[str] = field(default_factory=list)
    cases: int = 0
    official: int = 0
    ours: int = 0
    by_default: int = 0
    tokens: int = 0
    decode_forwards: int = 0

    @property
    def tpf(self) -> float:
        return self.tokens / max(self.decode_forwards, 1)


def vectors(folder: Path) -> Iterator[Vectors]:
    """Every file of recorded decoding runs."""
    for path in sorted(folder.glob("*.jsonl")):
        run = next((f for stem, f in REPLAYS.items() if path.stem.startswith(stem)), None)
        if run is None:
            continue
        out = Vectors(path.stem)
        for line in path.read_text().splitlines():
            case = json.loads(line)
            if case.get("bug") or case.get("required") is False or isinstance(case["prompt"][0], list):
                continue
            model = checkpoint(folder / "models" / case["model"])
            same = len(run(model, case).kinds)
            default = _by_default(run, model, case)
            if default is None:  # the record has no forward
                continue
            out.cases += 1
            out.official += case["expect"]["forwards"]
            out.ours += same
            out.by_default += default.forwards
            out.tokens += default.tokens
            out.decode_forwards += default.forwards - default.prefills
            out.methods = sorted({*out.methods, default.method})
        if out.cases:
            yield out


def _by_default(
    run: Callable[[Checkpoint, replay.Case], replay.Replay], model: Checkpoint, case: replay.Case
) -> replay.Ran | None:
    replay.RAN.clear()
    replay.OWN_DEFAULTS = True
    try:
        run(model, case)
    except Exception:
        # The replay may find no counterpart of the record's schedule; what is measured is over by then.
        if not replay.RAN:
            raise
    finally:
        replay.OWN_DEFAULTS = False
    return replay.RAN[0] if replay.RAN else None


def on_shipped(count: int) -> dict[str, Any]:
    """Every sound method on the shipped checkpoints."""
    task = get_task("wordmath")
    problems = list(task.generate("test", count))
    out = {}
    for name in ("nano", "nano-ar"):
        lm = load(name)
        found = compare(
            lm,
            [[{"role": "user", "content": p.question}] for p in problems],
            check=lambda i, text: task.check(problems[i], text),
            against=load("nano-ar") if name == "nano" else None,
            max_new_tokens=96,
        )
        out[name] = found.as_dict()
    return out


def table(rows: list[Vectors], shipped: dict[str, Any]) -> str:
    """Both measurements as Markdown."""
    head = (
        "| recorded runs | method | cases | forwards, official | ours, same settings | ours, default | TPF, default |"
    )
    lines = [head, "|---|---|---|---|---|---|---|"]
    for r in rows:
        names = ", ".join(f"`{m}`" for m in r.methods)
        lines.append(f"| {r.file} | {names} | {r.cases} | {r.official} | {r.ours} | {r.by_default} | {r.tpf:.2f} |")
    lines += ["", "| checkpoint | method | tokens | forwards | TPF | right |", "|---|---|---|---|---|---|"]
    for name, found in shipped.items():
        for m in found["methods"]:
            if m["reason"] is None:
                forwards = sum(n for kind, n in m["forwards"].items() if kind != "prefill")
                lines.append(
                    f"| {name} | `{m['method']}` | {m['tokens']} | {forwards} | {m['tpf']:.2f} | {m['accuracy']} % |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = list(vectors(GOLDEN))
    shipped = on_shipped(asked.count)
    text = table(rows, shipped)
    print(text)
    if not asked.write:
        return
    record = {
        **environment("cpu"),
        "command": f"python tests/forwards.py --write --count {asked.count}",
        "vectors": [asdict(r) | {"tpf": round(r.tpf, 4)} for r in rows],
        "shipped": shipped,
    }
    write(ROOT / "bench/results/forwards.json", record)
    page = ROOT / "docs/papers.md"
    before, rest = page.read_text().split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
