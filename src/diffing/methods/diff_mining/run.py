"""Counts which tokens stand out: stream in units, gather, rank."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from diffing.analysis.comparable import comparable_corpus, compared_ids, compared_tokens
from diffing.analysis.context import RunContext
from diffing.analysis.merged_tokens import merge_tokens
from diffing.analysis.token_text import token_strings
from diffing.analysis.units import cut_into_units, read_unit
from diffing.core.errors import UserError
from diffing.core.method import MethodOutput
from diffing.core.progress import Advance, bar
from diffing.core.seeds import generator
from diffing.data.batches import make_batch, pad_id, plan_batches
from diffing.data.token_table import TokenTable
from diffing.data.tokens import Corpus
from diffing.methods.diff_mining.config import DiffMiningConfig
from diffing.methods.diff_mining.examples import example_table
from diffing.methods.diff_mining.findings import evidence, summary
from diffing.methods.diff_mining.gather import Gathered
from diffing.methods.diff_mining.null import NullCounts, counts_of, read_null_runs, text_facts
from diffing.methods.diff_mining.rankings import (
    dataset_table,
    document_score_table,
    merged_table,
    ordering_table,
    position_table,
    token_score_table,
)
from diffing.methods.diff_mining.stream import Miner
from diffing.methods.diff_mining.topics import find_topics, topic_example_table, topic_table
from diffing.methods.diff_mining.units import ARRAYS, MOST_UNITS, Frame, UnitWriter, add_units


def run(config: DiffMiningConfig, context: RunContext) -> MethodOutput:
    """Count at every position of the corpus which tokens the finetuned model prefers, and which the base.

    Raises:
        UserError: No token is left to compare, the models give NaN, the layer does not exist, a read-out is not known,
            or a null run does not fit.
    """
    corpus, notes = comparable_corpus(context)
    tokens = TokenTable.of(corpus)
    kept_N = compared_tokens(tokens, context)
    vocabulary = context.pair.vocabulary
    ids_V = compared_ids(context, vocabulary.base_size)
    names = token_strings(context.tokenizer, ids_V.tolist())
    merged = merge_tokens(ids_V.tolist(), names)
    sampled_N = _sample(config, kept_N, context.seed)
    frame = Frame(tokens, kept_N, sampled_N, merged.group_V, config.n_examples)
    sums, parts = add_units(_units(config, context, corpus, frame))
    data = Gathered(frame, sums, parts, ids_V, names, merged)
    return _tabulate(config, context, data, read_null_runs(config, data, context.pair), notes)


def _sample(config: DiffMiningConfig, kept_N: np.ndarray, seed: int) -> np.ndarray:
    """Which kept tokens topics are made from."""
    sampled_N = np.zeros(len(kept_N), dtype=bool)
    if config.n_topics:
        rows = np.flatnonzero(kept_N)
        n = min(config.max_topic_positions, len(rows))
        sampled_N[generator(seed, "diff_mining", "topics").choice(rows, n, replace=False)] = True
    return sampled_N


def _units(
    config: DiffMiningConfig, context: RunContext, corpus: Corpus, frame: Frame
) -> Iterator[dict[str, np.ndarray]]:
    lengths = [len(s.ids) for s in corpus.sequences]
    plan = plan_batches(lengths, context.batch_tokens)
    miner = Miner(
        context.pair, config.top_k, config.floor, config.layer, lambda i: frame.kept_N[frame.tokens.rows_of(i)]
    )
    with bar("diff_mining: reading both models", sum(lengths), "tokens") as advance:
        for number, unit in enumerate(cut_into_units(plan, lengths, context.batch_tokens, MOST_UNITS)):
            yield _unit(context, corpus, miner, frame, number, unit, advance)


def _unit(
    context: RunContext, corpus: Corpus, miner: Miner, frame: Frame, number: int, unit: list[Sequence[int]],
    advance: Advance,
) -> dict[str, np.ndarray]:  # fmt: skip
    """One unit: from the scratch folder where an earlier run left it, else computed and stored there."""
    path = context.scratch / f"unit_{number:04d}.safetensors"
    if (stored := read_unit(path, ARRAYS)) is not None:
        advance(sum(len(corpus.sequences[i].ids) for batch in unit for i in batch))
        return stored
    writer = UnitWriter(frame)
    for indices in unit:
        for mined in miner.read(make_batch(corpus, indices, pad_id(context.tokenizer))):
            if bad := int(np.isnan(mined.strength_T).sum()):
                raise UserError(
                    f"{bad:,} tokens of document {corpus.sequences[mined.sequence].index} have no finite D (NaN or "
                    "infinite logits); check the weights, or try model.dtype=float32."
                )
            writer.add(mined)
            advance(len(corpus.sequences[mined.sequence].ids))
    writer.write(path)
    written = read_unit(path, ARRAYS)
    assert written is not None
    return written


def _tabulate(
    config: DiffMiningConfig, context: RunContext, data: Gathered, nulls: NullCounts | None, notes: list[str]
) -> MethodOutput:
    with bar("diff_mining: topics", 1) as advance:
        topics = find_topics(data, config.n_topics, context.seed) if config.n_topics else None
        advance()
    tables = {
        "datasets": dataset_table(data, context.seed),
        "orderings": ordering_table(data, nulls, config.n_listed),
        "merged_tokens": merged_table(data, nulls),
        "positions": position_table(data),
        "topics": topic_table(data, topics),
        "topic_examples": topic_example_table(data, topics, context.tokenizer, config),
        "examples": example_table(data, context.tokenizer, config),
        "token_scores": token_score_table(data, nulls),
        "document_scores": document_score_table(data),
    }
    claimed = None if context.null_pair == "none" else False
    return MethodOutput(
        tables=tables,
        evidence=evidence(tables, claimed),
        summary=summary(tables),
        tensors={name: torch.from_numpy(array) for name, array in counts_of(data).items()},
        notes=(*notes, *_said(data, nulls)),
        facts={
            "datasets": text_facts(data),
            "n_vocabulary": len(data.ids_V),
            "n_groups": data.merged.n_groups,
            "null_datasets": [] if nulls is None else list(nulls.datasets),
            "threads": torch.get_num_threads(),
        },
    )


def _said(data: Gathered, nulls: NullCounts | None) -> list[str]:
    """What a reader must know of the null."""
    if nulls is None:
        return []
    apart = [d for d in data.datasets if d not in nulls.datasets]
    said = f"Null: {len(nulls.runs)} runs of diff_mining on {', '.join(nulls.datasets)}"
    if not apart:
        return [f"{said}."]
    return [f"{said}; they read other text as {', '.join(apart)}, so that `all` is compared without it."]
