"""The zoo: its plan, what of it is done and what is left; and, slowly, all of it at toy scale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from zoo_parts import PLAN, STAGES, Fake, small_plan, write_plan

from unmask import UnmaskError
from unmask.bench.zoo import report
from unmask.bench.zoo.plan import Plan, TaskPlan, load_plan, merged
from unmask.bench.zoo.plot import draw
from unmask.bench.zoo.run import Asked, checked, overview, todo, zoo
from unmask.bench.zoo.store import Store
from unmask.decoding import build
from unmask.training.recipes import make_recipe

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "zoo"
RESULTS = sorted((ROOT / "bench" / "results").glob("zoo*.json"))


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take a second each; `test_each_task_has_a_figure` draws."""
    monkeypatch.setattr("unmask.bench.zoo.plot.draw", lambda result, folder: [])


# The plan.


@pytest.mark.parametrize("tiny", [False, True], ids=["whole", "tiny"])
def test_every_config_of_the_repository_is_sound(tiny: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan = checked(load_plan("configs/zoo", tiny=tiny))
    assert round(sum(stage.minutes for stage in plan.stages.values()), 6) <= (0 if tiny else 25)
    for stage in plan.stages.values():
        if stage.kind == "train":
            make_recipe(stage.options["recipe"], mask_id=3)
            assert "model" not in stage.options or Path(stage.options["model"]).is_file()
    for curve in plan.curves.values():
        for setting in curve.over:
            build(curve.method, {**curve.options, **setting})
    recipes = {s.options["recipe"]["name"] for s in plan.stages.values() if s.kind == "train"}
    assert len(recipes) == 10  # all there are


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_the_results_of_the_repository_are_sound(path: Path) -> None:
    assert report.read(path)["curves"]


def test_a_stage_has_the_common_options_and_takes_null_for_none(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    assert list(plan.stages) == PLAN["stages"]
    assert plan.stages["base"].options == {**PLAN["train"], **STAGES["base"]["train"]}
    assert "tokenizer" not in plan.stages["fast"].options and plan.stages["fast"].options["steps"] == 7
    assert [setting["threshold"] for setting in plan.curves["fast"].over] == [0.9, 0.5]
    assert plan.curves["one"].over == ({},) and plan.curves["one"].task == "wordmath"


def test_budget_changes_and_tiny(tmp_path: Path) -> None:
    half = small_plan(tmp_path, budget=0.5, changes=["fast.train.recipe.block_size=8", "fast.needs.data=null"])
    assert [half.stages[name].minutes for name in ("base", "fast")] == [1.0, 1.5]
    assert half.stages["data"].options["count"] == 100
    assert half.stages["fast"].options["recipe"] == {"name": "fast_dllm_v2", "block_size": 8}
    assert half.stages["fast"].needs == {"init": "base"}
    tiny = small_plan(tmp_path, tiny=True)
    assert tiny.stages["fast"].options["steps"] == 2 and tiny.stages["fast"].options["row_tokens"] == 32
    assert "row_tokens" not in tiny.stages["base"].options and "train" not in tiny.stages["data"].options
    assert tiny.stages["data"].options == {"count": 3} and tiny.stages["base"].minutes == 0
    assert len(tiny.curves["fast"].over) == 1


def test_a_key_follows_what_a_stage_is_made_of(tmp_path: Path) -> None:
    keys = small_plan(tmp_path).keys({})
    assert small_plan(tmp_path).keys({}) == keys and len(set(keys.values())) == 4
    changed = small_plan(tmp_path, changes=["base.train.steps=9"]).keys({})
    assert {name for name in keys if changed[name] != keys[name]} == {"base", "data", "fast"}
    assert small_plan(tmp_path, changes=["fast.curves=[{name: fast, method: d2f}]"]).keys({}) == keys
    (tmp_path / "shape.json").write_text("{}")
    shape = [f"base.train.model={tmp_path / 'shape.json'}"]
    before = small_plan(tmp_path, changes=shape).keys({})
    (tmp_path / "shape.json").write_text('{"hidden_size": 8}')
    assert small_plan(tmp_path, changes=shape).keys({})["base"] != before["base"]
    given = small_plan(tmp_path).keys({"base": "mine"})
    assert given["base"] == "mine" and given["fast"] != keys["fast"] and given["other"] == keys["other"]


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no stages": ({"plan": {"stages": []}}, "lists no stages"),
    "key of plan": ({"plan": {"claim": []}}, "did you mean 'claims'"),
    "key of stage": ({"base": {"minute": 3}}, "did you mean 'minutes'"),
    "order": ({"plan": {"stages": ["base", "fast", "data", "other"]}}, "fast needs data, which must stand before it"),
    "need": ({"fast": {"needs": {"inti": "base"}}}, "did you mean 'init'"),
    "kind": ({"base": {"distil": {"count": 1}}}, "stage base needs either train or distil"),
    "distil": ({"data": {"distil": {"conut": 1}}}, "did you mean 'count'"),
    "distil lacks": ({"data": {"distil": {}}}, "distil of stage data lacks 'count'"),
    "curve": ({"base": {"curves": [{"name": "one"}]}}, "curve of base lacks 'method'"),
    "two curves": ({"base": {"curves": [{"name": "fast", "method": "x"}]}}, "two curves are called fast"),
    "baseline": ({"base": {"curves": [{"name": "one", "method": "x", "baseline": "two"}]}}, "unknown baseline"),
    "over": ({"base": {"curves": [{"name": "one", "method": "x", "over": {"a": [1], "b": [2]}}]}}, "must name one"),
    "task": ({"other": {"task": "lists", "curves": [{"name": "x", "method": "x"}]}}, "unknown task of curve x"),
    "claim": ({"plan": {"claims": [{"what": "w", "figure": "tpf", "curve": "fst", "bar": 1}]}}, "did you mean 'fast'"),
    "figure": ({"plan": {"claims": [{"what": "w", "figure": "tps", "curve": "one", "bar": 1}]}}, "did you mean 'tpf'"),
    "than": ({"plan": {"claims": [{"what": "w", "figure": "excess", "curve": "one", "bar": 1}]}}, "needs than"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_in_a_plan_are_named(case: str, tmp_path: Path) -> None:
    changes, message = MISTAKES[case]
    with pytest.raises(UnmaskError, match=message):
        load_plan(write_plan(tmp_path, changes.pop("plan", None), **changes))


def test_mistakes_in_what_was_asked_for_are_named(tmp_path: Path) -> None:
    folder = write_plan(tmp_path / "plan")
    for change, message in (("base", "not of the form"), ("bse.minutes=1", "'base'"), ("base.mins=1", "'minutes'")):
        with pytest.raises(UnmaskError, match=message):
            load_plan(folder, changes=[change])
    plan = load_plan(folder)
    with pytest.raises(UnmaskError, match="did you mean 'fast'"):
        plan.chosen(["fsat"])
    with pytest.raises(UnmaskError, match="there is no folder nowhere"):
        Store(tmp_path, {"base": "nowhere"})
    with pytest.raises(UnmaskError, match="stage fast: unknown training option 'stepz'"):
        checked(load_plan(folder, changes=["fast.train.stepz=1"]))
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": None, "d": 3}}) == {"a": {"c": 2, "d": 3}}


# What is done, and what is left.


def made(plan: Plan, store: Store, **asked: Any) -> tuple[Fake, dict[str, str]]:
    fake = asked.pop("fake", Fake())
    _, outcome = zoo(plan, store, Asked(**asked), begin=fake.begin)
    return fake, outcome


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    plan, out = small_plan(tmp_path / "plan"), tmp_path / "out"
    fake, outcome = made(plan, Store(out))
    assert fake.begun == ["base", "data", "fast", "other", "measure base", "measure fast"]
    assert set(outcome.values()) == {""}
    spec = fake.specs["fast"]["options"]
    assert spec["init"] == str(out / "base") and spec["data"] == str(out / "data" / "answers.jsonl")
    assert spec["max_minutes"] == 3.0 and spec["output"] == str(out / "fast")
    assert fake.specs["data"]["model"] == str(out / "base")
    assert made(plan, Store(out))[0].begun == []
    assert overview(plan, todo(plan, Store(out), Asked())) == ["nothing is left to do"]
    changed = load_plan(tmp_path / "plan", changes=["fast.train.steps=9"])
    assert made(changed, Store(out))[0].begun == ["fast", "measure fast"]
    base = load_plan(tmp_path / "plan", changes=["base.train.steps=9", "fast.train.steps=9"])
    # Stages that are needed are made first, and measured as far as claims or baselines speak of them.
    assert made(base, Store(out), only=["fast"])[0].begun == ["base", "data", "fast", "measure base", "measure fast"]
    assert made(base, Store(out), only=["data"])[0].begun == []


def test_a_new_setting_is_measured_alone(tmp_path: Path) -> None:
    plan, out = small_plan(tmp_path / "plan"), tmp_path / "out"
    made(plan, Store(out), only=["fast"])
    curve = {**STAGES["fast"]["curves"][0], "over": {"threshold": [0.9, 0.7, 0.5]}}
    more = load_plan(write_plan(tmp_path / "plan", fast={"curves": [curve]}))
    assert todo(more, Store(out), Asked(only=["fast"])).curves == {"fast": 1}
    fake, _ = made(more, Store(out), only=["fast"])
    assert fake.begun == ["measure fast"] and len(fake.specs["measure fast"]["curves"][0]["points"]) == 2
    fewer = replace(more, tasks={"wordmath": TaskPlan(problems=5, batch=2, tokens=8)})
    assert todo(fewer, Store(out), Asked(only=["fast"])).curves == {"one": 1, "fast": 3}


def test_a_stage_that_fails_leaves_out_what_needs_it_and_the_others_go_on(tmp_path: Path) -> None:
    plan, out = small_plan(tmp_path / "plan"), tmp_path / "out"
    fake, outcome = made(plan, Store(out), fake=Fake(fails={"data"}))
    assert fake.begun == ["base", "data", "other", "measure base"]
    assert outcome["data"] == "it broke" and outcome["fast"] == "needs data, of which there is nothing"
    assert outcome["measure fast"] == "needs fast, of which there is nothing"
    assert made(plan, Store(out))[0].begun == ["data", "fast", "measure fast"]


def test_a_given_folder_takes_the_place_of_a_stage(tmp_path: Path) -> None:
    plan, out, given = small_plan(tmp_path / "plan"), tmp_path / "out", tmp_path / "given"
    given.mkdir()
    (given / "config.json").write_text("{}")
    fake, _ = made(plan, Store(out, {"base": str(given)}), only=["fast"])
    assert fake.begun == ["data", "fast", "measure base", "measure fast"] and fake.specs["fast"]["options"][
        "init"
    ] == str(given)
    assert made(plan, Store(out, {"base": str(given)}), only=["fast"])[0].begun == []
    (given / "config.json").write_text('{"other": 1}')
    assert "fast" in made(plan, Store(out, {"base": str(given)}), only=["fast"])[0].begun
    shipped = Store(out, {"base": "nano-ar"})
    assert (shipped.folder("base") / "config.json").is_file()
    # A stage that another zoo made keeps its key, and with it all that was made from it.
    made(plan, Store(tmp_path / "first"))
    carried = Store(tmp_path / "second", {"base": str(tmp_path / "first" / "base")})
    assert carried.keys(plan) == Store(out).keys(plan)


def test_measuring_alone_trains_nothing_and_takes_what_is_there(tmp_path: Path) -> None:
    plan, out = small_plan(tmp_path / "plan"), tmp_path / "out"
    made(plan, Store(out), only=["base"])
    changed = load_plan(tmp_path / "plan", changes=["base.train.steps=9"])
    for file in (out / "points").iterdir():
        file.unlink()
    (out / "zoo.json").unlink()
    assert made(changed, Store(out), measure_only=True)[0].begun == ["measure base"]
    result = report.read(out / "zoo.json")
    assert [entry["current"] for entry in (*result["stages"], *result["curves"])] == [False, False]
    assert "made by an earlier state of the configs" in (out / "zoo.md").read_text()


def test_one_file_carries_what_was_measured(tmp_path: Path) -> None:
    plan = small_plan(tmp_path / "plan")
    made(plan, Store(tmp_path / "out"), only=["fast"])
    other = tmp_path / "other"
    other.mkdir()
    (other / "zoo.json").write_text((tmp_path / "out" / "zoo.json").read_text())
    made(plan, Store(other), only=["base"])
    result = report.read(other / "zoo.json")
    assert [curve["curve"] for curve in result["curves"]] == ["one", "fast"]
    assert {stage["stage"]: stage["current"] for stage in result["stages"]} == dict.fromkeys(
        ("base", "data", "fast"), True
    )


def test_a_model_that_is_trained_again_is_measured_again(tmp_path: Path) -> None:
    plan, other = small_plan(tmp_path / "plan"), tmp_path / "other"
    made(plan, Store(tmp_path / "out"), only=["fast"])
    other.mkdir()
    (other / "zoo.json").write_text((tmp_path / "out" / "zoo.json").read_text())
    assert made(plan, Store(other), only=["base"])[0].begun == ["base", "measure base"]
    assert [len(entry["points"]) for entry in report.read(other / "zoo.json")["curves"]] == [1, 2]
    # The points of "fast" were still those of the file; now it is made here too.
    fake, _ = made(plan, Store(other), only=["fast"])
    assert fake.begun == ["data", "fast", "measure fast"]
    assert len(fake.specs["measure fast"]["curves"][0]["points"]) == 0


def test_foreign_files_are_not_touched(tmp_path: Path) -> None:
    plan, out = small_plan(tmp_path / "plan"), tmp_path / "out"
    (out / "base").mkdir(parents=True)
    (out / "base" / "thesis.txt").write_text("years of work")
    with pytest.raises(UnmaskError, match="holds files that no zoo made"):
        Store(out).begin(plan.stages["base"], "key")
    assert (out / "base" / "thesis.txt").is_file()


def test_data_that_were_begun_go_on_and_models_begin_anew(tmp_path: Path) -> None:
    plan, store = small_plan(tmp_path / "plan"), Store(tmp_path / "out")
    for name, kept in (("base", False), ("data", True)):
        file = store.begin(plan.stages[name], "key") / "half.txt"
        file.write_text("half")
        store.begin(plan.stages[name], "key")
        assert file.exists() == kept
        file.write_text("half")
        store.begin(plan.stages[name], "another key")
        assert not file.exists() and not store.done(name, "another key")


# The command, and everything at toy scale.


def test_the_command_says_what_it_would_do(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from unmask.cli.app import app

    plan = write_plan(tmp_path / "plan", other={"train": {**STAGES["other"]["train"], "stepz": 3}})
    asked = ["zoo", str(plan), "--out", str(tmp_path / "out"), "--dry-run", "--device", "cpu"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 2 and "stage other: unknown training option 'stepz'" in result.output
    (plan / "other.yaml").write_text(yaml.safe_dump(STAGES["other"]))
    result = CliRunner().invoke(app, [*asked, "--only", "fast", "--budget", "0.5"])
    assert result.exit_code == 0 and "train fast: 1.5 min, needs base, data" in result.output, result.output
    assert "measure fast: fast (2 points)" in result.output and "3 minutes of training" in result.output
    assert "measure base: one (1 points)" in result.output and "other" not in result.output
    assert not (tmp_path / "out").exists()
    result = CliRunner().invoke(app, [*asked, "--from", "base"])
    assert result.exit_code == 2 and "--from takes STAGE=FOLDER, not 'base'" in result.output


@pytest.mark.slow
def test_the_whole_zoo_runs_at_toy_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("unmask.bench.zoo.plot.draw", draw)
    plan, said = checked(load_plan("configs/zoo", tiny=True)), []
    result, outcome = zoo(plan, Store(tmp_path), Asked(parallel=0, say=said.append))
    assert set(outcome.values()) == {""}, outcome
    assert [stage["stage"] for stage in result["stages"]] == list(plan.stages)
    found = {curve["curve"]: curve for curve in report.read(tmp_path / "zoo.json")["curves"]}
    assert list(found) == list(plan.curves) and all(curve["current"] for curve in found.values())
    assert all(len(found[name]["points"]) == len(curve.over) for name, curve in plan.curves.items())
    # What promises the same text keeps the promise, however little the weights know.
    for exact, other in (("freedave", "freedave"), ("jacobi_forcing", "jacobi_forcing-ar"), ("ar-jacobi", "ar")):
        assert {p["digests"] for p in found[exact]["points"]} == {found[other]["points"][0]["digests"]}
    assert {path.name for path in tmp_path.glob("zoo*")} >= {"zoo.json", "zoo.md", "zoo-wordmath.png", "zoo-lists.png"}
    assert zoo(plan, Store(tmp_path), Asked(parallel=0))[1] == {}
