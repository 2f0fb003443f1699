"""Published dictionaries give what their own libraries give, ours come back as they were written, and faults are told.

The folders in golden/ were written by the libraries themselves (`python benchmarks/dictionary_layouts.py --golden`).
crosscoder_learning is on no package index: what it gives is computed here in float64, from its documented forward pass.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffing.core.errors import UserError
from diffing.dictionaries.checkpoints import save_dictionary
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.layouts import Facts, expect, read_layout, write_layout
from diffing.dictionaries.spec import DictionarySpec

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(p.name for p in GOLDEN.iterdir())
WIDTH, LATENTS, SITES = 8, 32, 2


def close(ours, theirs):
    """Equal to 1e-5, and where numbers are above 10, to what float32 leaves of those."""
    atol = 1e-6 * max(10.0, float(theirs.abs().max()))
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=atol)


def run(dictionary, raw_NMD):
    """(latents, raw reconstruction) of raw activations."""
    with torch.no_grad():
        codes = dictionary.encode(dictionary.normalised(raw_NMD))
        return codes.dense(), dictionary.raw(dictionary.decode(codes))


@pytest.mark.parametrize("case", CASES)
def test_a_dictionary_gives_what_its_own_library_gives(case):
    expected = load_file(GOLDEN / case / "expected.safetensors")
    latents_NF, made_NMD = run(read_layout(GOLDEN / case).dictionary, expected["x"][:, None])
    close(latents_NF, expected["latents"])
    close(made_NMD[:, 0], expected["reconstruction"])


def test_there_is_a_case_of_every_kind():
    kinds = {(found.layout, found.facts.kind) for found in (read_layout(GOLDEN / case) for case in CASES)}
    assert kinds == {
        *(("saelens", kind) for kind in ("standard", "topk", "jumprelu", "gated")),
        *(("dictionary_learning", kind) for kind in ("AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK")),
        *(("dictionary_learning", kind) for kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")),
        *(("dictionary_learning", kind) for kind in ("JumpReluAutoEncoder", "GatedAutoEncoder")),
        ("sparsify", "topk"),
    }


def test_facts_come_from_the_config():
    assert read_layout(GOLDEN / "saelens_topk").facts == Facts("gpt2-small", "blocks.7.hook_resid_post", 7, "topk", 5)
    assert read_layout(GOLDEN / "dictionary_learning_BatchTopKSAE").facts == Facts("pythia", None, 3, "BatchTopKSAE", 5)
    assert read_layout(GOLDEN / "sparsify_layers.3").facts.hook is None


def copied(case, tmp_path):
    return Path(shutil.copytree(GOLDEN / case, tmp_path / case))


def set_config(folder, name="cfg.json", **changes):
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**config, **changes}))


def set_tensors(folder, name, **changes):
    """Replace tensors; None takes one away."""
    kept = {k: v for k, v in {**load_file(folder / name), **changes}.items() if v is not None}
    save_file(kept, folder / name)


def test_a_factor_on_the_activations_is_folded_into_the_scale(tmp_path):
    folder = copied("saelens_jumprelu", tmp_path)
    set_config(folder, normalize_activations="expected_average_only_in", norm_scaling_factor=0.25)
    found, expected = read_layout(folder), load_file(folder / "expected.safetensors")
    latents_NF, made_NMD = run(found.dictionary, expected["x"][:, None] / 0.25)
    close(latents_NF, expected["latents"])
    close(made_NMD[:, 0], expected["reconstruction"] / 0.25)
    assert found.facts.normalisation == "activations times 0.25"


def test_a_config_from_before_saelens_6(tmp_path):
    folder = copied("saelens_topk_unit", tmp_path)
    old = {"d_in": 12, "d_sae": 48, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}, "dtype": "bfloat16"}
    old |= {
        "hook_name": "blocks.2.hook_resid_pre",
        "hook_layer": 2,
        "model_name": "gpt2",
        "normalize_activations": False,
    }
    (folder / "cfg.json").write_text(json.dumps(old))
    found, expected = read_layout(folder), load_file(folder / "expected.safetensors")
    close(run(found.dictionary, expected["x"][:, None])[1][:, 0], expected["reconstruction"])
    assert found.facts == Facts("gpt2", "blocks.2.hook_resid_pre", 2, "topk", 5)
    assert found.notes == ("SAELens computes it in bfloat16; here it is computed in float32.",)


def test_rows_of_nearly_one_length_are_opened_with_a_note(tmp_path):
    folder = copied("saelens_topk_unit", tmp_path)
    set_tensors(
        folder, "sae_weights.safetensors", W_dec=load_file(folder / "sae_weights.safetensors")["W_dec"].bfloat16()
    )
    (note,) = read_layout(folder).notes
    assert note.startswith("The lengths of its decoder rows differ by 0.00")


# crosscoder_learning: x̃ = g(x − μ), a = ReLU(Σ_m x̃^m W_m + b), kept where a·n > θ, x̂ = (Σ a d + c)/(g + 1e-8) + μ.


def crosscoder(tmp_path, kind="BatchTopKCrossCoder", code="CROSSCODER", is_normalised=False, **config):
    g = torch.Generator().manual_seed(3)
    normal = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    tensors = {
        "encoder.weight": normal(SITES, WIDTH, LATENTS) / 3,
        "encoder.bias": normal(LATENTS) / 3,
        "decoder.weight": normal(SITES, LATENTS, WIDTH) / 3 * torch.linspace(0.3, 2, LATENTS)[:, None],
        "decoder.bias": normal(SITES, WIDTH),
        "code_normalization_id": torch.tensor(1 + ["CROSSCODER", "SAE", "MIXED", "NONE", "DECOUPLED"].index(code)),
    }
    if kind == "BatchTopKCrossCoder":
        tensors |= {"k": torch.tensor(5, dtype=torch.int32), "threshold": torch.tensor(1.0)}
    nothing = torch.full((SITES, WIDTH), torch.nan)
    mean_MD, std_MD = (
        (normal(SITES, WIDTH), normal(SITES, WIDTH).abs() + 4) if is_normalised else (nothing, nothing.clone())
    )
    scale_M = 1 / std_MD.square().sum(1).add(1e-8).sqrt() if is_normalised else torch.ones(SITES)
    buffers = {"activation_mean": mean_MD, "activation_std": std_MD, "activation_global_scale": scale_M}
    save_file({**tensors, **buffers, "target_rms": torch.tensor(1.0)}, tmp_path / "model.safetensors")
    shape = {"dict_class": kind, "activation_dim": WIDTH, "dict_size": LATENTS, "num_layers": SITES}
    (tmp_path / "config.json").write_text(json.dumps({**shape, "code_normalization": code, **config}))
    x_NMD = 3 * normal(40, SITES, WIDTH) if not is_normalised else 15 * normal(40, SITES, WIDTH)
    return tmp_path, x_NMD


def crosscoder_formula(folder, x_NMD, code):
    t = {k: v.double() for k, v in load_file(folder / "model.safetensors").items()}
    has_mean = not t["activation_mean"].isnan().any()
    mean_MD = t["activation_mean"] if has_mean else 0
    scale_M1 = t["activation_global_scale"][:, None]
    in_NMD = (x_NMD.double() - mean_MD) * scale_M1
    acts_NF = (torch.einsum("nmd,mdf->nf", in_NMD, t["encoder.weight"]) + t["encoder.bias"]).relu()
    joint_F, sum_F = t["decoder.weight"].norm(dim=(0, 2)), t["decoder.weight"].norm(dim=2).sum(0)
    norm_F = {"CROSSCODER": sum_F, "SAE": joint_F, "MIXED": joint_F + 0.1 * sum_F, "NONE": torch.ones(LATENTS)}[code]
    if "threshold" in t:
        acts_NF = acts_NF * (acts_NF * norm_F > t["threshold"])
    made_NMD = torch.einsum("nf,mfd->nmd", acts_NF, t["decoder.weight"]) + t["decoder.bias"]
    return acts_NF, (made_NMD / (scale_M1 + 1e-8) if has_mean else made_NMD) + mean_MD


@pytest.mark.parametrize("is_normalised", [False, True])
@pytest.mark.parametrize(
    ("kind", "code"),
    [("CrossCoder", "SAE"), *(("BatchTopKCrossCoder", c) for c in ("CROSSCODER", "SAE", "MIXED", "NONE"))],
)
def test_a_crosscoder_gives_what_its_formula_gives(tmp_path, kind, code, is_normalised):
    folder, x_NMD = crosscoder(tmp_path, kind, code, is_normalised)
    latents_NF, made_NMD = run(read_layout(folder).dictionary, x_NMD)
    expected_NF, expected_NMD = crosscoder_formula(folder, x_NMD, code)
    assert 0.02 < (expected_NF > 0).float().mean() < 0.6
    close(latents_NF, expected_NF)
    close(made_NMD, expected_NMD)


def test_an_older_crosscoder_without_class_or_norm_in_its_config(tmp_path):
    folder, x_NMD = crosscoder(tmp_path, code="SAE")
    (folder / "config.json").write_text(json.dumps({"activation_dim": WIDTH, "dict_size": LATENTS}))
    found = read_layout(folder)
    close(run(found.dictionary, x_NMD)[1], crosscoder_formula(folder, x_NMD, "SAE")[1])
    assert found.facts.kind == "BatchTopKCrossCoder"


def test_an_encoder_of_some_sites_alone(tmp_path):
    folder, x_NMD = crosscoder(tmp_path, encoder_layers=[1])
    weight = load_file(folder / "model.safetensors")["encoder.weight"]
    set_tensors(folder, "model.safetensors", **{"encoder.weight": weight[1:].clone()})
    latents_NF = run(read_layout(folder).dictionary, x_NMD)[0]
    set_tensors(folder, "model.safetensors", **{"encoder.weight": weight * torch.tensor([0.0, 1.0])[:, None, None]})
    close(latents_NF, crosscoder_formula(folder, x_NMD, "CROSSCODER")[0])


def test_a_crosscoder_in_a_pickled_state_dict(tmp_path):
    folder, x_NMD = crosscoder(tmp_path)
    expected_NMD = crosscoder_formula(folder, x_NMD, "CROSSCODER")[1]
    state = {f"_orig_mod.{k}": v for k, v in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": "BatchTopKCrossCoder", "layer": 13}}))
    found = read_layout(folder)
    close(run(found.dictionary, x_NMD)[1], expected_NMD)
    assert (found.layout, found.facts.layer) == ("dictionary_learning", 13)


def ours(sparsity, n_sites, scale_M, **more):
    torch.manual_seed(4)
    made = Dictionary(
        DictionarySpec(n_sites=n_sites, width=WIDTH, n_latents=LATENTS, sparsity=sparsity, k=6, **more),
        torch.tensor(scale_M),
    )
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn_like(p) / 2)
        made.threshold.fill_(1.2 if sparsity == "batch_topk" else 0)
    return made, torch.randn(50, n_sites, WIDTH) / torch.tensor(scale_M)[:, None]


WRITTEN = [
    *(("saelens", kind, 1, [0.2]) for kind in ("topk", "batch_topk", "jumprelu", "l1")),
    ("sparsify", "topk", 1, [0.2]),
    *(("crosscoder_learning", kind, 2, scale) for kind in ("batch_topk", "l1") for scale in ([0.2, 0.2], [0.3, 0.1])),
    *(("diffing", kind, 2, [0.3, 0.1]) for kind in ("topk", "batch_topk", "jumprelu", "l1")),
]


@pytest.mark.parametrize(("layout", "sparsity", "n_sites", "scale_M"), WRITTEN)
def test_what_is_written_gives_the_same_when_it_is_read(tmp_path, layout, sparsity, n_sites, scale_M):
    dictionary, x_NMD = ours(sparsity, n_sites, scale_M)
    write_layout(tmp_path, dictionary, layout, Facts("model", "blocks.3.hook_resid_post", 3))
    found = read_layout(tmp_path)
    before, after = run(dictionary, x_NMD), run(found.dictionary, x_NMD)
    assert found.layout == layout
    assert torch.equal(before[0] > 0, after[0] > 0)
    close(before[1], after[1])
    if layout in ("saelens", "diffing"):
        assert (found.facts.model, found.facts.hook, found.facts.layer) == ("model", "blocks.3.hook_resid_post", 3)
    if layout == "crosscoder_learning":
        assert set(json.loads((tmp_path / "config.json").read_text())) <= {
            "dict_class", "activation_dim", "dict_size", "num_layers", "code_normalization", "k",
        }  # fmt: skip


def test_a_written_crosscoder_gives_the_same_by_the_formula(tmp_path):
    dictionary, x_NMD = ours("batch_topk", 2, [0.3, 0.1])
    write_layout(tmp_path, dictionary, "crosscoder_learning", Facts())
    close(run(dictionary, x_NMD)[1], crosscoder_formula(tmp_path, x_NMD, "CROSSCODER")[1])
    std_MD = load_file(tmp_path / "model.safetensors")["activation_std"]
    close(1 / std_MD.square().sum(1).sqrt(), torch.tensor([0.3, 0.1]))


def test_our_own_file_with_facts_of_any_name(tmp_path):
    dictionary, _ = ours("batch_topk", 2, [1.0, 1.0])
    save_dictionary(tmp_path / "dictionary.safetensors", dictionary, {"model": "m", "tokens": 12})
    assert read_layout(tmp_path).facts == Facts(model="m", kind="batch_topk", k=6)


UNWRITABLE = {
    "sites": ("saelens", "topk", 2, {}, "The layout saelens is for dictionaries with one site, and this one has 2."),
    "one site": ("crosscoder_learning", "l1", 1, {}, "is for dictionaries with several sites, and this one has 1"),
    "kind": ("crosscoder_learning", "topk", 2, {}, "has no topk dictionaries, only batch_topk, l1"),
    "sparsify": ("sparsify", "l1", 1, {}, "has no l1 dictionaries, only topk"),
    "shared": ("crosscoder_learning", "batch_topk", 2, {"n_shared": 4}, "n_shared=4 have another"),
    "pickle": (
        "dictionary_learning",
        "l1",
        1,
        {},
        r"dictionary_learning \(ae.pt\) is only read, because it is a pickle",
    ),
    "unknown": ("sealens", "l1", 1, {}, "There is no layout sealens; did you mean saelens"),
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_what_a_layout_cannot_hold(tmp_path, case):
    layout, sparsity, n_sites, more, match = UNWRITABLE[case]
    with pytest.raises(UserError, match=match):
        write_layout(tmp_path, ours(sparsity, n_sites, [1.0] * n_sites, **more)[0], layout, Facts())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("n_sites", "width"), [(2, 12), (1, 16)])
def test_a_dictionary_for_other_activations(n_sites, width):
    found = read_layout(GOLDEN / "saelens_topk")
    expect(found, 1, 12)
    with pytest.raises(
        UserError, match=r"\(trained on gpt2-small\) takes 1 activation of width 12 per token instead of"
    ):
        expect(found, n_sites, width)


def weights(name, **changes):
    return lambda folder: set_tensors(folder, name, **changes)


def config(name="cfg.json", **changes):
    return lambda folder: set_config(folder, name, **changes)


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def gone(name):
    return lambda folder: (folder / name).unlink()


def pickled(value):
    return lambda folder: torch.save(value, folder / "ae.pt")


class Code:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        import os

        return os.system, ("echo must not run",)


def state(**changes):
    """Change the pickled state dict."""

    def change(folder):
        held = torch.load(folder / "ae.pt", weights_only=True)
        torch.save({k: v for k, v in {**held, **changes}.items() if v is not None}, folder / "ae.pt")

    return change


SAE, PT, CROSS = "sae_weights.safetensors", "dictionary_learning_BatchTopKSAE", "model.safetensors"
FAULTS = {
    "missing tensor": ("saelens_jumprelu", weights(SAE, threshold=None), "lacks the tensor threshold; it holds W_dec"),
    "wrong shape": ("saelens_topk", weights(SAE, b_enc=torch.ones(7)), r"b_enc has the shape \(7,\) instead of \(48\)"),
    "NaN": ("saelens_topk", weights(SAE, b_dec=torch.full((12,), torch.nan)), "b_dec holds NaN or infinity"),
    "cut off": (
        "saelens_topk",
        lambda f: (f / SAE).write_bytes((f / SAE).read_bytes()[:300]),
        "cut off, damaged or no",
    ),
    "no config": ("saelens_topk", gone("cfg.json"), "cfg.json is missing; copy it there"),
    "corrupt config": ("saelens_topk", text("cfg.json", "{"), "cfg.json is corrupt"),
    "list": ("saelens_topk", text("cfg.json", "[]"), r"corrupt \(no JSON object\)"),
    "lacking key": ("saelens_topk", text("cfg.json", '{"d_in": 12}'), "cfg.json lacks d_sae"),
    "wrong kind": ("saelens_topk", config(d_in="wide"), "d_in cannot be 'wide'"),
    "no k": ("saelens_topk", config(k=None), "k of a topk dictionary must be a whole number of 1 or more, not None"),
    "architecture": (
        "saelens_topk",
        config(architecture="transcoder"),
        "transcoder is none that can be opened .standard",
    ),
    "training": ("saelens_topk", config(architecture="batchtopk"), "checkpoint of training; .*save_inference_model"),
    "activation": (
        "saelens_standard",
        config(activation_fn="tanh-relu"),
        "activation_fn tanh-relu cannot be expressed",
    ),
    "layer norm": (
        "saelens_topk",
        config(normalize_activations="layer_norm"),
        "normalize_activations=layer_norm makes",
    ),
    "no factor": ("saelens_topk", config(normalize_activations=True), "needs the factor .*norm_scaling_factor"),
    "scaling": ("saelens_topk", weights(SAE, scaling_factor=torch.arange(48.0)), "scaling_factor is not 1 everywhere"),
    "ranking": (
        "saelens_topk",
        config(rescale_acts_by_decoder_norm=False),
        r"rescale_acts_by_decoder_norm=false in .* 1\d\d%",
    ),
    "transcoder": ("sparsify_layers.3", config(transcode=True), "transcode=true cannot be expressed"),
    "skip": ("sparsify_layers.3", config(skip_connection=True), "skip_connection=true cannot be expressed"),
    "skip weights": ("sparsify_layers.3", weights("sae.safetensors", W_skip=torch.eye(12)), "holds W_skip"),
    "signed": ("sparsify_layers.3", config(signed=True), "signed=true cannot be expressed"),
    "groupmax": ("sparsify_layers.3", config(activation="groupmax"), "activation groupmax cannot be expressed"),
    "class": (PT, config("config.json", trainer={"dict_class": "GatedAutoencoder"}), "did you mean GatedAutoEncoder"),
    "no trainer": (PT, text("config.json", "{}"), "config.json lacks trainer"),
    "code": (PT, pickled({"encoder.weight": Code()}), "is not opened: it is damaged or holds more than tensors"),
    "module": (PT, pickled(torch.nn.Linear(2, 2)), "is not opened"),
    "no state dict": (PT, pickled([torch.ones(2)]), "holds no state dict"),
    "cut pickle": (PT, lambda f: (f / "ae.pt").write_bytes((f / "ae.pt").read_bytes()[:900]), "cut off or damaged"),
    "empty pickle": (PT, lambda f: (f / "ae.pt").write_bytes(b""), "cut off or damaged"),
    "no threshold": (PT, state(threshold=torch.tensor(-1.0)), "threshold is -1, so training never set it"),
    "lacking state": (PT, state(b_dec=None), "ae.pt lacks the tensor b_dec"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_one_sentence(tmp_path, capfd, case):
    golden, spoil, match = FAULTS[case]
    folder = copied(golden, tmp_path)
    spoil(folder)
    with pytest.raises(UserError, match=match) as caught:
        read_layout(folder)
    assert str(caught.value).endswith((".", "?"))
    assert "\n" not in str(caught.value)
    assert "must not run" not in capfd.readouterr().out


CROSS_FAULTS = {
    "decoupled": ({"code": "DECOUPLED"}, None, "code_normalization=DECOUPLED keeps other latents"),
    "class": ({"dict_class": "Other"}, None, "dict_class Other is none that can be opened"),
    "code": ({"code_normalization": "odd"}, None, "code_normalization ODD is not known"),
    "decoder": ({"decoder_type": "embedding_bag"}, None, "decoder_type embedding_bag is not supported"),
    "sites": ({"num_layers": 3}, None, r"decoder.weight has the shape \(2, 32, 8\) instead of \(3, 32, 8\)"),
    "width": ({"activation_dim": 9}, None, "encoder.weight has the shape"),
    "layers": ({"encoder_layers": [0, 2]}, None, r"encoder_layers \[0, 2\] are not among the 2 sites"),
    "relative": ({"keep_relative_variance": False, "is_normalised": True}, None, "keep_relative_variance=false"),
    "threshold": ({}, weights(CROSS, threshold=torch.tensor(-1.0)), "threshold is -1, so training never set it"),
    "language model": ({}, weights(CROSS, **{"encoder.weight": None}), "lacks the tensor encoder.weight"),
    "NaN": ({}, weights(CROSS, **{"encoder.bias": torch.full((LATENTS,), torch.inf)}), "encoder.bias holds NaN or inf"),
}


@pytest.mark.parametrize("case", CROSS_FAULTS)
def test_a_fault_in_a_crosscoder(tmp_path, case):
    changes, spoil, match = CROSS_FAULTS[case]
    folder, _ = crosscoder(tmp_path, **changes)
    if spoil:
        spoil(folder)
    with pytest.raises(UserError, match=match):
        read_layout(folder)


def test_an_unknown_norm_in_the_file(tmp_path):
    folder, _ = crosscoder(tmp_path)
    set_config(folder, "config.json", code_normalization=None)
    set_tensors(folder, CROSS, code_normalization_id=torch.tensor(9))
    with pytest.raises(UserError, match="code_normalization_id 9 is not known"):
        read_layout(folder)


def test_folders_without_a_layout(tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        read_layout(tmp_path / "nowhere")
    with pytest.raises(
        UserError, match=r"looked for dictionary.safetensors, sae_weights.safetensors with cfg.json, .*path"
    ):
        read_layout(tmp_path)
    copied("saelens_topk", tmp_path)
    with pytest.raises(UserError, match="name one of the folders in it, such as saelens_topk"):
        read_layout(tmp_path)
    with pytest.raises(UserError, match=r"cfg.json is a file; name the folder"):
        read_layout(tmp_path / "saelens_topk" / "cfg.json")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"holds pytorch_model.bin, a pickle, where safetensors is expected .*ae.pt is read"
    ):
        read_layout(tmp_path)
