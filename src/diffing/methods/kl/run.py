"""Computes per-token divergences: stream in units, gather, tabulate."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from diffing.analysis.context import RunContext
from diffing.analysis.token_text import token_strings
from diffing.core.errors import UserError
from diffing.core.method import MethodOutput
from diffing.core.progress import Advance, bar
from diffing.data.batches import make_batch, plan_batches
from diffing.data.tokens import Corpus
from diffing.methods.kl.config import KLConfig
from diffing.methods.kl.examples import example_table
from diffing.methods.kl.findings import evidence, summary
from diffing.methods.kl.gather import Gathered, gather
from diffing.methods.kl.noise import noise_floor
from diffing.methods.kl.rankings import document_score_table, risen_fallen_table, token_score_table, token_table
from diffing.methods.kl.statistics import dataset_table, position_table, role_table, sequence_table
from diffing.methods.kl.stream import Reader, kept_positions
from diffing.methods.kl.units import UnitWriter, add_units, cut_into_units, read_unit


def run(config: KLConfig, context: RunContext) -> MethodOutput:
    """Compare the pair's next-token distributions on every token of the corpus.

    Raises:
        UserError: The text uses tokens that the two tokenizers do not share, or no token is left to compare.
    """
    corpus, notes = _comparable(context)
    kept = _kept(context, corpus)
    if not any(k.any() for k in kept.values()):
        raise UserError(
            "No token is left to compare; lower the number of masked tokens (data.skip_template_tokens=false)."
        )
    floor = noise_floor(context.pair.base, corpus, config.noise_sequences, _pad_id(context))
    data = _read(config, context, corpus, kept)
    return _tabulate(config, context, data, floor, notes)


def _comparable(context: RunContext) -> tuple[Corpus, list[str]]:
    """The corpus without sequences that hold tokens only one of the vocabularies knows."""
    shared = context.pair.vocabulary.shared_ids
    corpus = context.corpus
    if shared is None:
        return corpus, []
    ids = shared.cpu().numpy()
    good = tuple(s for s in corpus.sequences if np.isin(s.ids, ids).all())
    if not good:
        raise UserError(
            "Every document holds tokens that the two tokenizers do not share; compare models of one tokenizer."
        )
    lost = len(corpus.sequences) - len(good)
    note = f"vocabularies differ: compared on the {len(ids):,} ids whose strings agree, both distributions renormalised"
    notes = [note, f"{lost} documents with other tokens left out"] if lost else [note]
    return Corpus(corpus.datasets, good, corpus.fingerprint, corpus.notes, corpus.n_documents), notes


def _kept(context: RunContext, corpus: Corpus) -> dict[int, np.ndarray]:
    bos, skip = context.pair.tokenizer.bos_token_id, context.skip_template_tokens
    assert bos is None or isinstance(bos, int)
    return {i: kept_positions(s, bos, skip) for i, s in enumerate(corpus.sequences)}


def _pad_id(context: RunContext) -> int:
    pad = context.pair.tokenizer.pad_token_id
    return pad if isinstance(pad, int) else 0


def _read(config: KLConfig, context: RunContext, corpus: Corpus, kept: dict[int, np.ndarray]) -> Gathered:
    lengths = [len(s.ids) for s in corpus.sequences]
    units = cut_into_units(plan_batches(lengths, context.batch_tokens), lengths, context.batch_tokens)
    reader = Reader(context.pair, config.temperature, config.top_k, kept.__getitem__)
    with bar("kl: reading both models", sum(lengths), "tokens") as advance:

        def read_all() -> Iterator[dict[str, np.ndarray]]:
            for number, unit in enumerate(units):
                yield _unit(context, corpus, reader, number, unit, advance)

        columns, sums = add_units(read_all())
    return gather(corpus, columns, sums, _shared_ids(context, sums["kl_sum"].shape[1]), kept)


def _unit(
    context: RunContext, corpus: Corpus, reader: Reader, number: int, unit: list[Sequence[int]], advance: Advance
) -> dict[str, np.ndarray]:
    """One unit: from the scratch folder where an earlier run left it, else computed and stored there."""
    path = context.scratch / f"unit_{number:04d}.safetensors"
    if (stored := read_unit(path)) is not None:
        advance(sum(len(corpus.sequences[i].ids) for batch in unit for i in batch))
        return stored
    writer: UnitWriter | None = None
    names = {name: i for i, name in enumerate(corpus.datasets)}
    for indices in unit:
        for result in reader.read(make_batch(corpus, indices, _pad_id(context))):
            if writer is None:
                writer = UnitWriter(len(names), len(result.sums.kl_terms_V))
            writer.add(result, names[corpus.sequences[result.sequence].dataset])
            advance(len(corpus.sequences[result.sequence].ids))
    assert writer is not None
    writer.write(path)
    written = read_unit(path)
    assert written is not None
    return written


def _shared_ids(context: RunContext, width: int) -> np.ndarray:
    shared = context.pair.vocabulary.shared_ids
    return np.arange(width) if shared is None else shared.cpu().numpy()


def _names(context: RunContext, data: Gathered) -> dict[int, str]:
    seen = [data.shared_ids, data.ids_N, data.columns["top_ft"], data.columns["top_base"]]
    return token_strings(context.pair.tokenizer, np.unique(np.concatenate(seen)).tolist())


def _tabulate(
    config: KLConfig, context: RunContext, data: Gathered, floor: dict[str, float], notes: list[str]
) -> MethodOutput:
    if bad := int(np.isnan(data.columns["kl"]).sum()):
        raise UserError(
            f"{bad:,} of {len(data.ids_N):,} tokens have no finite KL (NaN or infinite logits); "
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
        "examples": example_table(data, names, context.pair.tokenizer, config),
        "risen_fallen": risen_fallen_table(data, names),
        "token_scores": token_score_table(data, names),
        "document_scores": document_score_table(sequences),
    }
    claimed = None if context.pair.spec.null_pair == "none" else False
    return MethodOutput(
        tables=tables,
        evidence=evidence(tables["datasets"], tables["examples"], tables["token_scores"], claimed),
        summary=summary(tables["datasets"]),
        notes=tuple(notes),
        facts={"noise_floor": floor, "threads": torch.get_num_threads()},
    )
