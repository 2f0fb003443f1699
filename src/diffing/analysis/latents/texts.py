"""The causal control on text: what the models write when latents are held up or down, beside random latents."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffing.analysis.bootstrap import ratio_interval
from diffing.analysis.context import RunContext
from diffing.analysis.latents.causal import LatentSet, contribution
from diffing.analysis.latents.coding import CodedBlock
from diffing.analysis.latents.results import CausalTextMeanRow, CausalTextRow
from diffing.analysis.text_scores import continuation_log_probs
from diffing.core.progress import bar
from diffing.core.seeds import generator
from diffing.data.token_table import TokenTable
from diffing.dictionaries.dictionary import Dictionary
from diffing.models.batch_generation import Continuation, Prompt, write_texts
from diffing.models.generation import end_ids
from diffing.models.sampling import Sampling
from diffing.models.steering import Steering

_PROMPT_TOKENS = 12
_DIRECTIONS = {"ablate": -1.0, "add": 1.0}


@dataclass(frozen=True, eq=False)
class SetVector:
    """What a set of latents adds to the stream on average.

    Args:
        latents: The set.
        vector_D: Along its mean contribution, as long as its contributions are on average; raw units.
    """

    latents: LatentSet
    vector_D: Tensor


def set_vectors(sets: Sequence[LatentSet], dictionary: Dictionary, blocks: Iterable[CodedBlock]) -> list[SetVector]:
    """One vector for each set, all of the length that the first one's contributions have on average.

    A set that adds nothing anywhere has none.

    Args:
        sets: The claimed set and random ones.
        dictionary: Whose latents they are.
        blocks: The tokens that the means are over.
    """
    width = dictionary.spec.width
    sums_SD = torch.zeros(len(sets), width, dtype=torch.float64)
    length, n = 0.0, 0
    for block in blocks:
        for i, latents in enumerate(sets):
            part_ND = contribution(dictionary, block.codes, latents.latent_C).double().cpu()
            sums_SD[i] += part_ND.sum(0)
            length += float(part_ND.norm(dim=1).sum()) if i == 0 else 0.0
        n += block.codes.n_rows
    norms_S = sums_SD.norm(dim=1)
    return [
        SetVector(s, (sums_SD[i] / norms_S[i] * (length / n)).float()) for i, s in enumerate(sets) if norms_S[i] > 0
    ]


def text_rows(
    context: RunContext, tokens: TokenTable, sequences: dict[str, list[int]], layer: int,
    vectors: Sequence[SetVector], n_prompts: int, n_tokens: int,
) -> list[CausalTextRow]:  # fmt: skip
    """Texts of the finetuned model with each set held down, and of the base with it held up, beside unchanged ones.

    The texts of one prompt share their random numbers.

    Args:
        context: The run's.
        tokens: The corpus.
        sequences: By dataset, documents whose openings are continued.
        layer: The block after which the vector is added.
        vectors: Of the claimed set, then of random ones.
        n_prompts: Openings of each dataset.
        n_tokens: New tokens of a text.
    """
    openings = _openings(tokens, sequences, n_prompts)
    rows: list[CausalTextRow] = []
    total = len(openings) * n_tokens * (1 + len(vectors)) * len(_DIRECTIONS)
    with bar("texts with latents held up and down", total, "tokens") as advance:
        for change, sign in _DIRECTIONS.items():
            handle = context.pair.finetuned if change == "ablate" else context.pair.base
            steerings = [None, *(Steering(layer, sign * v.vector_D, "all") for v in vectors)]
            prompts = [
                Prompt(ids, opening_seed(context.seed, dataset, number), steering)
                for dataset, number, ids in openings
                for steering in steerings
            ]
            sampling, ends = Sampling(max_new_tokens=n_tokens), end_ids(handle, context.pair.rules)
            written = write_texts(handle, prompts, sampling, ends, advance)
            scores = _scores(context, prompts, written)
            for at, (dataset, number, ids) in enumerate(openings):
                mine = slice(at * len(steerings), (at + 1) * len(steerings))
                rows += _rows(context, change, dataset, number, ids, vectors, written[mine], scores[mine])
    return rows


def text_means(rows: Sequence[CausalTextRow], seed: int) -> list[CausalTextMeanRow]:
    """`causal_text_means.parquet`: each set's mean over its texts."""
    found = []
    for change, latents, number in dict.fromkeys((r.change, r.latents, r.number) for r in rows):
        mine = [r for r in rows if (r.change, r.latents, r.number) == (change, latents, number)]
        changes = np.array([r.change_of_score for r in mine if r.change_of_score is not None])
        if latents == "unchanged" or not len(changes):
            continue
        rng = generator(seed, "causal texts", change)
        interval = ratio_interval(changes, np.ones(len(changes)), rng)
        shared = float(np.mean([r.shared_tokens for r in mine]))
        found.append(
            CausalTextMeanRow(change, latents, number, len(mine), interval.value, interval.low, interval.high, shared)
        )
    return found


def _openings(
    tokens: TokenTable, sequences: dict[str, list[int]], n_prompts: int
) -> list[tuple[str, int, tuple[int, ...]]]:
    """(dataset, document, first tokens) of some documents; at most half of a document is given."""
    found = []
    for dataset, chosen in sequences.items():
        long_enough = [s for s in chosen if tokens.length_of(s) >= 4][:n_prompts]
        for s in long_enough:
            ids = tokens.ids_N[tokens.rows_of(s)][: min(_PROMPT_TOKENS, tokens.length_of(s) // 2)]
            found.append((dataset, int(tokens.documents[s]), tuple(ids.tolist())))
    return found


def opening_seed(seed: int, dataset: str, document: int) -> int:
    """Seed of the texts that continue a document's opening; the same for all sets."""
    return int(generator(seed, "causal texts", dataset, document).integers(2**62))


def _scores(context: RunContext, prompts: Sequence[Prompt], written: Sequence[Continuation]) -> list[float]:
    """Mean log p − log q of each text's new tokens under the unchanged models; NaN where they are none."""
    given = [(p.ids, w.ids) for p, w in zip(prompts, written, strict=True)]
    finetuned, base = (continuation_log_probs(h, given) for h in (context.pair.finetuned, context.pair.base))
    return [float(np.mean(f - b)) if len(f) else float("nan") for f, b in zip(finetuned, base, strict=True)]


def _rows(
    context: RunContext, change: str, dataset: str, document: int, ids: tuple[int, ...],
    vectors: Sequence[SetVector], written: Sequence[Continuation], scores: Sequence[float],
) -> list[CausalTextRow]:  # fmt: skip
    """The texts of one opening: unchanged, then with each set."""
    prompt = str(context.tokenizer.decode(list(ids), skip_special_tokens=True))
    own = written[0]
    sets = [("unchanged", 0), *((v.latents.name, v.latents.number) for v in vectors)]
    return [
        CausalTextRow(
            dataset, document, change, name, number, prompt, text.text, _shared(own.ids, text.ids),
            None if np.isnan(score) else score, None if np.isnan(score - scores[0]) else score - scores[0],
        )
        for (name, number), text, score in zip(sets, written, scores, strict=True)
    ]  # fmt: skip


def _shared(own: Sequence[int], other: Sequence[int]) -> int:
    """Tokens at the beginning that two texts have in common."""
    return next((i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), min(len(own), len(other)))
