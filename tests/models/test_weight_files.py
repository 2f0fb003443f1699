"""Weights on disk: what is read equals what safetensors reads, damage is named, names and places are told."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffing.core.errors import UserError
from diffing.models import weight_files
from diffing.models.tiny import save_model, tiny_model
from diffing.models.weight_files import open_weights, row_cuts
from diffing.models.weight_places import is_stored_transposed, place_of, weight_place, writes_residual

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def sharded(folder, weights):
    """Write tensors as a model in two files with an index."""
    names = sorted(weights)
    shards = {n: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, n in enumerate(names)}
    for shard in set(shards.values()):
        save_file({n: weights[n] for n in names if shards[n] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_those_that_safetensors_reads(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(weight_files, "CHUNK_BYTES", 4 * 7 * 5)
    weights = {
        "a.weight": torch.randn(33, 7),
        "b.weight": torch.randn(9),
        "c": torch.randn(3, 4, 5),
        "d": torch.ones(()),
    }
    sharded(tmp_path, {k: v.to(dtype) for k, v in weights.items()})
    files = open_weights(tmp_path, "it")
    assert files is not None
    assert set(files.tensors) == set(weights)
    for name, value in weights.items():
        expected = value.to(dtype).float()
        assert torch.equal(files.read(name), expected)
        chunks = list(files.chunks(name))
        assert [start for start, _ in chunks] == [start for start, _ in row_cuts(tuple(value.shape))]
        assert torch.equal(torch.cat([rows for _, rows in chunks]).reshape(value.shape), expected)
    assert len(list(files.chunks("a.weight"))) == 7
    assert torch.equal(files.rows("a.weight", 10, 13), load_file(files.tensors["a.weight"].path)["a.weight"][10:13])


def test_a_folder_without_weights_and_with_a_missing_shard(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert open_weights(tmp_path, "it") is None
    sharded(tmp_path, {"a": torch.ones(2), "b": torch.ones(2)})
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"Model it lacks 1 of its 2 weight files \(such as model-00002"):
        open_weights(tmp_path, "it")


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(64), "b": torch.full((2,), float("nan"))}, path)
    whole = path.read_bytes()
    files = open_weights(tmp_path, "it")
    assert files is not None
    with pytest.raises(UserError, match="Tensor b of model it holds NaN or infinite values"):
        files.read("b")
    path.write_bytes(whole[:-40])
    last = max(files.tensors.values(), key=lambda t: t.start)
    with pytest.raises(UserError, match=r"Tensor . of model it cannot be read: model\.safetensors is damaged"):
        files.rows(last.name, 0, last.n_rows)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged \([\d,]+ bytes instead of"):
        open_weights(tmp_path, "it")
    for broken in (b"\x00" * 4, b"\xff" * 64, whole[:20], b"\x02\x00\x00\x00\x00\x00\x00\x00[]"):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"Model it: model\.safetensors is no safetensors file"):
            open_weights(tmp_path, "it")


def test_a_weight_is_found_under_other_ways_of_saving(tmp_path):
    save_file({"h.0.attn.c_attn.weight": torch.ones(2), "wte.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    files = open_weights(tmp_path, "it")
    assert files is not None
    assert files.find("transformer.h.0.attn.c_attn.weight").name == "h.0.attn.c_attn.weight"
    assert files.find("wte.weight").name == "wte.weight"
    assert files.find("transformer.h.1.attn.c_attn.weight") is None
    assert files.embedding.name == "wte.weight"
    assert place_of("model.language_model.layers.3.mlp.up_proj.weight") == "layers.3.mlp.up_proj.weight"


def test_names_that_would_collide_stay_apart(tmp_path):
    save_file({"norm.weight": torch.ones(1), "model.norm.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    files = open_weights(tmp_path, "it")
    assert files is not None
    assert {files.find(n).name for n in files.tensors} == set(files.tensors)
    assert torch.equal(files.read(files.find("model.norm.weight").name), torch.zeros(1))


@pytest.mark.parametrize(
    ("name", "layer", "module", "part"),
    [
        ("model.layers.12.self_attn.o_proj.weight", 12, "self_attn.o_proj", "attention"),
        ("model.layers.2.self_attn.q_proj.bias", 2, "self_attn.q_proj.bias", "attention"),
        ("model.layers.2.self_attn.q_norm.weight", 2, "self_attn.q_norm", "norm"),
        ("model.layers.2.post_attention_layernorm.weight", 2, "post_attention_layernorm", "norm"),
        ("transformer.h.0.mlp.c_proj.weight", 0, "mlp.c_proj", "mlp"),
        ("h.0.ln_1.bias", 0, "ln_1.bias", "norm"),
        ("model.decoder.layers.5.fc2.weight", 5, "fc2", "mlp"),
        ("gpt_neox.layers.1.attention.dense.weight", 1, "attention.dense", "attention"),
        ("model.layers.3.block_sparse_moe.experts.7.w2.weight", 3, "block_sparse_moe.experts.7.w2", "mlp"),
        ("model.layers.3.mlp.experts.gate_up_proj", 3, "mlp.experts.gate_up_proj", "mlp"),
        ("model.embed_tokens.weight", None, "embed_tokens", "embedding"),
        ("transformer.wpe.weight", None, "wpe", "other"),
        ("lm_head.weight", None, "lm_head", "head"),
        ("model.norm.weight", None, "norm", "norm"),
        ("backbone.layers.4.mixer.out_proj.weight", 4, "mixer.out_proj", "attention"),
    ],
)
def test_places(name, layer, module, part):
    place = weight_place(name)
    assert (place.layer, place.module, place.part) == (layer, module, part)
    assert place.is_decoder


def test_towers_are_not_the_decoder_and_experts_are_one_column():
    tower = weight_place("model.visual.blocks.3.attn.proj_out.weight")
    assert not tower.is_decoder
    assert tower.label == "visual.blocks: attn.proj_out"
    assert not writes_residual(tower, 32, 32)
    assert weight_place("model.layers.3.mlp.experts.7.down_proj.weight").label == "mlp.experts.*.down_proj"


# By the modules themselves: what `o_proj`, `down_proj` and their like are in each architecture.
@pytest.mark.parametrize(
    "architecture", ["llama", "qwen3", "gemma2", "gpt2", "gpt_neox", "opt", "phi", "falcon", "bloom"]
)
def test_what_writes_into_the_stream_is_found(architecture):
    model = tiny_model(architecture)
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    width = model.config.hidden_size
    transposed = is_stored_transposed(shapes, width)
    assert transposed == (architecture == "gpt2")
    found = {}
    for name, shape in shapes.items():
        place = weight_place(name)
        if len(shape) == 2 and place.layer is not None and writes_residual(place, shape[int(transposed)], width):
            found.setdefault(place.layer, []).append(place.part)
    assert set(found) == {0, 1, 2}
    assert all(sorted(parts) == ["attention", "mlp"] for parts in found.values())


def test_a_model_that_transformers_wrote_is_read(tmp_path):
    model = tiny_model()
    save_model(tmp_path, model)
    files = open_weights(tmp_path, "it")
    assert files is not None
    for name, value in model.state_dict().items():
        if (stored := files.find(name)) is not None:
            assert torch.equal(files.read(stored.name), value)
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= set(files.tensors)
