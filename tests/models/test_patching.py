"""Patching against hooks written apart, the donor's logits from beginning to end, and models that cannot be patched."""

from dataclasses import replace

import pytest
import torch

from diffing.core.errors import UserError
from diffing.models import patching
from diffing.models.families import tiny_family
from diffing.models.handle import make_handle
from diffing.models.patching import (
    EMBEDDING,
    patched_logits,
    points,
    read_states,
    refuse_unlike,
    refuse_unpatchable,
)
from diffing.models.tiny import perturbed, tiny_model, tiny_tokenizer
from workbench import pair_loader

IDS = torch.tensor([[21, 35, 40, 52, 66, 71, 80], [90, 33, 47, 0, 0, 0, 0], [25, 0, 0, 0, 0, 0, 0]])
LENGTHS = [7, 3, 1]
# A tensor, a tuple, positions added to the embedding, soft caps, a state without attention.
ARCHITECTURES = ("llama", "falcon", "gpt2", "gemma2", "mamba")


def pair_of(architecture):
    base = tiny_family(architecture) if architecture == "mamba" else tiny_model(architecture)
    return tuple(make_handle(m, tiny_tokenizer(), architecture) for m in (base, perturbed(base, 1, 0.05)))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request):
    return pair_of(request.param)


@pytest.fixture(scope="module")
def tiny_pair(tmp_path_factory):
    return pair_loader(tmp_path_factory.mktemp, full=False)


@pytest.fixture(scope="module")
def states(pair):
    return tuple(read_states(handle, IDS, LENGTHS) for handle in pair)


def last_logits(handle, ids=IDS, lengths=LENGTHS):
    """Of each row by itself, without padding."""
    return torch.stack(
        [handle.forward_logits(row[None, :n])[0, -1] for row, n in zip(ids, lengths, strict=True)]
    )  # fmt: skip


def n_changes(handle):
    """Hooks and replaced functions in a model."""
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in handle.module.modules())
    return hooks, sum("forward" in vars(m) for m in handle.module.modules())


def replaced_by_hand(handle, layer, stream_BTD):
    """Every block runs, and the output of one is replaced; logits at the last tokens."""

    def replace_stream(module, args, output):
        return stream_BTD if isinstance(output, torch.Tensor) else (stream_BTD, *output[1:])

    hook = handle.sites.layers[layer].register_forward_hook(replace_stream)
    logits_BTV = handle.forward_logits(IDS)
    hook.remove()
    return torch.stack([logits_BTV[b, n - 1] for b, n in enumerate(LENGTHS)])


def test_states_are_the_models_own(pair, states):
    for handle, found in zip(pair, states, strict=True):
        torch.testing.assert_close(found.logits_BV, last_logits(handle), atol=2e-5, rtol=1e-5)
        assert len(found.outputs) == 3
        assert found.stream(EMBEDDING).shape == found.stream(2).shape == (3, 7, 32)


def test_own_states_change_nothing(pair, states):
    for handle, own in zip(pair, states, strict=True):
        for point in points(handle):
            found = patched_logits(handle, own, replace(own, given_BTD=own.given_BTD + 0), point, IDS, LENGTHS)
            torch.testing.assert_close(found, own.logits_BV, atol=1e-5, rtol=0)


def test_own_states_run_again_give_the_same(pair, states, monkeypatch):
    monkeypatch.setattr(patching, "_same", lambda a, b: False)
    for handle, own in zip(pair, states, strict=True):
        for point in points(handle):
            found = patched_logits(handle, own, own, point, IDS, LENGTHS)
            torch.testing.assert_close(found, own.logits_BV, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_it_agrees_with_a_hook_while_every_block_runs(pair, states, layer):
    for receiver, own, donor in ((pair[0], *states), (pair[1], *states[::-1])):
        found = patched_logits(receiver, own, donor, layer, IDS, LENGTHS)
        torch.testing.assert_close(found, replaced_by_hand(receiver, layer, donor.stream(layer)), atol=2e-5, rtol=1e-5)
        assert (found - own.logits_BV).abs().max() > 1e-3


def test_all_layers_with_norm_and_head_give_the_donors_logits(pair, states):
    for receiver, own, donor in ((pair[0], *states), (pair[1], *states[::-1])):
        whole = points(receiver)[-1]
        assert torch.equal(patched_logits(receiver, own, donor, whole, IDS, LENGTHS), donor.logits_BV)


def test_a_donors_stack_put_into_the_receiver_gives_its_logits(pair, states):
    """With the donor's blocks, norm and head in the receiver's place the donor's logits come out at every point."""
    receiver, donor_handle = pair
    other = make_handle(perturbed(receiver.module, 1, 0.05), tiny_tokenizer(), "copy")
    own = read_states(other, IDS, LENGTHS)
    torch.testing.assert_close(own.logits_BV, states[1].logits_BV, atol=1e-5, rtol=0)
    for point in points(donor_handle):
        found = patched_logits(other, own, states[0], point, IDS, LENGTHS)
        torch.testing.assert_close(
            found, patched_logits(donor_handle, states[1], states[0], point, IDS, LENGTHS), atol=1e-5, rtol=0
        )


def test_embedding_and_norm_are_points_of_their_own():
    base = tiny_model("gpt2", tie_word_embeddings=False)
    moved = perturbed(base, 1, 0.0)
    moved.transformer.wpe.weight.data.add_(0.5)
    moved.lm_head.weight.data.mul_(1.5)
    b, f = (make_handle(m, tiny_tokenizer(), "gpt2") for m in (base, moved))
    own_b, own_f = (read_states(h, IDS, LENGTHS) for h in (b, f))
    head_alone = patched_logits(f, own_f, own_b, 3, IDS, LENGTHS)
    torch.testing.assert_close(head_alone, 1.5 * own_b.logits_BV, atol=1e-4, rtol=1e-4)
    for point in range(EMBEDDING, 3):
        found = patched_logits(b, own_b, own_f, point, IDS, LENGTHS)
        torch.testing.assert_close(found, own_f.logits_BV / 1.5, atol=1e-4, rtol=1e-4)


def test_a_read_out_that_is_not_known_goes_through_the_model():
    b, f = pair_of("gemma2")
    unknown = replace(f, transform=None)
    own_b, own_f, own_u = (read_states(h, IDS, LENGTHS) for h in (b, f, unknown))
    for point in points(f):
        found = patched_logits(unknown, own_u, own_b, point, IDS, LENGTHS)
        torch.testing.assert_close(found, patched_logits(f, own_f, own_b, point, IDS, LENGTHS), atol=2e-5, rtol=1e-5)


def test_nothing_is_left_behind(pair, states):
    before = [n_changes(handle) for handle in pair]
    patched_logits(pair[0], *states, 1, IDS, LENGTHS)
    wrong = replace(states[1], outputs=tuple(torch.zeros(3, 7, 31) for _ in range(3)))
    with pytest.raises(RuntimeError):
        patched_logits(pair[0], states[0], wrong, 1, IDS, LENGTHS)
    assert [n_changes(handle) for handle in pair] == before
    assert torch.equal(read_states(pair[0], IDS, LENGTHS).logits_BV, states[0].logits_BV)


def test_a_toggled_adapter_is_switched(tiny_pair):
    toggled, merged = tiny_pair(sharing="adapter"), tiny_pair(sharing="merged")
    for point in points(toggled.base):
        found = []
        for p in (toggled, merged):
            own_b, own_f = read_states(p.base, IDS, LENGTHS), read_states(p.finetuned, IDS, LENGTHS)
            found.append(patched_logits(p.finetuned, own_f, own_b, point, IDS, LENGTHS))
            found.append(patched_logits(p.base, own_b, own_f, point, IDS, LENGTHS))
        torch.testing.assert_close(found[0], found[2], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[1], found[3], atol=1e-4, rtol=1e-4)


def test_well_known_models_can_be_patched(pair):
    for handle in pair:
        refuse_unpatchable(handle)


def test_blocks_that_take_more_than_the_stream_are_refused():
    handle = make_handle(tiny_model("llama"), tiny_tokenizer(), "tiny")
    left = []
    blocks = handle.sites.layers
    blocks[0].register_forward_hook(lambda module, args, output: left.insert(0, args[0]))
    blocks[2].register_forward_hook(lambda module, args, output: output + left[0])
    with pytest.raises(UserError, match=r"What follows block 0 of model class LlamaForCausalLM .* kl, diff_mining"):
        refuse_unpatchable(handle)


def test_embeddings_by_layer_are_refused():
    handle = make_handle(tiny_family("gemma4_text"), tiny_tokenizer(), "gemma4")
    with pytest.raises(UserError, match="the embedding of model class Gemma4ForCausalLM takes more than the residual"):
        refuse_unpatchable(handle)


def test_models_of_other_shapes_are_refused():
    b, deeper, wider = (
        make_handle(tiny_model(**changes), tiny_tokenizer(), "tiny")
        for changes in ({}, {"num_hidden_layers": 4}, {"hidden_size": 64})
    )
    refuse_unlike(b, b)
    with pytest.raises(UserError, match=r"base has 3 layers and the finetuned model 4.*perplexity_diff work"):
        refuse_unlike(b, deeper)
    with pytest.raises(UserError, match=r"width 32 and the finetuned model's 64.*logit_amplification"):
        refuse_unlike(b, wider)
