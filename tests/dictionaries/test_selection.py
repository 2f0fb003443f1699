"""Which scores are kept: what a full sort keeps, also where the sampled bound misleads."""

import pytest
import torch

from diffing.dictionaries import selection
from diffing.dictionaries.selection import above, batch_topk, row_topk

N, F = 640, 1000
LARGE = N * F
STRIDE = 61


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sampled_places():
    """Flat places that a stride over (N, F) scores looks at."""
    marked = torch.zeros(LARGE, dtype=torch.bool)
    marked[::STRIDE] = True
    return marked


def only_seen():
    """Large scores at the sampled places alone: the bound comes out far too high."""
    flat = normal(LARGE).abs() * 0.01 + 0.001
    flat[sampled_places()] += 100
    return flat.view(N, F)


def never_seen():
    """Large scores at places that no sample holds: the bound comes out too low."""
    flat = normal(LARGE).abs() * 0.01
    hidden = (~sampled_places()).nonzero().squeeze(1)[::7]
    flat[hidden] = 100 + normal(len(hidden)).abs()
    return flat.view(N, F)


def one_row():
    """All large scores in one token."""
    scores = normal(N, F).abs() * 1e-3
    scores[17] = 50 + normal(F).abs()
    return scores


CASES = {
    "random": lambda: normal(N, F),
    "mostly negative": lambda: normal(N, F) - 3.2,
    "few positive": lambda: normal(N, F) - 4.7,
    "tied": lambda: (normal(N, F) * 2).round(),
    "all equal": lambda: torch.ones(N, F),
    "heavy tail": lambda: normal(N, F) ** 7,
    "only seen": only_seen,
    "never seen": never_seen,
    "one row": one_row,
    "tiny": lambda: normal(N, F).abs() * 1e-38,
    "infinite": lambda: torch.where(normal(N, F) > 3.5, float("inf"), normal(N, F, seed=1)),
}


def sorted_values(scores, n_kept):
    """The largest positive scores by a full sort."""
    ordered = scores.flatten().sort(descending=True).values[:n_kept]
    return ordered[ordered > 0]


def check(scores, n_kept, flat, score_P):
    values = scores.flatten()
    assert (flat.diff() > 0).all()
    assert torch.equal(score_P, values[flat])
    assert torch.equal(score_P.sort(descending=True).values, sorted_values(scores, n_kept))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 32])
@pytest.mark.parametrize("case", CASES)
def test_what_a_full_sort_keeps_is_kept(case, k, dtype):
    scores = CASES[case]().to(dtype)
    check(scores, k * N, *batch_topk(scores, k * N))


@pytest.mark.parametrize("case", CASES)
def test_as_many_as_there_are(case):
    scores = CASES[case]()
    check(scores, N * F, *batch_topk(scores, N * F))


@pytest.mark.parametrize("n_kept", [1, 7, 400, 900, 2000])
def test_small_batches_are_exact(n_kept):
    scores = (normal(30, 30) * 3).round()
    check(scores, n_kept, *batch_topk(scores, n_kept))


@pytest.mark.parametrize(("case", "is_misled"), [("only seen", True), ("all equal", True), ("random", False)])
def test_a_bound_that_is_too_high_falls_back_to_all_positive_scores(monkeypatch, case, is_misled):
    bounds = []
    monkeypatch.setattr(selection, "_exceeds", lambda flat, bound: bounds.append(bound) or flat > bound)
    scores = CASES[case]()
    check(scores, 32 * N, *batch_topk(scores, 32 * N))
    assert bounds[0] > 0
    assert (bounds[1:] == [0.0]) is is_misled


def test_few_candidates_remain_of_random_scores(monkeypatch):
    seen = []
    exact = lambda flat: seen.append(len(flat)) or scores.flatten()[flat]  # noqa: E731
    scores = normal(N, F)
    check(scores, 32 * N, *batch_topk(scores, 32 * N, exact))
    assert 32 * N <= seen[0] < 1.5 * 32 * N


@pytest.mark.parametrize("n_latents", [61, 61 * 67, 64, 1])
def test_a_stride_that_divides_the_width_sees_every_latent(n_latents):
    """Were the stride a divisor of F, the same few latents alone would be seen."""
    n = -(-600_000 // n_latents)
    scores = normal(n, n_latents).abs() * 0.01
    scores[:, 0] += 5
    check(scores, n, *batch_topk(scores, n))


def test_rounded_scores_are_ranked_by_their_exact_values():
    exact = normal(N, F)
    rounded = exact.to(torch.bfloat16)
    flat, score_P = batch_topk(rounded, 8 * N, lambda at: exact.flatten()[at])
    assert torch.equal(score_P.sort(descending=True).values, sorted_values(exact, 8 * N))
    flat, score_P = row_topk(rounded, 8, lambda at: exact.flatten()[at])
    assert torch.equal(score_P, exact.flatten()[flat])
    wanted = exact.sort(dim=1, descending=True).values[:, :8]
    missed = set(wanted.flatten().tolist()) - set(score_P.tolist())
    assert len(missed) <= 0.001 * wanted.numel()


@pytest.mark.parametrize("select", [batch_topk, row_topk])
def test_values_that_turn_out_not_positive_are_left_out(select):
    scores = normal(20, 30).abs()
    flat, score_P = select(scores, 30, lambda at: torch.where(at % 2 == 0, scores.flatten()[at], -1.0))
    assert len(flat)
    assert (flat % 2 == 0).all()
    assert (score_P > 0).all()


@pytest.mark.parametrize("case", ["random", "mostly negative", "tied", "all equal", "one row", "few positive"])
@pytest.mark.parametrize("k", [1, 8, F])
def test_row_topk_keeps_what_a_sort_of_each_row_keeps(case, k):
    scores = CASES[case]()[:50]
    flat, score_P = row_topk(scores, k)
    assert (flat.diff() > 0).all()
    assert torch.equal(score_P, scores.flatten()[flat])
    for row in range(50):
        mine = score_P[flat // F == row].sort(descending=True).values
        wanted = scores[row].sort(descending=True).values[:k]
        assert torch.equal(mine, wanted[wanted > 0])


@pytest.mark.parametrize("select", [batch_topk, row_topk])
@pytest.mark.parametrize("value", [0.0, -0.0, -1.0])
def test_without_positive_scores_nothing_is_kept(select, value):
    flat, score_P = select(torch.full((700, 1000), value), 5)
    assert len(flat) == len(score_P) == 0


@pytest.mark.parametrize("case", ["random", "tied", "few positive"])
def test_selection_makes_no_nan_and_leaves_scores_alone(case):
    scores = CASES[case]()
    before = scores.clone()
    for flat, score_P in (batch_topk(scores, 9 * N), row_topk(scores, 9), above(scores, 0.5)):
        assert torch.isfinite(score_P).all()
        assert flat.dtype == torch.int64
    assert torch.equal(scores, before)


def test_above_a_threshold_of_each_latent():
    scores = torch.tensor([[0.5, -1.0, 2.0], [0.0, 3.0, 0.9]])
    flat, score_P = above(scores, torch.tensor([0.5, -5.0, 0.8]))
    assert flat.tolist() == [2, 4, 5]
    assert score_P.tolist() == [2.0, 3.0, pytest.approx(0.9)]
    assert above(scores, 1.0)[0].tolist() == [2, 4]
