"""States: a run goes on exactly, what cannot be written leaves what was there, averages and the best are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from processes import killed

from unmask.errors import UnmaskError
from unmask.models.checkpoint import load_model
from unmask.training import resume
from unmask.training.export import export
from unmask.training.log import read_log
from unmask.training.loop import run
from unmask.training.ranks import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))


def log(config):
    return read_log(Path(config.output) / "log.jsonl")


def losses(config):
    return [e["loss"] for e in log(config) if "loss" in e]


def notes(config):
    return [e["note"] for e in log(config) if "note" in e]


def weights(folder):
    return load_model(folder).model.state_dict()


def equal(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tiny):
    same = {"schedule": "constant", "save_every": 2, "ema": 0.8}
    through = tiny("through", steps=6, **same)
    run(through)
    stopped = tiny("stopped", steps=1000, **same)
    killed(lambda: run(stopped), Path(stopped.output) / "log.jsonl", steps=3)
    with (Path(stopped.output) / "log.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')  # as a kill in the middle of a line would leave it
    resumed = tiny("stopped", steps=6, resume=True, **same)
    run(resumed)
    assert losses(resumed) == losses(through) and "going on from" in notes(resumed)[0]
    assert equal(weights(through.output), weights(resumed.output))


def test_a_run_does_not_write_over_the_state_of_another(tiny):
    config = tiny("run", steps=2, save_every=2)
    run(config)
    with pytest.raises(UnmaskError, match=r"state-00000002 is of an earlier run: set resume: true"):
        run(config)
    with pytest.raises(UnmaskError, match=r"cannot resume .* its seed is 0, the config's is 1"):
        run(tiny("run", steps=2, resume=True, seed=1))


def test_a_state_that_cannot_be_written_leaves_the_one_before(tiny, monkeypatch):
    written, fail = resume.save_file, [False]

    def sometimes(tensors, path):
        written(tensors, path)
        if fail[0]:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(resume, "save_file", sometimes)
    target = Path(tiny("x").output)
    resume.write(target / "state-00000001", {"a": torch.ones(3)}, {"done": 1}, ALONE)
    fail[0] = True
    with pytest.raises(
        UnmaskError, match=r"cannot write .*state-00000002 .*No space left.* what was saved before is kept"
    ):
        resume.write(target / "state-00000002", {"a": torch.zeros(3)}, {"done": 2}, ALONE)
    assert [path.name for path in target.iterdir()] == ["state-00000001"]
    assert resume.Saved.open(resume.newest(target)).read("a").tolist() == [1, 1, 1]


def test_a_run_outlives_a_full_disk_and_says_so(tiny, monkeypatch):
    written = resume.save_file

    def fails_at_four(tensors, path):
        if "state-00000004" in str(path):
            raise OSError(28, "No space left on device")
        written(tensors, path)

    monkeypatch.setattr(resume, "save_file", fails_at_four)
    config = tiny("run", steps=5, save_every=2)
    run(config)
    assert len(losses(config)) == 5
    assert [n for n in notes(config) if "cannot write" in n and "\n" not in n]
    assert resume.newest(Path(config.output)).name == "state-00000005"


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tiny, monkeypatch):
    config = tiny("run", steps=1)
    run(config)
    before = weights(config.output)

    def fails(*given, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unmask.models.writing.save_file", fails)
    with pytest.raises(UnmaskError, match=r"cannot write .*No space left on device"):
        run(tiny("run", steps=2))
    assert equal(before, weights(config.output))


def test_rows_of_a_tensor_are_read_from_any_parts(tmp_path):
    whole = torch.arange(14.0).reshape(7, 2)
    for index, rows in enumerate((slice(0, 3), slice(3, 6), slice(6, 7))):
        tensors = {"a": whole[rows].clone()} | ({"b": torch.tensor(2.0)} if index == 0 else {})
        resume.save_file(tensors, tmp_path / f"part-{index:05}-of-00003.safetensors")
    (tmp_path / "state.json").write_text("{}")
    saved = resume.Saved.open(tmp_path)
    assert torch.equal(saved.read("a"), whole) and saved.read("b") == 2
    for rows in (slice(0, 7), slice(2, 4), slice(4, 7), slice(7, 7), slice(5, 6)):
        assert torch.equal(saved.read("a", rows), whole[rows])
    with pytest.raises(UnmaskError, match="holds no c"):
        saved.read("c")
    (tmp_path / "part-00001-of-00003.safetensors").unlink()
    with pytest.raises(UnmaskError, match="holds 2 of 3 parts"):
        resume.Saved.open(tmp_path)


def test_the_average_follows_the_weights_and_makes_the_checkpoint(tiny):
    same = {"schedule": "constant", "warmup_steps": 0}
    first, plain = tiny("first", steps=1, **same), tiny("plain", steps=2, **same)
    start, averaged = tiny("start", steps=1, learning_rate=0.0, **same), tiny("averaged", steps=2, ema=0.75, **same)
    for config in (first, plain, start, averaged):
        run(config)
    begun, one, two = (weights(c.output) for c in (start, first, plain))
    assert losses(averaged) == losses(plain)
    for name, tensor in weights(averaged.output).items():
        mean = 0.75 * (0.75 * begun[name] + 0.25 * one[name]) + 0.25 * two[name]
        torch.testing.assert_close(tensor, mean, atol=1e-6, rtol=1e-5)


def test_the_best_weights_make_the_checkpoint_and_can_be_exported(tiny, tmp_path, monkeypatch):
    figures = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr("unmask.training.loop.validate", lambda *given: {"validation_loss": next(figures)})
    same = {"schedule": "constant", "eval_every": 1}
    config = tiny("run", steps=3, keep="best", save_every=3, **same)
    assert run(config)["validation_loss"] == 2.0
    monkeypatch.undo()
    two = tiny("two", steps=2, **same)
    run(two)
    assert equal(weights(config.output), weights(two.output))
    assert "the checkpoint is that of step 2" in notes(config)[-1]
    assert export(config.output, tmp_path / "best", "best") == {
        "step": 2,
        "form": "merged",
        "folder": str(tmp_path / "best"),
    }
    assert equal(weights(tmp_path / "best"), weights(two.output))
    assert export(config.output, tmp_path / "last")["step"] == 3
    assert not equal(weights(tmp_path / "last"), weights(two.output))
    names = {path.name for path in (tmp_path / "last").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_mistakes_of_an_export_are_named(tiny, tmp_path):
    config = tiny("run", steps=1, save_every=1)
    run(config)
    for arguments, message in [
        ({"out": tmp_path}, "is there already; export into a new folder"),
        ({"out": tmp_path / "new", "which": "best"}, "holds no best state to export"),
        ({"out": tmp_path / "new", "which": "lst"}, "did you mean 'last'"),
        ({"out": tmp_path / "new", "form": "adapter"}, "without an adapter that could stand alone"),
    ]:
        with pytest.raises(UnmaskError, match=message):
            export(config.output, **arguments)
    assert not (tmp_path / "new").exists()
    assert json.loads((Path(config.output) / "config.json").read_text())["torch_dtype"] == "float32"
