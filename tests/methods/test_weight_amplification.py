"""`weight_amplification` against pairs loaded with the factor; its null, what breaks, its export; amplified pairs."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import diffing
from diffing.core.amplification import uniform
from diffing.core.config import parse
from diffing.core.errors import UserError
from diffing.methods.weight_amplification import run as run_module
from diffing.methods.weight_amplification.config import WeightAmplificationConfig
from diffing.methods.weight_amplification.gather import Gathered, Outcome
from diffing.methods.weight_amplification.plan import Setting
from diffing.methods.weight_amplification.writing import Written
from diffing.models.pair import load_pair
from diffing.models.tiny import save_adapter, save_model, save_pair, tiny_model, tiny_tokenizer
from workbench import manifest, run_folders, sentences, tables

SHARINGS = ["adapter", *(pytest.param(s, marks=pytest.mark.slow) for s in ("merged", "separate"))]
QUICK = {"n_prompts": 3, "max_new_tokens": 4}
FRESH = tuple(range(9))
TEXTS = [row["text"] for row in sentences(6)]


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    root = tmp_path_factory.mktemp("amplification")
    adapter = save_pair(root / "a")
    return {
        "adapter": adapter.model_copy(update={"sharing": "adapter"}),
        "merged": adapter.model_copy(update={"sharing": "merged"}),
        "separate": save_pair(root / "f", full=True),
    }


@pytest.fixture(scope="module")
def results(specs, tmp_path_factory):
    """A result for each way of sharing, computed once."""
    done = {}

    def result(sharing, **options):
        key = (sharing, *sorted(options))
        if key not in done:
            folder = tmp_path_factory.mktemp("out")
            pair = load_pair(specs[sharing])
            done[key] = diffing.run("weight_amplification", pair, TEXTS, base_dir=folder, **{**QUICK, **options})
        return done[key]

    return result


def rows(result, table, **wanted):
    return [r for r in result.table(table).to_pylist() if all(r[k] == v for k, v in wanted.items())]


def means_by_hand(pair, n_tokens=48):
    """Mean KL(finetuned ‖ base) and ΔNLL over tokens, in float64."""
    kl, nll = [], []
    for text in TEXTS:
        ids = pair.tokenizer(text)["input_ids"][:n_tokens]
        with torch.no_grad():
            lp, lq = (
                h.forward_logits(torch.tensor([ids]))[0].double().log_softmax(-1) for h in (pair.finetuned, pair.base)
            )
        kl += (lp.exp() * (lp - lq)).sum(-1).tolist()
        nll += [float(lq[t, i] - lp[t, i]) for t, i in enumerate(ids[1:])]
    return float(np.mean(kl)), float(np.mean(nll))


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("factor", [-1.0, 0.5, 2.0])
def test_effects_are_those_of_pairs_loaded_with_the_factor(sharing, factor, specs, results):
    expected = means_by_hand(load_pair(specs[sharing].model_copy(update={"amplification": uniform(factor)})))
    found = [
        rows(results(sharing), "effects", part="whole", factor=factor, metric=m)[0]["mean"] for m in ("kl", "delta_nll")
    ]
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_factor_zero_is_the_null_and_factor_one_the_pair(sharing, specs, results):
    result = results(sharing)
    zero = rows(result, "effects", part="whole", factor=0.0)
    assert {r["mean"] for r in zero} == {r["low"] for r in zero} == {0.0}
    one = {r["metric"]: r for r in rows(result, "effects", part="whole", factor=1.0)}
    assert (one["kl"]["mean"], one["delta_nll"]["mean"]) == pytest.approx(
        means_by_hand(load_pair(specs[sharing])), rel=1e-3, abs=1e-4
    )
    assert one["kl"]["relative"] == 1
    assert all(s["null"] == 0 for s in result.summary if "KL ×" in s["name"] and "exponent" not in s["name"])


@pytest.mark.parametrize("factor", [0.0, 1.0, 3.0])
def test_texts_are_those_of_pairs_loaded_with_the_factor(factor, specs, results):
    from diffing.methods.weight_amplification.writing import Writer, chosen_prompts

    config = WeightAmplificationConfig(**QUICK)
    pair = load_pair(specs["adapter"].model_copy(update={"amplification": uniform(factor)}))
    prompts, _ = chosen_prompts(config, pair)
    expected = [m.text for m in Writer(pair, prompts, config, 0).write(lambda n: None)]
    found = rows(results("adapter"), "texts", factor=factor)
    assert [r["text"] for r in found] == expected
    assert {r["kind"] for r in found} == {"raw", "chat"}
    assert any(r["differs"] for r in found) == (factor != 0)


def test_judged_by_both_models_as_they_were_loaded(specs, results):
    from diffing.methods.weight_amplification.writing import Writer, chosen_prompts

    config = WeightAmplificationConfig(**QUICK)
    pair = load_pair(specs["adapter"])
    prompts, _ = chosen_prompts(config, pair)
    amplified = load_pair(specs["adapter"].model_copy(update={"amplification": uniform(2)}))
    made = Writer(amplified, prompts, config, 0).write(lambda n: None)
    for row, prompt, text in zip(rows(results("adapter"), "texts", factor=2.0), prompts, made, strict=True):
        ids, start = torch.tensor([[*prompt.ids, *text.ids]]), len(prompt.ids)
        for handle, column in ((pair.base, "log_prob_base"), (pair.finetuned, "log_prob_ft")):
            lp = handle.forward_logits(ids)[0].double().log_softmax(-1)
            mean = np.mean([float(lp[start + i - 1, t]) for i, t in enumerate(text.ids)])
            assert row[column] == pytest.approx(mean, abs=1e-4)


def test_parts_of_the_map(specs, results):
    settings = rows(results("adapter"), "settings")
    parts = [s for s in settings if s["part"] != "whole"]
    assert [s["part"] for s in parts] == [f"{t} {k}" for t in ("early", "middle", "late") for k in ("attention", "mlp")]
    assert sum(s["n_modules"] for s in parts) == settings[0]["n_modules"] == 21
    late = {"layers": "2-2", "modules": ["mlp"], "factor": 1}
    alone = diffing.load_pair(
        str(specs["adapter"].model.id), adapter=specs["adapter"].finetuned.id, sharing="adapter", device_map="cpu",
        amplification=[{"factor": 0}, late],
    )  # fmt: skip
    (found,) = rows(results("adapter"), "effects", part="late mlp", metric="kl")
    assert found["mean"] == pytest.approx(means_by_hand(alone)[0], rel=1e-3)


@pytest.mark.slow
def test_a_full_finetune_has_norms_in_its_map(results):
    assert {"early other", "late other"} <= {s["part"] for s in rows(results("separate"), "settings")}


def test_growth_is_the_slope_of_log_kl(results):
    kl = {r["factor"]: r["mean"] for r in rows(results("adapter"), "effects", part="whole", metric="kl")}
    growth = rows(results("adapter"), "growth")
    assert [(g["from_factor"], g["to_factor"]) for g in growth] == [(0.5, 1), (1, 1.5), (1.5, 2), (2, 3)]
    for g in growth:
        a, b = g["from_factor"], g["to_factor"]
        assert g["exponent"] == pytest.approx(np.log(kl[b] / kl[a]) / np.log(b / a))
        assert g["low"] <= g["exponent"] <= g["high"]


def test_token_scores_add_up_to_the_mean_kl(results):
    result = results("adapter")
    factor = result.manifest["facts"]["looked_at"]
    (kl,) = rows(result, "effects", part="whole", factor=factor, metric="kl")
    assert sum(result.table("token_scores")["score"].to_pylist()) == pytest.approx(kl["mean"], rel=1e-5)


def test_a_factor_that_breaks_the_model_is_said_and_the_run_goes_on(results):
    result = results("adapter", factors=(3e38, 2.0))
    (broken,) = rows(result, "settings", factor=3e38)
    assert "NaN or infinite logits" in broken["problem"]
    assert {r["mean"] for r in rows(result, "effects", factor=3e38)} == {None}
    assert not rows(result, "texts", factor=3e38)
    assert rows(result, "effects", factor=2.0, metric="kl")[0]["mean"] > 0
    assert any("×3e+38" in n for n in result.manifest["notes"])


@pytest.mark.slow
@pytest.mark.parametrize("texts", [["ab"], ["a thin line"], ["ab", "ab"]])
def test_little_text(texts, specs, tmp_path):
    pair = load_pair(specs["adapter"])
    result = diffing.run("weight_amplification", pair, texts, base_dir=tmp_path, **QUICK)
    for row in rows(result, "effects", part="whole", factor=2.0, metric="kl"):
        assert row["mean"] > 0
        assert (row["low"] is None) == (len(texts) == 1)


@pytest.mark.slow
def test_vocabularies_of_different_size(tmp_path, specs):
    wide = tiny_model(vocab_size=270, seed=4)
    save_model(tmp_path / "w", wide, tiny_tokenizer(extra_tokens=("zebra", "quokka", "okapi")))
    pair = diffing.load_pair(str(specs["separate"].model.id), finetuned=str(tmp_path / "w"), device_map="cpu")
    result = diffing.run("weight_amplification", pair, TEXTS, base_dir=tmp_path / "out", **QUICK)
    (zero,) = rows(result, "effects", part="whole", factor=0.0, metric="kl")
    assert zero["mean"] == pytest.approx(0, abs=1e-6), "shared rows are the base's; what the base has not is cut"
    assert rows(result, "effects", part="whole", factor=1.0, metric="kl")[0]["mean"] > 0.01


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_bits(specs, tmp_path, monkeypatch):
    pair, done = load_pair(specs["adapter"]), []
    whole = diffing.run("weight_amplification", pair, TEXTS, base_dir=tmp_path / "whole", **QUICK)
    effect, write = run_module.SliceReader.effect, run_module.Writer.write

    def counted(self, advance):
        done.append("effect")
        return effect(self, advance)

    def stops(self, advance):
        if done.count("text") == 2:
            raise KeyboardInterrupt
        done.append("text")
        return write(self, advance)

    monkeypatch.setattr(run_module.SliceReader, "effect", counted)
    monkeypatch.setattr(run_module.Writer, "write", stops)
    with pytest.raises(KeyboardInterrupt):
        diffing.run("weight_amplification", pair, TEXTS, base_dir=tmp_path / "cut", **QUICK)
    assert (done.count("effect"), done.count("text")) == (13, 2)
    monkeypatch.setattr(run_module.Writer, "write", lambda self, advance: done.append("later") or write(self, advance))
    again = diffing.run("weight_amplification", pair, TEXTS, base_dir=tmp_path / "cut", **QUICK)
    assert (done.count("effect"), done.count("later")) == (13, 5)
    assert {n: t.equals(tables(whole.folder)[n]) for n, t in tables(again.folder).items()} == dict.fromkeys(
        whole.tables(), True
    )


@pytest.mark.slow
def test_the_exported_adapter_is_the_amplified_pair(specs, tmp_path):
    pair = load_pair(specs["adapter"])
    result = diffing.run("weight_amplification", pair, TEXTS, base_dir=tmp_path, export_factor="double", **QUICK)
    folder = result.folder / "files" / "adapter"
    assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    exported = diffing.load_pair(
        str(specs["adapter"].model.id), adapter=str(folder), sharing="adapter", device_map="cpu"
    )
    expected = load_pair(specs["adapter"].model_copy(update={"amplification": uniform(2)}))
    ids = torch.arange(20, 40).view(2, 10)
    torch.testing.assert_close(
        exported.finetuned.forward_logits(ids), expected.finetuned.forward_logits(ids), atol=1e-5, rtol=1e-5
    )
    assert "files/adapter/adapter_model.safetensors" in result.manifest["files"]


def gathered(texts_by_factor):
    """Settings of the whole change with texts of given ids and log-probability."""
    outcomes = []
    for number, (factor, (ids, log_prob)) in enumerate(texts_by_factor.items()):
        setting = Setting(number, "whole", factor, None, "all", "all", 1, uniform(factor))
        text = Written("", ids, False, log_prob, log_prob - 1)
        outcomes.append(Outcome(setting, None, [text, text], None if ids else "broken"))
    return Gathered(outcomes, None)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({1.5: (FRESH, -1.4), 2.0: (FRESH, -1.4)}, 2),
        ({1.5: (FRESH, -1.4), 2.0: ((1,) * 9, -1.4)}, 1.5),
        ({1.5: (FRESH, -1.4), 2.0: (FRESH, -3.0)}, 1.5),
        ({1.5: (FRESH, -3.0), 2.0: (FRESH, -1.4)}, 2),
        ({1.5: (FRESH, -3.0), 2.0: ((), -1.0)}, 1),
        ({0.5: (FRESH, -1.4)}, 1),
    ],
    ids=["both whole", "repeats itself", "loose words", "only the larger", "none", "none above 1"],
)
def test_the_factor_that_is_looked_at(texts, expected):
    plain = {0.0: (FRESH, -1.0), 1.0: (FRESH, -1.5)}
    assert gathered({**plain, **texts}).looked_at() == expected


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"factors": ["x"]}, ["diffing.method.factors", "x"]),
        ({"factors": [float("nan")]}, ["diffing.method.factors", "nan is no finite number"]),
        ({"factors": [2, float("inf")]}, ["diffing.method.factors", "inf is no finite number"]),
        ({"map_factor": float("nan")}, ["diffing.method.map_factor", "finite"]),
        ({"n_documents": 0}, ["diffing.method.n_documents", "0"]),
        ({"document_tokens": 1}, ["diffing.method.document_tokens", "1"]),
        ({"temperature": -1}, ["diffing.method.temperature", "-1"]),
        ({"export_factor": "doubel"}, ["diffing.method.export_factor='doubel'", "did you mean double"]),
    ],
)
def test_options_that_do_not_fit(options, parts):
    with pytest.raises(UserError) as caught:
        parse(WeightAmplificationConfig, {"name": "weight_amplification", **options}, "diffing.method")
    assert all(part in str(caught.value) for part in parts)


def test_zero_and_one_are_always_tried():
    assert WeightAmplificationConfig(factors=(2,)).grid == (0, 1, 2)
    assert parse(WeightAmplificationConfig, {"factors": 3}).grid == (0, 1, 3)


@pytest.mark.slow
def test_a_full_finetune_is_not_exported(specs, tmp_path):
    with pytest.raises(UserError, match=r"writes a scaled adapter and a full finetune is none"):
        diffing.run(
            "weight_amplification", load_pair(specs["separate"]), TEXTS, base_dir=tmp_path, export_factor=2, **QUICK
        )


@pytest.mark.slow
def test_on_the_command_line(command, bench, tmp_path):
    given = ["diffing/method=weight_amplification", "diffing.method.n_prompts=2", "diffing.method.max_new_tokens=2"]
    missing = bench.command(tmp_path / "o", *given, "diffing.method.prompts=no.txt")
    command(missing).sentence("no.txt")
    full = bench.command(tmp_path / "o", *given, "diffing.method.export_factor=2", finetuned=bench.full)
    command(full).sentence("export_factor", "a full finetune is none")
    other = tiny_model("llama", 5, num_hidden_layers=4)
    save_model(tmp_path / "deep", other, tiny_tokenizer())
    command(bench.command(tmp_path / "o", *given, finetuned=tmp_path / "deep")).sentence("models of one architecture")


@pytest.mark.slow
class TestOtherMethods:
    """`organism.amplification` for any method."""

    @pytest.fixture(scope="class")
    def ran(self, bench, tmp_path_factory):
        """Folders of `kl` by amplification."""
        from diffing.cli import main

        base_dir = tmp_path_factory.mktemp("kl")
        for more in (
            [],
            ["organism.amplification=1"],
            ["organism.amplification=0.5"],
            ["organism.amplification=late_only"],
        ):
            assert main(bench.command(base_dir, *more)) == 0
        return {manifest(f)["pair"]["variant"]: f for f in run_folders(base_dir)}

    def test_results_are_kept_apart_by_name(self, ran):
        assert set(ran) == {"default", "default×1", "default×0.5", "default×late_only"}
        assert {f.parent.parent.name for f in ran.values()} == {
            "adapter", "adapter+default_1", "adapter+default_0.5", "adapter+default_late_only",
        }  # fmt: skip
        prints = {v: manifest(f)["pair"]["fingerprint"] for v, f in ran.items()}
        assert prints["default"] == prints["default×1"]
        assert len(set(prints.values())) == 3
        assert "default×0.5" in (ran["default×0.5"] / "report.html").read_text(encoding="utf-8")

    def test_factor_one_gives_the_same_bits_and_others_do_not(self, ran):
        plain, one, half, late = (
            tables(ran[v])["tokens"] for v in ("default", "default×1", "default×0.5", "default×late_only")
        )
        assert one.equals(plain)
        means = [float(np.mean(t["kl"].to_pylist())) for t in (half, late, plain)]
        assert 0 < means[0] < means[2]
        assert means[1] not in (means[0], means[2])

    def test_manifests_say_what_was_done(self, ran):
        facts = manifest(ran["default×late_only"])["pair"]["facts"]["amplification"]
        assert facts["rules"][1] == {"factor": 1.0, "layers": "0.5-1.0", "modules": ["all"]}
        assert facts["n_modules"] == 21
        assert facts["n_scaled"] == 14
        assert manifest(ran["default"])["pair"]["facts"]["amplification"] is None
        assert any("amplified" in n for n in manifest(ran["default×0.5"])["notes"])

    @pytest.mark.parametrize(
        ("more", "parts"),
        [
            (["organism.amplification=doubel"], ["doubel", "did you mean double?"]),
            (["organism.amplification=nan"], ["finite"]),
            (["organism.amplification=[{modules:o_prj,factor:2}]"], ["o_prj", "did you mean o_proj"]),
            (["organism.amplification=2", "null_pair=identical"], ["null_pair=identical", "drop one"]),
            (["organism.amplification=rules.yaml"], ["rules.yaml", "cannot be read"]),
            (["organism.amplificaton=2"], ["organism.amplification"]),
        ],
    )
    def test_mistakes_are_one_sentence(self, more, parts, command, bench, tmp_path):
        command(bench.command(tmp_path / "out", *more)).sentence(*parts)

    def test_the_python_api_names_it_too(self, bench, tmp_path):
        pair = diffing.load_pair(str(bench.base), adapter=str(bench.adapter), device_map="cpu", amplification="half")
        result = diffing.run("kl", pair, TEXTS[:2], base_dir=tmp_path)
        assert result.manifest["pair"]["variant"] == "default×0.5"
        assert result.manifest["config"]["organism"]["amplification"]["rules"] == [
            {"factor": 0.5, "layers": "all", "modules": ["all"]}
        ]

    def test_a_file_of_rules(self, command, bench, tmp_path):
        rules = tmp_path / "mine.json"
        rules.write_text(json.dumps([{"layers": [0.5, 1.0], "modules": ["mlp"], "factor": 1.5}]))
        command(bench.command(tmp_path / "out", f"organism.amplification={rules}")).done()
        (folder,) = run_folders(tmp_path / "out")
        assert manifest(folder)["pair"]["variant"] == "default×mine"
        assert pq.read_table(folder / "tables" / "tokens.parquet").num_rows


@pytest.mark.slow
def test_an_adapter_of_attention_alone_has_half_a_map(tmp_path):
    spec = save_pair(tmp_path / "p").model_copy(update={"sharing": "adapter"})
    save_adapter(tmp_path / "p" / "finetuned", tiny_model(), target_modules=("q_proj",))
    result = diffing.run("weight_amplification", load_pair(spec), TEXTS, base_dir=tmp_path / "out", **QUICK)
    assert {s["modules"] for s in rows(result, "settings") if s["part"] != "whole"} == {"attention"}
    assert "map" in result.figures()
