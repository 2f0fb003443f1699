"""Writes texts with both models, reads them with both, and ranks them."""

from collections.abc import Sequence

from diffing.analysis.context import RunContext
from diffing.analysis.token_text import token_strings
from diffing.core.errors import UserError
from diffing.core.method import MethodOutput
from diffing.methods.perplexity_diff.config import PerplexityDiffConfig
from diffing.methods.perplexity_diff.findings import evidence, summary
from diffing.methods.perplexity_diff.prefills import choose_prefills
from diffing.methods.perplexity_diff.tables import (
    Scored,
    dataset_table,
    phrase_table,
    position_table,
    ranked,
    text_table,
    token_score_table,
)
from diffing.methods.perplexity_diff.writing import Sampler, write_and_read


def run(config: PerplexityDiffConfig, context: RunContext) -> MethodOutput:
    """Compare both models on texts that each writes.

    Raises:
        UserError: The data has no beginning to go on from, or no text came out.
    """
    same_tokens = context.pair.vocabulary.refusal is None
    chosen = choose_prefills(config, context, texts_only=not same_tokens)
    prefills = [p for mine in chosen.by_dataset.values() for p in mine]
    texts = ranked(write_and_read(config, context, prefills, _sampler(config, context)), same_tokens)
    if not any(t.written.source == "finetuned" for t in texts):
        raise UserError(
            f"Every text of the finetuned model came out empty after {len(prefills)} beginnings; raise "
            "diffing.method.n_texts, or use other beginnings with diffing.method.datasets."
        )
    notes = [*chosen.notes, *_notes(context, texts, len(prefills))]
    return _tabulate(context, texts, same_tokens, notes)


def _sampler(config: PerplexityDiffConfig, context: RunContext) -> Sampler | None:
    if config.sampler == "own":
        return None
    from diffing.models.vllm_sampling import VllmSampler

    pair = context.pair
    return VllmSampler(context.plan, (pair.base.tokenizer, pair.finetuned.tokenizer)).write


def _notes(context: RunContext, texts: Sequence[Scored], n_prefills: int) -> list[str]:
    notes = []
    if context.pair.vocabulary.refusal is not None:
        notes.append(
            "the tokenizers differ: each model reads the texts through its own, so that only numbers per byte compare; "
            "chats are left out"
        )
    if n_lost := 2 * n_prefills - len(texts):
        notes.append(f"{n_lost} of {2 * n_prefills} texts came out empty and were left out")
    mine = [t.written.scored.text for t in texts if t.written.source == "finetuned"]
    if len(mine) > 1 and len(set(mine)) == 1:
        notes.append(f"all {len(mine)} texts of the finetuned model are the same")
    return notes


def _tabulate(context: RunContext, texts: Sequence[Scored], same_tokens: bool, notes: Sequence[str]) -> MethodOutput:
    pair = context.pair
    names = {}
    for source, handle in (("finetuned", pair.finetuned), ("base", pair.base)):
        ids = {i for t in texts if same_tokens or t.written.source == source for i in t.written.scored.ids}
        names[source] = token_strings(context.tokenizer if same_tokens else handle.tokenizer, ids)
    beginnings = {t.written.prefill.ids: str(context.tokenizer.decode(list(t.written.prefill.ids))) for t in texts}
    tables = {
        "texts": text_table(texts, names, beginnings),
        "datasets": dataset_table(texts, context.seed),
        "positions": position_table(texts, context.seed),
        "phrases": phrase_table(texts),
    }
    if same_tokens:
        tables["token_scores"] = token_score_table(texts, names["base"])
    claimed = None if context.null_pair == "none" else False
    unit = "nats/token" if same_tokens else "nats/byte"
    scalars = summary(tables["datasets"], unit, claimed)
    return MethodOutput(
        tables=tables,
        evidence=evidence(tables["texts"], tables.get("token_scores"), scalars, claimed),
        summary=scalars,
        notes=tuple(notes),
        facts={"unit": unit},
    )
