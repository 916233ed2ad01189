"""Every family against the logits of its official code."""

from pathlib import Path

import pytest

from vectors_dit import DITS
from vectors_logits import DENSE, check_logits

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", [*DENSE, *DITS])
def test_logits_equal_the_official_codes(name):
    assert check_logits(GOLDEN, name) == []
