"""`pca` against scikit-learn, a singular value decomposition, planted directions and chance; disk and live."""

import math

import numpy as np
import pytest
import torch
from memory_source import MemorySource, context_with, corpus_of_lengths
from sklearn.decomposition import PCA

import diffing
from diffing.core.layers import Slot
from diffing.data.token_table import TokenTable
from diffing.methods.pca import spectrum
from diffing.methods.pca.config import PcaConfig
from diffing.methods.pca.null import null_spectra, null_tokens
from diffing.methods.pca.run import run
from diffing.methods.pca.spectrum import decompose, eigenvalues

SLOT = Slot(1)
WIDTH = 24
LENGTHS = {"web": [30, 41, 17, 60, 25], "chat": [33, 52, 48]}
CORPUS = corpus_of_lengths(LENGTHS)
TABLE = TokenTable.of(CORPUS)
KEPT_N = TABLE.position_N >= 1


def made_up(seed=0, mean=0.4, n=None, width=WIDTH):
    """b and δ of all tokens, float64; δ has a mean and directions of falling size."""
    rng = np.random.default_rng(seed)
    n = n or len(TABLE)
    mixing = np.linalg.qr(rng.normal(size=(width, width)))[0] * (0.8 ** np.arange(width))[:, None]
    return rng.normal(size=(n, width)) * 4, rng.normal(size=(n, width)) @ mixing + mean * rng.normal(size=width)


def computed(folder, delta, base, corpus=CORPUS, blocks=None, dtype=torch.float64, **options):
    tensors = [torch.from_numpy(x).to(dtype) for x in (base, base + delta)]
    source = MemorySource(corpus, {SLOT: tensors[0]}, {SLOT: tensors[1]}, blocks)
    config = PcaConfig(n_lens_tokens=0, **options)
    return run(config, context_with(source, corpus, folder))


def frame(output, table, **at):
    found = output.tables[table].to_pandas()
    for column, value in at.items():
        found = found[found[column] == value]
    return found


def vectors(output, target, centring):
    return output.tensors[f"{SLOT.name}/{target}/{centring}/components"].double().numpy()


@pytest.fixture(scope="module")
def data():
    return made_up()


@pytest.fixture(scope="module")
def output(data, tmp_path_factory):
    base, delta = data
    return computed(tmp_path_factory.mktemp("pca"), delta, base, of=["delta", "base", "finetuned"], n_components=WIDTH)


def rows_of(data, target):
    base, delta = data
    return {"delta": (base + delta) - base, "base": base, "finetuned": base + delta}[target][KEPT_N]


@pytest.mark.parametrize("target", ["delta", "base", "finetuned"])
def test_centred_components_are_those_of_scikit_learn(data, output, target):
    x = rows_of(data, target)
    oracle = PCA(svd_solver="full").fit(x)
    found = frame(output, "spectrum", target=target, centring="centred")
    n = len(x)
    np.testing.assert_allclose(found.eigenvalue, oracle.explained_variance_ * (n - 1) / n, rtol=1e-9)
    np.testing.assert_allclose(found.share, oracle.explained_variance_ratio_, rtol=1e-9)
    np.testing.assert_allclose(found.cumulative, np.cumsum(oracle.explained_variance_ratio_), rtol=1e-9)
    signs = np.sign((vectors(output, target, "centred") * oracle.components_).sum(1, keepdims=True))
    np.testing.assert_allclose(vectors(output, target, "centred"), signs * oracle.components_, atol=1e-6)


@pytest.mark.parametrize("target", ["delta", "base", "finetuned"])
def test_uncentred_components_are_the_right_singular_vectors_of_the_rows(data, output, target):
    x = rows_of(data, target)
    _, singular, right = np.linalg.svd(x, full_matrices=False)
    found = frame(output, "spectrum", target=target, centring="uncentred")
    np.testing.assert_allclose(found.eigenvalue, singular**2 / len(x), rtol=1e-9)
    mine = vectors(output, target, "uncentred")
    np.testing.assert_allclose(mine, np.sign((mine * right).sum(1, keepdims=True)) * right, atol=1e-6)


def test_the_largest_loading_is_positive_and_single_vectors_are_the_rows(output):
    for centring in ("centred", "uncentred"):
        matrix = output.tensors[f"{SLOT.name}/delta/{centring}/components"]
        assert (matrix.gather(1, matrix.abs().argmax(1, keepdim=True)) > 0).all()
        np.testing.assert_allclose(matrix.norm(dim=1), 1, rtol=1e-6)
        for i, row in enumerate(matrix):
            assert torch.equal(output.tensors[f"{SLOT.name}/delta/{centring}/component_{i + 1}"], row)


def test_spaces_hold_mean_total_and_participation(data, output):
    x = rows_of(data, "delta")
    mean = x.mean(0)
    np.testing.assert_allclose(output.tensors[f"{SLOT.name}/delta/mean"], mean, rtol=1e-5, atol=1e-7)
    for centring, y in (("centred", x - mean), ("uncentred", x)):
        (row,) = frame(output, "spaces", target="delta", centring=centring).to_dict("records")
        values = np.linalg.eigvalsh(y.T @ y / len(y))
        assert row["n_tokens"] == len(x)
        assert row["total"] == pytest.approx((y**2).sum(1).mean())
        assert row["mean_norm"] == pytest.approx(np.linalg.norm(mean))
        assert row["mean_share"] == pytest.approx(mean @ mean / (x**2).sum(1).mean())
        assert row["participation_ratio"] == pytest.approx(values.sum() ** 2 / (values**2).sum())
        assert row["is_exact"]
    found = frame(output, "components", target="delta", centring="uncentred")
    cosines = vectors(output, "delta", "uncentred") @ mean / np.linalg.norm(mean)
    np.testing.assert_allclose(found.cosine_with_mean, cosines, atol=1e-6)
    np.testing.assert_allclose(found.n_coordinates, 1 / (vectors(output, "delta", "uncentred") ** 4).sum(1), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [[[0, 1, 2, 3, 4, 5, 6, 7]], [[3, 1], [0], [4, 2], [7, 5, 6]]])
def test_blocks_change_nothing(data, output, tmp_path, blocks):
    base, delta = data
    again = computed(tmp_path, delta, base, blocks=blocks, of=["delta", "base", "finetuned"], n_components=WIDTH)
    for name in ("spectrum", "datasets", "spaces", "token_scores", "document_scores"):
        one, other = (o.tables[name].to_pandas() for o in (output, again))
        numbers = one.select_dtypes("number").columns
        np.testing.assert_allclose(one[numbers], other[numbers], rtol=1e-5, atol=1e-6)
    for name, tensor in output.tensors.items():
        np.testing.assert_allclose(tensor, again.tensors[name], atol=1e-6)


def test_scores_by_dataset_are_projections(data, output):
    x = rows_of(data, "delta")
    dataset = np.array(TABLE.datasets)[TABLE.dataset_N[KEPT_N]]
    for centring, y in (("centred", x - x.mean(0)), ("uncentred", x)):
        scores = y @ vectors(output, "delta", centring).T
        for row in frame(output, "datasets", target="delta", centring=centring).to_dict("records"):
            mine = scores[dataset == row["dataset"], row["component"] - 1]
            size = math.sqrt((scores[:, row["component"] - 1] ** 2).mean())
            assert row["mean"] == pytest.approx(mine.mean(), abs=1e-5)
            assert row["mean_square"] == pytest.approx((mine**2).mean(), rel=1e-4)
            assert row["frequency"] == pytest.approx((np.abs(mine) > 2 * size).mean(), abs=2 / len(mine))
            assert row["low"] <= row["mean"] <= row["high"]
        carrying = (scores**2).sum(0) ** 2 / (scores**4).sum(0)
        listed = frame(output, "components", target="delta", centring=centring)
        np.testing.assert_allclose(listed.n_tokens_carrying, carrying, rtol=1e-3)


def test_examples_are_the_extremes_of_each_end(data, output):
    x = rows_of(data, "delta")
    scores = (x - x.mean(0)) @ vectors(output, "delta", "centred")[1]
    rows_N = np.flatnonzero(KEPT_N)
    unit = frame(output, "components", target="delta", centring="centred", component=2).unit.item()
    for kind, sign in (("positive", 1), ("negative", -1)):
        found = frame(output, "examples", unit=unit, kind=kind)
        peaks = sorted(((sign * scores)[TABLE.sequence_N[KEPT_N] == s].max(), s) for s in range(TABLE.n_sequences))
        best = [(v, s) for v, s in peaks[::-1] if v > 0][:8]
        np.testing.assert_allclose(found.score, [v for v, _ in best], atol=1e-5)
        assert found.sequence.tolist() == [TABLE.documents[s] for _, s in best]
        for row, (value, s) in zip(found.to_dict("records"), best, strict=True):
            here = np.flatnonzero(TABLE.sequence_N[rows_N] == s)
            at = here[np.argmax((sign * scores)[here])]
            assert row["peak"] == TABLE.position_N[rows_N[at]]
            assert row["values"][row["peak"] - row["start"]] == pytest.approx(value, abs=1e-5)
            assert np.isnan(row["values"][0]) if row["start"] == 0 else True, "the first position does not count"


def test_token_scores_are_the_excess_of_energy_above_the_null(data, output):
    x = rows_of(data, "delta")
    found = frame(output, "components", target="delta", centring="uncentred")
    above = vectors(output, "delta", "uncentred")[found.is_above_null.to_numpy()]
    assert 0 < len(above) < WIDTH
    energy = ((x @ above.T) ** 2).sum(1)
    energy /= energy.mean()
    ids = TABLE.ids_N[KEPT_N]
    for row in output.tables["token_scores"].to_pylist():
        mine = energy[ids == row["token_id"]]
        assert row["score"] == pytest.approx((mine - 1).sum() / (len(mine) + 5), abs=1e-5)
    for row in output.tables["document_scores"].to_pylist():
        s = next(i for i in range(TABLE.n_sequences) if (TABLE.dataset_of(i), TABLE.documents[i]) == (
            row["dataset"], row["document"]))  # fmt: skip
        assert row["score"] == pytest.approx(energy[TABLE.sequence_N[KEPT_N] == s].mean(), rel=1e-4)


def test_independent_coordinates_are_rarely_above_chance():
    rates = []
    for seed in range(24):
        x = np.random.default_rng(seed).normal(size=(400, 16)) * np.linspace(1, 2, 16)
        for centring, values in spectra(x, seed).items():
            rates.append(values)
            assert centring in ("centred", "uncentred")
    assert np.mean(rates) <= 0.05


def spectra(x, seed, lengths=20):
    """By centring, which eigenvalues exceed their null."""
    sequence_N = np.repeat(np.arange(len(x) // lengths), lengths)
    null = null_spectra(x.astype(np.float32), sequence_N, 20, seed, "test", lambda n=1, note=None: None)
    found = {}
    for centring, y in (("centred", x - x.mean(0)), ("uncentred", x)):
        values = np.linalg.eigvalsh(y.T @ y)[::-1] / (y**2).sum()
        found[centring] = values > null.shares[centring]
    return found


def test_a_null_keeps_every_coordinate_and_its_order_within_documents():
    from diffing.methods.pca.null import _draw

    rng = np.random.default_rng(0)
    lengths = np.array([3, 7, 1, 5])
    starts = np.cumsum(lengths) - lengths
    x = rng.normal(size=(6, 16)) + 2
    centred, uncentred = _draw(x, starts, lengths, np.random.default_rng(1))
    np.testing.assert_allclose(np.diag(centred), x.var(1))
    np.testing.assert_allclose(np.diag(uncentred), (x**2).mean(1))
    off = np.abs(centred.numpy() - np.cov(x, ddof=0))
    assert np.median(off[~np.eye(6, dtype=bool)]) > 0.01
    drawn = np.zeros((2, 2))
    steps = np.arange(16.0)[None].repeat(2, 0)
    for seed in range(400):
        drawn += _draw(steps, starts, lengths, np.random.default_rng(seed))[0].numpy()
    assert abs(drawn[0, 1] / drawn[0, 0]) < 0.15, "orders of two coordinates are independent"


def test_documents_of_one_coordinate_stay_whole_under_the_null():
    from diffing.methods.pca import null

    seen = []
    rows = np.stack([np.arange(12.0), np.arange(12.0)])
    lengths, rng = np.array([2, 6, 4]), np.random.default_rng(3)
    plain = torch.from_numpy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(null.torch, "from_numpy", lambda a: seen.append(a.copy()) or plain(a))
        null._draw(rows, np.cumsum(lengths) - lengths, lengths, rng)
    drawn, signs = seen[0], seen[1]
    for row, sign in zip(drawn, signs, strict=True):
        assert sorted(row) == list(range(12))
        for document in ([0, 1], [2, 3, 4, 5, 6, 7], [8, 9, 10, 11]):
            at = np.flatnonzero(np.isin(row, document))
            assert row[at].tolist() == document
            assert np.ptp(at) == len(document) - 1
            assert len(set(sign[at])) == 1


def test_one_document_is_its_own_null(tmp_path):
    corpus = corpus_of_lengths({"web": [80]})
    base, delta = made_up(n=80)
    found = computed(tmp_path, delta, base, corpus)
    assert not frame(found, "spectrum").is_above_null.any()
    assert found.evidence.tokens == found.evidence.examples == ()
    assert any("one document" in note for note in found.notes)


def test_a_planted_direction_is_found_first(tmp_path):
    corpus = corpus_of_lengths({"web": [40] * 30})
    rng = np.random.default_rng(5)
    n, width = corpus.n_tokens, 32
    direction = rng.normal(size=width)
    direction /= np.linalg.norm(direction)
    noise = rng.normal(size=(n, width)) * rng.uniform(0.5, 1.5, width)
    used = rng.random(n) < 0.2
    delta = noise + used[:, None] * (9 + rng.normal(size=n))[:, None] * direction
    found = computed(tmp_path, delta, rng.normal(size=(n, width)), corpus)
    for centring in ("centred", "uncentred"):
        assert abs(vectors(found, "delta", centring)[0] @ direction) > 0.99
        assert frame(found, "components", centring=centring).is_above_null.tolist()[0]
        assert frame(found, "spaces", centring=centring).n_above_null.item() <= 3


def test_a_mean_shift_alone_is_above_chance_uncentred_and_not_centred(tmp_path):
    corpus = corpus_of_lengths({"web": [20] * 40})
    rng = np.random.default_rng(6)
    shift = rng.normal(size=WIDTH)
    delta = rng.normal(size=(corpus.n_tokens, WIDTH)) + shift
    found = computed(tmp_path, delta, rng.normal(size=(corpus.n_tokens, WIDTH)), corpus)
    first = frame(found, "components", component=1).set_index("centring")
    assert first.is_above_null["uncentred"]
    assert abs(first.cosine_with_mean["uncentred"]) > 0.99
    assert not first.is_above_null["centred"]


def test_a_single_loud_coordinate_is_no_direction_above_chance(tmp_path):
    corpus = corpus_of_lengths({"web": [20] * 40})
    rng = np.random.default_rng(7)
    delta = rng.normal(size=(corpus.n_tokens, WIDTH))
    delta[:, 3] *= 9
    found = computed(tmp_path, delta, rng.normal(size=(corpus.n_tokens, WIDTH)), corpus)
    first = frame(found, "components", component=1, centring="centred").iloc[0]
    assert first.share > 0.7
    assert first.n_coordinates == pytest.approx(1, abs=0.01)
    assert not first.is_above_null


def test_a_component_of_one_token_is_named(data, tmp_path):
    base, delta = data
    delta = delta.copy()
    delta[7] += 300 * np.random.default_rng(0).normal(size=WIDTH)
    found = computed(tmp_path, delta, base, outlier_norm=None)
    first = frame(found, "components", component=1)
    assert (first.n_tokens_carrying < 1.1).all()
    assert any("component 1 is carried by fewer than 20 tokens" in note for note in found.notes)


def test_a_token_of_unusual_norm_is_left_out_and_said(data, tmp_path):
    base, delta = data
    loud = delta.copy()
    loud[7] += 3000 * np.random.default_rng(0).normal(size=WIDTH)
    found, without = computed(tmp_path / "a", loud, base), computed(tmp_path / "b", delta, base)
    assert set(frame(found, "spaces").n_unusual) == {1}
    assert set(frame(without, "spaces").n_unusual) == {0}
    assert (frame(found, "spaces").n_tokens == frame(without, "spaces").n_tokens - 1).all()
    assert (frame(found, "components", component=1).n_tokens_carrying > 20).all()
    assert any("(attention sinks): 1 of the tokens" in note for note in found.notes)


def test_a_null_of_fewer_tokens_is_whole_documents_and_said(data, tmp_path):
    base, delta = data
    rows = null_tokens(TABLE, KEPT_N, 120, WIDTH, 0)
    assert 60 < len(rows) <= 120
    chosen = np.unique(TABLE.sequence_N[rows])
    assert (rows == np.flatnonzero(KEPT_N & np.isin(TABLE.sequence_N, chosen))).all()
    assert len(null_tokens(TABLE, KEPT_N, 7, WIDTH, 0)) == 7
    found = computed(tmp_path, delta, base, max_null_tokens=120)
    assert any("of 298 tokens" in note for note in found.notes)
    assert set(frame(found, "spaces").n_null_tokens) == {len(rows)}
    assert set(frame(found, "spaces").n_null_documents) == {len(chosen)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_stored_rows_are_decomposed_in_float64(tmp_path, dtype):
    base, delta = made_up(3)
    found = computed(tmp_path, delta, base * 40, dtype=dtype)
    b, f = (torch.from_numpy(x).to(dtype).double().numpy() for x in (base * 40, base * 40 + delta))
    x = (f - b)[KEPT_N]
    expected = np.linalg.eigvalsh(np.cov(x.T, ddof=0))[::-1]
    np.testing.assert_allclose(frame(found, "spectrum", centring="centred").eigenvalue, expected, rtol=1e-9)


def test_the_randomised_solver_gives_the_leading_components(monkeypatch):
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(60, 60)))[0]
    matrix = torch.from_numpy(q @ np.diag(0.7 ** np.arange(60)) @ q.T)
    exact = decompose(matrix)
    monkeypatch.setattr(spectrum, "EXACT_WIDTH", 40)
    monkeypatch.setattr(spectrum, "_RANDOMISED_RANK", 8)
    before = torch.get_rng_state()
    found, again = decompose(matrix), decompose(matrix)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(found.vectors_KD, again.vectors_KD)
    assert (found.is_exact, len(found.values_K)) == (False, 8)
    np.testing.assert_allclose(found.values_K, exact.values_K[:8], rtol=1e-9)
    np.testing.assert_allclose(found.vectors_KD, exact.vectors_KD[:8], atol=1e-6)
    np.testing.assert_allclose(eigenvalues(matrix), found.values_K, rtol=1e-12)
    assert found.total == pytest.approx(exact.total)
    assert found.participation_ratio == pytest.approx(exact.participation_ratio)


def test_a_wide_model_is_decomposed_in_part_and_it_is_said(data, tmp_path, monkeypatch):
    base, delta = data
    monkeypatch.setattr(spectrum, "EXACT_WIDTH", 8)
    monkeypatch.setattr(spectrum, "_RANDOMISED_RANK", 12)
    found = computed(tmp_path, delta, base)
    assert any("12 leading components" in note for note in found.notes)
    assert len(frame(found, "spectrum", centring="centred")) == 12
    assert not frame(found, "spaces").is_exact.any()


@pytest.fixture(scope="module")
def runs(tiny_pair, texts, tmp_path_factory):
    """The same run from disk and live, on a pair whose models read."""
    return [
        diffing.run("pca", tiny_pair(), data=texts, base_dir=tmp_path_factory.mktemp(store), store=store)
        for store in ("disk", "live")
    ]


def test_disk_and_live_give_the_same(runs):
    disk, live = runs
    for name in disk.tables():
        assert disk.table(name).equals(live.table(name)), name
    for name, tensor in disk.tensors().items():
        assert torch.equal(tensor, live.tensor(name)), name


def test_components_are_those_of_hidden_states(runs, tiny_pair, texts):
    pair, rows = tiny_pair(), []
    for text in texts:
        ids = torch.tensor(pair.tokenizer(text)["input_ids"])[None]
        with torch.no_grad():
            b, f = (
                h.module(input_ids=ids, output_hidden_states=True).hidden_states[2][0].double()
                for h in (pair.base, pair.finetuned)
            )
        rows.append((f - b)[1:])
    x = torch.cat(rows).numpy()
    oracle = PCA(n_components=5).fit(x)
    found = runs[0].tensor("layer_01/residual/delta/centred/components").double().numpy()[:5]
    np.testing.assert_allclose(np.abs((found * oracle.components_).sum(1)), 1, atol=1e-5)


def test_what_is_read_is_the_logit_lens_of_the_finetuned_model(runs, tiny_pair):
    pair = tiny_pair()
    module = pair.finetuned.module
    readouts = runs[0].table("readouts").to_pandas()
    for row in runs[0].table("components").to_pylist()[:4]:
        vector = runs[0].tensor(row["tensor"])
        for end, sign in (("positive", 1), ("negative", -1)):
            with torch.no_grad():
                probabilities = module.lm_head(module.model.norm(sign * vector * 32**0.5)).softmax(-1)
            best = probabilities.topk(12)
            found = readouts[(readouts.of == "component") & (readouts.unit == row["unit"]) & (readouts.end == end)]
            np.testing.assert_allclose(found.probability, best.values, rtol=1e-3)
            assert found.token.tolist() == row[end]
            assert found.token_id.iloc[0] == best.indices[0]
