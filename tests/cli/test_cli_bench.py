"""`unmask bench step`, `throughput`, `memory` on the CPU, on a tiny shape: tables, the JSON line, files, mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_parts import MODELS, run

from unmask.bench import results, roofline, steps, throughput
from unmask.cli.bench_parts import methods, numbers, replays, shapes
from unmask.errors import UnmaskError

CONFIG = {
    "architectures": ["Fast_dLLM_QwenForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "bd_size": 16,
    "mask_token_id": 63,
}
CPU = ["--device", "cpu"]
SHORT = ["--prompt", "16", "--new", "32"]


@pytest.fixture
def shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(roofline.SIZES, "cpu", (1 << 20, 64))
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(CONFIG))
    return str(path)


def test_step(shape: str, tmp_path: Path) -> None:
    file = tmp_path / "step.json"
    result = run(
        "bench", "step", shape, "--shapes", "1x1,2X8", "--context", "16", "--steps", "4", "--out", str(file), *CPU
    )
    title, note, head, *rows, line = result.stdout.splitlines()
    assert title.startswith(f"{shape} (random weights), float32, ") and "context 16, 4 steps" in title
    assert note == "measured on the CPU: the engine's plain form, without kernels and graphs"
    assert head.split() == ["shape", "ms", "gpu", "ms", "floor", "ms", "bound", "by", "ratio", "host", "%"]
    assert [row.split()[0] for row in rows] == ["1x1", "2x8"] and len(rows[0].split()) == 5
    assert "read once / copy bandwidth" in result.stderr and "attention" in result.stderr
    data, kept = json.loads(line), results.read(file)
    assert results.summary(kept) == data and kept["asked"] == {"context": 16, "steps": 4}
    assert len(kept["results"][1]["walls"]) == 4 and "walls" not in data["results"][1]
    assert kept["ceilings"]["copy"] > 0 and kept["engine"] == {"quantise": None, "tune": True, "compile": False}
    assert (kept["bench"], kept["weights"], kept["device_type"]) == ("step", "random", "cpu")


def test_a_step_kernel_by_kernel(shape: str, tmp_path: Path) -> None:
    file = tmp_path / "step.json"
    short = ["--shapes", "1x2", "--context", "16", "--steps", "2"]
    result = run("bench", "step", shape, *short, "--kernels", "--out", str(file), *CPU)
    (kept,) = results.read(file)["results"]
    times = [kernel["microseconds"] for kernel in kept["kernels"]]
    assert times == sorted(times, reverse=True) and all(kernel["calls"] > 0 for kernel in kept["kernels"])
    assert f"{sum(times):.0f} microseconds in " in result.stderr and kept["kernels"][0]["name"] in result.stderr
    assert "kernels" not in json.loads(result.stdout.splitlines()[-1])["results"][0]


def test_throughput_marks_what_is_replayed(shape: str, tmp_path: Path) -> None:
    file = tmp_path / "rates.json"
    asked = ["--methods", "d2f:block_size=16,max_active_blocks=2,autoregressive", "--batch", "1,2", *SHORT]
    result = run("bench", "throughput", shape, *asked, "--replay", "d2f=2.5", "--out", str(file), *CPU)
    title, _, head, *rows, line = result.stdout.splitlines()
    assert "random weights" in title and "prompts of 16 tokens, 32 new" in title
    assert head.split()[:4] == ["method", "batch", "acceptance", "tok/s"]
    assert [row.split()[:2] for row in rows] == [
        [name, size] for size in "12" for name in ("d2f:block_size=16,max_active_blocks=2", "autoregressive")
    ]
    assert "replayed TPF 2.5" in rows[0] and "its own" in rows[1]
    kept = results.read(file)
    assert results.summary(kept) == json.loads(line)
    assert [e["replayed_tpf"] for e in kept["results"]] == [2.5, None, 2.5, None]
    assert all(e["x_autoregressive"] is not None for e in kept["results"])  # though the baseline came second
    assert kept["results"][0]["options"] == {"block_size": 16, "max_active_blocks": 2}
    assert kept["engine"]["prefill_tokens"] == 2048 and "positions decided" in result.stderr


def test_throughput_by_load_is_for_the_methods_that_can(shape: str, tmp_path: Path) -> None:
    file = tmp_path / "rates.json"
    asked = ["--methods", "autoregressive,fast_dllm_v2:sub_block_cache=true,trim=true", "--batch", "2", *SHORT]
    run("bench", "throughput", shape, *asked, "--replay", "fast_dllm_v2=2", "--by-load", "--out", str(file), *CPU)
    kept = results.read(file)
    assert kept["engine"]["by_load"] is True
    assert [e["method"] for e in kept["results"]] == ["autoregressive", "fast_dllm_v2"]
    assert all(e["tokens"] == 64 for e in kept["results"])
    result = run("bench", "throughput", shape, "--methods", "autoregressive", "--by-load", *SHORT, *CPU)
    says = "--by-load: autoregressive takes no notice of the load; d2f, fast_dllm_v2, jacobi, wedlm do"
    assert says in result.stderr


def test_throughput_of_a_checkpoint_has_its_own_acceptance() -> None:
    folder = str(MODELS / "fast-dllm-v2-tiny")
    result = run("bench", "throughput", folder, "--batch", "2", *SHORT, "--json", *CPU)
    data = json.loads(result.stdout)
    assert result.stderr == "" and data["weights"] == "checkpoint" and data["asked"]["task"] is None
    assert data["results"][0]["tokens"] == 64  # no end token while prompts are random


def test_memory(shape: str, tmp_path: Path) -> None:
    file = tmp_path / "memory.json"
    asked = ["--methods", "autoregressive,fast_dllm_v2", "--batch", "2", *SHORT, "--gib", "0.001", "--out", str(file)]
    result = run("bench", "memory", shape, *asked, *CPU)
    _, _, head, *rows, line = result.stdout.splitlines()
    assert head.split()[:4] == ["method", "batch", "weights", "K/V"] and len(rows) == 2
    data = json.loads(line)
    first = data["results"][0]
    assert rows[0].split()[-1] == str(first["rows_fit"]) != "0" and first["device"] == round(0.001 * 2**30)
    assert results.read(file) == data and data["asked"]["device_bytes"] == first["device"]


def test_json_is_all_there_is(shape: str) -> None:
    for command, more in (("step", ["--shapes", "1x1", "--steps", "1", "--context", "8"]), ("memory", SHORT)):
        result = run("bench", command, shape, *more, "--json", *CPU)
        assert result.stderr == "" and len(result.stdout.splitlines()) == 1 and json.loads(result.stdout)["results"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", ["step", "throughput", "memory"])
def test_without_a_gpu_the_cpu_has_to_be_asked_for(command: str) -> None:
    result = run("bench", command, "fast-dllm-v2-7b")
    assert result.exit_code == 2 and result.stdout == "" and len(result.stderr.splitlines()) == 1
    assert "the speed of the GPU engine needs a GPU" in result.stderr and "--device cpu" in result.stderr
    assert run("bench", command, "fast-dllm-v2-7b", "--device", "cuda").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step", "--shapes", "1x"], "--shapes takes BATCHxWINDOW separated by commas"),
        (["step", "--shapes", "0x8"], "--shapes takes BATCHxWINDOW separated by commas"),
        (["step", "--device", "tpu"], "unknown device 'tpu'"),
        (["step", "--quantise", "int4"], "unknown quantisation 'int4'"),
        (["step", "--dtype", "float8"], "unknown dtype 'float8'"),
        (["step", "--context", "9999"], "the context is 512"),
        (["step", "--out", "."], "cannot write .: it is a folder"),
        (["throughput", "--batch", "1,x"], "--batch takes whole numbers from 1"),
        (["throughput", "--methods", "d2g"], "did you mean 'd2f'"),
        (["throughput", "--methods", "d2f,d2f"], "d2f is given twice"),
        (["throughput", "--methods", "masked", "--replay", "masked=2"], "was trained with block attention"),
        (["throughput", "--methods", "d2f"], "random weights accept nothing"),
        (["throughput", "--methods", "d2f", "--replay", "d2f=0"], "--replay takes METHOD=TOKENS_PER_FORWARD"),
        (["throughput", "--methods", "d2f", "--replay", "fast_dllm=2"], "unknown method in --replay 'fast_dllm'"),
        (["throughput", "--replay", "autoregressive=2"], "there is nothing to replay"),
        (["throughput", "--methods", "fast_dllm_v2", "--replay", "fast_dllm_v2=9"], "the nearest is"),
        (["throughput", "--methods", "d2f", "--task", "wordmath", "--replay", "d2f=2"], "exclude each other"),
        (["memory", "--methods", "autoregressive:steps=3"], "unknown option of autoregressive 'steps'"),
    ],
)
def test_mistakes_are_one_line(shape: str, arguments: list[str], message: str) -> None:
    result = run("bench", arguments[0], shape, *CPU, *arguments[1:])
    assert result.exit_code == 2 and result.stdout == "", result.output
    assert message in result.stderr and len(result.stderr.splitlines()) == 1


def test_too_little_memory_is_one_line(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **more: object) -> None:
        raise torch.OutOfMemoryError("no room\nat all")

    monkeypatch.setattr(steps, "measure", full)
    result = run("bench", "step", shape, "--shapes", "8x32", *CPU)
    assert result.exit_code == 2 and result.stderr == "unmask: out of memory on cpu for 8x32: no room\n"
    monkeypatch.setattr(throughput, "_measured", full)
    result = run("bench", "throughput", shape, *SHORT, "--batch", "2", *CPU)
    assert "out of memory: no room" in result.stdout.splitlines()[3]


def test_an_unknown_shape_is_no_checkpoint_either() -> None:
    result = run("bench", "step", "fast-dllm-v2-8b", *CPU)
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1


def test_what_is_typed() -> None:
    assert shapes("1x1, 8X32") == [(1, 1), (8, 32)] and numbers("1, 8", "--batch") == [1, 8]
    read = methods("fast_dllm_v2:threshold=0.8,select=threshold:tau=0.7, d2f,d2f:block_size=8")
    assert [name for name, _ in read] == ["fast_dllm_v2", "d2f", "d2f"]
    assert read[0][1] == {"threshold": 0.8, "select": "threshold:tau=0.7"} and read[2][1] == {"block_size": 8}
    assert replays("d2f=3.1, masked=2", ["d2f", "masked"]) == {"d2f": 3.1, "masked": 2.0} and replays(None, []) == {}
    for bad in ("", "d2f", "d2f=", "d2f=nan", "d2f=-1", "d2f=x"):
        with pytest.raises(UnmaskError, match="--replay takes"):
            replays(bad, ["d2f"])
