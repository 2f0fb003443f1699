"""Where results agree: tokens and documents by rank, heads and whole rankings."""

import numpy as np
import pytest

from diffing.core.errors import UserError
from diffing.core.files import sha256, write_json
from diffing.core.result import Result
from diffing.core.tables import DocumentScoreRow, TokenScoreRow, table_of, write_table

pytest.importorskip("duckdb")

from diffing.dashboard.comparing import document_agreement, token_agreement
from diffing.dashboard.rankings import Placing


def result(folder, tokens=None, documents=None, base="org/base", method="kl", sources=None, fingerprint="f"):
    """A result with rankings: scores by token, and by dataset and document."""
    tables = {}
    if tokens is not None:
        rows = [TokenScoreRow(i, f"t{i}", s, None, None) for i, s in tokens.items()]
        tables["token_scores"] = table_of(TokenScoreRow, rows)
    if documents is not None:
        tables["document_scores"] = table_of(DocumentScoreRow, [DocumentScoreRow(*d, s) for d, s in documents.items()])
    for name, table in tables.items():
        write_table(folder / "tables" / f"{name}.parquet", table)
    sources = sources or {"chat": "org/chat", "pretraining": "org/web"}
    write_json(
        folder / "manifest.json",
        {
            "schema": 1, "method": method, "config": {}, "seed": 0, "created": "2025-01-01T00:00:00+00:00",
            "fingerprint": "f", "wall_seconds": 1.5, "peak_memory_bytes": 1000, "facts": {}, "notes": [],
            "pair": {"model": "a", "organism": "b", "variant": "default", "base_id": base, "finetuned_id": "d"},
            "data": {
                "n_tokens": 1, "fingerprint": fingerprint,
                "spec": {"datasets": [{"name": n, "id": i} for n, i in sources.items()]},
            },
            "files": {f"tables/{n}.parquet": sha256(folder / "tables" / f"{n}.parquet") for n in tables},
        },
    )  # fmt: skip
    return Result(folder)


def test_tokens_by_mean_rank(tmp_path):
    one = result(tmp_path / "one", {0: 9.0, 1: 8.0, 2: 7.0, 3: 6.0, 4: 5.0})
    two = result(tmp_path / "two", {0: 2.0, 1: 1.0, 2: 3.0, 3: 0.5, 4: 0.1})
    found = token_agreement([one, two], 2)
    assert [(r.token_id, r.token, r.mean_rank) for r in found.rows] == [(0, "t0", 1.5), (2, "t2", 2.0), (1, "t1", 2.5)]
    assert found.rows[1].placings == (Placing(3, 7.0), Placing(1, 3.0))
    assert (found.k, found.n_ranked) == (2, (5, 5))
    assert found.pairwise.overlap == ((1.0, 0.5), (0.5, 1.0))
    assert found.pairwise.chance == ((0.4, 0.4), (0.4, 0.4))
    assert found.pairwise.correlation[0][1] == pytest.approx(0.7)
    assert found.pairwise.correlation[1][1] == pytest.approx(1)


def test_a_token_that_one_result_does_not_rank(tmp_path):
    one = result(tmp_path / "one", {0: 3.0, 1: 2.0, 2: 1.0, 3: 0.0})
    two = result(tmp_path / "two", {7: 5.0, 1: 4.0}, method="normdiff")
    found = token_agreement([one, two], 1)
    assert [(r.token_id, r.mean_rank) for r in found.rows] == [(0, 2.0), (7, 3.0)]
    assert found.rows[0].placings[1] == Placing(None, None)
    assert found.pairwise.chance[0][1] == pytest.approx(1 / 8)
    assert found.pairwise.correlation[0][1] is None


def test_items_of_one_score_share_a_rank_and_do_not_agree(tmp_path):
    flat = dict.fromkeys(range(1000), 0.0)
    found = token_agreement([result(tmp_path / "one", flat), result(tmp_path / "two", flat)], 100)
    assert {p.rank for r in found.rows for p in r.placings} == {1}
    assert found.pairwise.overlap[0][1] == pytest.approx(0.1, abs=0.1)
    assert found.pairwise.correlation == ((None, None), (None, None))


def test_scores_that_are_unknown_are_not_ranked(tmp_path):
    one = result(tmp_path / "one", {0: float("nan"), 1: 2.0, 2: 1.0, 3: 0.0, 4: None})
    assert [r.token_id for r in token_agreement([one], 3).rows] == [1, 2, 3]
    empty = result(tmp_path / "empty", {})
    found = token_agreement([one, empty], 3)
    assert found.n_ranked == (3, 0)
    assert found.pairwise.overlap[0][1] is None


def test_three_results_of_a_whole_vocabulary(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=5000)
    noisy = [dict(enumerate((truth + s * rng.normal(size=5000)).tolist())) for s in (0.1, 0.1, 100.0)]
    results = [result(tmp_path / str(i), scores) for i, scores in enumerate(noisy)]
    found = token_agreement(results, 50)
    overlap, correlation = found.pairwise.overlap, found.pairwise.correlation
    assert overlap[0][1] > 0.5 > 0.1 > overlap[0][2]
    assert correlation[0][1] > 0.95
    assert abs(correlation[0][2]) < 0.1
    assert overlap[0][1] == overlap[1][0]
    assert 50 < len(found.rows) < 150
    means = [r.mean_rank for r in found.rows]
    assert means == sorted(means)


def test_results_of_different_bases(tmp_path):
    one, two = result(tmp_path / "one", {0: 1.0}), result(tmp_path / "two", {0: 1.0}, base="org/other")
    with pytest.raises(UserError, match=r"org/base and org/other.*\.$"):
        token_agreement([one, two], 1)


def test_results_that_rank_nothing(tmp_path):
    tokens = result(tmp_path / "tokens", {0: 1.0})
    with pytest.raises(UserError, match="ranks no documents"):
        document_agreement([tokens], 1)
    with pytest.raises(UserError, match="ranks no tokens"):
        token_agreement([tokens, result(tmp_path / "nothing")], 1)
    with pytest.raises(UserError, match="choose at least one"):
        token_agreement([], 1)


def test_a_damaged_ranking(tmp_path):
    one = result(tmp_path / "one", {0: 1.0})
    (tmp_path / "one" / "tables" / "token_scores.parquet").write_bytes(b"x")
    with pytest.raises(UserError, match="corrupt"):
        token_agreement([one], 1)


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path):
    odd = tmp_path / "a [b] * 'c' ?"
    assert token_agreement([result(odd, {0: 1.0, 1: 2.0})], 1).rows[0].token_id == 1


def test_documents_of_the_same_texts_only(tmp_path):
    scores = {("chat", 0): 1.0, ("chat", 1): 2.0, ("chat", 2): 3.0, ("training", 0): 9.0}
    one = result(tmp_path / "one", None, scores, sources={"chat": "org/chat", "training": "org/caps"})
    other = {("chat", 0): 5.0, ("chat", 1): 4.0, ("chat", 2): 6.0, ("training", 0): 9.0, ("extra", 0): 9.0}
    sources = {"chat": "org/chat", "training": "org/emoji", "extra": "org/extra"}
    two = result(tmp_path / "two", None, other, base="org/other", sources=sources)
    found = document_agreement([one, two], 2)
    assert (found.datasets, found.left_out) == (("chat",), ("training", "extra"))
    assert [(r.dataset, r.document, r.mean_rank) for r in found.rows] == [
        ("chat", 2, 1.0), ("chat", 0, 2.5), ("chat", 1, 2.5),
    ]  # fmt: skip
    assert found.n_ranked == (3, 3)
    assert found.pairwise.overlap[0][1] == 0.5
    assert found.pairwise.correlation[0][1] == pytest.approx(0.5)


def test_texts_from_memory_are_known_by_their_tokens(tmp_path):
    memory, scores = {"custom": "memory"}, {("custom", 0): 1.0}
    one, two, three = (
        result(tmp_path / f"{i}", None, scores, sources=memory, fingerprint=f) for i, f in enumerate(("f", "f", "g"))
    )
    assert document_agreement([one, two], 1).datasets == ("custom",)
    with pytest.raises(UserError, match="no dataset in common"):
        document_agreement([one, three], 1)
