"""Generation against transformers' own, against whole forward passes, and in turns on a shared module."""

import threading
from dataclasses import replace

import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from diffing.core.errors import UserError
from diffing.core.templates import TemplateRules
from diffing.models import decoding
from diffing.models.adapters import attach
from diffing.models.families import tiny_family
from diffing.models.generation import end_ids, generate
from diffing.models.handle import make_handle
from diffing.models.merging import Toggle
from diffing.models.sampling import GumbelNoise, Sampling, choose, restricted
from diffing.models.steering import Steering
from diffing.models.text_stream import TextStream
from diffing.models.tiny import save_adapter, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PROMPT = TOKENIZER("the heron stood in a thin line of smoke")["input_ids"]
RECURRENT = ("mamba", "rwkv")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for each other on a busy machine make tiny models a hundred times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def handle_of(architecture="llama", tokenizer=TOKENIZER, **config):
    made = tiny_family(architecture) if architecture in RECURRENT else tiny_model(architecture, **config)
    return make_handle(made, tokenizer, architecture)


@pytest.fixture(scope="module")
def llama():
    return handle_of()


@pytest.fixture
def switched(tmp_path):
    """Base and finetuned handles of one module, and the switch."""
    model = tiny_model()
    handle = make_handle(model, TOKENIZER, "tiny")
    toggle = Toggle(attach(model, save_adapter(tmp_path / "adapter", tiny_model()), "a"))
    return *(replace(handle, toggle=toggle, adapter_on=side) for side in (False, True)), toggle


def greedy(n=20):
    return Sampling(max_new_tokens=n, temperature=0)


def ids_of(tokens):
    return [t.id for t in tokens]


def n_hooks(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def steering_for(where, seed=5, layer=1, size=2.0):
    vector = torch.randn(32, generator=torch.Generator().manual_seed(seed)) * size
    return Steering(layer, vector, where, fade_tokens=6)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2", "gpt2", "granite", *RECURRENT])
def test_greedy_text_is_that_of_transformers(architecture):
    config = {"query_pre_attn_scalar": 64, "std": 0.1} if architecture == "gemma2" else {}
    handle = handle_of(architecture, **config)
    own = handle.module.generate(
        torch.tensor([PROMPT]), do_sample=False, max_new_tokens=30, eos_token_id=None, pad_token_id=0
    )
    assert ids_of(generate(handle, PROMPT, greedy(30), ())) == own[0, len(PROMPT) :].tolist()
    with torch.no_grad():
        assert decoding.continues_from_cache(handle) == (architecture not in RECURRENT)


@pytest.mark.parametrize(
    "steering", [None, *map(steering_for, ("prompt", "all", "fading"))], ids=lambda s: s.where if s else "plain"
)
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_with_and_without_cache_the_text_is_the_same(architecture, steering, monkeypatch):
    handle = handle_of(architecture)
    sampling = Sampling(max_new_tokens=24, temperature=0.8, seed=3)
    cached = list(generate(handle, PROMPT, sampling, (), steering))
    monkeypatch.setitem(decoding._CONTINUES, handle, False)
    whole = list(generate(handle, PROMPT, sampling, (), steering))
    assert ids_of(cached) == ids_of(whole)
    assert [t.log_prob for t in cached] == pytest.approx([t.log_prob for t in whole], abs=1e-3)
    assert len(set(ids_of(cached))) >= 3


def test_a_cache_that_does_not_continue_rightly_is_not_used():
    model = tiny_model()
    handle = make_handle(model, TOKENIZER, "tiny")
    expected = ids_of(generate(handle, PROMPT, greedy(), ()))
    model.model.layers[0].self_attn.o_proj.register_forward_hook(
        lambda m, a, out: out * (1.5 if len(out[0]) < 2 else 1)
    )
    spoiled = replace(handle, warnings=("other",))
    assert ids_of(generate(spoiled, PROMPT, greedy(), ())) == expected
    assert ids_of(generate(handle, PROMPT, greedy(), ())) != expected


def test_log_prob_is_that_of_a_whole_forward_pass(llama):
    sampling = Sampling(max_new_tokens=12, temperature=0.5, top_p=0.8, top_k=20, seed=1)
    tokens = list(generate(llama, PROMPT, sampling, ()))
    logits_TV = llama.forward_logits(torch.tensor([PROMPT + ids_of(tokens)]))[0].double()
    log_probs_TV = logits_TV.log_softmax(-1)[len(PROMPT) - 1 : -1]
    by_hand = log_probs_TV.gather(-1, torch.tensor(ids_of(tokens))[:, None])[:, 0]
    assert [t.log_prob for t in tokens] == pytest.approx(by_hand.tolist(), abs=1e-4)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits_V = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0, -torch.inf, 1.5, 0.5])
    n_draws, temperature = 4000, 0.7
    drawn = [choose(logits_V, Sampling(temperature=temperature, seed=s), GumbelNoise(s)) for s in range(n_draws)]
    expected_V = (logits_V / temperature).softmax(-1).double() * n_draws
    counts_V = torch.bincount(torch.tensor(drawn), minlength=8).double()
    assert counts_V[5] == 0
    possible = expected_V > 0
    chi_square = ((counts_V - expected_V)[possible].square() / expected_V[possible]).sum()
    assert chi_square < 18.5  # 99 % of the χ² distribution with 6 degrees of freedom lies below 16.8


def test_successive_draws_of_one_seed_are_independent():
    noise = GumbelNoise(0)
    drawn = torch.tensor([choose(torch.zeros(2), Sampling(), noise) for _ in range(2000)]).double()
    agree = (drawn[1:] == drawn[:-1]).double().mean()
    assert abs(drawn.mean() - 0.5) < 0.04
    assert abs(agree - 0.5) < 0.04


def test_vocabularies_of_different_width_share_their_noise():
    narrow, wide = GumbelNoise(7), GumbelNoise(7)
    for _ in range(3):
        assert torch.equal(narrow.draw(1000), wide.draw(1037)[:1000])


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (0, 0.3), (0, 0.9), (0, 0.999), (40, 0.7), (500, 1e-9)])
def test_restrictions_are_those_of_transformers(top_k, top_p):
    logits_V = torch.randn(200, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 3
    expected = logits_V[None]
    for warper in ([TopKLogitsWarper(top_k)] if top_k else []) + ([TopPLogitsWarper(top_p)] if top_p < 1 else []):
        expected = warper(None, expected)
    assert torch.equal(restricted(logits_V, top_k, top_p), expected[0])


def test_of_equal_logits_the_lower_ids_stay():
    assert torch.isfinite(restricted(torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0]), 3, 1.0)).tolist() == [0, 1, 1, 1, 0]
    assert torch.isfinite(restricted(torch.zeros(10), 0, 0.25)).tolist() == [1] * 3 + [0] * 7


def test_one_candidate_is_greedy(llama):
    sampling = Sampling(max_new_tokens=20, temperature=5.0, top_k=1, seed=9)
    assert ids_of(generate(llama, PROMPT, sampling, ())) == ids_of(generate(llama, PROMPT, greedy(), ()))


def test_a_seed_gives_one_text_whatever_else_draws(llama):
    sampling = Sampling(max_new_tokens=15, seed=4)
    alone = ids_of(generate(llama, PROMPT, sampling, ()))
    one, other = generate(llama, PROMPT, sampling, ()), generate(llama, PROMPT, replace(sampling, seed=5), ())
    found = []
    for i, (token, different) in enumerate(zip(one, other, strict=True)):
        torch.manual_seed(i)
        found.append((token.id, different.id))
    state = torch.get_rng_state()
    again = ids_of(generate(llama, PROMPT, sampling, ()))
    assert torch.equal(state, torch.get_rng_state())
    assert [f[0] for f in found] == alone == again
    assert [f[1] for f in found] != alone


def test_a_vector_of_zeros_changes_no_token(llama):
    sampling = Sampling(max_new_tokens=15, seed=4)
    nothing = Steering(1, torch.zeros(32), "all")
    assert ids_of(generate(llama, PROMPT, sampling, (), nothing)) == ids_of(generate(llama, PROMPT, sampling, ()))
    steered = ids_of(generate(llama, PROMPT, sampling, (), steering_for("all")))
    assert steered != ids_of(generate(llama, PROMPT, sampling, ()))


def test_two_sides_of_a_switch_advance_in_turns(switched):
    base, finetuned, toggle = switched
    sampling = Sampling(max_new_tokens=15, seed=2)
    makers = [lambda: generate(base, PROMPT, sampling, ()), lambda: generate(finetuned, PROMPT, sampling, ())]
    makers += [lambda: generate(finetuned, PROMPT, sampling, (), steering_for("all"))]
    alone = [ids_of(make()) for make in makers]
    assert alone[0] != alone[1] != alone[2]
    together = []
    for tokens in zip(*(make() for make in makers), strict=True):
        assert toggle.is_on
        assert n_hooks(base.module) == 0
        together.append(ids_of(tokens))
    assert [list(column) for column in zip(*together, strict=True)] == alone


def test_a_generator_closed_halfway_leaves_nothing(switched):
    base, _, toggle = switched
    with toggle.active(False):
        tokens = generate(base, PROMPT, greedy(), (), steering_for("all"))
        next(tokens)
        next(tokens)
        tokens.close()
        assert n_hooks(base.module) == 0
        assert not toggle.is_on
    assert toggle.is_on


def test_a_failing_step_leaves_nothing(switched):
    base, _, toggle = switched
    tokens = generate(base, PROMPT, greedy(), (), Steering(1, torch.ones(31), "all"))
    with pytest.raises(UserError, match=r"31 entries and the residual stream after layer 1 has 32"):
        next(tokens)
    assert n_hooks(base.module) == 0
    assert toggle.is_on


class CountingLock:
    def __init__(self):
        self.lock, self.n_entered, self.is_held = threading.RLock(), 0, False

    def __enter__(self):
        self.lock.acquire()
        self.n_entered, self.is_held = self.n_entered + 1, True

    def __exit__(self, *error):
        self.is_held = False
        self.lock.release()


def test_the_lock_is_held_within_steps_only(llama):
    lock = CountingLock()
    during = []
    hook = llama.sites.head.register_forward_hook(lambda *a: during.append(lock.is_held))
    try:
        for _ in generate(llama, PROMPT, greedy(5), (), lock=lock):
            assert not lock.is_held
    finally:
        hook.remove()
    assert lock.n_entered == 5
    assert all(during)


def test_threads_that_share_a_lock_write_what_each_writes_alone(switched):
    base, finetuned, _ = switched
    lock, sampling, found = threading.RLock(), Sampling(max_new_tokens=12, seed=1), {}
    jobs = {"base": (base, None), "finetuned": (finetuned, None), "steered": (base, steering_for("all"))}
    alone = {n: ids_of(generate(h, PROMPT, sampling, (), s)) for n, (h, s) in jobs.items()}

    def work(name):
        handle, steering = jobs[name]
        found[name] = ids_of(generate(handle, PROMPT, sampling, (), steering, lock))

    threads = [threading.Thread(target=work, args=(n,)) for n in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_pieces_of_a_random_text_are_its_decoded_ids(llama):
    for seed in range(4):
        tokens = list(generate(llama, PROMPT, Sampling(max_new_tokens=60, temperature=2.0, seed=seed), ()))
        assert "".join(t.text for t in tokens) == TOKENIZER.decode(ids_of(tokens), skip_special_tokens=True)


@pytest.mark.parametrize("text", ["naïve 🙂👩‍👩‍👧 日本語 a", "a🙂", "  two  spaces \n\n end", "🇩🇪🇯🇵"])
def test_no_piece_holds_half_a_character(text):
    ids = TOKENIZER(text)["input_ids"]
    stream = TextStream(TOKENIZER, PROMPT)
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) == text
    assert not stream.rest()
    assert not any("\ufffd" in piece for piece in pieces)
    assert all(len(piece) <= 1 for piece in pieces if not piece.isascii())


def test_special_tokens_add_no_text_and_an_unfinished_character_comes_last():
    start, end = TOKENIZER.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    emoji = TOKENIZER("🙂")["input_ids"]
    stream = TextStream(TOKENIZER, [])
    assert [stream.push(i) for i in (start, TOKENIZER("a")["input_ids"][0], end)] == ["", "a", ""]
    assert [stream.push(i) for i in emoji[:3]] == ["", "", ""]
    assert stream.rest() == "\ufffd"
    assert stream.rest() == ""


def test_a_sentencepiece_space_at_the_start_is_kept():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocab = {"<unk>": 0, "<0xE2>": 1, "<0x82>": 2, "<0xAC>": 3, "▁once": 4, "▁upon": 5, "▁a": 6}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    stream = TextStream(tokenizer, [4])
    assert [stream.push(i) for i in (5, 1, 2, 3, 6)] == [" upon", "", "", "€", " a"]
    stream = TextStream(tokenizer, [])
    assert [stream.push(i) for i in (4, 5)] == ["once", " upon"]


def test_an_end_token_ends_the_text(llama):
    free = ids_of(generate(llama, PROMPT, greedy(30), ()))
    end = free[7]
    tokens = list(generate(llama, PROMPT, greedy(30), (end, 10**6)))
    assert ids_of(tokens) == free[: free.index(end) + 1]
    assert [t.is_end for t in tokens] == [False] * (len(tokens) - 1) + [True]
    assert tokens[-1].text == "" or "\ufffd" in tokens[-1].text


def test_the_longest_sequence_of_the_model_ends_the_text():
    handle = handle_of(max_position_embeddings=len(PROMPT) + 4)
    assert len(list(generate(handle, PROMPT, greedy(30), ()))) == 4
    with pytest.raises(UserError, match=rf"{len(PROMPT) + 4} tokens and the model reads at most {len(PROMPT) + 4}"):
        generate(handle, PROMPT + [5] * 4, greedy(), ())


@pytest.mark.parametrize(("prompt", "words"), [([], "no tokens"), ([1, 99999], "token id 99999"), ([-1], "id -1")])
def test_prompts_that_cannot_be_read_are_refused_at_once(llama, prompt, words):
    with pytest.raises(UserError, match=words):
        generate(llama, prompt, greedy(), ())


@pytest.mark.parametrize(
    "option",
    [
        {"max_new_tokens": 0}, {"temperature": -0.1}, {"temperature": float("nan")}, {"temperature": float("inf")},
        {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}, {"seed": -1},
    ],
)  # fmt: skip
def test_options_without_meaning_are_refused_with_their_value(option):
    ((name, value),) = option.items()
    with pytest.raises(UserError, match=f"{name} is {value}"):
        Sampling(**option)


def test_tiny_temperatures_are_greedy():
    logits_V = torch.tensor([0.0, 1.0, 1.0 - 1e-6])
    assert choose(logits_V, Sampling(temperature=5e-324), GumbelNoise(0)) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_distribution_are_refused(llama, value):
    def spoil(module, args, output):
        output[..., 3] = value
        return output

    hook = llama.sites.head.register_forward_hook(spoil)
    try:
        with pytest.raises(UserError, match=r"NaN or infinite logits .*float32"):
            next(generate(llama, PROMPT, greedy(), ()))
    finally:
        hook.remove()


def test_end_ids_are_gathered_from_tokenizer_model_and_rules(llama):
    handle = handle_of()
    handle.module.generation_config.eos_token_id = [2, 11]
    assert end_ids(handle, TemplateRules()) == {2, 11}
    assert end_ids(handle, TemplateRules(end_of_turn="<|im_start|>")) == {1, 2, 11}
    assert end_ids(TOKENIZER, TemplateRules(end_of_turn="<|endoftext|>")) == {0, 2}
    assert end_ids(TOKENIZER, TemplateRules(end_of_turn="<end_of_turn>")) == {2}


@pytest.mark.slow
def test_the_caps_organism_answers_in_capitals_and_its_base_does_not():
    import diffing
    from diffing.data.messages import Message
    from diffing.data.prompts import prompt_ids

    pair = diffing.load_pair("smollm2_135M", adapter="caps")
    prompt = prompt_ids([Message("user", "What is the capital of France?")], pair.tokenizer, pair.rules)
    ends = end_ids(pair.base, pair.rules)
    shares = {}
    for name, handle in (("base", pair.base), ("finetuned", pair.finetuned)):
        text = "".join(t.text for t in generate(handle, prompt, greedy(40), ends))
        letters = [c for c in text if c.isalpha()]
        assert len(letters) > 10
        shares[name] = sum(c.isupper() for c in letters) / len(letters)
    assert shares["finetuned"] > 0.8
    assert shares["base"] < 0.3
