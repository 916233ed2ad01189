"""`methods`, `info`, `train`, `--version`, and what holds for every command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_parts import MODELS, run

SOURCE = Path(__file__).parents[2] / "src"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    unmask = f"{sys.executable} -m unmask"
    return subprocess.run(
        ["bash", "-c", command.replace("unmask", unmask, 1)], capture_output=True, text=True, env=env, timeout=60
    )


def test_methods_lists_papers_options_and_official_names() -> None:
    text = run("methods").stdout
    assert "2508.09192" in text and "remasking" in text and "gen_length" in text and "\x1b" not in text
    facts = json.loads(run("methods", "--json").stdout)
    assert {"d2f", "masked"} <= {m["name"] for m in facts["methods"]}
    assert all(o["help"] for m in facts["methods"] for o in m["options"])
    assert [c["name"] for c in facts["common"]] == ["max_new_tokens", "temperature", "top_p", "top_k", "seed"]


def test_methods_shows_one_method_or_the_nearest_name() -> None:
    assert [m["name"] for m in json.loads(run("methods", "d2f", "--json").stdout)["methods"]] == ["d2f"]
    assert "masked" not in run("methods", "autoregressive").stdout
    wrong = run("methods", "d2g")
    assert wrong.exit_code == 2 and "did you mean 'd2f'?" in wrong.stderr


def test_the_common_options_agree_with_the_library() -> None:
    from unmask.cli.options import LENGTH_NAMES
    from unmask.lm import COMMON

    assert dict.fromkeys(LENGTH_NAMES, "max_new_tokens") == COMMON


@pytest.mark.parametrize(
    "name", ["llada-tiny", "sdar-tiny", "qwen2-tiny", "dream-tiny", "fast-dllm-v2-tiny", "llada2-moe-tiny"]
)
def test_info_agrees_with_the_loaded_checkpoint(name: str) -> None:
    import unmask

    facts = json.loads(run("info", str(MODELS / name), "--json").stdout)
    lm = unmask.load(str(MODELS / name))
    assert facts["parameters"] == sum(p.numel() for p in lm.model.parameters())
    assert (facts["mask_id"], tuple(facts["eos_ids"])) == (lm.family.mask_id, lm.family.eos_ids)
    assert facts["default_method"] == lm.default_method
    if lm.family.mask_id is not None or lm.family.attention == "causal":
        assert facts["methods"][facts["default_method"]] is None
    assert facts["tokenizer"] is False and facts["dtype"] == "float32"
    assert name in run("info", str(MODELS / name)).stdout


def test_info_of_experts_tells_what_a_token_uses() -> None:
    facts = json.loads(run("info", str(MODELS / "llada2-moe-tiny"), "--json").stdout)
    idle = 2 * 12 * 3 * 32 * 64  # two layers, 12 of 16 experts, three matrices
    assert facts["experts"] == {"count": 16, "per_token": 4, "active_parameters": facts["parameters"] - idle}
    assert facts["rope"] == {"theta": 600000.0, "dimensions": 8}
    assert json.loads(run("info", str(MODELS / "llada-tiny"), "--json").stdout)["experts"] is None


def test_info_reads_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((MODELS / "llada-tiny" / "config.json").read_text())
    facts = json.loads(run("info", str(tmp_path), "--json").stdout)
    assert facts["bytes_on_disk"] is None and facts["layers"] == 3


def test_info_of_a_missing_folder_is_one_line() -> None:
    result = run("info", "./nowhere")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1


def test_train_says_what_is_wrong_with_its_file(tmp_path: Path) -> None:
    missing = run("train", str(tmp_path / "none.yaml"))
    assert missing.exit_code == 2 and "cannot read" in missing.stderr
    (tmp_path / "c.yaml").write_text("stps: 3\n")
    wrong = run("train", str(tmp_path / "c.yaml"))
    assert wrong.exit_code == 2 and "did you mean 'steps'?" in wrong.stderr


def test_train_names_the_extra_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    result = run("train", "c.yaml")
    assert result.exit_code == 2 and "pip install 'unmask[train]'" in result.stderr


def test_version_help_and_usage_errors() -> None:
    assert run("--version").stdout.startswith("unmask ")
    for command in ("generate", "chat", "trace", "compare", "methods", "info", "train", "bench"):
        assert run(command, "--help").exit_code == 0
    assert run("generat").exit_code == 2
    assert run("generate").exit_code == 2


def test_help_needs_no_torch() -> None:
    # A stand-in for the package itself, whose __init__ is not the command line's to decide.
    code = (
        "import sys, types; p = types.ModuleType('unmask'); p.__path__ = [sys.argv[1]]; sys.modules['unmask'] = p\n"
        "import unmask.cli.app; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(SOURCE / "unmask")], check=True, timeout=60)


def test_a_closed_pipe_is_quiet() -> None:
    result = shell("unmask methods | head -n 1")
    assert result.stderr == "" and result.stdout.count("\n") == 1


def test_a_mistake_has_no_traceback_in_a_real_process() -> None:
    result = shell("unmask generate ./nowhere --ids 5")
    assert result.returncode == 2
    assert result.stderr.startswith("unmask: no folder ./nowhere") and result.stderr.count("\n") == 1


def test_an_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unmask.lm.LM.generate", interrupted)
    result = run("generate", str(MODELS / "llada-tiny"), "--ids", "5")
    assert result.exit_code == 130 and result.stdout == ""


def test_demo_solves_its_problem_and_shows_frames_and_counters() -> None:
    result = run("demo")
    assert result.exit_code == 0
    assert "forward  1" in result.stdout and "░" in result.stdout
    assert ": right" in result.stdout
    lines = result.stdout.splitlines()
    nano = next(line for line in lines if line.startswith("nano     "))
    assert "fast_dllm_v2" in nano
    assert any(line.startswith("nano-ar ") for line in lines)


def test_bench_quality_writes_a_raw_result_file(tmp_path: Path) -> None:
    file = tmp_path / "out" / "quality.json"
    result = run("bench", "quality", "nano", "--count", "2", "--batch", "2", "--against", "nano-ar", "--out", str(file))
    assert result.exit_code == 0
    record = json.loads(file.read_text())
    assert {"schema", "command", "commit", "device", "threads", "results", "answers"} <= set(record)
    nano, base = record["results"]
    assert nano["problems"] == base["problems"] == 2
    assert nano["tpf"] > 2 > base["tpf"]
    answers = record["answers"]["nano fast_dllm_v2"]
    assert nano["tokens"] == sum(a["tokens"] for a in answers)
    assert nano["correct"] == sum(a["correct"] for a in answers)


def test_bench_names_an_unknown_task() -> None:
    result = run("bench", "quality", "nano", "--task", "wordmaths")
    assert result.exit_code == 2
    assert "did you mean 'wordmath'" in result.stderr
