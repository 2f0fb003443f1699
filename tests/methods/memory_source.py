"""A source of activations held in memory, with made-up texts: shared by tests of methods that read activations."""

from collections.abc import Iterator

import numpy as np
import torch

from diffing.activations.source import ActivationSource, Block, PairRows
from diffing.analysis.context import RunContext
from diffing.data.token_table import TokenTable
from diffing.data.tokens import Corpus, TokenSequence
from diffing.models.tiny import tiny_tokenizer


class MemorySource(ActivationSource):
    """Activations that are tensors; `stop_at` interrupts before that many blocks were read.

    Args:
        corpus: The tokens.
        base: By slot, a row per token of the corpus.
        finetuned: The same of the other model.
        block_sequences: Sequences of each block; those in none are not covered. None: one each.
    """

    def __init__(self, corpus, base, finetuned, block_sequences=None):
        self._tokens = TokenTable.of(corpus)
        self._base, self._finetuned = base, finetuned
        blocks = [[i] for i in range(len(corpus.sequences))] if block_sequences is None else block_sequences
        rows = [self._tokens.rows_of(i) for i in range(len(corpus.sequences))]
        self._blocks = tuple(np.concatenate([np.arange(rows[i].start, rows[i].stop) for i in b]) for b in blocks)
        self.asked: list[int] = []
        self.stop_at: int | None = None

    tokens = property(lambda self: self._tokens)
    slots = property(lambda self: tuple(self._base))
    width = property(lambda self: next(iter(self._base.values())).shape[1])
    dtype = property(lambda self: next(iter(self._base.values())).dtype)
    block_tokens = property(lambda self: self._blocks)
    notes = property(lambda self: ("a sentence of the source",))
    facts = property(lambda self: {"store": "memory"})

    def blocks(self, slots=None, order=None) -> Iterator[Block]:
        for number in range(len(self._blocks)) if order is None else order:
            if self.stop_at is not None and len(self.asked) >= self.stop_at:
                raise KeyboardInterrupt
            self.asked.append(number)
            at = torch.from_numpy(self._blocks[number])
            rows = {s: PairRows(self._base[s][at], self._finetuned[s][at]) for s in slots or self.slots}
            yield Block(number, self._blocks[number], rows)

    def noise(self, slot):
        return {"norm": 0.0, "relative": 0.0, "cosine": 0.0}


def corpus_of_lengths(lengths, seed=0):
    """Random tokens of few kinds; `lengths` by dataset."""
    rng = np.random.default_rng(seed)
    sequences = []
    for name, numbers in lengths.items():
        for document, n in enumerate(numbers):
            ids = rng.integers(40, 60, n).astype(np.int32)
            none = np.zeros(n, dtype=bool)
            sequences.append(TokenSequence(name, 3 * document + 1, ids, np.zeros(n, dtype=np.uint8), none, none))
    return Corpus(tuple(lengths), tuple(sequences), "made-up", (), {name: len(n) for name, n in lengths.items()})


def context_with(source, corpus, folder, pair=None, **changes):
    """What a method is given besides its options; without a pair it must not ask for one."""
    folder.mkdir(parents=True, exist_ok=True)

    def load():
        assert pair is not None, "the models are not needed"
        return pair

    values = {
        "load_pair": load,
        "tokenizer": tiny_tokenizer(),
        "corpus": corpus,
        "seed": 0,
        "skip_first_tokens": 1,
        "batch_tokens": 16,
        "skip_template_tokens": False,
        "null_pair": "none",
        "scratch": folder,
        "log": lambda values: None,
        "activations": source,
    }
    return RunContext(**{**values, **changes})
