"""Which versions of Triton the kernels are for; needs none."""

import pytest
import torch

from unmask import kernels
from unmask.engine import parts


@pytest.mark.parametrize(("version", "runs"), [((), False), ((3, 3), False), ((3, 4), True), ((3, 10), True)])
def test_kernels_run_from_triton_3_4_on(version, runs, monkeypatch):
    monkeypatch.setattr(kernels, "_triton", lambda: version)
    runs_kernels = kernels.runs_kernels.__wrapped__
    assert runs_kernels(True) == runs
    monkeypatch.setattr(parts, "runs_kernels", runs_kernels)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert parts.missing(torch.device("cuda")) == (
        "" if runs else "it needs Triton 3.4 or newer, which is not installed"
    )


def test_gluon_is_taken_from_triton_3_6_on(monkeypatch):
    for version in ((), (3, 5)):
        monkeypatch.setattr(kernels, "_triton", lambda version=version: version)
        assert not kernels.has_gluon.__wrapped__()
