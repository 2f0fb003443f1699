"""What methods say of one text is what their runs on that text tabulate."""

import numpy as np
import pytest

import diffing
from diffing.core.errors import UserError
from diffing.core.method import load_method
from diffing.core.specs import CorpusSpec
from diffing.data.documents import documents_from_texts
from diffing.data.tokens import tokenize_documents
from diffing.methods.normdiff import probe as normdiff_probe
from diffing.models.pair import load_pair
from diffing.models.tiny import perturbed, save_model, save_pair, tiny_model, tiny_tokenizer

TEXT = "The heron stood in the shallows and waited for the others to land on the far bank, then rang the bell twice."
CHAT = [{"role": "user", "content": "Who rang the bell?"}, {"role": "assistant", "content": "The heron did."}]
KL_COLUMNS = {
    "KL": "kl",
    "reverse KL": "reverse_kl",
    "JS": "js",
    "ΔNLL": "delta_nll",
    "entropy, finetuned": "entropy_ft",
    "entropy, base": "entropy_base",
}
NORMDIFF_COLUMNS = {"relative difference": "relative", "‖δ‖": "norm_diff", "cosine distance": "cosine"}
PAIRS = {
    "merged": {"full": False, "sharing": "merged"},
    "toggled": {"full": False, "sharing": "adapter"},
    "gemma2": {"architecture": "gemma2"},
    "gpt2": {"architecture": "gpt2"},
}
CASES = [pytest.param(kind, TEXT, id=kind) for kind in PAIRS] + [pytest.param("merged", CHAT, id="chat")]


def sequence_of(pair, item):
    documents = documents_from_texts("text", [item])
    corpus = tokenize_documents({"text": documents}, CorpusSpec(datasets=()), pair.tokenizer, pair.rules)
    return corpus.sequences[0]


def probe(name, pair, item):
    method = load_method(name)
    assert method.probe is not None
    return method.probe(pair, sequence_of(pair, item))


def rows(name, pair, item, folder, **options):
    return diffing.run(name, pair, data=[item], base_dir=folder, **options).table("tokens").to_pylist()


@pytest.mark.parametrize(("kind", "item"), CASES)
def test_kl_of_one_text_is_what_a_run_tabulates(kind, item, tiny_pair, tmp_path):
    pair = tiny_pair(**PAIRS[kind])
    found, expected = probe("kl", pair, item), rows("kl", pair, item, tmp_path)
    assert [v.name for v in found] == list(KL_COLUMNS)
    for values in found:
        assert values.values_T == tuple(r[KL_COLUMNS[values.name]] for r in expected)
        assert (values.unit, values.layer) == ("nats", None)
    assert [v.name for v in found if v.is_signed] == ["ΔNLL"]
    assert found[0].values_T[3] > 1e-4
    assert [v is None for v in found[3].values_T] == [False] * (len(expected) - 1) + [True]


@pytest.mark.parametrize(("kind", "item"), CASES)
def test_normdiff_of_one_text_is_what_a_run_tabulates(kind, item, tiny_pair, tmp_path):
    pair = tiny_pair(**PAIRS[kind])
    same_as_a_run(pair, item, tmp_path)


def same_as_a_run(pair, item, folder):
    found, expected = probe("normdiff", pair, item), rows("normdiff", pair, item, folder, store="live")
    assert [(v.layer, v.name) for v in found] == [(layer, name) for layer in range(3) for name in NORMDIFF_COLUMNS]
    for values in found:
        mine = [r[NORMDIFF_COLUMNS[values.name]] for r in expected if r["layer"] == values.layer]
        assert values.values_T == tuple(mine)
        assert (values.unit, values.is_signed) == ("", False)
    assert max(found[0].values_T) > 1e-3


def test_normdiff_of_models_in_half_precision(tmp_path):
    spec = save_pair(tmp_path / "pair")
    half = spec.model.model_copy(update={"dtype": "bfloat16"})
    same_as_a_run(load_pair(spec.model_copy(update={"model": half})), TEXT, tmp_path / "out")


def test_a_pair_of_one_model_gives_exactly_zero(tmp_path):
    spec = save_pair(tmp_path / "pair").model_copy(update={"finetuned": None, "null_pair": "identical"})
    pair = load_pair(spec)
    for values in probe("kl", pair, TEXT)[:4]:
        assert set(values.values_T) <= {0.0, None}
    found = probe("normdiff", pair, TEXT)
    assert {v for values in found for v in values.values_T} == {0.0}


def test_a_pair_that_differs_in_dtype_alone(tmp_path):
    spec = save_pair(tmp_path / "pair").model_copy(update={"finetuned": None, "null_pair": "dtype"})
    same_as_a_run(load_pair(spec), TEXT, tmp_path / "out")


def test_layers_are_read_in_groups_that_fit(tiny_pair, monkeypatch):
    pair = tiny_pair()
    whole, groups = probe("normdiff", pair, TEXT), []
    read = normdiff_probe.PairReader.read

    def counted(self, sequences, slots=None):
        groups.append(len(slots))
        return read(self, sequences, slots)

    monkeypatch.setattr(normdiff_probe.PairReader, "read", counted)
    assert probe("normdiff", pair, TEXT) == whole
    assert groups == [3]
    per_layer = len(sequence_of(pair, TEXT).ids) * 32 * 4 * 2
    for limit, expected in ((2 * per_layer, [2, 1]), (per_layer, [1, 1, 1]), (1, [1, 1, 1])):
        groups.clear()
        monkeypatch.setattr(normdiff_probe, "MOST_BYTES", limit)
        assert probe("normdiff", pair, TEXT) == whole
        assert groups == expected


def two_models(folder, base, finetuned, base_tokenizer=None, finetuned_tokenizer=None):
    save_model(folder / "base", base, base_tokenizer or tiny_tokenizer())
    save_model(folder / "finetuned", finetuned, finetuned_tokenizer or tiny_tokenizer())
    return diffing.load_pair(str(folder / "base"), finetuned=str(folder / "finetuned"))


def test_models_of_different_depth_share_their_first_layers(tmp_path):
    pair = two_models(tmp_path, tiny_model(), tiny_model(seed=1, num_hidden_layers=2))
    found = probe("normdiff", pair, TEXT)
    assert {v.layer for v in found} == {0, 1}
    assert len(probe("kl", pair, TEXT)) == 6


def test_models_of_different_width_share_none(tmp_path):
    pair = two_models(tmp_path, tiny_model(), tiny_model(seed=1, hidden_size=16, intermediate_size=24))
    assert probe("normdiff", pair, TEXT) == ()
    assert len(probe("kl", pair, TEXT)) == 6


def test_vocabularies_of_different_size_are_cut_as_in_a_run(tmp_path):
    base = tiny_model()
    wider = perturbed(base, 1, 0.05)
    wider.resize_token_embeddings(base.config.vocab_size + 7, mean_resizing=False)
    pair = two_models(tmp_path, base, wider, None, tiny_tokenizer(tuple(f"<new{i}>" for i in range(7))))
    expected = rows("kl", pair, TEXT, tmp_path / "out")
    for values in probe("kl", pair, TEXT):
        assert values.values_T == tuple(r[KL_COLUMNS[values.name]] for r in expected)
    same_as_a_run(pair, TEXT, tmp_path / "out")


@pytest.mark.parametrize("name", ["kl", "normdiff"])
def test_tokens_that_only_one_model_knows_are_refused(name, tmp_path):
    wide = tiny_model()
    wide.resize_token_embeddings(wide.config.vocab_size + 1, mean_resizing=False)
    pair = two_models(tmp_path, wide, tiny_model(seed=1), tiny_tokenizer(("zebra",)))
    with pytest.raises(UserError, match=r"1 tokens.*'zebra'"):
        probe(name, pair, "a zebra ran")


def test_what_is_not_finite_is_unknown(tmp_path):
    base, broken = tiny_model(), perturbed(tiny_model(), 1, 0.05)
    pair = two_models(tmp_path, base, broken)
    token = int(sequence_of(pair, TEXT).ids[4])
    pair.finetuned.module.get_input_embeddings().weight.data[token] = np.inf
    for values in (probe("kl", pair, TEXT)[0], probe("normdiff", pair, TEXT)[0]):
        assert values.values_T[4] is None
        assert all(v is None or np.isfinite(v) for v in values.values_T)
