"""What the commands that measure speed show: a row an entry, what the columns mean, files that grow as entries come."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.cli.output import Output, columns

if TYPE_CHECKING:
    from unmask.bench.steps import StepTime

GIB = 1 << 30
STEP_HEADS = ("shape", "ms", "gpu ms", "floor ms", "bound by", "ratio", "host %")
RATE_HEADS = (
    "method",
    "batch",
    "acceptance",
    "tok/s",
    "x AR",
    "batch/step",
    "total",
    "TPF",
    "TTFT ms",
    "ms/step",
    "host %",
)
BYTE_HEADS = ("method", "batch", "weights", "K/V", "state", "graphs", "other", "outside", "peak", "a row", "fit")

FLOOR = (
    "ms: wall time of a step, the mean; gpu: on the device; floor: the larger of the weights read once / copy "
    "bandwidth and the operations, attention's included, / matmul rate, both measured in this run; ratio: ms / floor; "
    "host: share of the wall time in which the device waits"
)
RATES = (
    "tok/s: positions decided while all rows decode, a second (autoregressive: batch / step time); x AR: beside "
    "autoregressive decoding of this batch; total: with prefill, until the last row ends; TPF: tokens per forward but "
    "prefill; TTFT: from the arrival of all prompts to the first token, median; host: share of the decode time in "
    "which the device waits"
)
BYTES = (
    "GiB; other: prefill, workspaces, what PyTorch's allocator rounds; outside: CUDA context, libraries, other "
    "processes; a row: its K/V pages, state and share of the graphs; fit: rows that fill the device's memory, with "
    "no margin"
)


class Report:
    """Entries as they come: into the file at once, into the table in the end."""

    def __init__(self, out: Output, data: dict[str, Any], file: Path | None, heads: Sequence[str], about: str) -> None:
        self.out, self.data, self.file, self.about = out, data, file, about
        self.rows: list[list[str]] = [list(heads)]

    def add(self, entry: dict[str, Any], row: Sequence[str]) -> None:
        """Takes an entry and its row of the table."""
        self.data["results"].append(entry)
        self.rows.append(list(row))
        self.save()
        if not self.out.json:
            self.out.note(", ".join(f"{head} {cell}" for head, cell in zip(self.rows[0], row) if cell))
            self._note_kernels(entry)

    def _note_kernels(self, entry: dict[str, Any]) -> None:
        from unmask.bench.kernels import table

        for line in table(entry["kernels"]) if "kernels" in entry else ():
            self.out.note(line)

    def save(self) -> None:
        """Writes what there is."""
        from unmask.bench import results

        if self.file is not None:
            results.write(self.file, self.data)

    def close(self, left: Sequence[int], definitions: str) -> None:
        """The table, and the result without its long lists on the last line."""
        from unmask.bench import results

        short = results.summary(results.check(self.data))
        if not self.out.json:
            d = self.data
            weights = "random weights" if d["weights"] == "random" else "its own weights"
            settings = ", ".join(f"{k} {v}" for k, v in d["engine"].items() if v is not None)
            engine = f"; engine: {settings}" if settings else ""
            print(f"{d['model']} ({weights}), {d['dtype']}, {d['device']}; {self.about}{engine}")
            if d["device_type"] == "cpu" and settings:
                print("measured on the CPU: the engine's plain form, without kernels and graphs")
            print("\n".join(columns(self.rows, left=left)))
            self.out.note(definitions)
        self.out.object(short)


def step_row(found: StepTime) -> list[str]:
    """Of an entry of `bench.steps`."""
    cells = [shown(x, ".3f") for x in (found.milliseconds, found.gpu, found.floor)]
    tail = [found.bound, shown(found.ratio), shown(found.host_share, ".1f", 100)]
    return [f"{found.batch}x{found.window}", *cells, *tail]


def rate_row(entry: dict[str, Any]) -> list[str]:
    """Of an entry of `bench.throughput`."""
    tpf = entry["replayed_tpf"]
    row = [_name(entry), str(entry["batch"]), "its own" if tpf is None else f"replayed TPF {tpf:g}"]
    if entry["reason"] is not None:
        return [*row, entry["reason"], *[""] * 7]
    rates = [shown(entry[name], ".0f") for name in ("batch_over_step", "total_tokens_per_second")]
    row += [shown(entry["decode_tokens_per_second"], ".0f"), shown(entry["x_autoregressive"]), *rates]
    row += [shown(entry["tpf"]), shown(entry["ttft_ms"], ".1f"), shown(entry["step_ms"], ".3f")]
    return [*row, shown(entry["host_share"], ".1f", 100)]


def byte_row(entry: dict[str, Any]) -> list[str]:
    """Of an entry of `bench.memory`."""
    name = _name(entry)
    if entry["reason"] is not None:
        return [name, str(entry["batch"]), entry["reason"], *[""] * 8]
    sizes = [entry["weights"], entry["pages"]["bytes"], *(entry[n] for n in ("state", "graphs", "other", "outside"))]
    cells = [shown(x, ".3f", 1 / GIB) for x in [*sizes, entry["peak_reserved"]]]
    row = shown(entry["per_row"], ".4f", 1 / GIB)
    return [name, str(entry["batch"]), *cells, row, shown(entry["rows_fit"], ".0f")]


def _name(entry: dict[str, Any]) -> str:
    options = ",".join(f"{k}={v}" for k, v in entry["options"].items())
    return f"{entry['method']}:{options}" if options else entry["method"]


def shown(value: float | None, form: str = ".2f", scale: float = 1.0) -> str:
    """A number for a table, empty for None."""
    return "" if value is None else format(value * scale, form)
