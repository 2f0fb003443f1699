"""GGUF files: dequantised values against an independent reading of the format, atomicity, and damaged files."""

import multiprocessing
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffing.core.errors import UserError
from diffing.core.files import build_once
from diffing.core.specs import ModelSpec
from diffing.models import gguf as converter
from diffing.models.gguf import convert_cached, converted_folder
from diffing.models.hashing import remembered_sha256
from diffing.models.loading import load_module, load_tokenizer
from diffing.models.sources import resolve
from diffing.models.tiny import tiny_model, tiny_tokenizer

HEADS, KV_HEADS = 4, 2
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFING_CACHE", str(tmp_path / "cache"))


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix in the order that llama.cpp stores for its rotary embedding."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def q4_1(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of Q4_1 and the values they stand for: per 32 values a scale d and a minimum m in half precision."""
    blocks = weight.reshape(-1, 32)
    m = blocks.min(1, keepdims=True).astype(np.float16)
    d = ((blocks.max(1, keepdims=True) - m) / 15).astype(np.float16)
    q = np.clip(np.rint((blocks - m.astype(np.float32)) / d.astype(np.float32)), 0, 15).astype(np.uint8)
    packed = q[:, :16] | (q[:, 16:] << 4)
    raw = np.concatenate([d.view(np.uint8), m.view(np.uint8), packed], axis=1)
    values = q.astype(np.float32) * d.astype(np.float32) + m.astype(np.float32)
    return raw.reshape(weight.shape[0], -1), values.reshape(weight.shape)


def gguf_name(name: str) -> str:
    if not name.startswith("model.layers."):
        return {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[name]
    layer, _, part = name.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{NAMES[part]}"


def write_gguf(path: Path, without: str = "") -> dict[str, torch.Tensor]:
    """A tiny llama as GGUF in three tensor types; returns the values that its bytes stand for, by their HF names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    model = tiny_model("llama", tie_word_embeddings=False, intermediate_size=64)
    writer = gguf.GGUFWriter(path, "llama")
    write_settings(writer, model.config)
    write_tokens(writer)
    expected = {}
    for name, tensor in model.state_dict().items():
        stem, weight = name.removesuffix(".weight"), tensor.numpy()
        if without and without in name:
            continue
        heads = {"self_attn.q_proj": HEADS, "self_attn.k_proj": KV_HEADS}.get(stem.partition("layers.")[2][2:])
        stored = permuted(weight, heads) if heads else weight
        if "mlp" in stem or heads:
            raw, values = q4_1(np.ascontiguousarray(stored))
            writer.add_tensor(f"{gguf_name(stem)}.weight", raw, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
            # Blocks run along a row, so undoing the order of rows commutes with dequantising.
            weight = unpermuted(values, heads) if heads else values
        elif stem == "model.embed_tokens":
            writer.add_tensor("token_embd.weight", weight.astype(np.float16))
            weight = weight.astype(np.float16).astype(np.float32)
        else:
            writer.add_tensor(f"{gguf_name(stem)}.weight", weight)
        expected[name] = torch.from_numpy(np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def unpermuted(weight: np.ndarray, heads: int) -> np.ndarray:
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_settings(writer: gguf.GGUFWriter, config) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)


def write_tokens(writer: gguf.GGUFWriter) -> None:
    tokenizer = tiny_tokenizer()
    names = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(names)
    writer.add_token_types([3 if n.startswith("<|") else 1 for n in names])
    writer.add_token_merges(["t h", "th e", "Ġ the", "i n", "a n", "e r", "o n", "Ġ a"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)


def test_converted_weights_are_the_dequantised_ones(tmp_path):
    expected = write_gguf(tmp_path / "tiny.gguf")
    folder = convert_cached(tmp_path / "tiny.gguf", "tiny", {"licence": "none"})
    found = load_file(folder / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], tensor, atol=0, rtol=0)
    assert "quantization_config" not in (folder / "config.json").read_text(encoding="utf-8")


def test_a_gguf_file_is_a_model_source(tmp_path):
    expected = write_gguf(tmp_path / "tiny.gguf")
    source = resolve(str(tmp_path / "tiny.gguf"))
    assert (source.origin, source.revision) == ("gguf", None)
    assert source.card["gguf_sha256"] == remembered_sha256(tmp_path / "tiny.gguf")
    spec = ModelSpec(name="tiny", id=source.id, device_map="cpu")
    module = load_module(spec, source, "float32")
    torch.testing.assert_close(module.get_input_embeddings().weight, expected["model.embed_tokens.weight"])
    text = "then in a thing"
    assert load_tokenizer(spec, source)(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]


def test_the_cache_is_keyed_by_content(tmp_path):
    write_gguf(tmp_path / "a" / "tiny.gguf")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first = resolve(str(tmp_path / "a" / "tiny.gguf"))
    assert resolve(str(tmp_path / "b" / "tiny.gguf")).content_hash == first.content_hash
    assert len(list(first.folder.parent.glob("tiny-*-v1"))) == 1


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"no GGUF file .*nothing\.gguf"):
        convert_cached(tmp_path / "nothing.gguf", "x", {})


@pytest.mark.parametrize("damage", ["magic", "truncated", "empty", "tensor"])
def test_a_damaged_file_is_one_sentence_and_leaves_nothing(tmp_path, damage):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, without="layers.1.mlp.up_proj" if damage == "tensor" else "")
    whole = path.read_bytes()
    if damage != "tensor":
        path.write_bytes({"magic": b"JUNK" + whole[4:], "truncated": whole[:-5000], "empty": b""}[damage])
    with pytest.raises(UserError, match=r"tiny\.gguf (cannot be read as a GGUF model|lacks 1 of)") as caught:
        convert_cached(path, "tiny", {})
    assert "\n" not in str(caught.value)
    models = tmp_path / "cache" / "models"
    assert [p.name for p in models.iterdir() if p.is_dir()] == []


def test_leftovers_of_a_killed_conversion_do_not_count(tmp_path):
    target = converted_folder("killed [1]", "ab" * 32)
    leftover = target.with_name(f".{target.name}.12345678.tmp")
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half")
    built = build_once(target, lambda folder: (folder / "whole").touch() or None)
    assert [p.name for p in built.iterdir()] == ["whole"]
    assert not leftover.exists()


def test_a_failing_build_leaves_nothing(tmp_path):
    target = converted_folder("x", "cd" * 32)

    def build(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise UserError("no.")

    with pytest.raises(UserError, match="no"):
        build_once(target, build)
    assert [p for p in target.parent.iterdir() if p.is_dir()] == []


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(converter, "write_json", full)
    with pytest.raises(UserError, match=r"disk is full; .*DIFFING_CACHE"):
        convert_cached(tmp_path / "tiny.gguf", "tiny", {})


def convert_here(path: str, barrier) -> None:
    """Run in a process of its own: convert, note it if this process did, and read what is found."""
    real = converter.convert

    def noted(gguf_file: Path, folder: Path, card) -> None:
        with open(f"{path}.conversions", "a", encoding="utf-8") as handle:
            handle.write("converted\n")
        real(gguf_file, folder, card)

    converter.convert = noted
    barrier.wait()
    assert load_file(convert_cached(Path(path), "tiny", {}) / "model.safetensors")


@pytest.mark.slow
def test_two_processes_at_once_convert_once(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    workers = [context.Process(target=convert_here, args=(str(tmp_path / "tiny.gguf"), barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [w.exitcode for w in workers] == [0, 0]
    assert (tmp_path / "tiny.gguf.conversions").read_text(encoding="utf-8") == "converted\n"
    assert len([p for p in (tmp_path / "cache" / "models").iterdir() if p.is_dir()]) == 1
