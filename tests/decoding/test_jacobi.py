"""Jacobi decoding in all its forms: exactly autoregressive text, drafts that stay drafts, forwards that are saved."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from oracle import EOS as ORACLE_EOS
from oracle import Oracle, run

from checkpoints import tiny
from given_drafts import Given, placed
from many_models import ManyModels
from random_models import random_lm, random_prompts
from unmask.cache.contiguous import ContiguousCache
from unmask.decoding import build, loop
from unmask.decoding.forward import Facts, State
from unmask.decoding.jacobi_blocks import BlocksState, JacobiBlocks
from unmask.decoding.loop import decode
from unmask.decoding.sampling import Draw
from unmask.decoding.trajectory import Trajectories
from unmask.decoding.verifying import LineState
from unmask.errors import UnmaskError
from unmask.layout import causal
from unmask.lm import LM

TEXT = [(i * 7 + 3) % 60 for i in range(400)]
PREFILLS = ("verify", "update", "none")
# Method and options of one of each kind.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "block": ("jacobi", {"block_size": 4, "schedule": "block"}),
    "window": ("jacobi", {"block_size": 5}),
    "engine": ("jacobi", {"block_size": 5, "schedule": "engine"}),
    "ahead": ("jacobi_blocks", {"block_size": 4, "blocks": 3, "spawn_ratio": 0.4, "pool_size": 1}),
    "recycling": ("jacobi_blocks", {"block_size": 5, "blocks": 1}),
    "all": ("jacobi_blocks", {"block_size": 4, "blocks": 2, "spawn_ratio": 0.5}),
}


def random_options(rng: random.Random, kind: str) -> dict[str, Any]:
    """Options of a kind, all ranges covered."""
    size = rng.randint(1, 6)
    ahead = {"blocks": rng.randint(2, 3), "spawn_ratio": rng.choice([0.0, 0.4, 0.85])}
    pool = {
        "pool_size": rng.randint(2, 4),
        "min_candidates": rng.randint(1, 2),
        "pool_scope": rng.choice(["answer", "block"]),
        "recycle_ratio": rng.choice([0.0, 0.0, 0.5]),
    }
    return (
        KINDS[kind][1]
        | {
            "block": {"block_size": size, "prefill_draft": rng.choice(PREFILLS)},
            "window": {"block_size": size, "prefill_draft": rng.choice(PREFILLS)},
            "engine": {"block_size": size},
            "ahead": {"block_size": size} | ahead,
            "recycling": {"block_size": size} | pool,
            "all": {"block_size": size, "prefill_draft": rng.choice(PREFILLS)} | ahead | pool,
        }[kind]
    )


def test_many_models_are_the_single_models():
    many, batch = ManyModels(0, 5, "qwen2", 2), random_prompts(0, 5)
    texts, _ = many.texts("autoregressive", batch, 12)
    assert texts == [m.generate(p, method="autoregressive", max_new_tokens=12).ids for m, p in zip(many.singles, batch)]


@pytest.mark.parametrize("group", range(8))
def test_the_text_is_that_of_autoregressive_decoding_on_200_models(group):
    many = ManyModels(100 * group, 25, "qwen2" if group % 2 else "llama", layers=1 + group // 2 % 2)
    batch, rng = random_prompts(group, 25), random.Random(group)
    for temperature in (0.0, 0.9):
        expected, plain = many.texts("autoregressive", batch, 8, temperature=temperature)
        for kind in KINDS if temperature == 0 else rng.sample(list(KINDS), 2):
            options = random_options(rng, kind)
            texts, rows = many.texts(KINDS[kind][0], batch, 8, temperature=temperature, **options)
            assert texts == expected, (kind, options)
            again = 1 if kind == "engine" else 0  # it runs the last token of the prompt once more
            for ours, theirs in zip(rows, plain):
                assert ours.counters.decode_forwards <= theirs.counters.decode_forwards + again


@pytest.mark.parametrize("kind", KINDS)
def test_filters_act_as_in_autoregressive_decoding(kind):
    method, options = KINDS[kind]
    lm, batch = random_lm(3, "wedlm"), random_prompts(3, 6)
    same: dict[str, Any] = {"max_new_tokens": 12, "temperature": [0.5, 0.9, 1.3] * 2, "seed": list(range(6))}
    same |= {"top_p": [0.6, 0.9, 1.0] * 2, "top_k": [0, 4, 3, 5, 0, 2]}
    expected = lm.generate(batch, method="autoregressive", **same)
    assert [r.ids for r in lm.generate(batch, method=method, **options, **same)] == [r.ids for r in expected]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("jacobi", {"block_size": 1}),
        ("jacobi", {"block_size": 1, "schedule": "block"}),
        ("jacobi_blocks", {"block_size": 1, "blocks": 1, "pool_size": 1}),
    ],
)
def test_blocks_of_one_are_autoregressive_decoding_forward_for_forward(method, options):
    lm = random_lm(4, "qwen2")
    same: dict[str, Any] = {"max_new_tokens": 10, "trace": True}
    for prompt in random_prompts(4, 2):
        traces = [
            lm.generate(prompt, method="autoregressive", **same).trace,
            lm.generate(prompt, method=method, **options, **same).trace,
        ]
        theirs, ours = ([(s.first, s.width, s.positions, s.tokens) for s in trace] for trace in traces)
        assert ours == theirs


def greedy(lm: LM, prompt: list[int], count: int) -> list[int]:
    return lm.generate(prompt, method="autoregressive", max_new_tokens=count, early_exit=False).ids


def no_eos(model: str = "qwen2-tiny") -> LM:
    """A golden checkpoint and no end token, so that texts have the length wanted."""
    lm = tiny(model)
    return LM(replace(lm.checkpoint, family=replace(lm.family, eos_ids=())), None)


@pytest.mark.parametrize(("kind", "each"), [("block", 4), ("window", 5), ("ahead", 4), ("recycling", 5), ("engine", 4)])
def test_right_drafts_finish_a_block_in_one_forward(kind, each):
    lm, prompt = no_eos(), [5, 9, 40, 7]
    method, options = KINDS[kind]
    ids = greedy(lm, prompt, 21)
    same: dict[str, Any] = {"method": method, "max_new_tokens": 21, "drafts": Given((placed([(0, ids)]),))}
    without: dict[str, Any] = same | options | {"prefill_draft": "none"}
    result = lm.generate(prompt, trace=True, **without)
    assert result.ids == ids
    counts = [len(s.positions) for s in result.trace if s.positions]
    if kind == "engine":  # it does not keep what the prompt gives, nor the token behind the window
        assert counts == [*[each] * 5, 1]
    else:
        assert counts == [1, *[each] * (20 // each)]
        # The draft run with the prompt holds as well.
        assert len(lm.generate(prompt, trace=True, **same | options).trace[0].positions) == each


def test_drafts_that_are_all_wrong_give_one_token_a_forward_at_worst():
    lm, prompt = no_eos(), [5, 9, 40, 7]
    ids = greedy(lm, prompt, 12)
    wrong = Given((placed([(0, [(t + 1) % 190 for t in ids])]),))
    for kind, (method, options) in KINDS.items():
        result = lm.generate(prompt, method=method, max_new_tokens=12, trace=True, drafts=wrong, **options)
        assert result.ids == ids
        assert all(s.positions for s in result.trace[1 if kind == "engine" else 0 :])


class Watch:
    """Looks at the state after every forward: what it says of drafts, and what the cache holds."""

    def __init__(self, lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lm, self.caches, self.copied, self.last = lm, [], 0, {}
        watch = self

        class Kept(ContiguousCache):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                watch.caches.append(self)

        monkeypatch.setattr(loop, "ContiguousCache", Kept)

    def __call__(self, numbers: list[int], state: State) -> None:
        assert isinstance(state, LineState)
        index = torch.arange(state.canvas.shape[1])
        assert torch.equal(state.open, (index > state.last[:, None]) & (index < state.limit[:, None]))
        assert (state.canvas[state.open] == max(state.facts.mask_id, 0)).all()  # a draft is no text
        cache = self.caches[-1]
        if isinstance(state, BlocksState):
            self.copied += int((state.source >= 0).sum())
            cache.move(state.source, state.target)
        for i, number in enumerate(numbers):
            length = int(state.last[i])
            assert length > self.last.get(number, -1)
            self.last[number] = length
            layers, _, heads, _, size = cache.keys.shape
            fresh = ContiguousCache(layers, 1, heads, length, size)
            one = causal(length).batch(1)
            attend = fresh.window(one, torch.zeros(1, dtype=torch.long), torch.arange(length)[None])
            with torch.inference_mode():
                self.lm.model.hidden(state.canvas[i : i + 1, :length], one.positions, attend)
            for ours, theirs in ((cache.keys, fresh.keys), (cache.values, fresh.values)):
                torch.testing.assert_close(ours[:, i, :, :length], theirs[:, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "engine"])
def test_drafts_stay_out_of_the_text_and_permanent_keys_are_those_of_a_fresh_prefill(kind, monkeypatch):
    lm, batch = random_lm(8, "qwen2"), random_prompts(8, 3)
    watch = Watch(lm, monkeypatch)
    method = build(KINDS[kind][0], KINDS[kind][1]).bind(lm.family, 20)
    settings = (torch.zeros(3), torch.ones(3), torch.zeros(3).long(), torch.arange(3))
    decode(lm.model, method, batch, facts=lm.facts, draw=Draw(*settings), new_tokens=20, observe=watch)
    if kind in ("recycling", "all"):
        assert watch.copied > 5  # candidates have won, and their keys were moved


def test_one_block_without_a_pool_is_plain_block_decoding_forward_for_forward():
    lm = tiny("qwen2-tiny")
    same: dict[str, Any] = {"block_size": 6, "max_new_tokens": 14, "trace": True}
    for prompt in ([5, 9, 40, 7], [33]):
        plain = lm.generate(prompt, method="jacobi", schedule="block", **same)
        for more in ({"blocks": 1, "pool_size": 1}, {"blocks": 3, "spawn_ratio": 1.5, "pool_size": 1}):
            assert lm.generate(prompt, method="jacobi_blocks", **more, **same).trace == plain.trace


def forwards(options: dict[str, Any], count: int, text: list[int] = TEXT) -> int:
    """Decode forwards for `count` tokens of a model that says the text whatever it is shown."""
    method = "jacobi_blocks" if "blocks" in options else "jacobi"
    (row,) = run(Oracle(text, 1), method, {"block_size": 8, "prefill_draft": "update"} | options, [9], count)
    assert row.canvas[:count] == text[9 : 9 + count]
    return row.counters.decode_forwards


def test_blocks_drafted_ahead_save_forwards_when_their_guesses_are_right():
    # A random draft costs a forward; then every guess is right. The first block was guessed with the prompt.
    assert forwards({"schedule": "block"}, 65) == 1 + 2 * 7
    assert forwards({"blocks": 1, "pool_size": 1}, 65) == 1 + 2 * 7
    # Every second block is drafted while the one before is finished, and takes one forward.
    two = forwards({"blocks": 2, "spawn_ratio": 0.125, "pool_size": 1}, 65)
    assert two == 1 + 2 + 1 + 2 + 1 + 2 + 1 + 2
    assert forwards({"blocks": 2, "spawn_ratio": 1.5, "pool_size": 1}, 65) == 15
    assert forwards({"blocks": 3, "spawn_ratio": 0.0, "pool_size": 1}, 65) == 8  # one forward a block


def test_a_window_that_is_full_of_right_guesses_gives_all_of_them_and_one_more():
    counts = [len(s.positions) for s in run(Oracle(TEXT, 1), "jacobi", {"block_size": 8}, [9], 60)[0].trace]
    assert counts == [*[1, 8] * 6, 1, 5]


@pytest.mark.parametrize("kind", KINDS)
def test_an_end_token_ends_the_row_wherever_it_arrives(kind):
    """First and last in a block, behind a full one, in a later one: one row of a batch for each place."""
    method, options = KINDS[kind]
    said = TEXT[:21] + [ORACLE_EOS] + TEXT[22:]
    said[2] = ORACLE_EOS  # one in the prompt is text, and may be drafted
    lengths = list(range(9, 22))
    rows = run(Oracle(said, 1), method, options, lengths, 20)
    late = run(Oracle(said, 1), method, options | {"early_exit": False}, lengths, 20)
    for length, row, other in zip(lengths, rows, late):
        assert row.canvas[: row.canvas.index(ORACLE_EOS) + 1] == said[length:22]
        assert other.canvas == said[length : length + 20]
        assert row.counters.decode_forwards < other.counters.decode_forwards


def test_an_end_token_in_a_block_drafted_ahead_is_ignored_until_it_is_text():
    class Seen:
        drafted = 0

        def __call__(self, numbers: list[int], state: State) -> None:
            assert isinstance(state, BlocksState)
            if ORACLE_EOS in state.line[0, 1:] and int(state.last[0]) < 24:
                assert int(state.ahead[0]) > 0
                Seen.drafted += 1
                assert not bool(state.settled()[0])
                assert not bool(state.done[0])

    said = TEXT[:24] + [ORACLE_EOS] + TEXT[25:]
    oracle = Oracle(said, 1)
    method = build("jacobi_blocks", {"block_size": 8, "blocks": 3, "spawn_ratio": 0.0})
    draw = Draw(torch.zeros(1), torch.ones(1), torch.zeros(1).long(), torch.zeros(1).long())
    facts = Facts(-1, (ORACLE_EOS,), 1)
    (row,) = decode(oracle, method, [said[:9]], facts=facts, draw=draw, new_tokens=30, observe=Seen())  # type: ignore[arg-type]
    assert row.canvas[:16] == said[9:25]
    assert Seen.drafted > 0


def test_a_candidate_that_holds_longest_wins():
    """The text repeats with a period that a draft from the context cannot know, but the pool does."""
    period = [3, 1, 4, 15, 9, 2, 6]
    text = period * 20

    class Bigram(Oracle):
        """Says what follows a token in the period, from the token alone."""

        def __call__(self, tokens: torch.Tensor, positions: torch.Tensor, attend: Any, rows: torch.Tensor):
            follows = torch.zeros(64, dtype=torch.long)
            for a, b in zip(period, period[1:] + period[:1]):
                follows[a] = b
            logits = torch.zeros(*rows.shape, 64)
            return logits.scatter_(-1, follows[tokens.gather(1, rows)][..., None], 9.0)

    def count(**options: Any) -> int:
        (row,) = run(Bigram(text, 1), "jacobi_blocks", {"block_size": 8, "blocks": 1} | options, [9], 40)
        assert row.canvas[:40] == text[9:49]
        return row.counters.decode_forwards

    alone = count(pool_size=1)
    assert count(pool_size=2) < alone
    assert count(pool_size=8) < count(pool_size=8, min_candidates=7) <= alone


def test_candidates_never_lower_what_a_forward_accepts(monkeypatch):
    lm, commit = no_eos(), JacobiBlocks.commit
    seen: list[tuple[int, int]] = []

    def watched(self, state, forward, scores):
        after = commit(self, state, forward, scores)
        own, said = state.line[:, : scores.token.shape[1]], scores.token[:, : state.line.shape[1]]
        right = (own[:, 1:] == said[:, :-1]) & (forward.targets[:, 1 : said.shape[1]] >= 0)
        seen.append((int(right.long().cumprod(-1).sum()) + 1, int(after.last[0] - state.last[0])))
        return after

    monkeypatch.setattr(JacobiBlocks, "commit", watched)
    for prompt in ([5, 9, 40, 7], [33], [7, 7, 7]):
        lm.generate(prompt, method="jacobi_blocks", block_size=8, blocks=1, max_new_tokens=24)
    assert all(alone <= kept for alone, kept in seen)
    assert any(alone < kept for alone, kept in seen)


@pytest.mark.parametrize("rows", [1, 3])
def test_trajectories_end_in_the_text_and_their_correct_prefixes_grow(rows):
    lm, size, count = no_eos(), 6, 3
    batch = [[5, 9, 40, 7], [33], list(range(20, 40))][:rows]
    options = {"schedule": "block", "block_size": size, "prefill_draft": "none"}
    method = build("jacobi", options).bind(lm.family, size * count + 1)
    settings = (torch.zeros(rows), torch.ones(rows), torch.zeros(rows).long(), torch.arange(rows))
    seen = Trajectories(rows, size)
    out = decode(
        lm.model, method, batch, facts=lm.facts, draw=Draw(*settings), new_tokens=size * count + 1, observe=seen
    )
    for prompt, row, blocks in zip(batch, out, seen.states):
        assert sum(len(states) for states in blocks[:-1]) == row.counters.decode_forwards
        assert [t for states in blocks[:-1] for t in states[-1]] == greedy(lm, prompt, size * count)
        for states in blocks[:-1]:
            right = [next((i for i, (a, b) in enumerate(zip(s, states[-1])) if a != b), size) for s in states]
            assert right[0] >= 1  # the seed is known
            assert all(a < b for a, b in pairwise(right))
            assert len({tuple(s) for s in states}) == len(states)
            assert set(states[0][1:]) <= set(prompt + row.canvas)  # drawn from the text so far


def test_drafts_from_the_context_are_tokens_of_the_text_so_far_and_depend_on_the_seed():
    lm = no_eos()
    prompt = [5, 9, 40, 7]
    found = []
    for seed in (1, 1, 2):
        draw = Draw(torch.zeros(1), torch.ones(1), torch.zeros(1).long(), torch.tensor([seed]))
        seen = Trajectories(1, 9)
        method = build("jacobi", {"block_size": 9, "schedule": "block"}).bind(lm.family, 19)
        decode(lm.model, method, [prompt], facts=lm.facts, draw=draw, new_tokens=19, observe=seen)
        found.append(seen.states[0])
    assert found[0] == found[1] != found[2]
    text = greedy(lm, prompt, 19)
    assert set(found[0][1][0][1:]) <= set(prompt + text[:10])


def test_models_that_predict_in_place_are_refused():
    for method in ("jacobi", "jacobi_blocks"):
        with pytest.raises(UnmaskError, match=f"{method}: this llada model predicts masked tokens in place"):
            tiny("llada-tiny").generate([1, 2], method=method)
        with pytest.raises(UnmaskError, match="no selection rule fits: drafts are verified from left to right"):
            build(method, {"select": "threshold"})
        with pytest.raises(UnmaskError, match="unknown draft source 'contxt'; did you mean 'context'"):
            build(method, {"drafts": "contxt"})


def test_official_names_mean_the_same_options():
    ours = {"block_size": 16, "blocks": 3, "spawn_ratio": 0.5, "pool_size": 8, "recycle_ratio": 0.25}
    theirs = {"n_token_seq_len": 16, "K": 3, "r": 0.5, "n_gram_pool_size": 8, "lookahead_start_ratio": 0.25}
    assert build("jacobi_blocks", ours) == build("jacobi_blocks", theirs)
    assert build("jacobi", {"jacobi_block_len": 32}) == build("jacobi", {"block_size": 32})
