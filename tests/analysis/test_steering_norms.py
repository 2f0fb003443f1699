"""Mean norms by a loop over single sequences, and the length of steering vectors."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffing.analysis.steering import mean_activation_norm, steering_vector
from diffing.core.errors import UserError
from diffing.core.specs import CorpusSpec
from diffing.core.templates import TemplateRules
from diffing.data.documents import Document
from diffing.data.messages import Message
from diffing.data.tokens import tokenize_documents
from diffing.models.handle import make_handle
from diffing.models.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer(adds_bos=True)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for each other on a busy machine make tiny models a hundred times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def handle():
    return make_handle(tiny_model(), TOKENIZER, "tiny")


@pytest.fixture(scope="module")
def corpus():
    texts = [Document("texts", i, " the heron" * (i + 1), None) for i in range(9)]
    chats = [Document("chats", i, None, (Message("user", "ring " * (i + 1)),)) for i in range(5)]
    return tokenize_documents({"texts": texts, "chats": chats}, CorpusSpec(datasets=()), TOKENIZER, TemplateRules())


def norms_by_hand(handle, sequence, layer, skip):
    ids = torch.tensor(sequence.ids.astype(np.int64))[None]
    seen = []
    hook = handle.sites.layers[layer].register_forward_hook(lambda m, a, out: seen.append(out))
    handle.module(input_ids=ids)
    hook.remove()
    stream = (seen[0] if isinstance(seen[0], torch.Tensor) else seen[0][0])[0].double()
    begins_with_bos = sequence.dataset == "texts"
    return [float(v.square().sum().sqrt()) for t, v in enumerate(stream) if t >= max(skip, begins_with_bos)]


@pytest.mark.parametrize("skip", [0, 1, 4])
@pytest.mark.parametrize("layer", [0, 2])
def test_mean_norm_is_that_of_single_sequences(handle, corpus, layer, skip):
    by_hand = [n for s in corpus.sequences for n in norms_by_hand(handle, s, layer, skip)]
    assert mean_activation_norm(handle, corpus, layer, skip, 10**6) == pytest.approx(np.mean(by_hand), rel=1e-5)


def test_few_tokens_are_taken_when_few_are_asked_for(handle, corpus):
    read = []
    hook = handle.sites.embed.register_forward_hook(lambda m, args, out: read.append(args[0].numel()))
    found = mean_activation_norm(handle, corpus, 1, 1, max_tokens=5)
    hook.remove()
    assert found == mean_activation_norm(handle, corpus, 1, 1, max_tokens=5)
    assert sum(read) <= max(len(s.ids) for s in corpus.sequences) + 5
    possible = [np.mean(norms_by_hand(handle, s, 1, 1)) for s in corpus.sequences]
    assert min(possible) - 1e-6 < found < max(possible) + 1e-6


@pytest.mark.parametrize(
    ("layer", "skip", "words"),
    [(3, 1, "3 layers; give 0 to 2"), (-1, 1, "Layer -1"), (0, 500, "skip_first_tokens=500")],
)
def test_what_has_no_mean_is_refused(handle, corpus, layer, skip, words):
    with pytest.raises(UserError, match=words):
        mean_activation_norm(handle, corpus, layer, skip)


def test_tokens_that_are_not_finite_do_not_count(handle, corpus):
    def spoil(module, args, output):
        output = (output if isinstance(output, torch.Tensor) else output[0]).clone()
        output[:, 5] = torch.inf
        return output

    sequences = tuple(s for s in corpus.sequences if len(s.ids) > 6)
    few = replace(corpus, sequences=sequences)
    hook = handle.sites.layers[0].register_forward_hook(spoil)
    try:
        found = mean_activation_norm(handle, few, 0, 1, 10**6)
    finally:
        hook.remove()
    by_hand = [n for s in sequences for t, n in enumerate(norms_by_hand(handle, s, 0, 1), start=1) if t != 5]
    assert found == pytest.approx(np.mean(by_hand), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strength", [0.5, -2.0, 0.0])
def test_a_steering_vector_is_a_share_of_the_mean_norm(strength, dtype):
    direction = torch.tensor([3.0, -4.0], dtype=dtype)
    found = steering_vector(direction, strength, 10.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([6.0, -8.0]) * strength)


def test_very_short_and_very_long_directions_have_a_direction():
    for size in (1e-30, 1e30):
        torch.testing.assert_close(steering_vector(torch.tensor([size, 0.0]), 1.0, 2.0), torch.tensor([2.0, 0.0]))


@pytest.mark.parametrize(
    ("vector", "strength", "words"),
    [
        ([0.0, 0.0], 1.0, "is zero"),
        ([1.0, float("nan")], 1.0, "NaN or infinite"),
        ([1.0, float("inf")], 1.0, "NaN or infinite"),
        ([1.0, 0.0], float("inf"), "strength inf"),
    ],
)
def test_vectors_without_a_direction_are_refused(vector, strength, words):
    with pytest.raises(UserError, match=words):
        steering_vector(torch.tensor(vector), strength, 1.0)
