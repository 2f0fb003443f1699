"""The leaderboard as a file and what is summed over its rows."""

import dataclasses
import json

import pytest

from diffing.core.errors import UserError
from diffing.core.sensitivity import Sensitivity
from diffing.evaluation.leaderboard import (
    KINDS,
    SCHEMA,
    Cost,
    Leaderboard,
    Row,
    over_seeds,
    read_leaderboard,
    write_leaderboard,
)
from diffing.evaluation.scores import Score
from diffing.evaluation.scoring import Count, Counts, Detection
from diffing.evaluation.suite import LADDER
from diffing.evaluation.summing import Rates, faintest, false_claims, mean_score

NONE = Score(None)
FOUND = Score(0.8, 0.7, 0.9, 0.3, 0.4)
MISSED = Score(0.35, 0.2, 0.5, 0.3, 0.4)


LOW = Score(0.01, 0.0, 0.02, 0.3, 0.4)


def shown(tokens=NONE, **others):
    return Detection(**{**{f.name: NONE for f in dataclasses.fields(Detection)}, "tokens": tokens, **others})


def row(method="kl", pair="caps", role="organism", seed=0, **more):
    return Row(method, pair, role, seed, **more)


def board(*rows):
    return Leaderboard("full", "smollm2_135M", rows, ("One note.", "Zwei: „über“"), 3, 5, 3000, "diffing mode=x")


FULL = row(
    detection=shown(FOUND, documents=Score(0.9, 0.8, 1.0, 0.5), right=Score(1.0, 1.0, 1.0, 0.01)),
    on_null=shown(MISSED, texts=Score(0.0, 0.0, 0.0)),
    counts=Counts(Count(12, 400), None, Count(0, 7), Count(2, 3)),
    cost=Cost(3.25, 2**33),
    folder="caps/kl/default/0",
    version="0.1.0",
)
FAILED = row("crosscoder", seed=1, reason="The crosscoder needs more tokens.")


def test_a_leaderboard_is_read_as_it_was_written(tmp_path):
    written = board(FULL, FAILED, row(role="null", counts=Counts(None, None, None, None)))
    write_leaderboard(tmp_path / "board.json", written)
    assert read_leaderboard(tmp_path / "board.json") == written


def test_a_leaderboard_without_rows_limits_or_command(tmp_path):
    bare = Leaderboard("quick", "tiny", (), (), 0, 0, None, None)
    write_leaderboard(tmp_path / "board.json", bare)
    assert read_leaderboard(tmp_path / "board.json") == bare


def test_numbers_that_json_lacks_are_unknown(tmp_path):
    odd = row(detection=shown(Score(0.5, float("nan"), float("inf"))), cost=Cost(float("nan"), 1))
    write_leaderboard(tmp_path / "board.json", board(odd))
    (read,) = read_leaderboard(tmp_path / "board.json").rows
    assert read == row(detection=shown(Score(0.5, None, None)), cost=Cost(None, 1))


def changed(**changes):
    def change(raw):
        return {**raw, **changes}

    return change


def without(name):
    def change(raw):
        return {k: v for k, v in raw.items() if k != name}

    return change


def first_row(**changes):
    def change(raw):
        return {**raw, "rows": [{**raw["rows"][0], **changes}, *raw["rows"][1:]]}

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(without(name) for name in ("schema", "rows", "notes", "size", "max_tokens")),
        changed(schema="1"),
        changed(schema=None),
        changed(rows=None),
        changed(rows=[1]),
        changed(rows=["kl"]),
        changed(rows=[{}]),
        changed(notes=None),
        changed(unheard_of=1),
        first_row(unheard_of=1),
        first_row(detection=[]),
        first_row(detection="found"),
        first_row(detection={"tokens": None}),
        first_row(detection={"tokens": {"value": 1.0}}),
        first_row(on_null={"tokens": {"worth": 1.0}}),
        first_row(counts={"tokens": {"n_claimed": 1}}),
        first_row(cost=3.0),
        lambda raw: [raw],
        lambda _: None,
        lambda _: "leaderboard",
    ],
)
def test_a_corrupt_leaderboard_is_named(tmp_path, change):
    path = tmp_path / "board.json"
    write_leaderboard(path, board(FULL))
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    with pytest.raises(UserError, match=r"board\.json is corrupt .*; run pipeline\.mode=benchmark again\."):
        read_leaderboard(path)


@pytest.mark.parametrize("content", [b"", b"{", b'{"schema": 1', b"\xff\xfe"])
def test_a_leaderboard_that_is_not_json_is_named(tmp_path, content):
    (tmp_path / "board.json").write_bytes(content)
    with pytest.raises(UserError, match=r"board\.json is corrupt"):
        read_leaderboard(tmp_path / "board.json")


def test_a_newer_leaderboard_asks_for_an_update(tmp_path):
    path = tmp_path / "board.json"
    write_leaderboard(path, board(FULL))
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "schema": SCHEMA + 1, "more": 1}))
    with pytest.raises(UserError, match=rf"board\.json has schema {SCHEMA + 1}.*; update diffing\."):
        read_leaderboard(path)


def test_a_missing_leaderboard_is_named(tmp_path):
    with pytest.raises(UserError, match=r"board\.json is missing; run pipeline\.mode=benchmark again\."):
        read_leaderboard(tmp_path / "board.json")


@pytest.mark.parametrize(
    ("score", "null", "exceeds"),
    [
        (Score(0.8, 0.7, 0.9, 0.3, 0.4), None, False),
        (Score(0.8, 0.4, 0.9, 0.3, 0.4), None, False),
        (Score(0.8, 0.7, 0.9, 0.3, 0.4), Score(0.5, 0.4, 0.6), True),
        (Score(0.8, 0.7, 0.9, 0.3, 0.4), Score(0.6, 0.5, 0.75), False),
        (Score(0.8, 0.7, 0.9, 0.3, 0.4), NONE, False),
        (Score(0.5, 0.3, 0.9, 0.3, 0.4), Score(0.0, 0.0, 0.1), False),
        (Score(0.8, 0.7, 0.9), Score(0.1, 0.0, 0.2), True),
        (Score(0.8, 0.7, 0.9), Score(0.1, 0.0, 0.7), False),
        (Score(0.8, 0.7, 0.9), NONE, False),
        (Score(0.8, 0.7, 0.9), None, False),
        (Score(0.8), Score(0.1, 0.0, 0.2), False),
        (NONE, Score(0.1, 0.0, 0.2), False),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_score_exceeds_chance_and_the_null_with_all_of_its_interval(score, null, exceeds, kind):
    one = row(detection=shown(**{kind: score}), on_null=None if null is None else shown(**{kind: null}))
    assert [k for k in KINDS if one.exceeds(k)] == ([kind] if exceeds else [])
    assert one.is_found is exceeds


def test_a_kind_is_held_against_the_same_kind_of_the_null():
    null = shown(LOW, documents=Score(1.0, 1.0, 1.0))
    assert row(detection=shown(tokens=FOUND), on_null=null).is_found
    assert not row(detection=shown(documents=FOUND), on_null=null).is_found


def test_right_claims_and_failed_runs_find_nothing():
    assert not row(detection=shown(right=FOUND)).is_found
    assert not FAILED.is_found
    assert not FAILED.exceeds("tokens")


def test_rows_of_a_method_and_pair_are_together_over_seeds():
    rows = [row("kl", "caps"), row("pca", "caps"), row("kl", "roman"), row("kl", "caps", seed=1)]
    assert over_seeds(rows) == [[rows[0], rows[3]], [rows[1]], [rows[2]]]


def test_a_mean_over_seeds_spans_all_intervals():
    scores = [Score(0.6, 0.5, 0.8, 0.1, 0.2), NONE, Score(0.9, 0.7, 1.0, 0.3, 0.6), Score(0.3, 0.2, 0.4, 0.2, 0.4)]
    rows = [row(seed=i, detection=shown(documents=s)) for i, s in enumerate(scores)]
    mean = mean_score([*rows, FAILED], "documents")
    assert dataclasses.astuple(mean) == pytest.approx((0.6, 0.2, 1.0, 0.2, 0.4))
    assert mean_score(rows, "tokens") == NONE
    assert mean_score([FAILED], "documents") == NONE
    assert mean_score(rows, "documents", of_null=True) == NONE


def test_a_mean_of_the_nulls_scores():
    values = (0.1, 0.3)
    rows = [row(detection=shown(FOUND), on_null=shown(Score(v, v, v, chance=v))) for v in values]
    assert dataclasses.astuple(mean_score(rows, "tokens", of_null=True)) == (
        pytest.approx(0.2), 0.1, 0.3, pytest.approx(0.2), None,
    )  # fmt: skip


def test_false_claims_are_added_over_seeds_of_the_nulls_that_were_judged():
    one = Counts(Count(1, 100), None, Count(0, 5), Count(1, 2))
    other = Counts(Count(4, 90), None, None, Count(0, 3))
    rows = [
        row("pca", "seeds", "null", 0, counts=other),
        row("kl", "seeds", "null", 0, counts=one),
        row("kl", "dtype", "null", 0, counts=other),
        row("kl", "seeds", "null", 1, counts=other),
        row("kl", "seeds", "null", 2),
        row("normdiff", "seeds", "null", 0, reason="It failed."),
        row("kl", "generic, text of caps", "judge", 0, counts=one),
        row("kl", "caps", "organism", 0, counts=one),
    ]
    assert false_claims(board(*rows)) == [
        Rates("kl", "dtype", other),
        Rates("kl", "seeds", Counts(Count(5, 190), None, Count(0, 5), Count(1, 5))),
        Rates("pca", "seeds", other),
    ]


def rung(position, score, seed=0, method="kl"):
    return row(method, LADDER[position], seed=seed, detection=shown(score), on_null=shown(LOW))


@pytest.mark.parametrize(
    ("scores", "last"),
    [
        ((FOUND, FOUND, FOUND), 2),
        ((FOUND, FOUND, MISSED), 1),
        ((FOUND, MISSED, FOUND), 0),
        ((MISSED, FOUND, FOUND), None),
        ((MISSED, MISSED, MISSED), None),
        ((FOUND,), 0),
    ],
)
def test_the_faintest_rung_stops_at_the_first_that_is_not_found(scores, last):
    rows = [rung(i, s) for i, s in reversed(list(enumerate(scores)))]
    said = {LADDER[i]: "found" if s is FOUND else "not found" for i, s in enumerate(scores)}
    expected = Sensitivity("kl", said, None if last is None else LADDER[last])
    measured = faintest(board(*rows, rung(0, MISSED, method="pca")), "kl")
    assert measured == expected
    assert list(measured.by_rung) == list(LADDER[: len(scores)])


def test_a_rung_is_found_when_every_seed_finds_it():
    rows = [rung(0, FOUND, 0), rung(0, FOUND, 1), rung(1, FOUND, 0), rung(1, MISSED, 1)]
    assert faintest(board(*rows), "kl") == Sensitivity("kl", {LADDER[0]: "found", LADDER[1]: "not found"}, LADDER[0])


def test_a_method_that_was_not_run_on_the_ladder_has_no_sensitivity():
    assert faintest(board(row("kl", "caps", detection=shown(FOUND))), "kl") is None


def test_a_rung_without_a_null_was_not_measured():
    alone = row("kl", LADDER[0], detection=shown(FOUND))
    assert faintest(board(alone), "kl") is None
    assert faintest(board(alone, rung(1, FOUND)), "kl") == Sensitivity("kl", {LADDER[1]: "found"}, None)


def test_a_rung_that_failed_ends_what_was_found():
    rows = [
        rung(0, FOUND),
        row("kl", LADDER[1]),
        rung(2, FOUND),
    ]
    by_rung = {LADDER[0]: "found", LADDER[1]: "failed", LADDER[2]: "found"}
    assert faintest(board(*rows), "kl") == Sensitivity("kl", by_rung, LADDER[0])
