"""A dictionary method from activations to results: train or open, measure, read, intervene, tabulate."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from diffing.activations.outliers import norm_limit
from diffing.activations.rows import SlotRows
from diffing.analysis.context import RunContext
from diffing.analysis.latents.activity import measure_activity
from diffing.analysis.latents.coding import coded_blocks
from diffing.analysis.latents.config import DictionaryConfig
from diffing.analysis.latents.interventions import intervene
from diffing.analysis.latents.opening import opened, published_notes
from diffing.analysis.latents.output import Parts, output_of
from diffing.analysis.latents.saving import refuse_layouts
from diffing.analysis.latents.seeds import SAME_COSINE, best_matches
from diffing.analysis.latents.setting import Setting
from diffing.analysis.latents.sites import NAMES, Input, chosen_slot, split
from diffing.analysis.latents.table import Latents, latents_of
from diffing.analysis.latents.tags import tag_names
from diffing.analysis.latents.training import Trained, n_latents, scale_rows, train_on
from diffing.core.method import MethodOutput
from diffing.dictionaries.initial import DataScale, Norm, measure_scale, refuse_constant
from diffing.dictionaries.spec import DictionarySpec


def run_dictionary(
    config: DictionaryConfig,
    context: RunContext,
    kind: Input,
    spec_of: Callable[[int, int], DictionarySpec],
    norm: Norm = "per_model",
) -> MethodOutput:
    """Train or open a dictionary of one slot, and tell what its latents are.

    Args:
        config: Options.
        context: The run's.
        kind: What it learns from.
        spec_of: `(width, n_latents) -> DictionarySpec` of a dictionary that is trained.
        norm: `per_model` or `shared`.

    Raises:
        UserError: Options do not fit, activations are constant or not finite, or training diverges.
    """
    source = context.activations
    assert source is not None
    slot, said = chosen_slot(source, config.site)
    held = split(source, context, config.training.held_out)
    limit = norm_limit(source, slot, held.kept_N, config.outlier_norm)
    rows = SlotRows(source, slot, context.seed, config.training.buffer_rows, limit)
    notes = [said] if said else []
    if not held.is_held_out:
        notes.append("There are too few documents to hold any out: quality is measured on what was learned from.")
    setting = Setting(config, context, kind, slot, rows, held, tuple(notes))
    trained, seeds_notes = _dictionaries(setting, spec_of, norm)
    if not trained:
        return output_of(setting, None)
    return output_of(replace(setting, notes=(*setting.notes, *seeds_notes)), _parts(setting, trained))


def _dictionaries(
    setting: Setting, spec_of: Callable[[int, int], DictionarySpec], norm: Norm
) -> tuple[list[Trained], list[str]]:
    """The dictionary of each seed; none where the difference is zero everywhere."""
    config, context = setting.config, setting.context
    assert context.activations is not None
    width = context.activations.width
    if config.path is not None:
        published = opened(config, setting.kind, setting.slot, width)
        refuse_layouts(published.dictionary.spec, config.save_as, context.scratch)
        notes = published_notes(published, setting.slot, config.path)
        return [Trained(published.dictionary, (), 0, int(setting.split.train_N.sum()), 0)], notes
    spec: DictionarySpec = spec_of(width, n_latents(config, width))
    refuse_layouts(spec, config.save_as, context.scratch)
    scale = measure_scale(scale_rows(setting.rows, setting.kind, setting.split, _batch_rows(setting)), norm)
    if setting.kind == "difference" and scale.is_zero:
        return [], []
    refuse_constant(scale, NAMES[setting.kind])
    return [_train(setting, spec, scale, number) for number in range(config.n_seeds)], _batch_note(setting)


def _batch_rows(setting: Setting) -> int:
    return min(setting.config.training.batch_rows, int(setting.split.train_N.sum()))


def _batch_note(setting: Setting) -> list[str]:
    n = _batch_rows(setting)
    if n == setting.config.training.batch_rows:
        return []
    asked = f"{setting.config.training.batch_rows:,}"
    return [f"There are {n:,} tokens to learn from, fewer than a batch of {asked}: each step takes all of them."]


def _train(setting: Setting, spec: DictionarySpec, scale: DataScale, number: int) -> Trained:
    title = "training the dictionary" if not number else f"training it again, seed {number}"
    seed = setting.context.seed + number
    rows = setting.rows.reordered(seed)
    folder = setting.context.scratch / f"seed_{number}"
    return train_on(
        setting.config, spec, scale, rows, setting.kind, setting.split, seed, folder, setting.context.log, title
    )


def _parts(setting: Setting, trained: Sequence[Trained]) -> Parts:
    """Everything that is measured of the trained dictionaries."""
    config, context, first = setting.config, setting.context, trained[0]
    source = context.activations
    assert source is not None
    dictionary = first.dictionary
    mean_2D = _means(setting, dictionary.scale_M.device)
    activity = measure_activity(
        dictionary, setting.rows, setting.kind, setting.split, source.tokens, mean_2D, config.n_examples,
        config.n_sampled, context.seed,
    )  # fmt: skip
    latents = latents_of(dictionary, setting.kind, activity)
    matches, comes_back_F = _across_seeds(setting, trained, latents)
    return Parts(
        trained=tuple(trained), activity=activity, latents=latents, matches=matches, comes_back_F=comes_back_F,
        interventions=intervene(setting, dictionary, latents, mean_2D),
    )  # fmt: skip


def _means(setting: Setting, device: torch.device) -> Tensor:
    """Means of both models' raw activations at kept tokens, (2, D), float32."""
    total, n = None, 0
    for block in setting.rows.blocks():
        keep_N = torch.from_numpy(setting.split.kept_N[block.token_N]).to(block.rows_N2D.device)
        rows_N2D = block.rows_N2D[keep_N & setting.rows.usual(block.rows_N2D)].double()
        rows_N2D = rows_N2D[torch.isfinite(rows_N2D).flatten(1).all(1)]
        total = rows_N2D.sum(0) if total is None else total + rows_N2D.sum(0)
        n += len(rows_N2D)
    assert total is not None
    return (total / max(n, 1)).float().to(device)


def _across_seeds(
    setting: Setting, trained: Sequence[Trained], latents: Latents
) -> tuple[tuple[np.ndarray, np.ndarray] | None, np.ndarray | None]:
    """Each latent's match in the second seed, and whether it comes back with the same tag."""
    if len(trained) < 2:
        return None, None
    one, two = trained[0].dictionary, trained[1].dictionary
    alive_F = np.zeros(two.spec.n_latents, dtype=bool)
    for block in coded_blocks(two, setting.rows, setting.kind, setting.split.kept_N, "coding with the other seed"):
        alive_F |= block.codes.active_F().cpu().numpy()
    match_F, cosine_F = best_matches(one, two, alive_F)
    other_tags = tag_names(two, setting.kind, alive_F)
    same_F = np.array([match >= 0 and other_tags[match] == t for match, t in zip(match_F, latents.tags, strict=True)])
    return (match_F, cosine_F), same_F & (cosine_F >= SAME_COSINE)
