"""Projections: float8 weights, the ways that may be tried, and that a choice is kept."""

import pytest
import torch
import torch.nn.functional as F

from unmask.engine.linear import FLOAT8, LIBRARY, FastLinear, GatedLinear, Way, dequantise, quantise
from unmask.engine.tuning import TILES, Card, chosen, microseconds, tune, ways
from unmask.kernels import runs_kernels
from unmask.kernels.shares import shares

H100 = Card(132, 232448, (9, 0))
CONSUMER = Card(128, 101376, (8, 9))


def weight(outputs, inputs, seed=0, dtype=torch.float32):
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_rounding_to_float8_is_within_a_sixteenth_and_keeps_the_largest():
    w = weight(50, 64) * torch.logspace(-6, 3, 50)[:, None]
    narrow, scale = quantise(w)
    assert narrow.dtype == FLOAT8 and scale.dtype == torch.float32
    back = dequantise(narrow, scale, torch.float32)
    largest = w.abs().amax(1, keepdim=True)
    # Half a step of three bits of mantissa; below 2^-6 of the format steps are of one size.
    assert bool(((back - w).abs() <= w.abs() / 16 + largest / 448 * 2**-10 * 1.001).all())
    place = w.abs().argmax(1, keepdim=True)
    torch.testing.assert_close(back.gather(1, place), w.gather(1, place))


def test_outputs_of_zeros_stay_zero_and_parts_agree_with_the_whole():
    w = weight(3 * 8192 // 2, 2)
    w[7] = 0
    narrow, scale = quantise(w)
    assert scale[7] == 1 and not dequantise(narrow, scale, torch.float32)[7].any()
    for rows in (slice(0, 10), slice(8190, 8200)):
        part, part_scale = quantise(w[rows])
        assert torch.equal(part.float(), narrow[rows].float()) and torch.equal(part_scale, scale[rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 40])
def test_an_unmeasured_projection_is_the_librarys(tokens, dtype):
    x, w, bias = weight(tokens, 24, 1, dtype), weight(20, 24, 2, dtype), weight(1, 20, 3, dtype)[0]
    assert torch.equal(FastLinear(w, bias)(x), F.linear(x, w, bias))
    narrow, scale = quantise(w)
    assert torch.equal(FastLinear(narrow, bias, scale)(x), F.linear(x, dequantise(narrow, scale, dtype), bias))


@pytest.mark.skipif(runs_kernels(False), reason="the kernel rounds bfloat16 otherwise in Triton's interpreter")
def test_a_gated_projection_rounds_as_the_eager_mlp():
    x, w = weight(5, 24, 1, torch.bfloat16), weight(40, 24, 2, torch.bfloat16)
    gate, up = F.linear(x, w).chunk(2, -1)
    assert torch.equal(GatedLinear(w)(x), F.silu(gate) * up)


def kinds(linear, tokens, dtype=torch.bfloat16, card=H100):
    return [way.kind for way in ways(linear, tokens, dtype, card)]


def eight(outputs, inputs, kind=FastLinear):
    narrow, scale = quantise(weight(outputs, inputs))
    return kind(narrow, None, scale)


def test_float32_and_many_tokens_are_left_to_the_library():
    linear = FastLinear(weight(3584, 64, dtype=torch.bfloat16))
    assert ways(linear, 4, torch.float32, H100) == ways(linear, 257, torch.bfloat16, H100) == [LIBRARY]
    assert ways(FastLinear(weight(64, 36)), 4, torch.bfloat16, H100) == [LIBRARY]  # rows of odd places in memory


def test_one_token_is_tried_without_matrix_units_and_the_library_is_always_tried():
    linear = FastLinear(weight(4608, 128, dtype=torch.bfloat16))
    assert set(kinds(linear, 1)) == {"library", "vector", "thin"}
    assert set(kinds(linear, 2)) == {"library", "even", "thin"}
    older = Card(132, 232448, (9, 0), gluon=False)  # its Triton
    assert set(kinds(linear, 2, card=CONSUMER)) == set(kinds(linear, 2, card=older)) == {"library", "thin"}
    assert kinds(linear, 2)[0] == "library" and len(set(ways(linear, 1, torch.bfloat16, H100))) == len(kinds(linear, 1))


def test_tokens_are_rounded_to_float8_where_weights_are_and_the_card_can():
    groups = eight(64, 256)
    assert "narrow" in kinds(groups, 2) and "narrow" in kinds(groups, 256)
    assert "narrow" not in kinds(groups, 1) + kinds(groups, 257) + kinds(groups, 8, card=CONSUMER)
    assert "narrow" not in kinds(eight(64, 96), 8) + kinds(FastLinear(weight(64, 256, dtype=torch.bfloat16)), 8)
    linear = eight(64, 64)
    assert "scaled" in kinds(linear, 65) and "scaled" in kinds(linear, 4096)
    assert "scaled" not in kinds(linear, 64) + kinds(linear, 65, card=CONSUMER) + kinds(linear, 65, torch.float16)
    assert "scaled" not in kinds(eight(40, 64), 65) + kinds(FastLinear(weight(64, 64)), 65)


@pytest.mark.parametrize("tokens", [1, 17, 64, 128])
@pytest.mark.parametrize("card", [H100, CONSUMER])
@pytest.mark.parametrize("narrow", [True, False])
def test_tiles_fit_into_the_shared_memory_of_the_card(tokens, card, narrow):
    linear = eight(3584, 512) if narrow else FastLinear(weight(3584, 512, dtype=torch.bfloat16))
    tile = next(size for size in TILES if tokens <= size)
    thin = [way for way in ways(linear, tokens, torch.bfloat16, card) if way.kind == "thin"]
    assert thin
    for way in thin:
        size = way.block_n * linear.weight.element_size() + tile * 2
        assert way.stages * way.block_k * size <= card.shared


def test_a_sum_is_cut_until_each_processor_has_a_program_and_a_gated_one_never():
    linear = FastLinear(weight(512, 4096, dtype=torch.bfloat16))
    for way in ways(linear, 8, torch.bfloat16, H100):
        if way.kind == "thin":
            programs, steps = 512 // way.block_n * way.splits, 4096 // way.block_k
            once = programs <= 132 < programs + 512 // way.block_n  # as many as find a processor at once
            assert 132 <= programs <= 6 * 132 or once or (programs < 132 and 2 * way.splits > steps // 2)
            assert 2 * way.splits <= steps
    gated = ways(GatedLinear(linear.weight), 1, torch.bfloat16, H100)
    assert {way.splits for way in gated} == {1} and all(way.gated for way in gated if way.kind != "library")


@pytest.mark.parametrize("tokens", [2, 32, 64, 65, 128, 256])
@pytest.mark.parametrize("kind", [FastLinear, GatedLinear])
@pytest.mark.parametrize("narrow", [True, False])
def test_even_shares_fit_and_leave_no_processor_a_second_turn(tokens, kind, narrow):
    outputs, inputs = 4608, 3584
    linear = eight(outputs, inputs, kind) if narrow else kind(weight(outputs, inputs, dtype=torch.bfloat16))
    item, step, block_t = (1, 128, 64 if tokens <= 64 else 128) if narrow else (2, 64, 64 if tokens <= 64 else 128)
    found = [way for way in ways(linear, tokens, torch.bfloat16, H100) if way.kind in ("even", "narrow")]
    assert found
    for way in found:
        sums = 2 if way.gated else 1
        wide = (way.block_n + way.rest) * sums
        assert way.stages * step * (wide + block_t) * item < H100.shared and 1 <= way.early <= way.stages
        assert wide * block_t / (32 * way.warps) <= (80 if narrow else 160)
        programs = -(-outputs // wide) * way.splits * -(-tokens // block_t)
        assert programs <= 132 or (narrow and way.splits == 1)


def test_a_sum_in_parts_is_whole_where_it_is_asked_for_whole():
    class Parts(FastLinear):
        def run(self, way, x_TK):
            if not self.adds:
                return super().run(way, x_TK)
            return torch.stack([F.linear(x_TK[:, :8], self.weight[:, :8]), F.linear(x_TK[:, 8:], self.weight[:, 8:])])

    w, bias, x = weight(6, 24), weight(1, 6, 1)[0], weight(5, 24, 2)
    for given in (None, bias):
        linear = Parts(w, given, adds=True)
        assert linear(x).shape == (2, 5, 6)
        torch.testing.assert_close(linear.whole(x), F.linear(x, w, given))


@pytest.mark.gpu
@torch.inference_mode()
def test_the_fastest_way_is_kept_for_the_whole_group():
    group = [FastLinear(weight(512, 1024, seed, torch.bfloat16).cuda()) for seed in range(3)]
    timing = tune(group, 4, torch.bfloat16)
    assert timing.times[timing.best] == min(timing.times.values()) and all(us > 0 for us in timing.times.values())
    assert [linear.ways for linear in group] == [{4: timing.best}] * 3
    again = FastLinear(weight(512, 1024, 5, torch.bfloat16).cuda())
    assert tune([again], 4, torch.bfloat16) is timing and again.ways == {4: timing.best}
    x = weight(4, 1024, 9, torch.bfloat16).cuda()
    first = group[1](x)
    torch.testing.assert_close(first, F.linear(x, group[1].weight), rtol=2e-2, atol=1e-1)
    assert all(torch.equal(group[1](x), first) for _ in range(3))


def test_of_ways_that_are_as_fast_the_one_with_most_weights_ahead_is_chosen():
    def even(early: int, splits: int, rest: int = 16) -> Way:
        return Way("even", 128, splits=splits, early=early, rest=rest)

    first, more, slow = even(3, 9), even(6, 5), even(8, 8)
    assert chosen({LIBRARY: 9.0, first: 8.0, more: 8.2, slow: 8.6}) == more
    assert chosen({first: 8.0, even(9, 3, 0): 8.1}) == first
    two, four = Way("parts", splits=2), Way("parts", splits=4)
    assert chosen({more: 8.3, two: 8.2, four: 8.0}) == two and chosen({two: 8.4, four: 8.0}) == four
    thin = Way("thin", 64, 128)
    assert chosen({LIBRARY: 8.1, thin: 8.2, Way("thin", 32, 128): 8.0}) == Way("thin", 32, 128)
    assert chosen({LIBRARY: 7.9, more: 8.0}) == LIBRARY


@pytest.mark.gpu
def test_time_grows_with_the_work():
    x = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    short, long = (microseconds([lambda n=n: [x @ x for _ in range(n)]]) for n in (1, 8))
    assert 4 < long / short < 16


def test_ways_have_short_names():
    assert str(LIBRARY) == "library"
    assert str(Way("vector", 8, 512, gated=True)) == "vector 8x512 w4 gated"
    assert str(Way("thin", 64, 128, 2, 4, 5)) == "thin 64x128 w4 s5 /2"
    assert str(Way("parts", splits=4)) == "parts /4"
    assert str(Way("even", 256, warps=8, rest=32, gated=True, early=2)) == "even 256+32 w8 s4e2 /1 gated"


def test_shares_are_the_smallest_tiles_that_hold_all_outputs():
    """Qwen2.5-7B on 132 processors: the joint gate and up, one of both, its queries with keys and values in 4 parts."""
    assert shares(37888, 132) == (256, 32) and -(-37888 // 288) == 132
    assert shares(18944, 132) == (128, 16)
    assert shares(4608, 33) == (128, 16)
    assert shares(64, 1) == (64, 0)
    assert shares(152064, 132) is None
