"""Files: training that goes on exactly, whatever is left of a checkpoint, and dictionaries that come back."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

from diffing.core.errors import UserError
from diffing.dictionaries.checkpoints import (
    dictionary_facts,
    load_checkpoint,
    load_dictionary,
    save_checkpoint,
    save_dictionary,
)
from diffing.dictionaries.initial import initial_dictionary, measure_scale
from diffing.dictionaries.planted import plant
from diffing.dictionaries.schedules import TrainingSpec
from diffing.dictionaries.spec import DictionarySpec
from diffing.dictionaries.trainer import NotFiniteError, Trainer, train

PLANTED = plant(n_per_kind=3, width=16)
SCALE = measure_scale(PLANTED.batches(1024, 256, 1))
BATCH, STEPS = 32, 12
SPARSITIES = ("batch_topk", "topk", "jumprelu", "l1")
KINDS = [
    *((s, {}) for s in SPARSITIES),
    ("batch_topk", {"n_shared": 5, "n_dedicated": 3}),
    ("batch_topk", {"encode_dtype": "bfloat16", "k_start": 8, "k_anneal": 0.6}),
]


def fresh(sparsity="batch_topk", n_steps=STEPS, **options):
    """An untrained trainer, some of whose latents soon count as dead, so that AuxK takes part."""
    own = {k: v for k, v in options.items() if k in ("n_shared", "n_dedicated")}
    training = {"lr": 3e-3, "n_dead": 2 * BATCH, **{k: v for k, v in options.items() if k not in own}}
    spec = DictionarySpec(n_sites=2, width=16, n_latents=40, k=3, sparsity=sparsity, **own)
    dictionary = initial_dictionary(spec, SCALE, 0)
    with torch.no_grad():
        dictionary.encoder_bias_F[:4] = -10
    return Trainer(dictionary, TrainingSpec(n_steps=n_steps, **training), SCALE.variance)


def batches(first=0, n=40):
    """Batches from number `first` on; the third and the eighth hold NaN."""
    for number, batch in enumerate(PLANTED.batches(n * BATCH, BATCH, 2)):
        if number >= first:
            yield batch.masked_fill(torch.ones(()).bool(), float("nan")) if number in (2, 7) else batch


def everything(trainer):
    """All that training depends on, comparable to the bit."""
    optimizer = [
        (i, name, torch.as_tensor(value).numpy().tobytes())
        for i, state in sorted(trainer.optimizer.state_dict()["state"].items())
        for name, value in sorted(state.items())
    ]
    weights = [(n, w.detach().numpy().tobytes()) for n, w in trainer.dictionary.state_dict().items()]
    counters = (trainer.n_steps, trainer.n_skipped, trainer.n_tokens, trainer.n_thresholds, trainer.variance)
    specs = (trainer.dictionary.spec, trainer.spec)
    return weights, optimizer, counters, trainer.silent_F.tolist(), tuple(trainer.history), specs


@pytest.mark.parametrize(("sparsity", "options"), KINDS)
def test_training_goes_on_to_the_bit_from_any_step(sparsity, options, tmp_path):
    straight, after = fresh(sparsity, **options), []
    save_checkpoint(tmp_path / "0", straight, "key")
    train(
        straight,
        batches(),
        save=lambda: save_checkpoint(tmp_path / str(straight.n_steps), straight, "key"),
        save_every=1,
    )
    assert any(row.n_dead and row.aux for row in straight.history)
    for stop in range(STEPS + 1):
        trainer = load_checkpoint(tmp_path / str(stop), "key")
        assert (trainer.n_steps, trainer.n_batches) == (stop, stop + trainer.n_skipped)
        after.append(trainer.n_skipped)
        train(trainer, batches(trainer.n_batches))
        assert everything(trainer) == everything(straight)
    assert after[0] == 0
    assert after[-1] == 2


def test_what_is_saved_is_what_is_loaded(tmp_path):
    trainer = fresh()
    train(trainer, batches())
    save_checkpoint(tmp_path, trainer, "key")
    assert everything(load_checkpoint(tmp_path, "key")) == everything(trainer)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.safetensors"]


def two_saved(folder):
    """Checkpoints after steps 4 and 8; the trainers as they were then."""
    trainer, states = fresh(), {}
    for stop in (4, 8):
        while trainer.n_steps < stop:
            for batch in batches(trainer.n_batches):
                trainer.step(batch)
                if trainer.n_steps == stop:
                    break
        save_checkpoint(folder, trainer, "key")
        states[stop] = everything(trainer)
    return states


def test_the_one_before_is_kept(tmp_path):
    states = two_saved(tmp_path)
    assert everything(load_checkpoint(tmp_path, "key")) == states[8]
    (tmp_path / "checkpoint.safetensors").unlink()
    assert everything(load_checkpoint(tmp_path, "key")) == states[4]
    (tmp_path / "checkpoint_before.safetensors").unlink()
    assert load_checkpoint(tmp_path, "key") is None
    assert load_checkpoint(tmp_path / "nowhere", "key") is None


def test_a_checkpoint_cut_at_any_byte_falls_back_to_the_one_before(tmp_path):
    states = two_saved(tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    cuts = {*range(12), *range(0, header, 97), header - 1, header, header + 1, *range(header, len(whole), 1501)}
    for cut in sorted({*cuts, len(whole) - 1}):
        path.write_bytes(whole[:cut])
        assert everything(load_checkpoint(tmp_path, "key")) == states[4], cut
    path.write_bytes(whole)
    assert everything(load_checkpoint(tmp_path, "key")) == states[8]


@pytest.mark.parametrize("junk", [b"", b"\0" * 64, b"{}", b"\xff" * 4096, b"not a checkpoint"])
def test_what_is_no_checkpoint_is_passed_over(junk, tmp_path):
    states = two_saved(tmp_path)
    (tmp_path / "checkpoint_next.safetensors").write_bytes(junk)
    assert everything(load_checkpoint(tmp_path, "key")) == states[8]
    (tmp_path / "checkpoint.safetensors").write_bytes(junk)
    assert everything(load_checkpoint(tmp_path, "key")) == states[4]


@pytest.mark.parametrize("moved_away", [False, True])
def test_a_checkpoint_that_was_not_renamed_any_more_is_the_newest(moved_away, tmp_path):
    """As left by a process killed between the two renames, or before them; the next save clears it up."""
    states = two_saved(tmp_path)
    last, before = tmp_path / "checkpoint.safetensors", tmp_path / "checkpoint_before.safetensors"
    shutil.copy(last, tmp_path / "checkpoint_next.safetensors")
    shutil.copy(before, last)
    if moved_away:
        last.unlink()
    trainer = load_checkpoint(tmp_path, "key")
    assert everything(trainer) == states[8]
    train(trainer, batches(trainer.n_batches))
    save_checkpoint(tmp_path, trainer, "key")
    assert everything(load_checkpoint(tmp_path, "key")) == everything(trainer)
    assert not (tmp_path / "checkpoint_next.safetensors").exists()


def test_a_checkpoint_of_another_training_is_not_taken(tmp_path):
    states = two_saved(tmp_path)
    assert load_checkpoint(tmp_path, "other") is None
    other = fresh("topk")
    save_checkpoint(tmp_path, other, "other")
    assert everything(load_checkpoint(tmp_path, "other")) == everything(other)
    assert everything(load_checkpoint(tmp_path, "key")) == states[8]


def test_a_dictionary_alone_is_no_checkpoint(tmp_path):
    save_dictionary(tmp_path / "checkpoint.safetensors", fresh().dictionary)
    assert load_checkpoint(tmp_path, "key") is None


def test_a_checkpoint_of_a_newer_schema_is_passed_over(tmp_path):
    states = two_saved(tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes().replace(b'\\"schema\\": 1', b'\\"schema\\": 9'))
    assert everything(load_checkpoint(tmp_path, "key")) == states[4]
    with pytest.raises(UserError, match="schema 9, this version reads up to 1; update diffing"):
        load_dictionary(path)


def test_steps_before_the_tenth_bad_batch_are_in_the_checkpoint(tmp_path):
    trainer = fresh(n_steps=40)
    bad = [torch.full((BATCH, 2, 16), float("nan"))] * 30
    good = [b for b in batches(3, 10) if torch.isfinite(b).all()]
    with pytest.raises(NotFiniteError):
        train(trainer, iter([*good, *bad]), save=lambda: save_checkpoint(tmp_path, trainer, "key"))
    kept = load_checkpoint(tmp_path, "key")
    assert everything(kept) == everything(trainer)
    assert kept.n_steps == len(good)
    with pytest.raises(NotFiniteError):
        train(kept, iter([*good, *bad][kept.n_batches :]))


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    states = two_saved(tmp_path)

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, fresh(), "key")
    assert everything(load_checkpoint(tmp_path, "key")) == states[8]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("from_checkpoint", [False, True])
def test_a_dictionary_comes_back_as_it_was(sparsity, from_checkpoint, tmp_path):
    trainer = fresh(sparsity)
    train(trainer, batches())
    path = tmp_path / "checkpoint.safetensors"
    if from_checkpoint:
        save_checkpoint(tmp_path, trainer, "key")
    else:
        save_dictionary(path, trainer.dictionary, {"layer": 3, "texts": ["ä"]})
        assert dictionary_facts(path) == {"layer": 3, "texts": ["ä"]}
    back = load_dictionary(path)
    assert back.spec == trainer.dictionary.spec
    for name, weight in trainer.dictionary.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight)
    x = trainer.dictionary.normalised(next(batches()))
    assert torch.equal(back.encode(x).dense(), trainer.dictionary.encode(x).dense())


def test_files_that_are_no_dictionary_are_told(tmp_path):
    with pytest.raises(UserError, match=r"^There is no dictionary .+nothing\.safetensors\.$"):
        load_dictionary(tmp_path / "nothing.safetensors")
    with pytest.raises(UserError, match="There is no dictionary"):
        load_dictionary(tmp_path)
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match="is cut off, damaged or no safetensors file"):
        load_dictionary(tmp_path / "junk.safetensors")
    save_file({"w": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="is not a dictionary written by diffing"):
        load_dictionary(tmp_path / "other.safetensors")


@pytest.mark.parametrize("missing", ["encoder_FMD", "threshold"])
def test_a_dictionary_that_lacks_a_tensor_is_told(missing, tmp_path):
    dictionary = fresh().dictionary
    tensors = {k: v for k, v in dictionary.state_dict().items() if k != missing}
    header = {"kind": "diffing dictionary", "schema": 1, "spec": dictionary.spec.model_dump(mode="json")}
    save_file(tensors, tmp_path / "d.safetensors", {"diffing": json.dumps(header)})
    with pytest.raises(UserError, match=f"lacks {missing} in the shape .+; it is no whole dictionary"):
        load_dictionary(tmp_path / "d.safetensors")


SAVING = """
import sys
from pathlib import Path
from test_checkpoints import batches, fresh
from diffing.dictionaries.checkpoints import load_checkpoint, save_checkpoint
folder = Path(sys.argv[1])
trainer = load_checkpoint(folder, "key") or fresh(n_steps=10**6)
print(trainer.n_steps, flush=True)
while True:
    for batch in batches(3, 7):
        trainer.step(batch)
        save_checkpoint(folder, trainer, "key")
        print(trainer.n_steps, flush=True)
"""


@pytest.mark.slow
def test_whatever_a_kill_leaves_loads(tmp_path):
    """Killed at 8 moments while it saves without pause: the newest is at most the one being written behind."""
    here = os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path])}
    folder, last = tmp_path / "saved", 0
    for attempt in range(8):
        command = [sys.executable, "-c", SAVING, str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert int(process.stdout.readline()) >= last
        time.sleep(0.3 + 0.0137 * attempt)
        process.send_signal(signal.SIGKILL)
        told = [int(line) for line in process.stdout.read().split("\n")[:-1]]
        process.wait()
        trainer = load_checkpoint(folder, "key")
        assert told
        assert trainer.n_steps in (told[-1], told[-1] + 1)
        assert trainer.n_steps > last
        last = trainer.n_steps
