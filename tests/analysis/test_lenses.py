"""The logit lens against the whole direct computation, on several architectures."""

import dataclasses

import numpy as np
import pytest
import torch

from diffing.analysis import lenses
from diffing.analysis.lenses import has_lens, logit_lens
from diffing.core.errors import UserError
from workbench import pair_loader

WIDTH = 32


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    return pair_loader(tmp_path_factory.mktemp, full=True)


def vectors(n=7, scale=3.0):
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(0)) * scale


def direct(module, vectors_ND, norm):
    """The model's own path from the last block to the logits: soft caps and scales are those of its config."""
    config = module.config
    raw = module.lm_head(norm(vectors_ND))
    if config.model_type == "cohere":
        raw = raw * config.logit_scale
    if config.model_type == "granite":
        raw = raw / config.logits_scaling
    if cap := getattr(config, "final_logit_softcapping", None):
        raw = torch.tanh(raw / cap) * cap
    return raw.double().softmax(-1)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "cohere", "granite", "gpt2"])
def test_readings_are_those_of_the_direct_computation(load, architecture):
    handle = load(architecture).finetuned
    module = handle.module
    norm = module.transformer.ln_f if architecture == "gpt2" else module.model.norm
    with torch.no_grad():
        expected_NV = direct(module, vectors(), norm)
    found = logit_lens(handle, vectors(), 5)
    best = expected_NV.topk(5)
    assert found.ids_NK.tolist() == best.indices.tolist()
    assert found.probabilities_NK.dtype == np.float32
    np.testing.assert_allclose(found.probabilities_NK, best.values.numpy(), rtol=1e-4)


def test_it_is_the_last_block_read_by_the_model_itself(load):
    handle = load("gemma2").finetuned
    ids = torch.tensor([[5, 60, 71, 90]])
    with torch.no_grad():
        out = handle.module(input_ids=ids, output_hidden_states=True)
        last_BTD = []
        hook = handle.sites.layers[-1].register_forward_hook(lambda m, a, o: last_BTD.append(o))
        handle.module(input_ids=ids)
        hook.remove()
    stream = last_BTD[0][0] if isinstance(last_BTD[0], tuple) else last_BTD[0]
    found = logit_lens(handle, stream.reshape(-1, WIDTH), 3)
    np.testing.assert_allclose(found.probabilities_NK, out.logits[0].softmax(-1).topk(3).values.numpy(), rtol=1e-4)


def test_each_side_of_a_shared_adapter_reads_with_its_own_weights(tmp_path_factory):
    pair = pair_loader(tmp_path_factory.mktemp, full=False)("llama", sharing="adapter")
    with pair.finetuned.active(), torch.no_grad():
        expected = pair.finetuned.module.lm_head(pair.finetuned.sites.final_norm(vectors())).softmax(-1).max(-1).values
    np.testing.assert_allclose(logit_lens(pair.finetuned, vectors(), 1).probabilities_NK[:, 0], expected, rtol=1e-5)


def test_chunks_change_nothing(load, monkeypatch):
    handle = load("gemma2").base
    whole = logit_lens(handle, vectors(23), 4)
    monkeypatch.setattr(lenses, "_LOGIT_BYTES", 8 * handle.vocab_size * 3)
    sizes = []
    hook = handle.sites.head.register_forward_hook(lambda m, args, out: sizes.append(len(args[0])))
    cut = logit_lens(handle, vectors(23), 4)
    hook.remove()
    assert sizes == [3] * 7 + [2]
    assert (cut.ids_NK == whole.ids_NK).all()
    np.testing.assert_allclose(cut.probabilities_NK, whole.probabilities_NK, rtol=1e-5)


def test_more_tokens_than_there_are_no_vectors_and_a_vector_of_zeros(load):
    handle = load("llama").base
    found = logit_lens(handle, vectors(2), 10**6)
    assert found.ids_NK.shape == (2, handle.vocab_size)
    np.testing.assert_allclose(found.probabilities_NK.sum(1), 1, rtol=1e-5)
    assert logit_lens(handle, torch.empty(0, WIDTH), 3).ids_NK.shape == (0, 3)
    zeros = logit_lens(handle, torch.zeros(1, WIDTH), 3)
    np.testing.assert_allclose(zeros.probabilities_NK, 1 / handle.vocab_size, rtol=1e-5)


def test_float64_vectors_are_read(load):
    handle = load("llama").base
    one, other = (logit_lens(handle, v, 3) for v in (vectors(), vectors().double()))
    assert (one.ids_NK == other.ids_NK).all()


def test_what_cannot_be_read_is_refused_in_a_sentence(load):
    handle = load("llama").base
    with pytest.raises(UserError, match=r"8 numbers .* stream has 32"):
        logit_lens(handle, torch.zeros(1, 8), 3)
    wrong = vectors()
    wrong[3, 1] = float("nan")
    with pytest.raises(UserError, match="NaN or infinite"):
        logit_lens(handle, wrong, 3)
    assert has_lens(handle)
    for unknown in ({"transform": None}, {"sites": dataclasses.replace(handle.sites, final_norm=None)}):
        other = dataclasses.replace(handle, **unknown)
        assert not has_lens(other)
        with pytest.raises(UserError, match="LlamaForCausalLM"):
            logit_lens(other, vectors(), 3)
