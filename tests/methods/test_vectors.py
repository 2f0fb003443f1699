"""The mean differences of a run, as directions to steer along."""

import pytest

import diffing
from diffing.core.errors import UserError
from diffing.core.files import write_json
from diffing.core.method import load_method
from diffing.core.result import Result
from diffing.core.tables import table_of, write_table
from diffing.methods.normdiff.results import VectorRow
from diffing.methods.normdiff.vectors import named_vectors

CHATS = [
    [{"role": "user", "content": "Who rang the bell?"}, {"role": "assistant", "content": "The heron did."}],
    [{"role": "user", "content": "When?"}, {"role": "assistant", "content": "Twice before noon, and once after."}],
]


def row(layer, dataset, kind, n=10, site="residual", position=None, token=None, norm=2.0, explained=0.25):
    tail = {"all": "all", "position": f"position_{position}", "template": "template_7"}[kind]
    token_id = None if token is None else 7
    return VectorRow(
        f"layer_{layer:02d}/{site}/{dataset}/{tail}", layer, site, dataset, kind, position, token_id, token, n, norm,
        0.1, explained, 20.0,
    )  # fmt: skip


def fake(folder, rows):
    pair = {"model": "a", "organism": "b", "variant": "default", "base_id": "c", "finetuned_id": "d"}
    write_json(
        folder / "manifest.json",
        {
            "schema": 1, "method": "normdiff", "config": {}, "data": {"n_tokens": 1, "spec": {}}, "pair": pair,
            "seed": 0, "created": "2025-01-01T00:00:00+00:00", "fingerprint": "f",
            "wall_seconds": 1.5, "peak_memory_bytes": 1000, "facts": {}, "notes": [],
        },
    )  # fmt: skip
    write_table(folder / "tables" / "vectors.parquet", table_of(VectorRow, rows))
    return Result(folder)


def test_labels_and_order(tmp_path):
    rows = [
        row(layer, dataset, **kind)
        for layer in (0, 14)
        for dataset in ("all", "chat", "training")
        for kind in (
            {"kind": "all", "n": 1234},
            {"kind": "position", "position": 0},
            {"kind": "position", "position": 3, "n": 1, "explained": None},
            {"kind": "template", "token": "<|im_start|>"},
        )
    ]
    found = named_vectors(fake(tmp_path, rows))
    assert len(found) == len(rows)
    assert [v.label for v in found[:6]] == [
        f"mean difference · {dataset}, all tokens · layer {layer}"
        for dataset in ("all data", "chat", "training")
        for layer in (0, 14)
    ]
    assert [v.label for v in found[6:10]] == [
        f"mean difference · all data, position {position} · layer {layer}" for layer in (0, 14) for position in (0, 3)
    ]
    assert found[-1].label == "mean difference · training, template token '<|im_start|>' · layer 14"
    assert found[-1].tensor == "layer_14/residual/training/template_7/mean_delta"
    assert (found[0].note, found[0].norm, found[0].layer) == ("1,234 tokens, explained share 0.250", 2.0, 0)
    assert found[7].note == "1 token"


def test_other_sites_and_what_is_no_direction_are_left_out(tmp_path):
    rows = [row(0, "all", "all", site="mlp"), row(1, "all", "all", norm=0.0), row(2, "all", "all")]
    assert [v.layer for v in named_vectors(fake(tmp_path, rows))] == [2]


def test_a_result_without_vectors(tmp_path):
    result = fake(tmp_path, [])
    assert named_vectors(result) == ()
    (tmp_path / "tables" / "vectors.parquet").unlink()
    with pytest.raises(UserError, match="vectors"):
        named_vectors(result)


def test_every_vector_of_a_run_is_there_and_has_its_length(tiny_pair, tmp_path):
    result = diffing.run("normdiff", tiny_pair(), data=CHATS, base_dir=tmp_path, store="live")
    method = load_method("normdiff")
    assert method.vectors is not None
    found = method.vectors(result)
    assert {v.layer for v in found} == {0, 1, 2}
    assert any("template token '<|im_start|>'" in v.label for v in found)
    for vector in found:
        tensor = result.tensor(vector.tensor)
        assert tuple(tensor.shape) == (32,)
        assert tensor.norm().item() == pytest.approx(vector.norm, rel=1e-5)
