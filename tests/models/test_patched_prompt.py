"""A prompt's last state replaced, against a hook written apart on the whole prompt, with and without a cache."""

import pytest
import torch

from diffing.core.errors import UserError
from diffing.models import patched_prompt
from diffing.models.handle import make_handle
from diffing.models.patched_prompt import PatchedPrompt
from diffing.models.tiny import tiny_model, tiny_tokenizer

PROMPT = list(range(20, 29))
WIDTH = 32


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt2", "falcon", "mamba"])
def handle(request):
    return make_handle(tiny_model(request.param), tiny_tokenizer(), request.param)


def states(n, seed=0):
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def by_hand(handle, prompt, layer, vectors):
    """One row at a time, the whole prompt, a hook of its own."""
    rows = []
    for vector in vectors:

        def put(module, args, output, vector=vector):
            stream = output if isinstance(output, torch.Tensor) else output[0]
            stream[0, -1] = vector.to(stream.dtype)

        hook = handle.sites.layers[layer].register_forward_hook(put)
        rows.append(handle.forward_logits(torch.tensor([prompt]))[0, -1])
        hook.remove()
    return torch.stack(rows)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_it_agrees_with_a_hook_written_apart(handle, layer):
    vectors = states(5)
    found = PatchedPrompt(handle, PROMPT, layer).next_logits(vectors)
    torch.testing.assert_close(found, by_hand(handle, PROMPT, layer, vectors), atol=2e-4, rtol=1e-4)
    assert (found[0] - found[1]).abs().max() > 0.1


def test_a_model_without_a_cache_reads_the_whole_prompt(handle, monkeypatch):
    vectors = states(3)
    monkeypatch.setattr(patched_prompt, "continues_from_cache", lambda handle: False)
    found = PatchedPrompt(handle, PROMPT, 1).next_logits(vectors)
    torch.testing.assert_close(found, by_hand(handle, PROMPT, 1, vectors), atol=2e-4, rtol=1e-4)


def test_the_prefix_is_read_once_and_serves_any_number_of_states():
    handle = make_handle(tiny_model("llama"), tiny_tokenizer(), "llama")
    prompt, lengths = PatchedPrompt(handle, PROMPT, 1), []
    hook = handle.sites.layers[0].register_forward_hook(lambda m, a, out: lengths.append(a[0].shape))
    one, many = prompt.next_logits(states(1)), prompt.next_logits(states(7))
    again = prompt.next_logits(states(1))
    hook.remove()
    assert [tuple(s[:2]) for s in lengths] == [(1, 1), (7, 1), (1, 1)]
    assert torch.equal(one, again)
    torch.testing.assert_close(many[:1], one, atol=2e-5, rtol=0)


def test_a_prompt_of_one_token():
    handle = make_handle(tiny_model("llama"), tiny_tokenizer(), "llama")
    vectors = states(2)
    found = PatchedPrompt(handle, [33], 2).next_logits(vectors)
    torch.testing.assert_close(found, by_hand(handle, [33], 2, vectors), atol=2e-5, rtol=0)


def test_a_toggled_adapter_is_in_force(tmp_path):
    from diffing.models.pair import load_pair
    from diffing.models.tiny import save_pair

    pair = load_pair(save_pair(tmp_path).model_copy(update={"sharing": "adapter"}))
    assert pair.base.module is pair.finetuned.module
    vectors = states(2)
    for handle in (pair.base, pair.finetuned):
        found = PatchedPrompt(handle, PROMPT, 1).next_logits(vectors)
        with handle.active():
            expected = by_hand(handle, PROMPT, 1, vectors)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    other = PatchedPrompt(pair.base, PROMPT, 1).next_logits(vectors)
    assert (found - other).abs().max() > 1e-3


def test_no_hook_is_left(handle):
    prompt = PatchedPrompt(handle, PROMPT, 1)
    before = sum(len(m._forward_hooks) for m in handle.module.modules())
    prompt.next_logits(states(2))
    with pytest.raises(UserError, match="31 numbers cannot stand in a residual stream of 32"):
        prompt.next_logits(states(2)[:, :31])
    assert sum(len(m._forward_hooks) for m in handle.module.modules()) == before


@pytest.mark.parametrize(
    ("prompt", "layer", "said"),
    [([], 1, "no tokens"), ([5, 9999], 1, "token id 9999"), ([5], 3, "Layer 3 is out of range"), ([5] * 300, 0, "300")],
)
def test_bad_input_is_one_sentence(prompt, layer, said):
    handle = make_handle(tiny_model("llama"), tiny_tokenizer(), "llama")
    with pytest.raises(UserError, match=said):
        PatchedPrompt(handle, prompt, layer)
