"""Rewriting against a hook written apart: the stream itself, another text's stream, and what is left afterwards."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from diffing.core.errors import UserError
from diffing.core.layers import Slot
from diffing.models.capture import capture
from diffing.models.handle import make_handle
from diffing.models.rewriting import rewritten
from diffing.models.sites import Sites
from diffing.models.tiny import tiny_model, tiny_tokenizer

IDS = torch.arange(20, 40).view(2, 10)
OTHER = IDS.flip(0, 1) + 15
WRAPPERS = {"tensor": lambda x: x, "tuple": lambda x: (x, "rest"), "list": lambda x: [x, 1]}
ARCHITECTURES = {"llama": torch.Tensor, "falcon": tuple}


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def handle(request):
    return make_handle(tiny_model(request.param), tiny_tokenizer(), request.param)


def n_hooks(handle):
    return sum(len(m._forward_hooks) for m in handle.module.modules())


def stream_of(handle, ids, layer):
    return capture(handle, ids, [Slot(layer)])[Slot(layer)]


def test_blocks_of_both_kinds_are_tested():
    for architecture, kind in ARCHITECTURES.items():
        handle = make_handle(tiny_model(architecture), tiny_tokenizer(), architecture)
        found = []
        hook = handle.sites.layers[1].register_forward_hook(lambda m, a, output: found.append(type(output)))  # noqa: B023
        handle.forward_logits(IDS)
        hook.remove()
        assert issubclass(found[0], kind)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_stream_itself_changes_nothing(handle, layer):
    plain = handle.forward_logits(IDS)
    with rewritten(handle, layer, stream_of(handle, IDS, layer)):
        found = handle.forward_logits(IDS)
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_another_texts_stream_gives_its_logits(handle, layer):
    with rewritten(handle, layer, stream_of(handle, OTHER, layer)):
        found = handle.forward_logits(IDS)
    torch.testing.assert_close(found, handle.forward_logits(OTHER), atol=1e-5, rtol=0)
    assert (found - handle.forward_logits(IDS)).abs().max() > 0.1


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_it_agrees_with_a_hook_written_apart(handle, layer):
    new = torch.randn(2, 10, 32, generator=torch.Generator().manual_seed(layer)) * 3

    def replace_stream(module, args, output):
        return new if isinstance(output, torch.Tensor) else (new, *output[1:])

    hook = handle.sites.layers[layer].register_forward_hook(replace_stream)
    expected = handle.forward_logits(IDS)
    hook.remove()
    with rewritten(handle, layer, new.double()):
        found = handle.forward_logits(IDS)
        seen = stream_of(handle, IDS, layer)
    assert torch.equal(found, expected)
    assert torch.equal(seen, new)


def test_no_hook_is_left(handle):
    before, plain = n_hooks(handle), handle.forward_logits(IDS)
    with rewritten(handle, 1, stream_of(handle, OTHER, 1)):
        assert n_hooks(handle) == before + 1
    assert n_hooks(handle) == before
    with pytest.raises(KeyboardInterrupt), rewritten(handle, 1, stream_of(handle, OTHER, 1)):
        raise KeyboardInterrupt
    assert n_hooks(handle) == before
    with pytest.raises(RuntimeError), rewritten(handle, 1, torch.zeros(2, 10, 31)):
        handle.forward_logits(IDS)
    assert n_hooks(handle) == before
    assert torch.equal(handle.forward_logits(IDS), plain)


@pytest.mark.parametrize("layer", [-1, 3])
def test_layers_outside_the_model_are_refused(handle, layer):
    with (
        pytest.raises(UserError, match=rf"Layer {layer} .* 3 layers; give 0 to 2"),
        rewritten(handle, layer, torch.zeros(2, 10, 32)),
    ):
        pass


class Returning(nn.Module):
    """A block that gives its stream in some container and dtype."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, stream):
        return self.wrap(stream)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("wrap", list(WRAPPERS.values()), ids=list(WRAPPERS))
def test_dtype_and_container_stay(dtype, wrap):
    handle = make_handle(tiny_model("llama"), tiny_tokenizer(), "tiny")
    block = Returning(wrap)
    other = replace(handle, sites=Sites(nn.ModuleList([block]), None, handle.sites.head, handle.sites.embed))
    stream, new = torch.randn(2, 2, 5, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with rewritten(other, 0, new):
        output = block(stream.to(dtype))
    assert type(output) is type(wrap(stream))
    changed = output if isinstance(output, torch.Tensor) else output[0]
    assert torch.equal(changed, new.to(dtype))
    assert changed.dtype == dtype
    assert isinstance(output, torch.Tensor) or output[1] == wrap(stream)[1]
