"""Runs both models over sequences of a corpus and gives the activations of chosen slots."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from diffing.activations.source import PairRows
from diffing.core.errors import UserError
from diffing.core.layers import Slot
from diffing.data.batches import Batch, make_batch, pad_id
from diffing.data.tokens import Corpus
from diffing.models.capture import capture
from diffing.models.pair import ModelHandle, ModelPair

NOISE_SEQUENCES = 4
_NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")


class _TooLarge(Exception):
    """A batch did not fit into memory."""


@dataclass
class PairReader:
    """Reads sequences through both models.

    Args:
        pair: The models.
        corpus: The sequences.
        slots: Where to read.
        dtype: In which activations are handed out.
    """

    pair: ModelPair
    corpus: Corpus
    slots: tuple[Slot, ...]
    dtype: torch.dtype
    n_halved: int = 0
    _too_large: int | None = field(default=None, init=False)

    def read(self, sequences: Sequence[int], slots: Sequence[Slot] | None = None) -> dict[Slot, PairRows]:
        """Activations of both models at all tokens of `sequences`, one sequence after the other, on the models' device.

        A batch that does not fit into memory is read in halves; `n_halved` counts how often. What is halved depends on
        the batch and the memory alone, not on what was read before.

        Raises:
            UserError: A single sequence does not fit.
        """
        chosen = tuple(slots if slots is not None else self.slots)
        lengths = [len(self.corpus.sequences[i].ids) for i in sequences]
        padded = len(lengths) * max(lengths)
        if self._too_large is None or padded < self._too_large or len(sequences) == 1:
            try:
                return self._read(make_batch(self.corpus, sequences, self.pad_id), chosen)
            except _TooLarge:
                self._too_large = padded
        if len(sequences) == 1:
            raise UserError(_too_long(padded))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.n_halved += 1
        middle = len(sequences) // 2
        one, two = self.read(sequences[:middle], chosen), self.read(sequences[middle:], chosen)
        return {s: PairRows(*(torch.cat(pair) for pair in zip(one[s], two[s], strict=True))) for s in chosen}

    def _read(self, batch: Batch, slots: tuple[Slot, ...]) -> dict[Slot, PairRows]:
        with _memory():
            base = rows_of(self.pair.base, batch, slots)
            same = self.pair.finetuned is self.pair.base
            finetuned = base if same else rows_of(self.pair.finetuned, batch, slots)
            return {s: self._aligned(s, base[s], finetuned[s]) for s in slots}

    def _aligned(self, slot: Slot, base_ND: Tensor, finetuned_ND: Tensor) -> PairRows:
        if base_ND.shape != finetuned_ND.shape:
            raise UserError(
                f"The two models differ in width at {slot.name} ({base_ND.shape[1]} and {finetuned_ND.shape[1]}); "
                "activations can be compared only between models of one architecture."
            )
        return PairRows(base_ND.to(self.dtype), finetuned_ND.to(base_ND.device, self.dtype))

    @property
    def pad_id(self) -> int:
        """Id used for padding."""
        return pad_id(self.pair.tokenizer)


@contextmanager
def _memory() -> Iterator[None]:
    """Turn what torch raises for want of memory, on any device, into `_TooLarge`."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError) or any(t in text for t in _NO_MEMORY):
            raise _TooLarge from None
        raise


@torch.no_grad()
def rows_of(handle: ModelHandle, batch: Batch, slots: Sequence[Slot]) -> dict[Slot, Tensor]:
    """One model's activations at the tokens of a batch, padding removed, (N, D) each."""
    found = capture(handle, batch.ids_BT, slots, batch.lengths)
    full = len(set(batch.lengths)) == 1
    if full:
        return {slot: acts_BTD.flatten(0, 1) for slot, acts_BTD in found.items()}
    is_token_BT = torch.arange(batch.ids_BT.shape[1])[None] < torch.tensor(batch.lengths)[:, None]
    index_N = is_token_BT.flatten().nonzero().squeeze(1)
    return {slot: acts_BTD.flatten(0, 1)[index_N.to(acts_BTD.device)] for slot, acts_BTD in found.items()}


def comparable_sequences(corpus: Corpus, pair: ModelPair) -> tuple[list[int] | None, list[str]]:
    """Sequences whose every token is the same in both vocabularies (None: all), and a sentence on what was left out.

    Raises:
        UserError: None is.
    """
    shared = pair.vocabulary.shared_ids
    if shared is None:
        return None, []
    ids = shared.cpu().numpy()
    good = [i for i, s in enumerate(corpus.sequences) if np.isin(s.ids, ids).all()]
    if not good:
        raise UserError(
            "Every document holds tokens that the two tokenizers do not share; compare models of one tokenizer."
        )
    lost = len(corpus.sequences) - len(good)
    return good, [f"{lost} documents with tokens that the two tokenizers do not share are left out"] if lost else []


@dataclass(frozen=True)
class NoiseFloor:
    """What a model differs from itself by.

    Args:
        by_slot: Means over tokens: `norm` of the difference, `relative` to the mean norm, `cosine` distance.
        n_tokens: Tokens that were read, each twice.
    """

    by_slot: dict[Slot, dict[str, float]]
    n_tokens: int


@torch.no_grad()
def measure_noise(
    reader: PairReader, sequences: Sequence[int], skip_first_tokens: int, batch_tokens: int | None = None
) -> NoiseFloor:
    """What the base differs from itself by, read in two batch shapes, one of them rounded to the storage dtype.

    Args:
        reader: Its pair's base is read.
        sequences: Of these, `NOISE_SEQUENCES` evenly spread ones are read alone and together; where memory is too
            small for that, the shorter half of them, and so on.
        skip_first_tokens: Leading positions left out.
        batch_tokens: Padded tokens to read at once, but two sequences at least; None: any number.

    """
    longest = max(len(reader.corpus.sequences[i].ids) for i in sequences)
    n_picks = NOISE_SEQUENCES if batch_tokens is None else max(2, min(NOISE_SEQUENCES, batch_tokens // longest))
    picks = np.unique(np.linspace(0, len(sequences) - 1, n_picks).astype(int)).tolist()
    chosen = sorted((sequences[i] for i in picks), key=lambda i: -len(reader.corpus.sequences[i].ids))
    base, pad = reader.pair.base, reader.pad_id
    together, chosen = _largest_batch(reader, chosen)
    sums: dict[Slot, np.ndarray] = {slot: np.zeros(4) for slot in reader.slots}
    first = 0
    for i in chosen:
        alone = rows_of(base, make_batch(reader.corpus, [i], pad), reader.slots)
        n = len(reader.corpus.sequences[i].ids)
        for slot in reader.slots:
            x = alone[slot][skip_first_tokens:].float()
            y = together[slot][first : first + n][skip_first_tokens:].to(reader.dtype).float()
            sums[slot] += _differences(x, y)
        first += n
    names = ("norm", "relative", "cosine")
    by_slot: dict[Slot, dict[str, float]] = {
        s: dict(zip(names, (v[:3] / v[3]).tolist(), strict=True)) if v[3] else {} for s, v in sums.items()
    }
    return NoiseFloor(by_slot, first)


def _largest_batch(reader: PairReader, sequences: list[int]) -> tuple[dict[Slot, Tensor], list[int]]:
    """The base's rows of sequences, longest first, read as one batch; without the longer half until they fit."""
    while True:
        try:
            with _memory():
                batch = make_batch(reader.corpus, sequences, reader.pad_id)
                return rows_of(reader.pair.base, batch, reader.slots), sequences
        except _TooLarge:
            if len(sequences) == 1:
                raise UserError(_too_long(len(reader.corpus.sequences[sequences[0]].ids))) from None
        sequences = sequences[(len(sequences) + 1) // 2 :]


def _too_long(n_tokens: int) -> str:
    return (
        f"One sequence of {n_tokens} tokens does not fit into memory beside the models; lower data.max_length, "
        "or use model.dtype=bfloat16."
    )


def _differences(x_ND: Tensor, y_ND: Tensor) -> np.ndarray:
    """Sums over finite rows of ‖x−y‖, ‖x−y‖/mean norm and cosine distance, and their number."""
    finite = torch.isfinite(x_ND).all(-1) & torch.isfinite(y_ND).all(-1)
    x, y = x_ND[finite], y_ND[finite]
    nx, ny = x.norm(dim=-1).clamp_min(1e-30), y.norm(dim=-1).clamp_min(1e-30)
    gap = (x - y).norm(dim=-1)
    cosine = 0.5 * (x / nx[:, None] - y / ny[:, None]).square().sum(-1)
    parts = (gap.double().sum(), (gap / ((nx + ny) / 2)).double().sum(), cosine.double().sum())
    return np.array([*(float(p) for p in parts), len(x)])


def sink_note(norms_N: np.ndarray, position_N: np.ndarray, skip_first_tokens: int, slot: Slot) -> str | None:
    """A sentence when a kept leading position has a norm far above the rest (an attention sink)."""
    rest = norms_N[position_N >= max(8, skip_first_tokens)]
    if not len(rest) or not np.median(rest) > 0:
        return None
    sinks = [
        p
        for p in range(skip_first_tokens, 8)
        if (position_N == p).any() and np.median(norms_N[position_N == p]) > 10 * np.median(rest)
    ]
    if not sinks:
        return None
    return (
        f"{slot.name}: position {sinks[-1]} has over ten times the norm of later positions (an attention sink); "
        f"leave it out with skip_first_tokens={sinks[-1] + 1}."
    )


Noise = Mapping[Slot, Mapping[str, float]]
