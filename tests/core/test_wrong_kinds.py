"""Files of a finished result that are JSON, but not of the kind they should be: one sentence names file and remedy."""

import dataclasses
import json

import pytest

from diffing.core.claims import Calibration, Claims, ListClaims, NullRun, read_calibration, write_calibration
from diffing.core.errors import UserError
from diffing.core.evidence import (
    Evidence,
    ExampleEvidence,
    ScalarEvidence,
    Span,
    TextEvidence,
    TokenEvidence,
    read_evidence,
    to_json,
    write_evidence,
)
from diffing.core.files import of_kind, sha256, write_json
from diffing.core.result import Result, Results
from diffing.core.stability import Comeback, Stability, read_stability, write_stability

EVIDENCE = Evidence(
    tokens=(TokenEvidence("a", (1,), 2.0), TokenEvidence("b", (2, 3), 1.0, 0.5)),
    examples=(ExampleEvidence("a text", 1.0, (Span(0, 2, 0.5), Span(2, 3, None)), "chat"),),
    texts=(TextEvidence("written", None, "prompt"),),
    scalars=(ScalarEvidence("mean", 0.25, 0.2, 0.3, unit="nats"), ScalarEvidence("share", None)),
)
CALIBRATION = Calibration(
    NullRun("generic", "null-generic", "ab", "../null"),
    Claims(
        level=0.05,
        tokens=ListClaims((True, None), 9, 9, 1, 1.5, (0.01, None)),
        token_nulls=(0.5, None),
        examples=ListClaims((False,), 1, 4),
        texts=ListClaims((None,)),
        scalars=(True, None),
        scalar_names=("mean", "share"),
        scalar_nulls=(0.1, None),
    ),
)
STABILITY = Stability((Comeback("tokens", "two seeds", 2, 0.5, 0.01),), 3, (3, 1))
MANIFEST = {
    "schema": 1, "method": "kl", "created": "2025-01-01T00:00:00+00:00", "command": None, "comparison": "c",
    "fingerprint": "f", "seed": 0, "wall_seconds": 1, "peak_memory_bytes": 1000, "git": None,
    "config": {"null_pair": "none", "skip_first_tokens": 1, "model": {}, "organism": {}, "diffing": {"method": {}}},
    "pair": {
        "model": "a", "organism": "b", "variant": "default", "base_id": "c", "finetuned_id": "d", "fingerprint": "w",
        "facts": {"base": {"origin": "hub", "card": {}}, "finetuned": None, "n_params": {"base": 5}},
    },
    "data": {
        "n_tokens": 1, "fingerprint": "t", "datasets": ["chat"], "tokens": {"chat": 1}, "documents": {"chat": 1},
        "spec": {"datasets": [{"name": "chat", "id": "org/chat"}], "max_tokens": None}, "sequences": {"chat": 1},
    },
    "versions": {"diffing": "0.1.0"}, "machine": {"cores": 2}, "facts": {}, "notes": ["one"],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A judged result of which it is known how stable it is."""
    write_evidence(tmp_path / "evidence.json", EVIDENCE)
    write_json(tmp_path / "summary.json", {"schema": 1, "scalars": to_json(EVIDENCE)["scalars"]})
    files = {name: sha256(tmp_path / name) for name in ("evidence.json", "summary.json")}
    write_json(tmp_path / "manifest.json", {**MANIFEST, "files": files})
    write_calibration(tmp_path, CALIBRATION, files["evidence.json"])
    write_stability(tmp_path, STABILITY, files["evidence.json"])
    return tmp_path


def change(path, place, value=...):
    """Set the value at a dotted place of a JSON file, or remove it."""
    content = json.loads(path.read_text(encoding="utf-8"))
    *way, last = (int(k) if k.isdigit() else k for k in place.split("."))
    inner = content
    for key in way:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    path.write_text(json.dumps(content), encoding="utf-8")


def read_all(folder):
    result = Result(folder)
    return result.summary, result.evidence(), result.calibration(), result.stability()


def cases(*pairs):
    return pytest.mark.parametrize(("place", "value"), pairs, ids=lambda v: "gone" if v is ... else None)


def test_a_whole_result_comes_back(folder):
    summary, evidence, calibration, stability = read_all(folder)
    assert calibration == CALIBRATION
    assert stability == STABILITY
    assert read_evidence(folder / "evidence.json") == EVIDENCE
    assert [t.claimed for t in evidence.tokens] == [True, None]
    assert summary[0] == {**dataclasses.asdict(EVIDENCE.scalars[0]), "claimed": True, "null": 0.1}


@cases(
    ("claims.level", None),
    ("claims.level", "0.05"),
    ("claims.level", ...),
    ("claims", 5),
    ("claims.tokens", [True, None]),
    ("claims.tokens.n_tested", "9"),
    ("claims.tokens.n_claimed", 1.5),
    ("claims.tokens.threshold", "high"),
    ("claims.tokens.flags", [1, None]),
    ("claims.tokens.flags", [True]),
    ("claims.tokens.p_values", [0.01]),
    ("claims.tokens.p_values", ["0.01", None]),
    ("claims.token_nulls", [0.5]),
    ("claims.token_nulls", None),
    ("claims.examples.flags", [True, False]),
    ("claims.texts.flags", []),
    ("claims.scalars", [True]),
    ("claims.scalar_names", ["mean"]),
    ("claims.scalar_names", ["mean", 5]),
    ("claims.scalar_nulls", [0.1, None, None]),
    ("null", None),
    ("null.null_pair", 5),
    ("null.label", None),
    ("null.folder", ["x"]),
    ("null.second_folder", 1),
    ("null.label", ...),
    ("of", ...),
    ("schema", None),
)
def test_calibration(folder, place, value):
    change(folder / "calibration.json", place, value)
    with pytest.raises(
        UserError, match=r"calibration\.json is corrupt \(.+\); delete it and run the null pair again\."
    ):
        read_all(folder)


@pytest.mark.parametrize(
    ("together", "what"),
    [
        (("claims.scalars", "claims.scalar_names", "claims.scalar_nulls"), "scalars"),
        (("claims.tokens.flags", "claims.tokens.p_values", "claims.token_nulls"), "tokens"),
    ],
)
def test_claims_of_other_items_than_the_evidence(folder, together, what):
    for place in together:
        change(folder / "calibration.json", place, ["mean"] if place.endswith("names") else [None])
    with pytest.raises(UserError, match=rf"calibration\.json is corrupt \(it judges 1 {what}, the evidence has 2\);"):
        read_all(folder)


def test_what_later_versions_added_may_be_missing_and_what_they_will_add_is_let_be(folder):
    path = folder / "calibration.json"
    change(path, "null.second_folder")
    change(path, "claims.tokens.p_values")
    change(path, "null.third_folder", "../other")
    found = read_calibration(folder, sha256(folder / "evidence.json"))
    assert found.null == CALIBRATION.null
    assert found.claims.tokens.p_value(0) is None
    change(path, "of", "another")
    change(path, "null.label", None)
    assert read_calibration(folder, sha256(folder / "evidence.json")) is None


@cases(
    ("comebacks.0.share", None),
    ("comebacks.0.k", "two"),
    ("comebacks.0.what", 5),
    ("comebacks.0.chance", ...),
    ("comebacks", {}),
    ("n_reruns", True),
    ("n_reruns", None),
    ("tokens", [3]),
    ("tokens", [3, 1, 1]),
    ("tokens", ["3", 1]),
    ("tokens", 5),
    ("tokens", ...),
    ("of", ...),
)
def test_stability(folder, place, value):
    change(folder / "stability.json", place, value)
    with pytest.raises(
        UserError, match=r"stability\.json is corrupt \(.+\); delete it and run with stability=true again\."
    ):
        read_all(folder)


def test_a_method_that_ranks_no_tokens_is_stable_or_not_all_the_same(folder):
    change(folder / "stability.json", "tokens", None)
    assert Result(folder).stability().tokens is None
    assert read_stability(folder, "another") is None


@cases(
    ("method", 5),
    ("created", None),
    ("seed", "0"),
    ("seed", True),
    ("files", None),
    ("files", ["evidence.json"]),
    ("files", {"evidence.json": 5}),
    ("versions", "0.1.0"),
    ("versions", None),
    ("versions.diffing", 1),
    ("wall_seconds", "x"),
    ("wall_seconds", ...),
    ("peak_memory_bytes", None),
    ("fingerprint", 5),
    ("fingerprint", ...),
    ("comparison", 5),
    ("command", ["python"]),
    ("git", 5),
    ("machine", "big"),
    ("notes", None),
    ("notes", "one"),
    ("notes", [1]),
    ("facts", []),
    ("facts", ...),
    ("config", None),
    ("config.null_pair", []),
    ("config.organism", "b"),
    ("config.model", None),
    ("config.skip_first_tokens", "1"),
    ("config.diffing", {"method": "kl"}),
    ("pair.organism", None),
    ("pair.finetuned_id", ...),
    ("pair.fingerprint", 5),
    ("pair.facts", "facts"),
    ("pair.facts.base", []),
    ("pair.facts.base.origin", {}),
    ("pair.facts.n_params", {"base": "many"}),
    ("data", []),
    ("data.n_tokens", "1"),
    ("data.fingerprint", []),
    ("data.datasets", None),
    ("data.datasets", [1]),
    ("data.tokens", {"chat": "1"}),
    ("data.documents", []),
    ("data.spec", ...),
    ("data.spec", None),
    ("data.spec.datasets", {}),
    ("data.spec.datasets", ["chat"]),
    ("data.spec.datasets", [{"name": "chat"}]),
    ("data.spec.max_tokens", "all"),
    ("schema", "1"),
    ("schema", ...),
)
def test_manifest(folder, place, value):
    change(folder / "manifest.json", place, value)
    with pytest.raises(UserError, match=r"manifest\.json is corrupt \(.+\); run again with overwrite=true\."):
        Result(folder)
    assert Results(folder).find() == []


def test_a_manifest_of_an_older_version(folder):
    for name in ("comparison", "git", "machine"):
        change(folder / "manifest.json", name)
    change(folder / "manifest.json", "data.documents")
    change(folder / "manifest.json", "peak_memory_bytes", 10**30)
    assert Result(folder).manifest["peak_memory_bytes"] == 10**30


@cases(
    ("tokens", None),
    ("tokens", {}),
    ("tokens.0", "a"),
    ("tokens.0.token", 5),
    ("tokens.0.token_ids", ["1"]),
    ("tokens.0.token_ids", ...),
    ("tokens.0.score", None),
    ("tokens.0.stderr", "0"),
    ("examples.0.text", None),
    ("examples.0.spans", None),
    ("examples.0.spans", [[0, 2]]),
    ("examples.0.spans", [["0", 2, 0.5]]),
    ("examples.0.spans", [5]),
    ("examples.0.dataset", 5),
    ("texts.0", None),
    ("texts.0.text", 5),
    ("texts.0.prompt", []),
    ("scalars.0.name", None),
    ("scalars.0.value", "0.25"),
    ("scalars.0.unit", None),
    ("scalars", ...),
)
def test_evidence(folder, place, value):
    change(folder / "evidence.json", place, value)
    with pytest.raises(UserError, match=r"evidence\.json is corrupt \(.+\); run again with overwrite=true\."):
        read_evidence(folder / "evidence.json")


@cases(("scalars", None), ("scalars.0", 5), ("scalars.0.value", "x"), ("scalars.0.name", []), ("scalars", ...))
def test_summary(folder, place, value):
    change(folder / "summary.json", place, value)
    change(folder / "manifest.json", "files", {})
    with pytest.raises(UserError, match=r"summary\.json is corrupt \(.+\); run again with overwrite=true\."):
        _ = Result(folder).summary


def test_the_sentence_says_where_and_what():
    with pytest.raises(ValueError, match=r"^1\.k is not right: input should be a valid integer$"):
        of_kind(list[Comeback], [{**dataclasses.asdict(STABILITY.comebacks[0]), "k": k} for k in (1, "2")])
    with pytest.raises(ValueError, match=r"^n_reruns is missing$"):
        of_kind(Stability, {"comebacks": [], "tokens": None})
    with pytest.raises(ValueError, match=r"^the whole is not right"):
        of_kind(Stability, 5)
    with pytest.raises(ValueError, match="range"):
        of_kind(Stability, float("inf"))
