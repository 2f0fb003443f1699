"""Steering against arithmetic by hand and a hook written apart."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from diffing.core.errors import UserError
from diffing.core.layers import Slot
from diffing.models.capture import capture
from diffing.models.generation import generate
from diffing.models.handle import make_handle
from diffing.models.sampling import Sampling
from diffing.models.sites import Sites
from diffing.models.steering import Steering, steered, steering_scales
from diffing.models.tiny import tiny_model, tiny_tokenizer

IDS = torch.arange(20, 40).view(2, 10)
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(1))
WRAPPERS = {"tensor": lambda x: x, "tuple": lambda x: (x, "rest"), "list": lambda x: [x, 1]}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for each other on a busy machine make tiny models a hundred times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def handle():
    return make_handle(tiny_model("llama"), tiny_tokenizer(), "tiny")


def test_after_the_last_block_the_logits_are_those_of_the_sum(handle):
    stream = capture(handle, IDS, [Slot(2)])[Slot(2)]
    with steered(handle, Steering(2, VECTOR, "all", skip_first_tokens=0), 0, 10):
        found = handle.forward_logits(IDS)
    total = (stream + VECTOR).double()
    model = handle.module
    scale = (total.square().mean(-1, keepdim=True) + model.config.rms_norm_eps).rsqrt()
    by_hand = (total * scale * model.model.norm.weight.double()) @ model.lm_head.weight.double().T
    torch.testing.assert_close(found.double(), by_hand, atol=1e-4, rtol=1e-4)


def test_leading_positions_are_left_alone(handle):
    plain, deepest = (capture(handle, IDS, [Slot(0)])[Slot(0)], Slot(0))
    with steered(handle, Steering(0, VECTOR, "prompt", skip_first_tokens=3), 0, 10):
        found = capture(handle, IDS, [deepest])[deepest]
    assert torch.equal(found[:, :3], plain[:, :3])
    torch.testing.assert_close(found[:, 3:], plain[:, 3:] + VECTOR)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("prompt", [0, 0, 1, 1, 0, 0, 0, 0, 0]),
        ("all", [0, 0, 1, 1, 1, 1, 1, 1, 1]),
        ("fading", [0, 0, 1, 1, 0.75, 0.5, 0.25, 0, 0]),
    ],
)
def test_shares_of_the_vector_by_position(where, expected):
    steering = Steering(0, VECTOR, where, fade_tokens=4, skip_first_tokens=2)
    assert steering_scales(steering, 0, 9, 4).tolist() == expected
    assert [float(steering_scales(steering, t, 1, 4)) for t in range(9)] == expected


@pytest.mark.parametrize("where", ["prompt", "all", "fading"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_steered_text_is_that_of_a_loop_with_a_hook_of_its_own(where, architecture):
    handle = make_handle(tiny_model(architecture), tiny_tokenizer(), "tiny")
    prompt, n_new, fade = IDS[0].tolist(), 12, 5
    vector = VECTOR * 3
    ids = list(prompt)

    def add(module, args, output):
        stream = (output if isinstance(output, torch.Tensor) else output[0]).clone()
        for t in range(1, stream.shape[1]):
            number = max(0, t - len(prompt) + 1)
            share = {"prompt": float(number == 0), "all": 1.0, "fading": max(0.0, 1 - number / fade)}[where]
            stream[:, t] += share * vector
        return stream if isinstance(output, torch.Tensor) else (stream, *output[1:])

    hook = handle.sites.layers[1].register_forward_hook(add)
    for _ in range(n_new):
        ids.append(int(handle.forward_logits(torch.tensor([ids]))[0, -1].argmax()))
    hook.remove()
    sampling = Sampling(max_new_tokens=n_new, temperature=0)
    found = [t.id for t in generate(handle, prompt, sampling, (), Steering(1, vector, where, fade_tokens=fade))]
    assert found == ids[len(prompt) :]


class Returning(nn.Module):
    """A block that gives its stream in some container and dtype."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, stream):
        return self.wrap(stream)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("wrap", list(WRAPPERS.values()), ids=list(WRAPPERS))
def test_dtype_and_container_stay(handle, dtype, wrap):
    block = Returning(wrap)
    other = replace(handle, sites=Sites(nn.ModuleList([block]), None, handle.sites.head, handle.sites.embed))
    stream = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2)).to(dtype)
    with steered(other, Steering(0, VECTOR, "all", skip_first_tokens=0), 0, 5):
        output = block(stream)
    assert type(output) is type(wrap(stream))
    changed = output if isinstance(output, torch.Tensor) else output[0]
    assert changed.dtype == dtype
    assert isinstance(output, torch.Tensor) or output[1] == wrap(stream)[1]
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    assert torch.equal(changed, (stream.to(exact) + VECTOR.to(exact)).to(dtype))
    assert torch.equal(block(stream) if isinstance(output, torch.Tensor) else block(stream)[0], stream)


@pytest.mark.parametrize("layer", [-1, 3])
def test_layers_outside_the_model_are_refused(handle, layer):
    steering = Steering(layer, VECTOR, "all")
    with pytest.raises(UserError, match=rf"Layer {layer} .* 3 layers; give 0 to 2"):
        generate(handle, [20, 21], Sampling(), (), steering)
    with pytest.raises(UserError, match=rf"Layer {layer}"), steered(handle, steering, 0, 2):
        pass


def test_vectors_that_do_not_fit_are_refused_with_numbers(handle):
    with steered(handle, Steering(1, torch.ones(16), "all"), 0, 10), pytest.raises(UserError, match=r"16 .* has 32"):
        handle.forward_logits(IDS)
    assert not handle.sites.layers[1]._forward_hooks


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vector_D": torch.tensor([1.0, float("nan"), float("inf")])}, "2 of its 3 entries"),
        ({"vector_D": torch.ones(2, 3)}, r"shape \(2, 3\)"),
        ({"where": "answer"}, "'answer'.*prompt, all, fading"),
        ({"fade_tokens": 0}, "fade_tokens is 0"),
        ({"skip_first_tokens": -1}, "skip_first_tokens is -1"),
    ],
)
def test_steering_without_meaning_is_refused(change, words):
    with pytest.raises(UserError, match=words):
        Steering(**{"layer": 0, "vector_D": VECTOR, "where": "all"} | change)
