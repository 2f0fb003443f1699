"""Sites and read-out on six architectures, against the models' own logits."""

import pytest
import torch

from diffing.core.errors import UserError
from diffing.models.handle import make_handle
from diffing.models.readout import FAKE_SIZE, LogitTransform, find_transform
from diffing.models.sites import find_sites
from diffing.models.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer

IDS = torch.arange(20, 40).view(2, 10)


def n_hooks(module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_and_transform_give_the_models_logits_with_padding(architecture):
    model = tiny_model(architecture)
    handle = make_handle(model, tiny_tokenizer(), "tiny")
    padded = torch.cat([IDS, torch.zeros(2, 7, dtype=torch.long)], dim=1)
    padded[1, 6:] = 0
    lengths = (10, 6)
    hidden = handle.final_hidden(padded, lengths)
    for row, length in enumerate(lengths):
        own = model(input_ids=IDS[row : row + 1, :length]).logits[0]
        ours = handle.logits(hidden[row, :length])
        torch.testing.assert_close(ours, own, atol=1e-5, rtol=1e-5)
    assert handle.warnings == ()
    assert handle.vocab_size == model.config.vocab_size
    assert n_hooks(model) == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_last_block_norm_and_head_give_the_logits(architecture):
    model = tiny_model(architecture)
    sites = find_sites(model, IDS)
    blocks = []
    handle = sites.layers[-1].register_forward_hook(lambda m, a, out: blocks.append(out))
    own = model(input_ids=IDS).logits
    handle.remove()
    transform = find_transform(model, sites.head, IDS)
    last = blocks[0][0] if isinstance(blocks[0], tuple) else blocks[0]
    torch.testing.assert_close(transform(sites.head(sites.final_norm(last))), own, atol=1e-5, rtol=1e-5)
    assert len(sites.layers) == 3


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("llama", LogitTransform()),
        ("gemma2", LogitTransform(softcap=30.0)),
        ("cohere", LogitTransform(scale=0.0625)),
        ("granite", LogitTransform(scale=0.125)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transform_is_found_at_real_size_in_any_dtype(architecture, expected, dtype):
    model = tiny_model(architecture).to(dtype)
    assert find_transform(model, model.get_output_embeddings(), IDS) == expected


def test_soft_cap_by_hand():
    got = LogitTransform(softcap=30.0)(torch.tensor([FAKE_SIZE, 0.0, -30.0]))
    torch.testing.assert_close(got, torch.tensor([28.92083, 0.0, -22.84782]))


def test_unknown_transform_falls_back_to_the_models_own_forward():
    model = tiny_model("llama")
    plain = model.forward

    def squared(*args, **kwargs):
        out = plain(*args, **kwargs)
        out.logits = out.logits.square()
        return out

    model.forward = squared
    handle = make_handle(model, tiny_tokenizer(), "odd")
    assert handle.transform is None
    assert "could not be verified" in handle.warnings[0]
    torch.testing.assert_close(handle.forward_logits(IDS), model(input_ids=IDS).logits)
    with pytest.raises(ValueError, match="forward_logits"):
        handle.logits(handle.final_hidden(IDS)[0])


def test_head_is_not_computed_and_hooks_go_even_after_an_error():
    model = tiny_model("llama")
    handle = make_handle(model, tiny_tokenizer(), "tiny")
    calls = []
    counter = model.lm_head.register_forward_hook(lambda *a: calls.append(1))
    handle.final_hidden(IDS)
    assert calls == []
    counter.remove()
    with pytest.raises(IndexError):
        handle.final_hidden(torch.tensor([[10**6]]))
    assert n_hooks(model) == 0


def test_padding_that_reaches_back_is_noticed_and_masked():
    model = tiny_model("llama")
    attention = model.model.layers[0].self_attn
    plain = attention.forward

    def with_mean(hidden_states, *args, attention_mask=None, **kwargs):
        kept = hidden_states[:, : int(kept_length[0])] if kept_length else hidden_states
        out, weights = plain(hidden_states, *args, attention_mask=attention_mask, **kwargs)
        return out + kept.mean(1, keepdim=True), weights

    kept_length: list[int] = []
    attention.forward = with_mean
    handle = make_handle(model, tiny_tokenizer(), "leaky")
    assert handle.needs_mask
    assert any("padding" in w for w in handle.warnings)
    masks = []
    hook = model.model.register_forward_pre_hook(lambda m, a, k: masks.append(k["attention_mask"]), with_kwargs=True)
    handle.final_hidden(IDS, (10, 6))
    hook.remove()
    assert masks[0].sum(1).tolist() == [10, 6]


def test_model_without_the_announced_layers_is_refused():
    model = tiny_model("llama")
    model.config = type(model.config)(**{**model.config.to_dict(), "num_hidden_layers": 7})
    with pytest.raises(UserError, match="No list of 7 decoder layers"):
        find_sites(model, IDS)


def test_nan_in_the_computation_is_refused():
    model = tiny_model("llama")
    model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        make_handle(model, tiny_tokenizer(), "broken")
