"""Many texts at once against one text at a time: the same tokens, whatever else is in the batch."""

from dataclasses import replace

import pytest
import torch

from diffing.core.errors import UserError
from diffing.models import batch_plan, batch_reading, decoding
from diffing.models.adapters import attach
from diffing.models.amplified import amplified_logits
from diffing.models.batch_generation import Amplified, Prompt, seeded, write_texts
from diffing.models.batch_plan import cheapest_cuts, plan_rows
from diffing.models.batch_reading import Reading, cache_facts
from diffing.models.families import tiny_family
from diffing.models.generation import generate
from diffing.models.handle import make_handle
from diffing.models.merging import Toggle
from diffing.models.sampling import GumbelNoise, Sampling, choose, restricted
from diffing.models.steering import SteeredRow, Steering
from diffing.models.tiny import perturbed, save_adapter, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PROMPT = tuple(TOKENIZER("the heron stood in a thin line of smoke")["input_ids"])
RECURRENT = ("mamba", "rwkv")
SAMPLED = Sampling(max_new_tokens=10, temperature=0.9)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def handle_of(architecture="llama", seed=0, **config):
    made = tiny_family(architecture) if architecture in RECURRENT else tiny_model(architecture, seed, **config)
    return make_handle(made, TOKENIZER, architecture)


@pytest.fixture(scope="module")
def llama():
    return handle_of()


@pytest.fixture(scope="module")
def moved(llama):
    return make_handle(perturbed(llama.module, 3, 0.05), TOKENIZER, "moved")


@pytest.fixture
def switched(tmp_path):
    model = tiny_model()
    handle = make_handle(model, TOKENIZER, "tiny")
    toggle = Toggle(attach(model, save_adapter(tmp_path / "adapter", tiny_model(), scale=0.3), "a"))
    return [replace(handle, toggle=toggle, adapter_on=side) for side in (False, True)]


def steering(where, seed=5, layer=1):
    return Steering(layer, torch.randn(32, generator=torch.Generator().manual_seed(seed)) * 2, where, fade_tokens=6)


def prompts_of(n=7, alphas=(0.0,)):
    """Prompts of several lengths and seeds, some steered."""
    steered = [None, steering("all"), steering("prompt", 6, layer=2), steering("fading", 7)]
    lengths = [3, 9, 5, 9, 12, 1, 7]
    return [
        Prompt(PROMPT[: lengths[i % len(lengths)]], i, steered[i % len(steered)], alphas[i % len(alphas)])
        for i in range(n)
    ]


def alone(handle, prompt, sampling, ends=()):
    found = list(generate(handle, prompt.ids, replace(sampling, seed=prompt.seed), ends, prompt.steering))
    return found, [t.id for t in found]


def assert_as_alone(handle, prompts, sampling, ends=()):
    together = write_texts(handle, prompts, sampling, ends)
    for prompt, text in zip(prompts, together, strict=True):
        tokens, ids = alone(handle, prompt, sampling, ends)
        assert list(text.ids) == ids
        assert text.log_probs == pytest.approx([t.log_prob for t in tokens], abs=1e-4)
        assert text.is_ended == (bool(tokens) and tokens[-1].is_end)
        assert text.text == TOKENIZER.decode(ids, skip_special_tokens=True)
    return together


@pytest.mark.parametrize(
    "sampling",
    [SAMPLED, replace(SAMPLED, temperature=0), replace(SAMPLED, top_k=9), replace(SAMPLED, top_p=0.7, top_k=40)],
    ids=["sampled", "greedy", "top_k", "top_p"],
)
def test_texts_are_those_written_alone(llama, sampling):
    found = assert_as_alone(llama, prompts_of(), sampling)
    assert len({text.ids for text in found}) == len(found)


@pytest.mark.parametrize("architecture", ["gemma2", "gpt2", "qwen3", *RECURRENT])
def test_texts_of_other_architectures_are_those_written_alone(architecture):
    handle = handle_of(architecture)
    assert cache_facts(handle).continues == (architecture not in RECURRENT)
    assert_as_alone(handle, prompts_of(5), SAMPLED)


@pytest.mark.parametrize("facts", ["continues", "drops_rows"])
def test_without_a_cache_and_with_one_that_keeps_its_rows_texts_are_the_same(llama, facts, monkeypatch):
    ends = (5, 6, 7, 8, 9, 10, 11, 12)
    expected = write_texts(llama, prompts_of(), SAMPLED, ends)
    other = replace(llama, warnings=("other",))
    if facts == "continues":
        monkeypatch.setitem(decoding._CONTINUES, other, False)
    else:
        monkeypatch.setitem(batch_reading._FACTS, other, cache_facts(llama)._replace(drops_rows=False))
    assert not getattr(cache_facts(other), facts)
    assert [t.ids for t in write_texts(other, prompts_of(), SAMPLED, ends)] == [t.ids for t in expected]


def test_a_cache_that_drops_the_wrong_rows_is_not_asked_to(llama, monkeypatch):
    from transformers import DynamicCache

    assert cache_facts(llama).drops_rows
    monkeypatch.setattr(DynamicCache, "batch_select_indices", lambda self, rows: None)
    assert not cache_facts(replace(llama, warnings=("same rows",))).drops_rows
    monkeypatch.delattr("transformers.cache_utils.Cache.batch_select_indices")
    monkeypatch.delattr(DynamicCache, "batch_select_indices")
    assert not cache_facts(replace(llama, warnings=("no such function",))).drops_rows


def test_rows_that_ended_leave_and_the_others_go_on(llama, monkeypatch):
    sizes = []
    read = Reading.next_logits
    monkeypatch.setattr(Reading, "next_logits", lambda s, texts, rows: sizes.append(len(texts)) or read(s, texts, rows))
    prompts = [Prompt(PROMPT, seed) for seed in range(12)]
    ends = tuple(range(60, 140))
    found = assert_as_alone(llama, prompts, SAMPLED, ends)
    lengths = {len(t.ids) for t in found}
    assert len(lengths) > 3
    assert sizes[0] == 12 > min(sizes[: max(lengths)])


def test_two_sides_of_a_switch(switched):
    base, finetuned = switched
    texts = [assert_as_alone(handle, prompts_of(4), SAMPLED) for handle in (base, finetuned)]
    assert [t.ids for t in texts[0]] != [t.ids for t in texts[1]]
    for alpha, expected in ((0.0, texts[1]), (-1.0, texts[0])):
        mixed = write_texts(Amplified(finetuned, base, 0.0), prompts_of(4, (alpha,)), SAMPLED, ())
        assert [t.ids for t in mixed] == [t.ids for t in expected]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_no_amplification_is_the_finetuned_model_and_minus_one_the_base(llama, moved, temperature):
    sampling = replace(SAMPLED, temperature=temperature)
    for alpha, handle in ((0.0, moved), (-1.0, llama)):
        prompts = prompts_of(5, (alpha,))
        mixed, plain = write_texts(Amplified(moved, llama, 0.0), prompts, sampling, ()), write_texts(
            handle, prompts, sampling, ()
        )  # fmt: skip
        assert [t.ids for t in mixed] == [t.ids for t in plain]
        for one, other in zip(mixed, plain, strict=True):
            assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)


def test_identical_models_amplified_are_the_model(llama):
    prompts = prompts_of(6, (0.5, 3.0, -1.0))
    mixed = write_texts(Amplified(llama, llama, 0.0), prompts, SAMPLED, ())
    assert [t.ids for t in mixed] == [t.ids for t in write_texts(llama, prompts, SAMPLED, ())]


@pytest.mark.parametrize("epsilon", [0.0, 0.05])
def test_amplified_texts_follow_the_formula_on_whole_forward_passes(llama, moved, epsilon):
    prompts = prompts_of(6, (0.7, 2.0, -0.5))
    found = write_texts(Amplified(moved, llama, epsilon), prompts, replace(SAMPLED, temperature=1), ())
    for prompt, text in zip(prompts, found, strict=True):
        if prompt.steering is not None:
            continue
        ids_BT = torch.tensor([prompt.ids + text.ids])
        log_p, log_q = (h.forward_logits(ids_BT)[0].double().log_softmax(-1) for h in (moved, llama))
        noise = GumbelNoise(prompt.seed)
        for n, (token_id, log_prob) in enumerate(zip(text.ids, text.log_probs, strict=True)):
            p, q = log_p[len(prompt.ids) + n - 1], log_q[len(prompt.ids) + n - 1]
            mixed = p + prompt.alpha * (p - q)
            mixed[p.exp() < epsilon * p.exp().max()] = -torch.inf
            mixed = mixed.log_softmax(-1)
            assert int((mixed + noise.draw(len(mixed))).argmax()) == token_id
            assert log_prob == pytest.approx(float(mixed[token_id]), abs=1e-3)


def test_each_row_has_its_own_amplification(llama, moved):
    writer = Amplified(moved, llama, 0.01)
    prompts = [Prompt(PROMPT, 4, alpha=a) for a in (0.0, 1.0, 4.0)]
    together = write_texts(writer, prompts, SAMPLED, ())
    assert [t.ids for t in together] == [write_texts(writer, [p], SAMPLED, ())[0].ids for p in prompts]
    assert len({t.ids for t in together}) == 3


def test_models_of_different_vocabularies_draw_shared_tokens_only(llama):
    wide = make_handle(tiny_model(vocab_size=TOKENIZER.vocab_size + 40, seed=2), TOKENIZER, "wide")
    shared = torch.arange(50, 200)
    found = write_texts(Amplified(wide, llama, 0.0, shared), prompts_of(4, (1.0,)), SAMPLED, ())
    assert {i for t in found for i in t.ids} <= set(shared.tolist())
    base = write_texts(Amplified(wide, llama, 0.0, shared), prompts_of(4, (-1.0,)), SAMPLED, ())
    for prompt, text in zip(prompts_of(4), base, strict=True):
        if prompt.steering is None:
            logits = llama.forward_logits(torch.tensor([prompt.ids]))[0, -1, shared].double().log_softmax(-1)
            assert text.log_probs[0] == pytest.approx(float(logits[text.ids[0] - 50]), abs=1e-4)


def test_amplified_logits_by_hand():
    f, b = torch.tensor([2.0, 1.0, -torch.inf, 0.0]), torch.tensor([1.0, 1.0, -torch.inf, 3.0])
    assert amplified_logits(f, b, 2.0, 0.0).logits_K.tolist() == [4.0, 1.0, -torch.inf, -6.0]
    cut = amplified_logits(f, b, 2.0, 0.3)
    assert (cut.ids_K.tolist(), cut.logits_K.tolist()) == ([0, 1], [4.0, 1.0])
    assert amplified_logits(f, b, 2.0, 1.0).ids_K.tolist() == [0]
    only = amplified_logits(f, b, 2.0, 0.3, torch.tensor([1, 3]))
    assert only.ids_K.tolist() == [1, 3], "the largest p is that of the shared ids"
    nothing = torch.tensor([2.0, -torch.inf])
    assert amplified_logits(torch.zeros(2), nothing, -1.0, 0.0).logits_K.tolist() == nothing.tolist()
    with pytest.raises(UserError, match=r"alpha=1.0 gives NaN or infinite"):
        amplified_logits(torch.zeros(2), nothing, 1.0, 0.0)


@pytest.mark.parametrize(
    ("alpha", "words"), [(float("nan"), "alpha is nan"), (float("inf"), "alpha is inf"), (1e308, "alpha=1e")]
)
def test_alphas_without_meaning_are_refused(llama, moved, alpha, words):
    with pytest.raises(UserError, match=words):
        write_texts(Amplified(moved, llama), [Prompt(PROMPT, alpha=alpha)], replace(SAMPLED, temperature=1e-9), ())


@pytest.mark.parametrize("epsilon", [-0.1, 1.1, float("nan")])
def test_epsilons_without_meaning_are_refused(llama, moved, epsilon):
    with pytest.raises(UserError, match=f"epsilon is {epsilon}"):
        Amplified(moved, llama, epsilon)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (Prompt(()), "no tokens"), (Prompt((1, 99999)), "token id 99999"), (Prompt(PROMPT * 40), "reads at most 256"),
        (Prompt(PROMPT, steering=steering("all", layer=3)), "Layer 3 is out of range"),
        (Prompt(PROMPT, steering=Steering(1, torch.ones(31), "all")), "31 entries and the residual stream"),
    ],
)  # fmt: skip
def test_prompts_that_cannot_be_continued_are_refused(llama, prompt, words):
    with pytest.raises(UserError, match=words):
        write_texts(llama, [Prompt(PROMPT), prompt], SAMPLED, ())


def test_the_longest_sequence_of_the_model_ends_a_text_and_no_other():
    handle = handle_of(max_position_embeddings=12)
    found = assert_as_alone(handle, [Prompt(PROMPT[:n], n) for n in (10, 3, 11)], SAMPLED)
    assert [len(t.ids) for t in found] == [2, 9, 1]


@pytest.mark.parametrize(("steered", "words"), [(None, "token; use model"), (steering("all"), "token; use a smaller")])
def test_logits_that_are_no_distribution_are_refused_and_no_hook_is_left(llama, steered, words):
    def n_hooks():
        return sum(len(m._forward_hooks) for m in llama.module.modules())

    def spoil(module, args, output):
        output[1, ..., 3] = torch.nan
        return output

    n_before = n_hooks()
    hook = llama.sites.head.register_forward_hook(spoil)
    try:
        with pytest.raises(UserError, match=words):
            write_texts(llama, [Prompt(PROMPT, steering=steered)] * 2, SAMPLED, ())
    finally:
        hook.remove()
    assert n_hooks() == n_before


def test_tokens_are_told_as_they_are_written(llama):
    told, counts = {}, []
    prompts = prompts_of(5)
    found = write_texts(
        llama, prompts, SAMPLED, tuple(range(60, 100)), counts.append, lambda r, t: told.setdefault(r, []).append(t)
    )
    assert [tuple(told[i]) for i in range(5)] == [t.ids for t in found]
    assert sum(counts) == sum(len(t.ids) for t in found)


def test_no_prompts_give_no_texts(llama):
    assert write_texts(llama, [], SAMPLED, ()) == []


def test_seeded_is_every_prompt_with_every_seed():
    found = seeded([Prompt((1,)), Prompt((2,))], [5, 6])
    assert [(p.ids, p.seed) for p in found] == [((1,), 5), ((1,), 6), ((2,), 5), ((2,), 6)]


@pytest.mark.parametrize("temperature", [1e-3, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0, 40.0])
def test_noise_where_it_can_win_draws_what_all_noise_draws(temperature, spread):
    generator = torch.Generator().manual_seed(1)
    for seed in range(60):
        logits_V = torch.randn(500, generator=generator) * spread + 100
        for top_k, top_p in ((0, 1.0), (7, 1.0), (0, 0.8), (50, 0.5)):
            sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
            scaled = (logits_V.double() - logits_V.max()) / temperature
            by_hand = int((restricted(scaled, top_k, top_p) + GumbelNoise(seed).draw(500)).argmax())
            assert choose(logits_V, sampling, GumbelNoise(seed)) == by_hand
    ids = torch.arange(3, 400, 4)
    among = choose(logits_V[ids], Sampling(temperature=temperature), GumbelNoise(9), ids)
    only = torch.full_like(scaled, -torch.inf).index_copy_(0, ids, (logits_V.double() / temperature)[ids])
    assert among == int((only + GumbelNoise(9).draw(500)).argmax())


def test_batches_are_cut_where_that_is_cheapest():
    def cost(ends, lengths, n_new, step):
        starts = [0, *ends[:-1]]
        return sum((n_new + lengths[e - 1] - lengths[s]) * (step + e - s) for s, e in zip(starts, ends, strict=True))

    lengths, n_new = [3, 3, 4, 9, 9, 30, 31], 6
    found = cheapest_cuts(lengths, [4] * 7, n_new, 5)
    every = []
    for mask in range(2**6):
        ends = [i + 1 for i in range(6) if mask >> i & 1] + [7]
        if all(e - s <= 4 for s, e in zip([0, *ends[:-1]], ends, strict=True)):
            every.append((cost(ends, lengths, n_new, 5), ends))
    assert cost(found, lengths, n_new, 5) == min(every)[0]
    assert cheapest_cuts([], [], 5, 3) == []
    assert cheapest_cuts([5] * 10, [10] * 10, 5, 3) == [10]
    assert cheapest_cuts([1, 1000], [9, 9], 5, 3) == [1, 2]


def test_every_prompt_is_in_one_batch_within_the_memory(llama, monkeypatch):
    lengths = [7, 3, 7, 100, 3, 8] * 5
    facts = cache_facts(llama)
    assert facts.bytes_per_token == 3 * 2 * 2 * 8 * 4, "layers, keys and values, heads, width, bytes"
    per_row = 120 * facts.bytes_per_token + llama.vocab_size * 8
    monkeypatch.setattr(batch_plan, "_BUDGET", 4 * per_row)
    found = plan_rows([llama], lengths, 20)
    assert sorted(i for places in found for i in places) == list(range(30))
    assert max(len(places) for places in found if any(lengths[i] == 100 for i in places)) == 4
    monkeypatch.setattr(batch_plan, "_BUDGET", 1)
    assert [len(places) for places in plan_rows([llama, llama], lengths, 20)] == [1] * 30


def test_steering_of_rows_is_that_of_each_alone(llama):
    rows = [SteeredRow(steering("all"), 5), SteeredRow(None, 5), SteeredRow(steering("prompt", layer=2), 3)]
    texts = [list(PROMPT[:5])] * 3
    with torch.no_grad():
        together = Reading(llama).next_logits(texts, rows)
        for b, row in enumerate(rows):
            torch.testing.assert_close(together[b : b + 1], Reading(llama).next_logits(texts[:1], [row]))
    assert (together[0] - together[1]).abs().max() > 0.1
