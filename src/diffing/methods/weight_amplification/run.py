"""Scales the change, reads the slice and writes the texts at every setting, tabulates."""

from functools import partial

import torch

from diffing.analysis.comparable import comparable_corpus, compared_ids
from diffing.analysis.context import RunContext
from diffing.analysis.token_text import token_strings
from diffing.core.errors import UserError
from diffing.core.method import MethodOutput
from diffing.core.progress import Advance, bar
from diffing.methods.weight_amplification.config import WeightAmplificationConfig
from diffing.methods.weight_amplification.findings import evidence, summary
from diffing.methods.weight_amplification.gather import Gathered, Outcome
from diffing.methods.weight_amplification.plan import WHOLE, Setting, settings
from diffing.methods.weight_amplification.rankings import phrase_table, token_score_table
from diffing.methods.weight_amplification.reading import Effect, SliceReader, corpus_slice
from diffing.methods.weight_amplification.statistics import (
    effect_table,
    growth_table,
    setting_table,
    text_measure_table,
    text_table,
)
from diffing.methods.weight_amplification.units import stored_effect, stored_texts
from diffing.methods.weight_amplification.writing import Writer, Written, chosen_prompts
from diffing.models.amplifying import Amplifier
from diffing.models.scaled_adapter import check_exportable, write_scaled_adapter


def run(config: WeightAmplificationConfig, context: RunContext) -> MethodOutput:
    """Try every factor on the whole change and one on its parts.

    Raises:
        UserError: The change cannot be scaled, the adapter not exported, or prompts or text do not fit the models.
    """
    pair = context.pair
    if config.export_factor is not None:
        check_exportable(pair, config.export_factor)
    prompts, prompt_notes = chosen_prompts(config, pair)
    corpus, notes = comparable_corpus(context)
    reader = SliceReader(context, corpus_slice(corpus, config.n_documents, config.document_tokens))
    writer = Writer(pair, prompts, config, context.seed)
    amplifier = Amplifier(pair)
    tried = settings(config, amplifier.places, amplifier.n_layers)
    effects = _read(context, reader, amplifier, tried)
    writing = [s for s in tried if (s.part == WHOLE or config.map_texts) and not effects[s.number].n_bad]
    texts = _write(config, context, writer, amplifier, writing)
    outcomes = [_outcome(s, effects[s.number], texts.get(s.number, [])) for s in tried]
    data = Gathered(outcomes, reader.corpus)
    return _tabulate(config, context, data, writer, [*notes, *prompt_notes])


def _read(context: RunContext, reader: SliceReader, amplifier: Amplifier, tried: list[Setting]) -> list[Effect]:
    """What each setting does to the slice; the finetuned model itself must give numbers."""

    def compute(setting: Setting, advance: Advance) -> Effect:
        with amplifier.set(setting.spec):
            return reader.effect(advance)

    found: list[Effect] = []
    with bar("weight_amplification: reading", len(tried) * reader.n_tokens, "tokens") as advance:
        for setting in tried:
            path = context.scratch / f"effect_{setting.number:04d}.safetensors"
            effect, is_new = stored_effect(path, partial(compute, setting, advance))
            if not is_new:
                advance(reader.n_tokens)
            if effect.n_bad and setting.spec.is_plain:
                raise UserError(
                    f"{effect.n_bad:,} of {reader.n_tokens:,} tokens have NaN or infinite logits without any scaling; "
                    "check the weights, or try model.dtype=float32."
                )
            found.append(effect)
    return found


def _write(
    config: WeightAmplificationConfig, context: RunContext, writer: Writer, amplifier: Amplifier, tried: list[Setting],
) -> dict[int, list[Written] | str]:  # fmt: skip
    """Texts of each setting, or why there are none."""

    def compute(setting: Setting, advance: Advance) -> list[Written] | str:
        try:
            with amplifier.set(setting.spec):
                made = writer.write(advance)
        except UserError as error:
            if setting.spec.is_plain:
                raise
            return str(error)
        advance(each - sum(len(m.ids) for m in made))
        return writer.judge(made)

    each = len(writer.prompts) * config.max_new_tokens
    found: dict[int, list[Written] | str] = {}
    with bar("weight_amplification: writing", len(tried) * each, "tokens") as advance:
        for setting in tried:
            path = context.scratch / f"texts_{setting.number:04d}.json"
            found[setting.number], is_new = stored_texts(path, partial(compute, setting, advance))
            if not is_new:
                advance(each)
    return found


def _outcome(setting: Setting, effect: Effect, texts: list[Written] | str) -> Outcome:
    problem = None
    if effect.n_bad:
        problem = f"{effect.n_bad:,} of {int(effect.counts['kl'].sum()):,} tokens have NaN or infinite logits"
    elif isinstance(texts, str):
        problem = texts
    return Outcome(setting, effect, () if isinstance(texts, str) else texts, problem)


def _tabulate(
    config: WeightAmplificationConfig, context: RunContext, data: Gathered, writer: Writer, notes: list[str]
) -> MethodOutput:
    factor = data.looked_at()
    ids_V = compared_ids(context, len(data.whole(factor).effect.terms_V))
    names = token_strings(context.tokenizer, ids_V.tolist())
    texts = text_table(data, writer.prompts)
    tables = {
        "settings": setting_table(data),
        "effects": effect_table(data, context.seed),
        "growth": growth_table(data, context.seed),
        "texts": texts,
        "text_measures": text_measure_table(texts, context.seed),
        "phrases": phrase_table(data, config),
        "token_scores": token_score_table(data, factor, ids_V, names),
    }
    claimed = None if context.null_pair == "none" else False
    scalars = summary(tables, factor, claimed)
    folders = {}
    if config.export_factor is not None:
        folders["adapter"] = partial(write_scaled_adapter, context.pair, config.export_factor)
    problems = [f"{o.setting.part} ×{o.setting.factor:g}: {o.problem}" for o in data.outcomes if o.problem]
    return MethodOutput(
        tables=tables,
        evidence=evidence(tables, factor, scalars, claimed),
        summary=scalars,
        notes=(*notes, *problems),
        facts={"looked_at": factor, "map_factor": config.map_factor, "map_rest": config.map_rest,
               "threads": torch.get_num_threads()},
        folders=folders,
    )  # fmt: skip
