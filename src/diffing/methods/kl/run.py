"""Computes per-token divergences: stream in units, gather, tabulate."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from diffing.analysis.comparable import comparable_corpus, compared_ids, compared_tokens
from diffing.analysis.context import RunContext
from diffing.analysis.token_text import token_strings
from diffing.analysis.units import cut_into_units, read_unit
from diffing.core.errors import UserError
from diffing.core.method import MethodOutput
from diffing.core.progress import Advance, bar
from diffing.data.batches import make_batch, pad_id, plan_batches
from diffing.data.token_table import TokenTable
from diffing.data.tokens import Corpus
from diffing.methods.kl.config import KLConfig
from diffing.methods.kl.examples import example_table
from diffing.methods.kl.findings import evidence, summary
from diffing.methods.kl.gather import Gathered, gather
from diffing.methods.kl.noise import noise_floor
from diffing.methods.kl.rankings import document_score_table, risen_fallen_table, token_score_table, token_table
from diffing.methods.kl.statistics import dataset_table, position_table, role_table, sequence_table
from diffing.methods.kl.stream import Reader
from diffing.methods.kl.units import ARRAYS, UnitWriter, add_units


def run(config: KLConfig, context: RunContext) -> MethodOutput:
    """Compare the pair's next-token distributions on every token of the corpus.

    Raises:
        UserError: The text uses tokens that the two tokenizers do not share, or no token is left to compare.
    """
    corpus, notes = comparable_corpus(context)
    tokens = TokenTable.of(corpus)
    kept_N = compared_tokens(tokens, context)
    floor = noise_floor(context.pair.base, corpus, config.noise_sequences, pad_id(context.tokenizer))
    data = _read(config, context, corpus, tokens, kept_N)
    return _tabulate(config, context, data, floor, notes)


def _read(config: KLConfig, context: RunContext, corpus: Corpus, tokens: TokenTable, kept_N: np.ndarray) -> Gathered:
    lengths = [len(s.ids) for s in corpus.sequences]
    units = cut_into_units(plan_batches(lengths, context.batch_tokens), lengths, context.batch_tokens)
    reader = Reader(context.pair, config.temperature, config.top_k, lambda i: kept_N[tokens.rows_of(i)])
    with bar("kl: reading both models", sum(lengths), "tokens") as advance:

        def read_all() -> Iterator[dict[str, np.ndarray]]:
            for number, unit in enumerate(units):
                yield _unit(context, corpus, reader, number, unit, advance)

        columns, sums = add_units(read_all())
    return gather(tokens, columns, sums, compared_ids(context, sums["kl_sum"].shape[1]), kept_N)


def _unit(
    context: RunContext, corpus: Corpus, reader: Reader, number: int, unit: list[Sequence[int]], advance: Advance
) -> dict[str, np.ndarray]:
    """One unit: from the scratch folder where an earlier run left it, else computed and stored there."""
    path = context.scratch / f"unit_{number:04d}.safetensors"
    if (stored := read_unit(path, ARRAYS)) is not None:
        advance(sum(len(corpus.sequences[i].ids) for batch in unit for i in batch))
        return stored
    writer: UnitWriter | None = None
    names = {name: i for i, name in enumerate(corpus.datasets)}
    for indices in unit:
        for result in reader.read(make_batch(corpus, indices, pad_id(context.tokenizer))):
            if writer is None:
                writer = UnitWriter(len(names), len(result.sums.kl_terms_V))
            writer.add(result, names[corpus.sequences[result.sequence].dataset])
            advance(len(corpus.sequences[result.sequence].ids))
    assert writer is not None
    writer.write(path)
    written = read_unit(path, ARRAYS)
    assert written is not None
    return written


def _names(context: RunContext, data: Gathered) -> dict[int, str]:
    seen = [data.shared_ids, data.tokens.ids_N, data.columns["top_ft"], data.columns["top_base"]]
    return token_strings(context.tokenizer, np.unique(np.concatenate(seen)).tolist())


def _tabulate(
    config: KLConfig, context: RunContext, data: Gathered, floor: dict[str, float], notes: list[str]
) -> MethodOutput:
    if bad := int(np.isnan(data.columns["kl"]).sum()):
        raise UserError(
            f"{bad:,} of {len(data.tokens.ids_N):,} tokens have no finite KL (NaN or infinite logits); "
            "check the weights, or try model.dtype=float32."
        )
    names = _names(context, data)
    sequences = sequence_table(data)
    tables = {
        "tokens": token_table(data, names, config.max_token_rows),
        "sequences": sequences,
        "datasets": dataset_table(data, context.seed, floor),
        "positions": position_table(data, context.seed, config.max_positions),
        "roles": role_table(data, context.seed),
        "examples": example_table(data, names, context.tokenizer, config),
        "risen_fallen": risen_fallen_table(data, names),
        "token_scores": token_score_table(data, names),
        "document_scores": document_score_table(sequences),
    }
    claimed = None if context.null_pair == "none" else False
    return MethodOutput(
        tables=tables,
        evidence=evidence(tables["datasets"], tables["examples"], tables["token_scores"], claimed),
        summary=summary(tables["datasets"]),
        notes=tuple(notes),
        facts={"noise_floor": floor, "threads": torch.get_num_threads()},
    )
