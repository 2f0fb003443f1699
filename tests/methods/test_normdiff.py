"""`normdiff` on a source held in memory: against float64 loops and pandas, its invariants, and the degenerate cases."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from memory_source import MemorySource

import diffing
from diffing.analysis.bootstrap import ratio_interval
from diffing.analysis.context import RunContext
from diffing.core.config import parse
from diffing.core.errors import UserError
from diffing.core.layers import Slot
from diffing.core.seeds import generator
from diffing.data.chats import ROLES
from diffing.data.token_table import TokenTable
from diffing.data.tokens import Corpus, TokenSequence
from diffing.methods.normdiff import METHOD
from diffing.methods.normdiff.config import NormDiffConfig
from diffing.methods.normdiff.run import run
from diffing.models.tiny import tiny_tokenizer

METRICS = ["norm_diff", "relative", "cosine", "norm_base", "norm_ft"]
SLOTS = (Slot(0), Slot(2), Slot(2, "mlp"))
NOISE = {"norm": 0.25, "relative": 0.0125, "cosine": 1e-6}
WIDTH = 24


class Memory(MemorySource):
    """One that differs from itself by `NOISE`."""

    def noise(self, slot):
        return NOISE


def make_corpus(lengths_by_dataset, chat="chat", seed=0):
    """Random tokens of few kinds; sequences of the dataset `chat` start with four template tokens and have roles."""
    rng = np.random.default_rng(seed)
    sequences = []
    for name, lengths in lengths_by_dataset.items():
        for document, n in enumerate(lengths):
            is_template = np.zeros(n, dtype=bool)
            roles = np.zeros(n, dtype=np.uint8)
            ids = rng.integers(40, 52, n).astype(np.int32)
            if name == chat:
                is_template[:4] = True
                ids[:4] = [1, 60, 61, 1][: min(n, 4)]
                roles[:] = ROLES.index("assistant")
                roles[: n // 2] = ROLES.index("user")
            sequences.append(TokenSequence(name, 3 * document + 1, ids, roles, is_template, np.isin(ids, [0, 1, 2])))
    counts = {name: len(lengths) for name, lengths in lengths_by_dataset.items()}
    return Corpus(tuple(lengths_by_dataset), tuple(sequences), "made-up", (), counts)


CORPUS = make_corpus({"web": [9, 1, 14, 6, 11], "chat": [12, 8, 17]})


def activations(corpus=CORPUS, slots=SLOTS, change=0.1, seed=0, scale=1.0):
    """Random float64 activations of both models; the first positions are larger and differences vary in size."""
    rng = np.random.default_rng(seed)
    n = corpus.n_tokens
    base, finetuned = {}, {}
    for k, slot in enumerate(slots):
        size = np.where(TokenTable.of(corpus).position_N == 0, 30.0, 1.0) * rng.uniform(0.5, 2, n) * scale
        b = rng.normal(size=(n, WIDTH)) * size[:, None] + 0.3
        mean = rng.normal(size=WIDTH)
        step = change * (k + 1) * rng.gamma(1.0, size=n)
        base[slot], finetuned[slot] = b, b + step[:, None] * (mean + rng.normal(size=(n, WIDTH)))
    return base, finetuned


def source_of(base, finetuned, corpus=CORPUS, dtype=torch.float32, **more):
    def cast(rows):
        return {s: torch.as_tensor(x).to(dtype) for s, x in rows.items()}

    return Memory(corpus, cast(base), cast(finetuned), **more)


def context_of(source, folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)

    def refuse():
        raise AssertionError("the models are not needed")

    values = {
        "load_pair": refuse,
        "tokenizer": tiny_tokenizer(),
        "corpus": CORPUS,
        "seed": 0,
        "skip_first_tokens": 1,
        "batch_tokens": 16,
        "skip_template_tokens": False,
        "null_pair": "none",
        "scratch": folder,
        "log": lambda values: None,
        "activations": source,
    }
    return RunContext(**{**values, **changes})


def output_of(source, folder, config=None, **changes):
    return run(config or NormDiffConfig(), context_of(source, folder, **changes))


@pytest.fixture(scope="module")
def rows():
    return activations()


@pytest.fixture(scope="module")
def source(rows):
    return source_of(*rows)


@pytest.fixture(scope="module")
def output(source, tmp_path_factory):
    return output_of(source, tmp_path_factory.mktemp("normdiff"))


@pytest.fixture(scope="module")
def tokens(output):
    return output.tables["tokens"].to_pandas()


def loop(base_D, finetuned_D):
    """The metrics of one token in float64, number by number, from their definitions."""
    b, f = [float(x) for x in base_D], [float(x) for x in finetuned_D]
    gap = math.sqrt(math.fsum((y - x) ** 2 for x, y in zip(b, f, strict=True)))
    norm_b, norm_f = (math.sqrt(math.fsum(x * x for x in v)) for v in (b, f))
    cosine = 0.5 * math.fsum((x / norm_b - y / norm_f) ** 2 for x, y in zip(b, f, strict=True))
    return gap, gap / ((norm_b + norm_f) / 2), cosine, norm_b, norm_f


def of_slot(frame, slot):
    return frame[(frame.layer == slot.layer) & (frame.site == slot.site)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_metric_agrees_with_a_float64_loop(rows, dtype, tmp_path):
    source = source_of(*rows, dtype=dtype)
    frame = output_of(source, tmp_path).tables["tokens"].to_pandas()
    assert len(frame) == len(SLOTS) * CORPUS.n_tokens
    for slot in SLOTS:
        mine = of_slot(frame, slot)
        for i, (_, row) in enumerate(mine.iterrows()):
            both = (source._base[slot][i], source._finetuned[slot][i])
            expected = loop(*(x.double().numpy() for x in both))
            np.testing.assert_allclose(row[METRICS].to_numpy(dtype=np.float64), expected, rtol=1e-5)


def test_rows_name_their_tokens(tokens):
    corpus, names = CORPUS, tiny_tokenizer()
    mine = of_slot(tokens, SLOTS[1])
    expected = [(s.dataset, s.index, t, int(s.ids[t])) for s in corpus.sequences for t in range(len(s.ids))]
    assert list(zip(mine.dataset, mine.sequence, mine.position, mine.token_id, strict=True)) == expected
    assert mine.token.tolist()[0] == names.decode([int(corpus.sequences[0].ids[0])])
    roles = [ROLES[r] for s in corpus.sequences for r in s.roles]
    assert mine.role.tolist() == roles
    assert mine.is_template.tolist() == [bool(t) for s in corpus.sequences for t in s.is_template]
    assert mine.kept.tolist() == (mine.position > 0).tolist()


def test_identical_models_give_exactly_zero_and_no_finding(rows, tmp_path):
    base, _ = rows
    found = output_of(source_of(base, base, dtype=torch.bfloat16), tmp_path, null_pair="identical")
    frame = found.tables["tokens"].to_pandas()
    for metric in METRICS[:3]:
        assert set(frame[metric]) == {0.0}, metric
    assert set(found.tables["token_scores"]["score"].to_pylist()) == {0.0}
    assert set(found.tables["document_scores"]["score"].to_pylist()) == {0.0}
    assert set(found.tables["vectors"]["norm"].to_pylist()) == {0.0}
    assert set(found.tables["vectors"]["explained"].to_pylist()) == {None}
    assert found.evidence.tokens == ()
    assert found.evidence.examples == ()
    assert found.evidence.scalars
    assert all(s.claimed is False for s in found.evidence.scalars)
    assert all((s.value, s.low, s.high) == (0.0, 0.0, 0.0) for s in found.summary)
    for name, vector in found.tensors.items():
        assert vector.dtype == torch.float32
        if name.endswith("mean_delta"):
            assert not vector.any(), name


def test_tiny_angles_survive_where_one_minus_cosine_is_zero(tmp_path):
    corpus = make_corpus({"web": [6, 6]})
    rng = np.random.default_rng(1)
    base = rng.normal(size=(12, 512))
    across = rng.normal(size=(12, 512))
    across -= (across * base).sum(1, keepdims=True) / (base**2).sum(1, keepdims=True) * base
    across *= np.linalg.norm(base, axis=1, keepdims=True) / np.linalg.norm(across, axis=1, keepdims=True)
    finetuned = base + math.tan(1e-5) * across
    source = source_of({Slot(0): base}, {Slot(0): finetuned}, corpus)
    cosine = output_of(source, tmp_path).tables["tokens"]["cosine"].to_numpy()
    b, f = (x[Slot(0)].numpy() for x in (source._base, source._finetuned))
    naive = 1 - (b * f).sum(1) / (np.linalg.norm(b, axis=1) * np.linalg.norm(f, axis=1))
    assert np.median(naive) == 0
    np.testing.assert_allclose(cosine, 5e-11, rtol=0.02)


def test_the_cosine_of_a_scaled_row_is_zero_and_of_an_opposite_one_two(tmp_path):
    corpus = make_corpus({"web": [4]})
    base = np.random.default_rng(0).normal(size=(4, WIDTH))
    finetuned = base * np.array([3.0, -1.0, 0.25, -4.0])[:, None]
    frame = output_of(source_of({Slot(0): base}, {Slot(0): finetuned}, corpus), tmp_path).tables["tokens"].to_pandas()
    np.testing.assert_allclose(frame.cosine, [0, 2, 0, 2], atol=1e-12)
    np.testing.assert_allclose(frame.relative, [2 / 2, 2 / 1, 0.75 / 0.625, 5 / 2.5], rtol=1e-6)


def test_rows_of_zeros_give_no_nan(tmp_path):
    corpus = make_corpus({"web": [5]})
    base, finetuned = (np.random.default_rng(s).normal(size=(5, WIDTH)) for s in (0, 1))
    base[2] = finetuned[2] = 0
    base[3] = 0
    found = output_of(source_of({Slot(0): base}, {Slot(0): finetuned}, corpus), tmp_path)
    table = found.tables["tokens"]
    assert table["cosine"].to_pylist()[2:4] == [None, None]
    assert table["relative"].to_pylist()[2:4] == [0.0, pytest.approx(2.0)]
    assert table["norm_diff"].to_pylist()[2] == 0.0
    counts = {r["metric"]: r["n_tokens"] for r in found.tables["datasets"].to_pylist()}
    assert (counts["relative"], counts["cosine"]) == (4, 2)
    assert not any("NaN" in note for note in found.notes)


def groups_of(rows, slot, mask_N):
    """Mean vectors in float64 of one set of tokens."""
    base, finetuned = (x[slot].astype(np.float32).astype(np.float64)[mask_N] for x in rows)
    return base.mean(0), finetuned.mean(0), finetuned - base


def masks(corpus=CORPUS):
    table = TokenTable.of(corpus)
    kept = table.position_N >= 1
    for name in ("all", *corpus.datasets):
        here = np.ones(len(table), dtype=bool) if name == "all" else table.dataset_N == corpus.datasets.index(name)
        yield name, "all", None, here & kept
        for p in range(5):
            yield name, "position", p, here & (table.position_N == p)


def test_mean_vectors_and_their_errors_agree_with_numpy(rows, output):
    table = {r["key"]: r for r in output.tables["vectors"].to_pylist()}
    for slot in SLOTS:
        for dataset, kind, position, mask_N in masks():
            key = f"{slot.name}/{dataset}/" + ("all" if kind == "all" else f"position_{position}")
            base_D, finetuned_D, delta_ND = groups_of(rows, slot, mask_N)
            mean_D, n = delta_ND.mean(0), len(delta_ND)
            np.testing.assert_allclose(output.tensors[f"{key}/mean_delta"].numpy(), mean_D, rtol=1e-5, atol=1e-6)
            if kind == "all":
                np.testing.assert_allclose(output.tensors[f"{key}/mean_base"].numpy(), base_D, rtol=1e-5, atol=1e-6)
                found = output.tensors[f"{key}/mean_finetuned"].numpy()
                np.testing.assert_allclose(found, finetuned_D, rtol=1e-5, atol=1e-6)
            row = table[key]
            assert (row["layer"], row["site"], row["dataset"], row["kind"]) == (*slot, dataset, kind)
            assert (row["position"], row["n_tokens"]) == (position, n)
            spread = ((delta_ND - mean_D) ** 2).sum(1).mean()
            assert row["norm"] == pytest.approx(np.linalg.norm(mean_D), rel=1e-5)
            assert row["stderr"] == pytest.approx(math.sqrt(spread / n), rel=1e-5)
            assert row["explained"] == pytest.approx((mean_D @ mean_D) / (delta_ND**2).sum(1).mean(), rel=1e-5)
            base_norms = np.linalg.norm(rows[0][slot][mask_N], axis=1)
            assert row["mean_norm_base"] == pytest.approx(base_norms.mean(), rel=1e-5)


def test_template_tokens_have_vectors_the_most_frequent_first(rows, source, output, tmp_path):
    table = output.tables["vectors"].to_pandas()
    assert set(table[table.kind == "template"].token_id) == {1, 60, 61}
    assert set(table[table.kind == "template"].dataset) == {"all", "chat"}
    assert (table[table.token_id == 1].token == "<|im_start|>").all()
    fewer = output_of(source, tmp_path, NormDiffConfig(max_template_tokens=1, n_vector_positions=0))
    table = fewer.tables["vectors"].to_pandas()
    assert set(table.kind) == {"all", "template"}
    assert set(table[table.kind == "template"].token_id) == {1}
    tokens = TokenTable.of(CORPUS)
    for token_id in (60, 61):
        mask_N = tokens.is_template_N & (tokens.ids_N == token_id)
        delta_ND = groups_of(rows, SLOTS[0], mask_N)[2]
        found = output.tensors[f"layer_00/residual/chat/template_{token_id}/mean_delta"].numpy()
        np.testing.assert_allclose(found, delta_ND.mean(0), rtol=1e-5, atol=1e-6)


def test_tensors_are_those_of_the_table_and_can_be_saved(output):
    from safetensors.torch import save

    table = output.tables["vectors"].to_pandas()
    assert table.key.is_unique
    expected = {f"{k}/mean_delta" for k in table.key}
    for name in ("mean_base", "mean_finetuned"):
        expected |= {f"{k}/{name}" for k in table[table.kind == "all"].key}
    assert set(output.tensors) == expected
    assert {v.dtype for v in output.tensors.values()} == {torch.float32}
    save(dict(output.tensors))


def test_large_bfloat16_rows_keep_their_mean_difference(tmp_path):
    corpus = make_corpus({"web": [60] * 40})
    rng = np.random.default_rng(0)
    base = torch.from_numpy(rng.normal(size=(2400, WIDTH)) * 4 + 300).bfloat16()
    finetuned = (base.double() + torch.from_numpy(rng.normal(size=(2400, WIDTH)) * 3 + 1)).bfloat16()
    found = output_of(Memory(corpus, {Slot(0): base}, {Slot(0): finetuned}), tmp_path)
    kept = TokenTable.of(corpus).position_N >= 1
    exact = (finetuned.double() - base.double()).numpy()[kept].mean(0)
    mean_D = found.tensors["layer_00/residual/all/all/mean_delta"].numpy()
    np.testing.assert_allclose(mean_D, exact, rtol=1e-3)
    base_D = found.tensors["layer_00/residual/all/all/mean_base"].numpy()
    np.testing.assert_allclose(base_D, base.double().numpy()[kept].mean(0), rtol=1e-5)


def test_dataset_statistics_follow_from_the_tokens(tokens, output):
    kept = tokens[tokens.kept]
    seen = set()
    for row in output.tables["datasets"].to_pylist():
        here = of_slot(kept, Slot(row["layer"], row["site"]))
        values = here[here.dataset == row["dataset"]].set_index("sequence")[row["metric"]]
        seen.add((row["dataset"], row["layer"], row["site"], row["metric"]))
        assert (row["n_tokens"], row["n_sequences"]) == (len(values), values.index.nunique())
        assert row["mean"] == pytest.approx(values.mean())
        assert row["sd"] == pytest.approx(values.std())
        assert row["median"] == pytest.approx(values.median())
        for share in (5, 25, 75, 95, 99):
            assert row[f"p{share}"] == pytest.approx(values.quantile(share / 100))
        assert row["maximum"] == values.max()
        assert row["low"] <= row["mean"] <= row["high"]
        noise = {"norm_diff": NOISE["norm"], "relative": NOISE["relative"], "cosine": NOISE["cosine"]}
        assert row["null"] == noise.get(row["metric"])
    assert seen == {(d, *s, m) for d in CORPUS.datasets for s in SLOTS for m in METRICS}


def test_dataset_intervals_are_those_of_the_bootstrap_over_sequences(tokens, output):
    kept = of_slot(tokens[tokens.kept], SLOTS[1])
    values = kept[kept.dataset == "web"].groupby("sequence").relative
    expected = ratio_interval(values.sum().to_numpy(), values.count().to_numpy(), generator(0, "test"), 4000)
    row = next(
        r
        for r in output.tables["datasets"].to_pylist()
        if (r["dataset"], r["layer"], r["site"], r["metric"]) == ("web", 2, "residual", "relative")
    )
    width = expected.high - expected.low
    assert row["low"] == pytest.approx(expected.low, abs=0.1 * width)
    assert row["high"] == pytest.approx(expected.high, abs=0.1 * width)


def test_positions_follow_from_the_tokens_and_leave_none_out(tokens, output):
    table = output.tables["positions"].to_pandas()
    assert table.position.min() == 0
    assert table.position.max() == 16
    keys = ["dataset", "layer", "site", "position"]
    expected = tokens.groupby(keys)[METRICS].mean().rename(columns=lambda m: f"mean_{m}")
    counts = tokens.groupby(keys).sequence.nunique()
    found = table.set_index(keys)
    assert len(found) == len(expected)
    pd.testing.assert_frame_equal(found[expected.columns].sort_index(), expected.sort_index(), rtol=1e-6)
    assert (found.n_sequences.sort_index() == counts.sort_index()).all()
    several = table[table.n_sequences > 2]
    assert ((several.low <= several.mean_relative) & (several.mean_relative <= several.high)).all()
    assert table[table.n_sequences == 1][["low", "high"]].isna().all(axis=None)


def test_positions_end_where_asked(source, tmp_path):
    table = output_of(source, tmp_path, NormDiffConfig(max_positions=3)).tables["positions"]
    assert set(table["position"].to_pylist()) == {0, 1, 2}


def test_roles_follow_from_the_tokens(tokens, output):
    kept = tokens[tokens.kept]
    keys = ["dataset", "layer", "site", "role", "is_template"]
    expected = kept.groupby(keys)[["norm_diff", "relative", "cosine"]].mean().rename(columns=lambda m: f"mean_{m}")
    found = output.tables["roles"].to_pandas().set_index(keys)
    pd.testing.assert_frame_equal(found[expected.columns].sort_index(), expected.sort_index(), rtol=1e-6)
    assert (found.n_tokens.sort_index() == kept.groupby(keys).size().sort_index()).all()
    assert ("chat", 0, "residual", "user", True) in found.index


def test_template_tokens_can_be_left_out_of_statistics_and_stay_in_their_own_table(source, tokens, tmp_path):
    found = output_of(source, tmp_path, skip_template_tokens=True)
    assert not found.tables["roles"].to_pandas().is_template.any()
    content = of_slot(tokens[tokens.kept & ~tokens.is_template & (tokens.dataset == "chat")], SLOTS[0])
    row = next(r for r in found.tables["datasets"].to_pylist() if (r["dataset"], r["metric"]) == ("chat", "relative"))
    assert row["mean"] == pytest.approx(content.relative.mean())
    written = found.tables["template_tokens"].to_pandas()
    assert set(written.token_id) == {1, 60, 61}
    mine = of_slot(tokens[tokens.is_template & (tokens.token_id == 61)], SLOTS[1])
    row = of_slot(written[written.token_id == 61], SLOTS[1]).iloc[0]
    assert row.n_tokens == len(mine)
    for metric in ("norm_diff", "relative", "cosine"):
        assert row[f"mean_{metric}"] == pytest.approx(mine[metric].mean())


def test_documents_follow_from_the_tokens(tokens, output):
    kept = tokens[tokens.kept]
    keys = ["dataset", "sequence", "layer", "site"]
    grouped = kept.groupby(keys)
    expected = grouped[["norm_diff", "relative", "cosine"]].mean().rename(columns=lambda m: f"mean_{m}")
    found = output.tables["sequences"].to_pandas().set_index(keys)
    pd.testing.assert_frame_equal(found[expected.columns].sort_index(), expected.sort_index(), rtol=1e-6)
    assert (found.n_tokens.sort_index() == grouped.size().sort_index()).all()
    np.testing.assert_allclose(found.max_relative.sort_index(), grouped.relative.max().sort_index(), rtol=1e-6)
    slot = example_slot(output)
    means = of_slot(kept, slot).groupby(["dataset", "sequence"]).relative.mean().sort_values(ascending=False)
    scores = output.tables["document_scores"].to_pandas()
    np.testing.assert_allclose(scores.score, means.to_numpy(), rtol=1e-6)
    assert list(zip(scores.dataset, scores.document, strict=True)) == means.index.tolist()


def example_slot(output):
    layer, _, site = output.facts["example_slot"].partition("/")
    return Slot(int(layer.removeprefix("layer_")), site)


def test_tokens_are_ranked_by_their_shrunk_excess(tokens, output):
    mine = of_slot(tokens[tokens.kept], example_slot(output))
    overall = mine.relative.mean()
    table = output.tables["token_scores"].to_pandas()
    assert table.score.is_monotonic_decreasing
    assert set(table.token_id) == set(mine.token_id)
    for row in table.itertuples():
        values = mine[mine.token_id == row.token_id].relative
        n = len(values)
        assert row.score == pytest.approx(n / (n + 5) * (values.mean() - overall), rel=1e-6, abs=1e-9)
    n_documents = mine.groupby("token_id")[["dataset", "sequence"]].apply(lambda g: len(g.drop_duplicates()))
    alone = n_documents[n_documents == 1].index
    assert table[table.token_id.isin(alone)].stderr.isna().all()
    assert (table[~table.token_id.isin(alone)].stderr >= 0).all()
    assert [t.token_ids[0] for t in output.evidence.tokens] == table[table.score > 0].token_id.tolist()
    assert all(t.claimed is None for t in output.evidence.tokens)


def test_a_planted_token_leads_the_ranking_and_the_examples(tmp_path):
    corpus = make_corpus({"web": [20] * 10}, seed=3)
    tokens = TokenTable.of(corpus)
    base, finetuned = activations(corpus, (Slot(0), Slot(4)), change=0.01)
    planted = tokens.ids_N == 45
    finetuned[Slot(4)][planted] += 2.0
    found = output_of(source_of(base, finetuned, corpus), tmp_path)
    assert example_slot(found) == Slot(4)
    assert found.evidence.tokens[0].token_ids == (45,)
    scores = found.tables["token_scores"]["score"].to_pylist()
    assert scores[0] > 10 * max(scores[1], 0)
    best = found.evidence.examples[0]
    top = max(best.spans, key=lambda s: s.value)
    assert best.text[top.start : top.end] == tiny_tokenizer().decode([45])


def test_examples_are_the_top_tokens_and_documents(tokens, output):
    mine = of_slot(tokens[tokens.kept], example_slot(output))
    table = output.tables["examples"].to_pandas()
    assert set(zip(table.metric, table.ranking, strict=True)) == {
        ("relative", "peak"),
        ("norm_diff", "peak"),
        ("cosine", "peak"),
        ("relative", "mean"),
    }
    for (dataset, metric, ranking), rows in table.groupby(["dataset", "metric", "ranking"]):
        by_document = mine[mine.dataset == dataset].groupby("sequence")[metric]
        expected = (by_document.max() if ranking == "peak" else by_document.mean()).sort_values(ascending=False)
        assert rows["rank"].tolist() == list(range(len(expected)))
        np.testing.assert_allclose(rows.score, expected.to_numpy(), rtol=1e-6)
    of_documents = {(s.dataset, s.index): s for s in CORPUS.sequences}
    for row in table.itertuples():
        ids = of_documents[row.dataset, row.sequence].ids[row.start : row.start + len(row.token_ids)]
        assert list(row.token_ids) == ids.tolist()
        here = of_slot(tokens, example_slot(output))
        here = here[(here.dataset == row.dataset) & (here.sequence == row.sequence)]
        for metric in METRICS:
            expected = here[metric].iloc[row.start : row.start + len(ids)]
            np.testing.assert_allclose(getattr(row, metric), expected)
        if row.ranking == "peak":
            assert getattr(row, row.metric)[row.peak - row.start] == row.score
        for token, start, end in zip(row.tokens, row.starts, row.ends, strict=True):
            assert row.text[start:end] == token


def test_the_window_of_an_example_is_cut_around_its_peak(source, tmp_path):
    config = NormDiffConfig(n_examples=1, context_before=2, context_after=1)
    table = output_of(source, tmp_path, config).tables["examples"].to_pandas()
    assert set(table["rank"]) == {0}
    for row in table[table.ranking == "peak"].itertuples():
        length = next(len(s.ids) for s in CORPUS.sequences if (s.dataset, s.index) == (row.dataset, row.sequence))
        assert row.start == max(0, row.peak - 2)
        assert row.start + len(row.token_ids) == min(length, row.peak + 2)


def test_the_summary_is_of_the_example_layer(tokens, output):
    slot = example_slot(output)
    kept = tokens[tokens.kept]
    by_slot = kept[kept.site == "residual"].groupby("layer").relative.mean()
    assert slot == Slot(int(by_slot.idxmax()))
    assert any(slot.name in note for note in output.notes)
    for metric, unit in (("relative", NOISE["relative"]), ("norm_diff", NOISE["norm"]), ("cosine", NOISE["cosine"])):
        means = of_slot(kept, slot).groupby("dataset")[metric].mean()
        for name in CORPUS.datasets:
            (scalar,) = [s for s in output.summary if name in s.name and s.value == pytest.approx(means[name])]
            assert scalar.low <= scalar.value <= scalar.high
            assert scalar.null == unit
    assert [s.name for s in output.summary] == [s.name for s in output.evidence.scalars]
    assert "a sentence of the source" in output.notes
    assert output.facts["activations"] == {"store": "memory"}


def test_the_example_layer_can_be_chosen_among_those_read(source, tmp_path):
    assert example_slot(output_of(source, tmp_path / "a", NormDiffConfig(example_layer=0))) == Slot(0)
    with pytest.raises(UserError, match=r"example_layer=1 .*0, 2"):
        output_of(source, tmp_path / "b", NormDiffConfig(example_layer=1))
    assert not list((tmp_path / "b").iterdir())


def test_values_that_are_not_finite_are_left_out_counted_and_named(rows, tmp_path):
    base, finetuned = ({s: x.copy() for s, x in side.items()} for side in rows)
    base[Slot(2)][11, 3], finetuned[Slot(2)][12, 0], finetuned[Slot(2)][12, 5] = np.nan, np.inf, -np.inf
    found = output_of(source_of(base, finetuned), tmp_path)
    frame = found.tables["tokens"].to_pandas()
    broken = of_slot(frame, Slot(2)).iloc[[11, 12]]
    assert broken[METRICS].isna().all(axis=None)
    assert not of_slot(frame, Slot(0))[METRICS].isna().any(axis=None)
    assert found.tables["tokens"]["relative"].null_count == 2
    assert not np.isnan(found.tables["tokens"]["relative"].drop_null().to_numpy()).any()
    assert found.facts["not_finite"]["layer_02/residual"] == 2
    notes = [n for n in found.notes if "NaN" in n]
    assert len(notes) == 1
    assert "layer_02/residual" in notes[0]
    assert "2 tokens" in notes[0]
    row = next(
        r
        for r in found.tables["datasets"].to_pylist()
        if (r["dataset"], r["layer"], r["site"], r["metric"]) == ("web", 2, "residual", "norm_diff")
    )
    kept = of_slot(frame, Slot(2))
    kept = kept[kept.kept & (kept.dataset == "web")].norm_diff
    assert row["n_tokens"] == kept.notna().sum() == kept.size - 2
    assert row["mean"] == pytest.approx(kept.mean())
    good = np.setdiff1d(np.flatnonzero(TokenTable.of(CORPUS).position_N >= 1), [11, 12])
    mean_D = groups_of((base, finetuned), Slot(2), good)[2].mean(0)
    np.testing.assert_allclose(found.tensors["layer_02/residual/all/all/mean_delta"].numpy(), mean_D, rtol=1e-5)
    assert all(torch.isfinite(v).all() for v in found.tensors.values())


def test_a_layer_without_any_finite_row_is_left_out_and_all_layers_are_refused(rows, tmp_path):
    base, finetuned = rows
    lost = {**finetuned, Slot(2): np.full_like(finetuned[Slot(2)], np.nan)}
    found = output_of(source_of(base, lost), tmp_path / "one")
    assert example_slot(found) == Slot(0)
    datasets = found.tables["datasets"].to_pandas()
    assert set(zip(datasets.layer, datasets.site, strict=True)) == {(0, "residual"), (2, "mlp")}
    nothing = {s: np.full_like(x, np.nan) for s, x in finetuned.items()}
    with pytest.raises(UserError, match="NaN"):
        output_of(source_of(base, nothing), tmp_path / "all")


def test_one_document_of_one_token(tmp_path):
    corpus = make_corpus({"web": [1]})
    base, finetuned = activations(corpus, (Slot(0),))
    found = output_of(source_of(base, finetuned, corpus), tmp_path, skip_first_tokens=0)
    row = found.tables["datasets"].to_pylist()[0]
    assert (row["n_tokens"], row["low"], row["high"], row["sd"]) == (1, None, None, None)
    assert found.tables["token_scores"].to_pylist()[0]["stderr"] is None
    assert found.evidence.tokens == ()
    assert len(found.evidence.examples) == 1
    assert {r["stderr"] for r in found.tables["vectors"].to_pylist()} == {None}
    with pytest.raises(UserError, match="skip_first_tokens"):
        output_of(source_of(base, finetuned, corpus), tmp_path / "none", skip_first_tokens=1)


def test_a_dataset_that_is_left_out_whole_is_left_out_of_the_tables(tmp_path):
    corpus = make_corpus({"web": [3, 2], "chat": [12, 9]})
    base, finetuned = activations(corpus)
    found = output_of(source_of(base, finetuned, corpus), tmp_path, skip_first_tokens=4)
    assert set(found.tables["datasets"]["dataset"].to_pylist()) == {"chat"}
    assert set(found.tables["positions"]["dataset"].to_pylist()) == {"web", "chat"}
    assert {s.name.split(" · ")[1] for s in found.summary} == {"chat"}


def test_sequences_that_the_source_does_not_cover_are_nowhere(rows, source, tokens, tmp_path):
    part = source_of(*rows, block_sequences=[[5, 7], [4, 0], [2]])
    found = output_of(part, tmp_path)
    frame = found.tables["tokens"].to_pandas()
    covered = [CORPUS.sequences[i] for i in (0, 2, 4, 5, 7)]
    wanted = {(s.dataset, s.index) for s in covered}
    assert set(zip(frame.dataset, frame.sequence, strict=True)) == wanted
    expected = tokens[[pair in wanted for pair in zip(tokens.dataset, tokens.sequence, strict=True)]]
    keys = ["layer", "site", "dataset", "sequence", "position"]
    pd.testing.assert_frame_equal(
        frame.sort_values(keys, ignore_index=True), expected.sort_values(keys, ignore_index=True)
    )
    assert found.facts["not_finite"] == dict.fromkeys([s.name for s in SLOTS], 0)
    assert not any("NaN" in n for n in found.notes)


def test_an_interrupted_run_goes_on_and_gives_the_same_bits(rows, source, output, tmp_path):
    stopped = source_of(*rows)
    stopped.stop_at = 5
    with pytest.raises(KeyboardInterrupt):
        output_of(stopped, tmp_path)
    kept = sorted(tmp_path.iterdir())
    assert kept
    assert not [p for p in kept if p.name.startswith(".")]
    kept[1].write_bytes(kept[1].read_bytes()[:200])
    resumed = source_of(*rows)
    found = output_of(resumed, tmp_path)
    assert len(resumed.asked) == len(CORPUS.sequences) - len(kept) + 1
    assert 1 in resumed.asked
    assert 0 not in resumed.asked
    for name, table in output.tables.items():
        assert found.tables[name].equals(table), name
    assert list(found.tensors) == list(output.tensors)
    for name, vector in output.tensors.items():
        assert torch.equal(found.tensors[name], vector), name
    assert found.summary == output.summary
    again = source_of(*rows)
    output_of(again, tmp_path)
    assert again.asked == []


def test_finished_pieces_are_few(tmp_path):
    corpus = make_corpus({"web": [2] * 300})
    output_of(source_of(*activations(corpus, (Slot(0),)), corpus), tmp_path)
    assert 32 <= len(list(tmp_path.iterdir())) <= 70


@pytest.mark.parametrize("most", [60, 51, 7, 3])
def test_the_token_table_is_capped_by_whole_sequences(source, output, tokens, most, tmp_path):
    found = output_of(source, tmp_path, NormDiffConfig(max_token_rows=most))
    frame = found.tables["tokens"].to_pandas()
    assert 0 < len(frame) <= most
    if most >= len(SLOTS) * max(len(s.ids) for s in CORPUS.sequences):
        lengths = frame.groupby(["dataset", "sequence", "layer", "site"]).size()
        whole = {(s.dataset, s.index): len(s.ids) for s in CORPUS.sequences}
        assert all(n == whole[key[:2]] for key, n in lengths.items())
    assert found.tables["datasets"].equals(output.tables["datasets"])
    assert len(tokens) > most


def test_a_kept_attention_sink_is_pointed_out(tmp_path):
    corpus = make_corpus({"web": [30] * 6})
    base, finetuned = activations(corpus, (Slot(0), Slot(3)))
    for slot in base:
        base[slot][TokenTable.of(corpus).position_N == 1] *= 500
    source = source_of(base, finetuned, corpus)
    notes = output_of(source, tmp_path / "one").notes
    assert [n for n in notes if "skip_first_tokens=2" in n]
    notes = output_of(source, tmp_path / "two", skip_first_tokens=2).notes
    assert not [n for n in notes if "skip_first_tokens=" in n]


def test_a_bos_of_the_tokenizer_is_left_out_of_statistics(tmp_path):
    corpus = make_corpus({"web": [6, 7]})
    sequences = tuple(
        dataclasses.replace(s, ids=np.append([0], s.ids[1:]).astype(np.int32), is_special=np.arange(len(s.ids)) == 0)
        for s in corpus.sequences
    )
    corpus = dataclasses.replace(corpus, sequences=sequences)
    source = source_of(*activations(corpus), corpus)
    found = output_of(source, tmp_path, skip_first_tokens=0, tokenizer=tiny_tokenizer(adds_bos=True))
    frame = found.tables["tokens"].to_pandas()
    assert (frame.kept == (frame.position > 0)).all()


def test_layers_that_are_asked_for():
    default = METHOD.needs(NormDiffConfig())
    assert default.layers == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert default.live_layers == ("all",)
    assert default.sites is None
    assert default.with_preprocessing_layers
    chosen = METHOD.needs(parse(NormDiffConfig, {"layers": [0.5, -1], "sites": ["mlp"]}))
    assert chosen.layers == chosen.live_layers == (0.5, -1)
    assert chosen.sites == ("mlp",)
    assert not chosen.with_preprocessing_layers
    assert chosen.option == "diffing.method.layers"


@pytest.mark.parametrize("slots", [(Slot(3),), SLOTS, (Slot(1, "mlp"), Slot(5, "attention"))])
@pytest.mark.parametrize("kind", ["changed", "identical", "broken"])
def test_figures_and_sections_are_made_of_any_result(slots, kind, tmp_path):
    base, finetuned = activations(slots=slots)
    if kind == "identical":
        finetuned = base
    if kind == "broken":
        finetuned[slots[0]][20:30] = np.nan
    found = output_of(source_of(base, finetuned), tmp_path)
    result = Finished(found)
    made = METHOD.figures(result)
    assert set(made) == {"layers", "layer_position", "layer_dataset", "distribution"}
    for figure in made.values():
        assert {trace.type for trace in figure.data} <= {"scatter", "heatmap", "bar", "histogram"}
        figure.to_json()
    grid = made["layer_dataset"].data[0]
    values = [v for row in grid.z for v in row if v is not None]
    assert (grid.zmin, grid.zmax) == (0, max(values) or 1.0)
    shown = METHOD.section(result).blocks
    assert {b.name for b in shown if type(b).__name__ == "Figure"} == set(made)
    for block in shown:
        if type(block).__name__ == "HeatmapList":
            values = [t.value for item in block.items for t in item.tokens if t.value is not None]
            assert values
            assert max(values) <= block.maximum
    assert METHOD.headline(result).blocks


class Finished:
    """Stands in for a written result."""

    def __init__(self, output):
        self._output = output
        self.manifest = {"facts": dict(output.facts)}

    def table(self, name):
        return self._output.tables[name]


@pytest.mark.slow
def test_from_disk_and_live_it_is_the_same(tiny_pair, texts, tmp_path):
    disk, live = (
        diffing.run("normdiff", tiny_pair(), data=texts, base_dir=tmp_path / store, store=store)
        for store in ("disk", "live")
    )
    assert {r["layer"] for r in disk.table("datasets").to_pylist()} == {0, 1, 2}
    for name in disk.tables():
        assert disk.table(name).equals(live.table(name)), name
    tensors = live.tensors()
    assert all(torch.equal(v, tensors[k]) for k, v in disk.tensors().items())
