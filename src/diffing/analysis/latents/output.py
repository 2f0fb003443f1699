"""Tables, tensors and evidence of a dictionary run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from diffing.analysis.latents.activity import Activity
from diffing.analysis.latents.details import Details, read_details
from diffing.analysis.latents.findings import evidence, summary
from diffing.analysis.latents.interventions import Interventions
from diffing.analysis.latents.readouts import latent_tokens
from diffing.analysis.latents.results import (
    CausalRow,
    CausalTextMeanRow,
    CausalTextRow,
    CoactivationRow,
    CurveRow,
    LatentGroupRow,
    LatentRow,
    LatentTokenRow,
    QualityRow,
    SplicedRow,
)
from diffing.analysis.latents.saving import dictionary_files
from diffing.analysis.latents.setting import Setting
from diffing.analysis.latents.sites import NAMES
from diffing.analysis.latents.strengths import raised
from diffing.analysis.latents.table import Latents, group_rows, known, latent_rows, token_lines
from diffing.analysis.latents.texts import text_means
from diffing.analysis.latents.training import Trained
from diffing.analysis.token_excess import document_mean_table, token_excess_table
from diffing.analysis.token_text import token_strings
from diffing.analysis.top_examples import Ranked
from diffing.analysis.windows import WindowRow, window_table
from diffing.core.method import MethodOutput
from diffing.core.tables import DocumentScoreRow, TokenScoreRow, table_of
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.metrics import Quality

_MOST_COACTIVE = 256
_MOST_PAIRS = 2000
_MOST_VECTORS = 64


@dataclass(frozen=True, eq=False)
class Parts:
    """Everything that was measured.

    Args:
        trained: The dictionary of each seed; the first is the run's.
        activity: Of its latents.
        latents: Columns of their table.
        matches: Their matches in the second seed, with cosines.
        comes_back_F: Whether they come back.
        interventions: Loss recovered and causal control.
    """

    trained: tuple[Trained, ...]
    activity: Activity
    latents: Latents
    matches: tuple[np.ndarray, np.ndarray] | None
    comes_back_F: np.ndarray | None
    interventions: Interventions


def output_of(setting: Setting, parts: Parts | None) -> MethodOutput:
    """What the run computed; without parts, of a difference that is zero everywhere."""
    source = setting.context.activations
    assert source is not None
    claimed = None if setting.context.null_pair == "none" else False
    facts = {"slot": setting.slot.name, "input": setting.kind, "activations": dict(source.facts)}
    if parts is None:
        tables = _empty_tables()
        note = f"{setting.slot.name}: the models' activations are the same at every token: there is nothing to learn."
        found = evidence((), [], tables["examples"], tables["token_scores"], set(), claimed)
        return MethodOutput(tables, found, (), {}, (*setting.notes, note, *source.notes), {**facts, "is_zero": True})
    dictionary, latents = parts.trained[0].dictionary, parts.latents
    shown = latents.order[: setting.config.max_example_latents]
    shown = shown[np.array([latents.tags[j] != "dead" for j in shown], dtype=bool)]
    read, notes = latent_tokens(setting.context, dictionary, setting.slot, shown, setting.config.n_lens_tokens)
    examples = _examples(parts.activity, shown)
    details, coactive = _details(setting, dictionary, parts, examples)
    rows = latent_rows(latents, parts.activity, parts.matches, parts.comes_back_F, token_lines(read))
    quality = quality_rows(parts.activity.quality, setting)
    specific = {j for j in range(len(latents.tags)) if latents.specificity_F[j] > 0}
    names = token_strings(setting.context.tokenizer, np.unique(source.tokens.ids_N).tolist())
    changed = parts.interventions
    means = text_means(changed.texts, setting.context.seed)
    tables = {
        "latents": table_of(LatentRow, rows),
        "latent_groups": table_of(LatentGroupRow, group_rows(latents, parts.activity, source.tokens.datasets, shown)),
        "latent_tokens": table_of(LatentTokenRow, read),
        "examples": window_table(
            source.tokens, setting.context.tokenizer, examples.ranked, examples.kinds, details.values,
            setting.config.context_before, setting.config.context_after,
        ),
        "quality": table_of(QualityRow, quality),
        "training": table_of(CurveRow, curve_rows(parts.trained)),
        "loss_recovered": table_of(SplicedRow, changed.spliced),
        "causal": table_of(CausalRow, changed.causal),
        "causal_texts": table_of(CausalTextRow, changed.texts),
        "causal_text_means": table_of(CausalTextMeanRow, means),
        "coactivation": table_of(CoactivationRow, coactivation_rows(details.n_both_CC, coactive, parts.activity)),
        "token_scores": token_excess_table(source.tokens, details.score_N, names),
        "document_scores": document_mean_table(source.tokens, details.score_N),
    }  # fmt: skip
    scalars = summary(rows, quality, changed.spliced, changed.causal, means, setting.split.is_held_out)
    return MethodOutput(
        tables=tables,
        evidence=evidence(scalars, rows, tables["examples"], tables["token_scores"], specific, claimed),
        summary=scalars,
        tensors=_vectors(dictionary, latents),
        notes=tuple(dict.fromkeys((*setting.notes, *source.notes, *changed.notes, *notes, *_skipped(setting, parts)))),
        facts={**facts, **_training_facts(setting, parts)},
        folders=_folders(setting, dictionary),
    )


@dataclass(frozen=True, eq=False)
class _Examples:
    ranked: Ranked
    kinds: tuple[str, ...]


def _examples(activity: Activity, shown: np.ndarray) -> _Examples:
    """Top examples and sampled ones of the latents that are shown; the sampled ones by quarter of the maximum."""
    parts = []
    for ranked, is_top in ((activity.top, True), (activity.sample, False)):
        keep = np.isin(ranked.unit, shown)
        share = ranked.value[keep] / activity.maximum_F[ranked.unit[keep]]
        quarter = np.minimum((share * 4).astype(int), 3)
        kinds = ["top"] * int(keep.sum()) if is_top else [f"q{q + 1}" for q in quarter.tolist()]
        columns = (ranked.unit, ranked.rank, ranked.row, ranked.value, ranked.sequence)
        parts.append((*(c[keep] for c in columns), np.array(kinds, dtype=object)))
    unit, rank, row, value, sequence, kinds = (np.concatenate(c) for c in zip(*parts, strict=True))
    return _Examples(Ranked(unit, rank, row, value, sequence), tuple(kinds.tolist()))


def _details(setting: Setting, dictionary: Dictionary, parts: Parts, examples: _Examples) -> tuple[Details, np.ndarray]:
    source = setting.context.activations
    assert source is not None
    coactive = np.sort(parts.latents.order[:_MOST_COACTIVE])
    details = read_details(
        dictionary, setting.rows, setting.kind, setting.split.kept_N, source.tokens, examples.ranked,
        (setting.config.context_before, setting.config.context_after), parts.latents.specificity_F, coactive,
    )  # fmt: skip
    return details, coactive


def quality_rows(quality: dict[tuple[str, bool], Quality], setting: Setting) -> list[QualityRow]:
    """`quality.parquet`."""
    rows: list[QualityRow] = []
    for (dataset, is_held), found in sorted(quality.items(), key=lambda item: (item[0][0] != "all", item[0])):
        if is_held and not setting.split.is_held_out:
            continue
        named = dict(zip(NAMES[setting.kind], found.fve_M.tolist(), strict=True))
        if found.explained_difference is not None:
            named["explained difference"] = found.explained_difference
        rows += [
            QualityRow(dataset, is_held, site, found.n_tokens, known(fve), found.l0, found.dead_share)
            for site, fve in named.items()
        ]
    return rows


def curve_rows(trained: Sequence[Trained]) -> list[CurveRow]:
    """`training.parquet`."""
    return [
        CurveRow(seed, r.step, r.n_tokens, r.fve, r.l0, r.n_dead, r.loss, r.aux, r.lr)
        for seed, one in enumerate(trained)
        for r in one.curve
    ]


def coactivation_rows(n_both_CC: np.ndarray, chosen_C: np.ndarray, activity: Activity) -> list[CoactivationRow]:
    """`coactivation.parquet`: pairs of telling latents, those that share most of their tokens first."""
    counts_C, n = activity.counts_GF.sum(0)[chosen_C], max(1, int(activity.n_tokens_G.sum()))
    one, two = np.nonzero(np.triu(n_both_CC, 1))
    both = n_both_CC[one, two]
    jaccard = both / (counts_C[one] + counts_C[two] - both)
    lift = both * n / (counts_C[one] * counts_C[two])
    order = np.lexsort((two, one, -jaccard))[:_MOST_PAIRS]
    return [
        CoactivationRow(int(chosen_C[one[i]]), int(chosen_C[two[i]]), int(both[i]), float(jaccard[i]), float(lift[i]))
        for i in order.tolist()
    ]


def _vectors(dictionary: Dictionary, latents: Latents) -> dict[str, Tensor]:
    """What the most telling latents add to the finetuned stream at activation 1, in raw units."""
    chosen = [j for j in latents.order[:_MOST_VECTORS].tolist() if latents.tags[j] != "dead"]
    vectors = {f"latent_{j:06d}": raised(dictionary, j, maximum=1.0, strength=1.0).vector_D.cpu() for j in chosen}
    return {name: vector_D for name, vector_D in vectors.items() if float(vector_D.norm()) > 0}


def _skipped(setting: Setting, parts: Parts) -> list[str]:
    n = sum(t.n_skipped for t in parts.trained)
    said = [f"{n} batches held NaN or infinity and were skipped in training."] if n else []
    if lost := parts.activity.n_not_finite:
        said.append(f"{lost:,} tokens hold NaN or infinite activations; they are left out.")
    if unusual := parts.activity.n_unusual:
        ratio = f"{setting.config.outlier_norm:g}"
        said.append(f"Left out for a norm over {ratio} times the median (attention sinks): {unusual:,} of the tokens.")
    return said


def _training_facts(setting: Setting, parts: Parts) -> dict[str, Any]:
    first = parts.trained[0]
    return {
        "dictionary": first.dictionary.spec.model_dump(mode="json"),
        "threshold": float(first.dictionary.threshold),
        "scale": first.dictionary.scale_M.tolist(),
        "tokens_trained": first.n_tokens,
        "unique_tokens": first.n_unique,
        "epochs": first.epochs,
        "held_out_tokens": int(setting.split.held_N.sum()) if setting.split.is_held_out else 0,
        "threads": torch.get_num_threads(),
        "example_slot": setting.slot.name,
    }


def _folders(setting: Setting, dictionary: Dictionary) -> Any:
    hook = f"{setting.slot.name}, {' and '.join(NAMES[setting.kind])}"
    return dictionary_files(dictionary, setting.config.save_as, setting.slot, "", hook)


def _empty_tables() -> dict[str, pa.Table]:
    rows = {
        "latents": LatentRow, "latent_groups": LatentGroupRow, "latent_tokens": LatentTokenRow, "examples": WindowRow,
        "quality": QualityRow, "training": CurveRow, "loss_recovered": SplicedRow, "causal": CausalRow,
        "causal_texts": CausalTextRow, "causal_text_means": CausalTextMeanRow, "coactivation": CoactivationRow,
        "token_scores": TokenScoreRow, "document_scores": DocumentScoreRow,
    }  # fmt: skip
    return {name: table_of(row_type, []) for name, row_type in rows.items()}
