"""Models, adapters and texts that are not what they should be: one sentence, exit code 2, nothing left behind."""

import importlib.util
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffing.models.tiny import save_adapter, save_model, tiny_model, tiny_tokenizer
from workbench import run_folders, sentences, write_jsonl


@pytest.fixture
def compare(command, bench, tmp_path, no_hub):
    """Compares the tiny pair with some of it replaced, and checks that a failure leaves no result."""

    def call(*more, **changes):
        outcome = command(bench.command(tmp_path / "out", *more, **changes))
        if outcome.code:
            assert not [f for f in run_folders(tmp_path / "out") if (f / "manifest.json").exists()]
        return outcome

    return call


def change_tensor(folder, name_part, change):
    """Rewrite a safetensors file of `folder` with `change` applied to the first tensor whose name matches."""
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    name = next(n for n in sorted(tensors) if name_part in n)
    tensors[name] = change(tensors[name].clone())
    save_file(tensors, path, {"format": "pt"})
    return name


def copy(source, target):
    return shutil.copytree(source, target)


def poisoned(value):
    def change(tensor):
        tensor.view(-1)[3] = value
        return tensor

    return change


def test_missing_folders(compare, tmp_path):
    missing = tmp_path / "no such model"
    compare(base=missing).sentence(str(missing), alone=True)
    compare(finetuned=missing).sentence(str(missing), alone=True)


@pytest.mark.parametrize("written", ["checkpoints/mine", "mine"])
def test_a_missing_relative_folder_reads_like_a_hub_id(compare, written):
    compare(base=written).sentence(written)
    compare(finetuned=written).sentence(written)


def test_a_folder_that_is_no_model(compare, tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    compare(base=folder).sentence(str(folder), "config.json", alone=True)
    (folder / "notes.txt").write_text("nothing here")
    compare(base=folder).sentence(str(folder), "config.json", alone=True)
    compare(finetuned=folder).sentence(str(folder), "config.json", alone=True)


def test_a_file_that_is_no_model(compare, bench):
    compare(base=bench.texts).sentence(str(bench.texts), alone=True)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_type": "no_such_architecture"}'], ids=str)
def test_a_config_that_is_none(compare, bench, tmp_path, content):
    folder = copy(bench.base, tmp_path / "model")
    (folder / "config.json").write_text(content)
    compare(base=folder).sentence(str(folder))


def test_a_model_without_weights(compare, bench, tmp_path):
    folder = copy(bench.base, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    compare(base=folder).sentence(str(folder), "safetensors")


def test_a_model_with_pickled_weights_only(compare, bench, tmp_path):
    folder = copy(bench.base, tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    compare(base=folder).sentence(str(folder), "safetensors")


def test_weights_cut_short(compare, bench, tmp_path):
    folder = copy(bench.full, tmp_path / "model")
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    compare(finetuned=folder).sentence(str(folder))


def test_weights_that_lack_a_tensor(compare, bench, tmp_path):
    folder = copy(bench.full, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    compare(finetuned=folder).sentence(str(folder), "model.layers.1.mlp.up_proj.weight")


def test_a_model_without_tokenizer(compare, bench, tmp_path):
    folder = copy(bench.base, tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    compare(base=folder).sentence(str(folder), "model.tokenizer_id")


def test_an_adapter_of_other_shapes(compare, tmp_path):
    save_adapter(tmp_path / "other", tiny_model(hidden_size=16))
    compare(finetuned=tmp_path / "other").sentence(str(tmp_path / "other"), "does not fit", "model.id")


def test_an_adapter_of_another_architecture(compare, tmp_path):
    save_adapter(tmp_path / "other", tiny_model("gpt2"))
    compare(finetuned=tmp_path / "other").sentence(str(tmp_path / "other"), "does not fit")


@pytest.mark.parametrize("sharing", ["adapter", "merged"])
def test_an_adapter_that_changes_nothing(compare, tmp_path, sharing):
    save_adapter(tmp_path / "inert", tiny_model(), scale=0.0)
    compare(f"pair.sharing={sharing}", finetuned=tmp_path / "inert").sentence(str(tmp_path / "inert"), "nothing")


def test_a_full_finetune_that_changes_nothing(compare, bench):
    compare(finetuned=bench.base).sentence(str(bench.base))


def test_a_full_model_cannot_share(compare, bench):
    compare("pair.sharing=merged", finetuned=bench.full).sentence("pair.sharing=merged", alone=True)
    compare("pair.sharing=separate").sentence("pair.sharing=separate", alone=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(compare, bench, tmp_path, value):
    base, full, adapter = (copy(f, tmp_path / f.name) for f in (bench.base, bench.full, bench.adapter))
    name = change_tensor(base, "layers.1", poisoned(value))
    compare(base=base).sentence("NaN", name, str(base))
    name = change_tensor(full, "norm", poisoned(value))
    compare(finetuned=full).sentence("NaN", name, str(full))
    name = change_tensor(adapter, "lora_A", poisoned(value))
    compare(finetuned=adapter).sentence("NaN", name, str(adapter))


def test_tokenizers_that_differ(compare, bench, tmp_path):
    folder = copy(bench.full, tmp_path / "model")
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    vocab = raw["model"]["vocab"]
    tokens = [t for t in vocab if not t.startswith("<|")]
    raw["model"]["vocab"] |= dict(zip(tokens, [vocab[t] for t in tokens[1:] + tokens[:1]], strict=True))
    path.write_text(json.dumps(raw), encoding="utf-8")
    compare(finetuned=folder).sentence(str(folder), "tokenizer")


def test_a_chat_without_template(command, bench, tmp_path):
    base = tiny_model()
    save_model(tmp_path / "base", base, tiny_tokenizer(chat_template=None))
    chats = [{"messages": [{"role": "user", "content": "Which bird?"}, {"role": "assistant", "content": "A heron."}]}]
    data = write_jsonl(tmp_path / "chats.jsonl", chats)
    args = bench.command(tmp_path / "out", base=tmp_path / "base", data=data)
    command(args).sentence("custom", "chat template", "model.chat_template=")
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}")
    command(args, f"model.chat_template={template}").done()
    command(args, f"model.chat_template={tmp_path / 'none.jinja'}").sentence("none.jinja")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", ""),
        ("a.jsonl", "\n\n"),
        ("a.txt", " \n\n"),
        ("a.csv", "text\n"),
        ("a.jsonl", '{"text": ""}\n{"text": "x"}\n'),
    ],
)
def test_an_empty_data_set(compare, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    compare(data=tmp_path / name).sentence("custom")


def test_a_missing_data_file(compare, tmp_path):
    compare(data=tmp_path / "none.jsonl").sentence(str(tmp_path / "none.jsonl"))


def test_a_missing_column(compare, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"body": "some text", "title": "one"}])
    compare(data=path).sentence(str(path), "text", "body", "title", "data.text_column=")
    compare("data.text_column=boddy", data=path).sentence("boddy", "body")
    compare("data.text_column=body", data=path).done()


def test_a_bad_json_line_is_named(compare, tmp_path):
    rows = [json.dumps(row) for row in sentences(6)]
    rows[3] = '{"text": "unfinished'
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    compare(data=tmp_path / "a.jsonl").sentence(str(tmp_path / "a.jsonl"), "line 4")


def test_bytes_that_are_no_text(compare, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    compare(data=tmp_path / "a.jsonl").sentence("line 2", "UTF-8")


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        ("model.device_map=mars", ["model.device_map", "mars"]),
        ("model.attn_implementation=none_such", ["model.attn_implementation", "none_such"]),
        ("model.subfolder=none_such", ["none_such"]),
        ("model.tokenizer_id=./none_such", ["none_such"]),
        ("organism.subfolder=none_such", ["none_such"]),
        ("data.messages_column=text", ["text"]),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_options_that_do_not_fit_what_is_there(compare, option, parts):
    compare(option).sentence(*parts)


def test_texts_longer_than_the_model_can_read(compare, tmp_path):
    """GPT-2 has learnt positions; past the last one there is nothing to look up."""
    base = tiny_model("gpt2")
    save_model(tmp_path / "base", base, tiny_tokenizer())
    save_adapter(tmp_path / "adapter", base)
    data = write_jsonl(tmp_path / "long.jsonl", [{"text": "a word and another " * 200}])
    pair = {"base": tmp_path / "base", "finetuned": tmp_path / "adapter", "data": data}
    compare("data.max_length=1000", **pair).sentence("data.max_length", "256")
    compare("data.max_length=256", **pair).done()


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_quantisation_without_its_package(compare):
    compare("model.quantization=4bit").sentence("model.quantization", "bitsandbytes", "pip install")


@pytest.mark.slow
def test_every_file_format_runs(command, bench, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [row["text"] for row in sentences(5)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    (tmp_path / "a.csv").write_text("text\n" + "".join(f'"{t}"\n' for t in texts))
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    write_jsonl(tmp_path / "a b.jsonl", [{"text": t} for t in texts])
    made = set()
    for name in ("a.txt", "a.csv", "a.parquet", "a b.jsonl"):
        out = tmp_path / "out" / name.replace(" ", "")
        command(bench.command(out, data=tmp_path / name)).done()
        made |= {f.name for f in run_folders(out)}
    assert len(made) == 1, "the same text in another format is the same run"
