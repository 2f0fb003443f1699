"""Training: what a step counts, what ends it, that AuxK brings dead latents back, and that more training is better."""

import copy
import math

import pytest
import torch

from diffing.core.errors import UserError
from diffing.dictionaries.initial import initial_dictionary, measure_scale
from diffing.dictionaries.metrics import evaluate
from diffing.dictionaries.planted import plant
from diffing.dictionaries.schedules import TrainingSpec
from diffing.dictionaries.spec import DictionarySpec
from diffing.dictionaries.trainer import MOST_SKIPPED, Trainer, train

SPARSITIES = ("batch_topk", "topk", "jumprelu", "l1")
PLANTED = plant(n_per_kind=6, width=32, density=0.06)
SCALE = measure_scale(PLANTED.batches(4096, 512, 1))
BATCH = 256


def fresh(n_steps=20, spec=None, **training):
    """An untrained trainer on planted rows."""
    shape = DictionarySpec(**{"n_sites": 2, "width": 32, "n_latents": 32, "k": 2, **(spec or {})})
    return Trainer(
        initial_dictionary(shape, SCALE, 0), TrainingSpec(n_steps=n_steps, **{"lr": 2e-3, **training}), SCALE.variance
    )


def rows(n_batches, seed=2, batch_rows=BATCH):
    return PLANTED.batches(n_batches * batch_rows, batch_rows, seed)


def spoiled(batches, at, value=float("nan")):
    """Some of the batches hold one bad number."""
    for number, batch in enumerate(batches):
        if number in at:
            batch = batch.clone()
            batch[number % len(batch), 0, 3] = value
        yield batch


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_a_step_tells_what_it_did(sparsity):
    trainer = fresh(n_steps=10, spec={"sparsity": sparsity}, warmup=0.5, decay=0)
    told = []
    train(trainer, rows(10), told.append)
    assert [r.step for r in told] == list(range(10))
    assert [r.n_tokens for r in told] == [BATCH * (i + 1) for i in range(10)]
    assert [r.lr for r in told] == pytest.approx([2e-3 * min(1, (i + 1) / 5) for i in range(10)])
    assert trainer.history == told
    assert trainer.is_done
    if sparsity in ("batch_topk", "topk"):
        assert [r.l0 for r in told] == pytest.approx([2] * 10, abs=0.1)
        assert [r.loss for r in told] == pytest.approx([1 - r.fve for r in told])


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_the_first_fve_is_that_of_the_initial_weights(sparsity):
    trainer = fresh(spec={"sparsity": sparsity, "k": 32})
    batch = next(rows(1))
    dictionary = copy.deepcopy(trainer.dictionary)
    with torch.no_grad():
        x = dictionary.normalised(batch)
        made = dictionary.decode(dictionary.encode(x))
    expected = 1 - (made - x).double().square().sum().item() / (BATCH * SCALE.variance)
    assert trainer.step(batch).fve == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_training_learns(sparsity):
    trainer = fresh(100, {"sparsity": sparsity, "n_latents": 48, "k": 4}, penalty=0.05)
    before = evaluate(trainer.dictionary, rows(4, seed=9)).fve_M
    train(trainer, rows(100))
    after = evaluate(trainer.dictionary, rows(4, seed=9)).fve_M
    assert (after > 0.6).all()
    assert (after > before + 0.1).all()


def test_the_history_is_evenly_spaced_and_ends_with_the_last_step():
    trainer = fresh(400, {"n_latents": 4, "k": 1})
    train(trainer, rows(400, batch_rows=4))
    assert [r.step for r in trainer.history] == [*range(0, 400, 2), 399]


def test_silence_is_counted_in_tokens_and_ends_when_a_latent_is_active():
    trainer = fresh(20, aux_weight=0)
    with torch.no_grad():
        trainer.dictionary.encoder_bias_F[:3] = -1e3
    train(trainer, rows(20))
    assert trainer.silent_F[:3].tolist() == [20 * BATCH] * 3
    assert trainer.silent_F[3:].min() == 0
    with torch.no_grad():
        trainer.dictionary.encoder_bias_F[0] = 1e3
    trainer.step(next(rows(1)))
    assert trainer.silent_F[:2].tolist() == [0, 21 * BATCH]


def test_latents_are_dead_after_the_number_of_tokens_asked_for():
    trainer = fresh(20, n_dead=3 * BATCH, aux_weight=0)
    with torch.no_grad():
        trainer.dictionary.encoder_bias_F.fill_(-1e3)
        trainer.dictionary.encoder_bias_F[5:] = 1e3
    told = []
    train(trainer, rows(20), told.append)
    assert [r.n_dead >= 5 for r in told] == [False] * 3 + [True] * 17
    assert all(r.aux == 0 for r in told)


def test_the_threshold_is_the_mean_of_the_smallest_kept_scores():
    trainer = fresh(8, k_start=8, k_anneal=0.5)
    smallest = []
    for number, batch in enumerate(rows(8)):
        before = copy.deepcopy(trainer.dictionary)
        x = before.normalised(batch)
        n_kept = round((2 + max(0, 1 - number / 4) * 6) * BATCH)
        with torch.no_grad():
            scores = before.pre_activations(x).relu() * before.decoder_FMD.norm(dim=2).sum(1)
        smallest.append(scores.flatten().sort(descending=True).values[n_kept - 1].item())
        row = trainer.step(batch)
        assert row.l0 == pytest.approx(n_kept / BATCH)
        assert trainer.dictionary.threshold.item() == pytest.approx(sum(smallest) / (number + 1), rel=1e-5)


def test_the_threshold_forgets_early_batches():
    one, other = fresh(200, lr=1e-9), fresh(200, lr=1e-9)
    other.dictionary.threshold.fill_(10.0)
    other.n_thresholds = 10**6
    for trainer in (one, other):
        train(trainer, rows(200, batch_rows=32))
    assert other.dictionary.threshold.item() == pytest.approx(one.dictionary.threshold.item(), rel=0.05)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_batches_that_hold_nan_are_skipped_and_counted(value):
    spoilt, clean = fresh(20), fresh(20)
    bad = (0, 3, 4, 19)
    train(spoilt, spoiled(rows(24), bad, value))
    train(clean, (b for i, b in enumerate(rows(24)) if i not in bad))
    assert (spoilt.n_steps, spoilt.n_skipped, spoilt.n_batches) == (20, 4, 24)
    for name, weight in clean.dictionary.state_dict().items():
        assert torch.equal(weight, spoilt.dictionary.state_dict()[name])


def test_the_tenth_batch_that_holds_nan_ends_training_in_one_sentence():
    trainer, saved = fresh(50), []
    bad = range(5, 50, 2)
    said = r"^10 batches of activations held NaN or infinity, the last after step 14; check the weights, or .+\.$"
    with pytest.raises(UserError, match=said):
        train(trainer, spoiled(rows(50), bad), save=lambda: saved.append(trainer.n_steps))
    assert saved == [14]
    assert (trainer.n_steps, trainer.n_skipped) == (14, MOST_SKIPPED - 1)
    with pytest.raises(UserError, match="held NaN"):
        train(trainer, spoiled(rows(50), bad, float("inf")))


def test_batches_that_end_too_soon_are_told():
    trainer = fresh(30)
    with pytest.raises(UserError, match=r"ended after 7 batches and training takes 30; allow more epochs, or fewer"):
        train(trainer, rows(7))
    assert trainer.n_steps == 7


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_training_that_diverges_ends_in_one_sentence(sparsity):
    trainer = fresh(200, {"sparsity": sparsity}, lr=1e20)
    with pytest.raises(UserError, match=r"^Training diverged at step \d+ .+; lower diffing\.method\.training\.lr \("):
        train(trainer, rows(200))
    assert trainer.n_steps < 100


def test_saving_is_asked_for_after_every_so_many_steps():
    trainer, saved = fresh(10), []
    train(trainer, spoiled(rows(12), (2, 6)), save=lambda: saved.append(trainer.n_steps), save_every=3)
    assert saved == [3, 6, 9]


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_gradients_are_clipped(sparsity):
    """Adam divides by the size of gradients: only the moment shows it."""
    trainer = fresh(5, {"sparsity": sparsity}, clip=1e-3)
    trainer.step(next(rows(1)))
    moments = [trainer.optimizer.state[p]["exp_avg"] for p in trainer.dictionary.parameters()]
    norm = math.sqrt(sum(float(m.square().sum()) for m in moments))
    assert norm == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_rounding_the_encoding_product_changes_little():
    exact, rounded = (fresh(100, encode_dtype=d) for d in ("float32", "bfloat16"))
    for trainer in (exact, rounded):
        train(trainer, rows(100))
    one, other = (evaluate(t.dictionary, rows(4, seed=9)).fve_M for t in (exact, rounded))
    assert one == pytest.approx(other, abs=0.01)


DAMAGE = ("small", "misdirected", "bias -10", "bias -100")
N_DAMAGED = 10
N_DEAD = 10 * BATCH


@pytest.fixture(scope="module")
def whole():
    """Dictionaries with a latent for each of the planted features, trained once."""
    found = {}

    def make(sparsity):
        if sparsity not in found:
            trainer = fresh(300, {"sparsity": sparsity}, penalty=1.0 if sparsity == "jumprelu" else 0.2, n_dead=N_DEAD)
            train(trainer, rows(300))
            found[sparsity] = trainer.dictionary
        return copy.deepcopy(found[sparsity])

    return make


@torch.no_grad()
def damage_(dictionary, how):
    """What makes the first latents lose selection, or never reach it."""
    dead = slice(0, N_DAMAGED)
    if how == "small":
        dictionary.encoder_FMD[dead] *= 1e-4
        dictionary.decoder_FMD[dead] *= 1e-4
    elif how == "misdirected":
        dictionary.encoder_FMD[dead] = -1e-3 * dictionary.decoder_FMD[dead]
    else:
        dictionary.encoder_bias_F[dead] = float(how.split()[1])


def goes_on(dictionary, n_steps, aux_weight, **training):
    """Trains on; gives the largest number of damaged latents active within `N_DEAD` tokens, and the last FVE."""
    penalty = 1.0 if dictionary.spec.sparsity == "jumprelu" else 0.2
    spec = {"lr": 2e-3, "decay": 0, "warmup": 0, "n_dead": N_DEAD, "penalty": penalty, "penalty_warmup": 0, **training}
    trainer = Trainer(dictionary, TrainingSpec(n_steps=n_steps, aux_weight=aux_weight, **spec), SCALE.variance)
    trainer.silent_F[:N_DAMAGED] = N_DEAD
    most = 0
    for batch in rows(n_steps, seed=3):
        row = trainer.step(batch)
        most = max(most, int((trainer.silent_F[:N_DAMAGED] < N_DEAD).sum()))
    return most, row.fve


@pytest.mark.slow
@pytest.mark.parametrize("how", ["misdirected", "bias -100"])
def test_aux_brings_dead_latents_back_within_150_steps(whole, how):
    dictionary = whole("batch_topk")
    damage_(dictionary, how)
    without, fve_without = goes_on(copy.deepcopy(dictionary), 150, 0)
    back, fve = goes_on(dictionary, 150, 1 / 32)
    assert without == 0
    assert back >= 0.8 * N_DAMAGED
    assert fve > fve_without + 0.03


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize(
    ("sparsity", "dtype"),
    [*((sparsity, "float32") for sparsity in SPARSITIES), ("batch_topk", "bfloat16")],
)
def test_aux_brings_dead_latents_back_in_every_kind(whole, how, sparsity, dtype):
    """Without it all stay dead, but for one at most: `topk` takes any positive score of a row that has few."""
    dictionary = whole(sparsity)
    damage_(dictionary, how)
    without, fve_without = goes_on(copy.deepcopy(dictionary), 150, 0, encode_dtype=dtype)
    back, fve = goes_on(dictionary, 150, 1 / 32, encode_dtype=dtype)
    assert without <= 1
    assert back >= 0.8 * N_DAMAGED
    assert fve > fve_without + 0.02
