"""Capture on tiny models: shapes, sites, early exit, switching, and what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from diffing.core.errors import UserError
from diffing.core.layers import Slot
from diffing.models.adapters import attach
from diffing.models.block_sites import candidates, site_module
from diffing.models.capture import capture
from diffing.models.families import tiny_family
from diffing.models.handle import make_handle
from diffing.models.merging import Toggle
from diffing.models.tiny import save_adapter, tiny_model, tiny_tokenizer

IDS = torch.arange(20, 40).view(2, 10)


def handle_of(model):
    return make_handle(model, tiny_tokenizer(), "tiny")


def n_hooks(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


class Block(nn.Module):
    """A block with children of given names, each with or without a child of its own."""

    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def part(n=1):
    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(n)))


def test_a_block_adds_its_attention_and_its_mlp_to_the_stream():
    handle = handle_of(tiny_model("llama"))
    found = capture(handle, IDS, [Slot(0), Slot(1), Slot(1, "attention"), Slot(1, "mlp")])
    summed = found[Slot(0)].double() + found[Slot(1, "attention")].double() + found[Slot(1, "mlp")].double()
    torch.testing.assert_close(found[Slot(1)].double(), summed, atol=1e-5, rtol=1e-5)


def test_mlp_is_the_function_of_the_normed_stream_computed_by_hand():
    model = tiny_model("llama")
    block = model.model.layers[0]
    found = capture(handle_of(model), IDS, [Slot(0, "attention"), Slot(0, "mlp")])
    stream = (model.model.embed_tokens(IDS) + found[Slot(0, "attention")]).double()
    scale = (stream.square().mean(-1, keepdim=True) + model.config.rms_norm_eps).rsqrt()
    normed = stream * scale * block.post_attention_layernorm.weight.double()
    gate, up, down = (getattr(block.mlp, n).weight.double() for n in ("gate_proj", "up_proj", "down_proj"))
    by_hand = (nn.functional.silu(normed @ gate.T) * (normed @ up.T)) @ down.T
    torch.testing.assert_close(found[Slot(0, "mlp")].double(), by_hand, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("deepest", [Slot(1), Slot(1, "attention")])
def test_nothing_after_the_deepest_slot_runs_and_no_hook_stays(deepest):
    model = tiny_model("llama")
    handle = handle_of(model)
    ran = []
    watched = {"mlp 1": model.model.layers[1].mlp, "block 2": model.model.layers[2], "head": model.lm_head}
    hooks = [m.register_forward_hook(lambda *a, n=n: ran.append(n)) for n, m in watched.items()]
    capture(handle, IDS, [Slot(0), deepest])
    for hook in hooks:
        hook.remove()
    assert ran == (["mlp 1"] if deepest.site == "residual" else [])
    assert n_hooks(model) == 0


def test_each_side_of_a_switch_reads_its_own_weights(tmp_path):
    model = tiny_model("llama")
    before = capture(handle_of(model), IDS, [Slot(2)])[Slot(2)]
    handle = handle_of(model)
    toggle = Toggle(attach(model, save_adapter(tmp_path / "adapter", tiny_model("llama")), "a"))
    off, on = (replace(handle, toggle=toggle, adapter_on=side) for side in (False, True))
    assert torch.equal(capture(off, IDS, [Slot(2)])[Slot(2)], before)
    assert not torch.equal(capture(on, IDS, [Slot(2)])[Slot(2)], before)
    assert toggle.is_on


def test_tokens_given_in_one_row_get_their_sequences_back():
    handle = handle_of(tiny_family("llama4_text"))
    seen = []
    hook = handle.sites.layers[1].feed_forward.register_forward_hook(lambda m, a, out: seen.append(out[0]))
    found = capture(handle, IDS, [Slot(1), Slot(1, "mlp")])
    hook.remove()
    assert seen[0].shape == (20, 32)
    assert torch.equal(found[Slot(1, "mlp")][1, 3], seen[0][13])


def test_a_module_that_mixes_the_shape_up_is_refused():
    model = tiny_model("llama")
    handle = handle_of(model)
    model.model.layers[1].mlp.register_forward_hook(lambda m, a, out: out.transpose(0, 1))
    with pytest.raises(UserError, match=r"layer_01/mlp gives shape \(10, 2, 32\) for token ids of shape \(2, 10\)"):
        capture(handle, IDS, [Slot(1, "mlp")])
    assert len(model.model.layers[1].mlp._forward_hooks) == 1


def test_a_block_without_one_mlp_is_refused_by_name():
    handle = handle_of(tiny_family("opt"))
    with pytest.raises(UserError, match=r"Layer 2 \(OPTDecoderLayer: .*\) has no single module that is its mlp"):
        capture(handle, IDS, [Slot(2, "mlp")])


@pytest.mark.parametrize(
    ("children", "site", "expected"),
    [
        ({"self_attn": part(), "mlp": part(), "attn_norm": part()}, "attention", ["self_attn"]),
        ({"self_attn": part(), "encoder_attn": part(), "cross_attention": part()}, "attention", ["self_attn"]),
        ({"self_attn": part(), "mamba": part()}, "attention", ["self_attn"]),
        ({"mamba": part(), "feed_forward": part()}, "attention", ["mamba"]),
        ({"attn": nn.Dropout(), "mlp": part()}, "attention", []),
        ({"shared_mlp": part(), "block_sparse_moe": part()}, "mlp", ["shared_mlp", "block_sparse_moe"]),
        ({"mlps": nn.ModuleList([part()])}, "mlp", ["mlps.0"]),
        ({"mlps": nn.ModuleList([part(), part()])}, "mlp", ["mlps.0", "mlps.1"]),
    ],
)
def test_what_counts_as_attention_and_mlp(children, site, expected):
    block = Block(**children)
    names = {id(m): n for n, m in block.named_modules()}
    assert [names[id(m)] for m in candidates(block, site)] == expected
    if len(expected) != 1:
        with pytest.raises(UserError, match="Layer 0"):
            site_module(nn.ModuleList([block]), Slot(0, site))
