"""The zoo: its jobs, the points of a curve, claims, tables and figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from zoo_parts import Fake, point, small_plan

from unmask import UnmaskError
from unmask.bench.zoo import report
from unmask.bench.zoo.claims import Claim, judge
from unmask.bench.zoo.jobs import Job, Pool, Process, environment, last_line
from unmask.bench.zoo.measure import drawn_samples, measure
from unmask.bench.zoo.plan import Curve, TaskPlan
from unmask.bench.zoo.plot import draw, panels_of
from unmask.bench.zoo.run import Asked, zoo
from unmask.bench.zoo.store import Store
from unmask.decoding.counters import Counters
from unmask.lm import LM, Generation
from unmask.models.checkpoint import Checkpoint, new_model
from unmask.models.config import ModelConfig
from unmask.models.families import resolve
from unmask.tasks import get_task
from unmask.tasks.grammar import Grammar

CONFIGS = Path(__file__).parents[2] / "configs" / "zoo"


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take a second each; `test_each_task_has_a_figure` draws."""
    monkeypatch.setattr("unmask.bench.zoo.plot.draw", lambda result, folder: [])


# Jobs.


class Clock:
    """Time that passes when somebody sleeps. Jobs take as many minutes as `takes` says."""

    def __init__(self, takes: dict[str, float]) -> None:
        self.now, self.takes, self.lines, self.most, self.running = 0.0, takes, [], 0, set()

    def begin(self, job: Job, device: str) -> Any:
        clock, ends = self, self.now + 60 * self.takes[job.name]
        self.running.add(job.name)
        self.most = max(self.most, len(self.running))

        class Running:
            def poll(self) -> str | None:
                if clock.now < ends:
                    return None
                clock.running.discard(job.name)
                return ""

            def stop(self) -> None:
                clock.running.discard(job.name)
                clock.lines.append(f"stopped {job.name}")

        return Running()

    def sleep(self, seconds: float) -> None:
        self.now += 10 * seconds

    def pool(self, count: int, within: float | None = None) -> Pool:
        return Pool(
            ["cpu"] * count,
            self.begin,
            within=within,
            say=self.lines.append,
            clock=lambda: self.now,
            sleep=self.sleep,
        )


def job(name: str, *needs: str, minutes: float = 1.0) -> Job:
    return Job(name, needs, minutes, Path("log"), lambda device: {})


def test_jobs_run_side_by_side_each_as_soon_as_it_can() -> None:
    clock = Clock({"a": 1, "b": 1, "c": 3, "d": 1})
    outcome = clock.pool(2).run([job("a"), job("b", "a"), job("c"), job("d", "b")])
    assert set(outcome.values()) == {""} and clock.most == 2
    assert 3 <= clock.now / 60 < 3.5  # a, b, d in a row beside c
    begun = [line.split(":")[0] for line in clock.lines if line.endswith("begun")]
    assert begun == ["a", "c", "b", "d"]


def test_nothing_begins_that_would_take_too_long_and_what_runs_is_ended() -> None:
    clock = Clock({"a": 2, "b": 9, "c": 1})
    outcome = clock.pool(1, within=5).run(
        [job("a"), job("b", minutes=2), job("c", minutes=0), job("d", minutes=6), job("e", "d")]
    )
    assert outcome["a"] == "" and outcome["b"] == "out of time" and outcome["c"] == "out of time"
    assert outcome["d"].startswith("takes 6.0 minutes") and outcome["e"].startswith("needs d")
    assert clock.now / 60 < 5.5 and not clock.running


def test_a_process_sees_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert environment("cuda:1")["CUDA_VISIBLE_DEVICES"] == "7" and environment("cpu")["CUDA_VISIBLE_DEVICES"] == ""
    assert environment("cuda")["CUDA_VISIBLE_DEVICES"] == "4,7"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert environment("cuda:1")["CUDA_VISIBLE_DEVICES"] == "1"


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [environment(device, 3)["OMP_NUM_THREADS"] for device in ("cpu", "cuda", "cuda:1")] == ["3", "3", "3"]
    assert "OMP_NUM_THREADS" not in environment("cuda")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert environment("cuda", 3)["OMP_NUM_THREADS"] == "7"


@pytest.mark.slow
def test_a_job_that_fails_in_its_process_says_why(tmp_path: Path) -> None:
    spec = {"kind": "train", "options": {"recipe": {"name": "autoregressive"}, "output": "x", "init": "x", "stepz": 1}}
    log = tmp_path / "logs" / "a.txt"
    outcome = Pool(["cpu"], Process.begin).run([Job("a", (), 0.0, log, lambda device: spec)])
    assert outcome["a"].startswith("unknown training option 'stepz'") and "exit code 2" in outcome["a"]
    assert last_line(log).startswith("unknown") and last_line(tmp_path / "none") == "no output"


# Points.


class Solver:
    """Stands in for a model that gets all but one sort of problem right, in two forwards and a prefill."""

    def __init__(self) -> None:
        self.problems = {p.question: p for p in get_task("lists").generate("test", 20)}
        self.calls: list[dict[str, Any]] = []

    def generate(self, questions: list[str], **options: Any) -> list[Generation]:
        self.calls.append({"count": len(questions), **options})
        asked = [self.problems[q] for q in questions]
        texts = ["Zoe" if p.kind == "sort" else p.solution for p in asked]
        counts = {"prefill": 1, "denoise": 2}
        return [
            Generation(t, list(t.encode()), "stop", Counters(6, {**Counters().forwards, **counts}, 1.5), [1], "x")
            for t in texts
        ]


def test_a_point_of_problems_has_sums_over_sums_and_a_mark_for_each() -> None:
    lm: Any = Solver()
    curve = Curve(name="c", stage="s", task="lists", method="m", options={"a": 1}, over=({"b": 2},))
    found = measure(lm, curve, TaskPlan(problems=20, batch=8, tokens=48, by_kind=True), {"b": 2})
    assert [c["count"] for c in lm.calls] == [1, 8, 8, 4]  # the first call is not counted
    assert lm.calls[1] == {"count": 8, "method": "m", "max_new_tokens": 48, "a": 1, "b": 2}
    kinds = [p.kind for p in lm.problems.values()]
    assert found["right"] == "".join("0" if kind == "sort" else "1" for kind in kinds)
    assert found["accuracy"] == 100 * (20 - kinds.count("sort")) / 20 and found["tpf"] == 3.0
    assert found["tokens"] == 120 and found["forwards"] == {"prefill": 20, "denoise": 40}
    assert found["seconds"] == 4.5 and len(found["digests"]) == 160 and found["settings"] == {"b": 2}
    sort = found["by_kind"]["sort"]
    assert (sort["accuracy"], sort["problems"], sort["tpf"]) == (0.0, kinds.count("sort"), 3.0)


def small_dit() -> LM:
    config = json.loads((CONFIGS / "dit.json").read_text())
    config |= {"hidden_dim": 32, "n_blocks": 1, "n_heads": 2, "cond_dim": 16, "model_length": 12}
    sizes = ModelConfig.from_json(config)
    network = new_model(sizes)
    network.init_weights(generator=torch.Generator().manual_seed(0))
    return LM(Checkpoint(network.eval(), sizes, resolve(config), config, None, CONFIGS), None)


def test_samples_are_drawn_whole_without_a_prompt() -> None:
    lm = small_dit()
    ids, counters = drawn_samples(lm, "mdlm", {"steps": 3}, 6, 12, seed=5)
    assert ids.shape == (6, 12) and int(ids.max()) < Grammar().vocabulary and counters.tokens == 72
    assert 6 <= counters.decode_forwards <= 18
    again, _ = drawn_samples(lm, "mdlm", {"steps": 3}, 4, 12, seed=7)
    assert torch.equal(ids[2:], again)  # a sample depends on its seed, not on its batch
    curve = Curve(name="c", stage="s", task="grammar", method="mdlm", over=({"steps": 3},))
    found = measure(lm, curve, TaskPlan(problems=6, batch=4, tokens=12, seed=5), {"steps": 3})
    assert found["excess"] == pytest.approx(Grammar().report(ids)["excess"], abs=1e-5)
    assert found["tpf"] == pytest.approx(72 / counters.decode_forwards, abs=1e-3) and 0 <= found["accuracy"] < 40


# Claims.


def curves(**points: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {"points": p, "baseline": None if name == "base" else "base"} for name, p in points.items()}


BASE = point(1.0, 96.0)


def test_the_fastest_point_that_is_near_the_baseline_counts() -> None:
    found = curves(base=[BASE, point(2.0, 99.0)], fast=[point(2.0, 97.0), point(4.0, 95.0), point(8.0, 94.9)])
    said = judge(Claim(what="w", figure="tpf", curve="fast", bar=4.0), found)
    assert (said["measured"], said["holds"], said["accuracy"], said["baseline_accuracy"]) == (4.0, True, 95.0, 96.0)
    assert judge(Claim(what="w", figure="tpf", curve="fast", bar=4.1), found)["holds"] is False
    loose = judge(Claim(what="w", figure="tpf", curve="fast", bar=1.0, within=2.0), found)
    assert loose["measured"] == 8.0 and loose["settings"] == {"x": 8.0}
    none = judge(Claim(what="w", figure="tpf", curve="fast", bar=1.0), curves(base=[BASE], fast=[point(9.0, 90.0)]))
    assert none["holds"] is False and none["reason"] == "no point is within 1 of the baseline's 96 %, the best has 90 %"


def test_forwards_are_compared_with_the_slowest_or_the_fastest_near_point() -> None:
    found = curves(base=[BASE], slow=[point(2.5, 96.0), point(1.0, 96.0), point(9.0, 50.0)], fast=[point(5.0, 96.0)])
    claim = Claim(what="w", figure="fewer_forwards", curve="fast", than="slow", bar=4.0)
    assert judge(claim, found)["measured"] == 5.0
    assert judge(replace(claim, than_at="fastest"), found)["measured"] == 2.0
    assert judge(replace(claim, than_at={"x": 2.5}), found)["measured"] == 2.0
    assert judge(replace(claim, than_at={"x": 3}), found)["reason"] == "slow was not measured at {'x': 3}"
    other = curves(base=[BASE], slow=[point(1.0, 96.0, problems=50)], fast=[point(5.0, 96.0)])
    assert judge(claim, other)["holds"] is None and "100 and on 50" in judge(claim, other)["reason"]


def test_a_claim_of_equal_texts_needs_them() -> None:
    texts = "aaaaaaaabbbbbbbb"
    own = point(1.0, 96.0, texts, problems=2)
    found = curves(
        base=[own], fast=[point(3.0, 96.0, texts, problems=2), point(6.0, 96.0, "aaaaaaaacccccccc", problems=2)]
    )
    claim = Claim(what="w", figure="tpf", curve="fast", bar=2.5, same_as="base")
    said = judge(claim, found)
    assert (said["measured"], said["same"], said["holds"]) == (3.0, 2, True)
    assert judge(replace(claim, same=0.5), found)["measured"] == 6.0
    found["fast"]["points"] = found["fast"]["points"][1:]
    said = judge(claim, found)
    assert (said["measured"], said["same"], said["holds"]) == (None, 1, False)


def test_nothing_is_claimed_of_what_was_not_measured_or_never_answers() -> None:
    claim = Claim(what="w", figure="tpf", curve="fast", bar=2.5)
    assert judge(claim, curves(base=[BASE]))["reason"] == "fast was not measured"
    assert judge(claim, curves(fast=[BASE]))["holds"] is None
    poor = judge(claim, curves(base=[point(1.0, 3.0)], fast=[point(3.0, 3.0)]))
    assert poor["holds"] is None and "right 3 % of the time" in poor["reason"]


def test_samples_are_compared_by_their_excess_at_like_entropy() -> None:
    def sampled(steps: int, excess: float, entropy: float) -> dict[str, Any]:
        return point(64 / steps, 98.0, settings={"steps": steps}, excess=excess, unigram_entropy=entropy)

    found = curves(base=[sampled(32, 0.05, 2.50), sampled(8, 0.30, 2.52)], fast=[sampled(8, 0.04, 2.46)])
    claim = Claim(what="w", figure="excess", curve="fast", at={"steps": 8}, than="base", than_at={"steps": 32}, bar=0.0)
    assert judge(claim, found)["measured"] == pytest.approx(0.01) and judge(claim, found)["holds"] is True
    found["fast"]["points"] = [sampled(8, 0.06, 2.5)]
    assert judge(claim, found)["holds"] is False
    found["fast"]["points"] = [sampled(8, 0.01, 2.3)]
    assert judge(claim, found)["holds"] is False and "entropy is 0.920" in judge(claim, found)["reason"]


# Tables and figures.


def result_of(tmp_path: Path) -> dict[str, Any]:
    """A result of two curves of problems by sort, and one of samples."""
    plan, store = small_plan(tmp_path / "plan"), Store(tmp_path / "out")
    zoo(plan, store, Asked(only=["fast", "base"]), begin=Fake().begin)
    result = report.read(tmp_path / "out" / "zoo.json")
    sort = {"problems": 5, "correct": 4, "accuracy": 80.0, "tokens": 9, "forwards": {"denoise": 3}, "tpf": 3.0}
    result["curves"][1]["points"] = [
        point(2.0, 90.0, by_kind={"copy": sort}),
        point(5.0, 89.5, by_kind={"copy": sort, "shuffle": sort}),
        point(9.0, 60.0, by_kind={"copy": sort}),
    ]
    drawn = point(4.0, 97.0, settings={"steps": 16}, excess=0.125, unigram_entropy=2.5)
    result["curves"].append({**result["curves"][1], "curve": "mdlm", "task": "grammar", "points": [drawn]})
    return report.check(result)


def test_the_tables_show_the_fastest_near_setting_and_each_sort(tmp_path: Path) -> None:
    text = report.markdown(result_of(tmp_path))
    (row,) = [line for line in text.splitlines() if line.startswith("| fast | x")]
    assert row == "| fast | x 5.0 | 89.5 % | -0.5 | 5.00 | 2.0 | 500 | 180 |"
    assert "| shuffle | - | 80.0 % (3.0) | - |" in text and "| copy |" in text
    assert "| fast | steps 16 | 2.5 | 0.1250 | 2.5000 | 97.00 % | 4.00 |" in text
    assert "| fast | - | 3 | not measured |" not in text and "| fast | 2 | 3 | **no** |" in text
    assert "| base | 5 updates | 2 | 1.0 |" in text


def test_a_result_that_is_none_is_refused_by_the_field(tmp_path: Path) -> None:
    result = result_of(tmp_path)
    result["curves"][1]["points"][0]["accuracy"] = 140.0
    with pytest.raises(UnmaskError, match=r"curves\[1\]\.points\[0\]\.accuracy must be a number from 0 to 100"):
        report.write(tmp_path / "bad.json", result)
    assert not (tmp_path / "bad.json").exists()
    for text, message in (("[]", "must be an object"), ('{"schema": 1}', "date is missing"), ("{", "Expecting")):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(UnmaskError, match=message):
            report.read(tmp_path / "x.json")


def test_each_task_has_a_figure(tmp_path: Path) -> None:
    result = result_of(tmp_path)
    files = draw(result, tmp_path / "figures")
    assert [file.name for file in files] == ["zoo-wordmath.png", "zoo-grammar.png"]
    assert all(file.read_bytes()[:4] == b"\x89PNG" for file in files)
    labels = [label for label, _ in panels_of(result["curves"][:2])]
    assert labels == ["right answers (%)", "copy (%)", "shuffle (%)"]
    assert panels_of(result["curves"][:2])[2][1](result["curves"][1]) == [(3.0, 80.0)]
    assert [label for label, _ in panels_of(result["curves"][2:])] == ["fitting tokens (%)", "excess (nats a token)"]
