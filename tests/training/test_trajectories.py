"""Which state of a trajectory is shown: by hand, beside the official choice, and as drafts of a batch."""

import json
from pathlib import Path

import numpy as np
import pytest

from unmask.errors import UnmaskError
from unmask.training.data import Format, Samples, build_batch
from unmask.training.samples import fit
from unmask.training.sources.files import Reading
from unmask.training.sources.trajectories import NoiseSchedule, nearest, noise_of, noisy_answer

GOLDEN = Path(__file__).parents[1] / "golden" / "jacobi-trajectory-causal.jsonl"
CASES = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
# Two blocks of 4: the text is 5 6 7 8 | 9 2, and 2 is the end token.
BLOCKS = [
    [[5, 1, 7, 8], [5, 6, 1, 8], [5, 6, 7, 8]],
    [[9, 1, 1, 1], [9, 2, 3, 4]],
]
ROW = {"prompt_ids": [1, 4, 1], "response_ids": [5, 6, 7, 8, 9, 2], "block_size": 4, "blocks": BLOCKS}


def test_noise_is_the_share_from_the_first_wrong_token_on():
    states = np.array([[5, 6, 7, 8], [5, 6, 1, 8], [5, 1, 7, 8], [0, 6, 7, 8]])
    assert noise_of(states, np.array([5, 6, 7, 8])).tolist() == [0, 0.5, 0.75, 1]
    # The text ends with the second token: what stands behind it is never wrong.
    assert noise_of(states, np.array([5, 6])).tolist() == [0, 0, 0.75, 1]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"])
def test_noise_and_choice_are_those_of_the_official_code(case):
    o, n = case["options"], case["options"]["n_token_seq_len"]
    bounds = {"low": o["min_noisy_ratio"], "high": o["max_noisy_ratio"]}
    schedules = {
        "window": NoiseSchedule(o["window_size"], **bounds),
        "window_16": NoiseSchedule(16, **bounds),
        "max_ratio_0.5": NoiseSchedule(o["window_size"], low=0.0, high=0.5),
    }
    for number, block in enumerate(case["expect"]["blocks"]):
        states = np.array(block["states"])
        final = states[-1]
        assert noise_of(states, final).tolist() == block["noise"]
        found = {name: nearest(states, final, s.targets(0, 9)[number]) for name, s in schedules.items()}
        assert found == block["selected"]
    assert n == states.shape[1]


def test_the_schedule_rises_through_its_window_and_begins_anew():
    schedule = NoiseSchedule(window=3, low=0.2, high=0.6)
    assert schedule.targets(7, 5) == pytest.approx([0.2, 0.4, 0.6, 0.2, 0.4])
    assert NoiseSchedule(window=1).targets(0, 3).tolist() == [0, 0, 0]


def test_of_two_states_that_are_equally_near_the_earlier_one_is_shown():
    states = np.array([[5, 1, 7, 8], [5, 6, 7, 1], [5, 6, 7, 8]])  # noise 0.75, 0.25, 0
    assert nearest(states, states[-1], 0.5) == 0


def test_random_targets_are_drawn_evenly_from_the_window_by_seed_row_and_block():
    def drawn(seed):
        schedule = NoiseSchedule(window=4, strategy="random", seed=seed)
        return np.stack([schedule.targets(sample, 10) for sample in range(200)])

    values, counts = np.unique(drawn(3), return_counts=True)
    assert values == pytest.approx([0, 1 / 3, 2 / 3, 1]) and counts.min() > 430
    assert np.array_equal(drawn(3), drawn(3)) and not np.array_equal(drawn(3), drawn(0))
    assert len(np.unique(drawn(3), axis=0)) > 195


@pytest.mark.parametrize(
    ("schedule", "noisy"),
    [
        (NoiseSchedule(window=2, low=0.75, high=0.75), [5, 1, 7, 8, 9, 1]),
        (NoiseSchedule(window=2, low=0.5, high=0.5), [5, 6, 1, 8, 9, 1]),
        (NoiseSchedule(window=2, low=0.0, high=1.0), [5, 6, 7, 8, 9, 1]),
        (NoiseSchedule(window=2, low=0.0, high=0.0), [5, 6, 7, 8, 9, 2]),
    ],
)
def test_an_answer_is_shown_in_the_chosen_states(schedule, noisy):
    assert noisy_answer(ROW, 1, schedule, 4) == noisy


def test_a_batch_has_drafts_at_answers_and_clean_tokens_elsewhere(tmp_path):
    """By hand: the state of noise 0.5 in the first block, the one of noise 0.75 in the second; then padding."""
    path = tmp_path / "paths.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    for fill_end in (False, True):
        form = Format(length=16, block=4, pad_id=3, end_id=2, fill_end=fill_end, anchored=True)
        schedule = NoiseSchedule(window=2, low=0.5, high=0.75)
        samples = Reading(None, form, schedule=schedule, workers=1).load(str(path), 10)
        batch = build_batch(samples, [[0], []], form)
        rest = [2, 2] if fill_end else [3, 3]
        assert batch.tokens[0].tolist() == [1, 4, 1, 5, 6, 7, 8, 9, 2, *rest, *[3] * 5]
        assert batch.drafts is not None
        assert batch.drafts[0].tolist() == [1, 4, 1, 5, 6, 1, 8, 9, 1, *rest, *[3] * 5]
        assert batch.drafts[1].tolist() == [3] * 16
        assert batch.answer[0, 0] == (8 if fill_end else 6)


def test_drafts_are_cut_and_joined_with_their_tokens():
    parts = [
        Samples(np.arange(5, dtype=np.int32), np.array([0, 5]), np.array([2]), np.arange(5, dtype=np.int32) + 50),
        Samples(np.arange(9, dtype=np.int32), np.array([0, 9]), np.array([1]), np.arange(9, dtype=np.int32) + 90),
    ]
    joined = Samples.join(parts)
    form = Format(length=8, block=1, pad_id=0, end_id=None, fill_end=False)
    cut = fit(joined, form, "x", "cut")
    assert cut.drafts is not None and cut.drafts.tolist() == [*range(50, 55), *range(90, 98)]
    assert cut.tokens.tolist() == [*range(5), *range(8)]


def test_mistakes_are_named(tmp_path):
    path = tmp_path / "paths.jsonl"
    form = Format(length=16, block=4, pad_id=3, end_id=2, fill_end=False, anchored=True)

    def load(row, **changes):
        path.write_text(json.dumps(ROW) + "\n" + json.dumps(row) + "\n")
        return Reading(None, form, schedule=NoiseSchedule(), workers=1).load(str(path), 10)

    with pytest.raises(UnmaskError, match=r"row 2 of paths\.jsonl has a trajectory in blocks of 8 tokens"):
        load(ROW | {"block_size": 8})
    with pytest.raises(UnmaskError, match=r"row 2 of paths\.jsonl holds 1 blocks for an answer of 6 tokens"):
        load(ROW | {"blocks": BLOCKS[:1]})
    with pytest.raises(UnmaskError, match=r"row 2 of paths\.jsonl holds no trajectory"):
        load({"prompt_ids": [1], "response_ids": [2]})
    with pytest.raises(UnmaskError, match="unknown option of drafts 'windw'; did you mean 'window'"):
        NoiseSchedule.of({"windw": 3}, seed=0)
    with pytest.raises(UnmaskError, match="unknown strategy 'randm'; did you mean 'random'"):
        NoiseSchedule(strategy="randm")
    with pytest.raises(UnmaskError, match=r"low 0\.6, high 0\.5"):
        NoiseSchedule(low=0.6, high=0.5)
