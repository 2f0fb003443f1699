"""Which pairs can be tried or run: those of finished results, those with a configuration, the one started with."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from diffing.core.config import parse
from diffing.core.errors import UserError
from diffing.core.result import Result
from diffing.core.settings import RunConfig
from diffing.core.specs import OrganismSpec, PairSpec
from diffing.dashboard.catalog import Entry
from diffing.dashboard.site import Site
from diffing.pipeline.catalogue import names, organism_named
from diffing.pipeline.planning import model_label, organism_label, plan_pair_spec


@dataclass(frozen=True)
class Subject:
    """A base model with an organism, by name."""

    model: str
    organism: str
    variant: str = "default"

    @property
    def name(self) -> str:
        """`<organism>[+<variant>]`, as its folder is called."""
        return self.organism if self.variant == "default" else f"{self.organism}+{self.variant}"


def subjects(site: Site, entries: Iterable[Entry]) -> list[Subject]:
    """Every pair that is known: first those with results, then the one started with, then the configured ones."""
    tried = [Subject(e.model, e.organism, e.variant) for e in entries if e.is_readable and e.null_pair == "none"]
    return list(dict.fromkeys([*tried, *_started_with(site), *configured()]))


def spec_of(site: Site, subject: Subject, entries: Iterable[Entry]) -> PairSpec:
    """The pair to load.

    Raises:
        UserError: It is no longer configured, or an option of the command line does not fit it.
    """
    if subject in _started_with(site):
        return plan_pair_spec(site.settings)[0]
    if subject in configured():
        return plan_pair_spec(site.settings_with(*options(subject)))[0]
    entry = next((e for e in entries if e.is_readable and Subject(e.model, e.organism, e.variant) == subject), None)
    if entry is None:
        raise UserError(f"There is no pair {subject.name} on {subject.model}; choose one of the list.")
    manifest = Result(entry.folder).manifest
    values = _overridden(manifest["config"], site.launch.overrides)
    return plan_pair_spec(parse(RunConfig, {**values, "organism": _with_source(values["organism"], manifest["pair"])}))[
        0
    ]


def options(subject: Subject) -> tuple[str, ...]:
    """The options that name a configured pair on the command line."""
    variant = () if subject.variant == "default" else (f"organism_variant={subject.variant}",)
    return (f"model={subject.model}", f"organism={subject.organism}", *variant)


@cache
def configured() -> tuple[Subject, ...]:
    """Every configured organism on every base it has a finetuned model for; embedded ones first."""
    models = set(names("model"))
    found = [
        (not source.id.startswith("embedded:"), model, organism.name, variant)
        for organism in _organisms()
        for model, variants in organism.models.items()
        if model in models
        for variant, source in variants.items()
    ]
    return tuple(Subject(model, organism, variant) for _, model, organism, variant in sorted(found))


def _organisms() -> list[OrganismSpec]:
    return [o for name in names("organism") if (o := organism_named(name)) is not None]


def _started_with(site: Site) -> list[Subject]:
    if site.settings.null_pair != "none":
        return []
    try:
        pair, _ = plan_pair_spec(site.settings)
    except UserError:
        return []
    return [Subject(model_label(pair.model), organism_label(pair), pair.variant)]


def _with_source(organism: dict[str, Any], pair: dict[str, Any]) -> dict[str, Any]:
    """An organism with its finetuned model; of a run made from Python, only what was compared says which it was."""
    if organism.get("finetuned") or organism.get("models"):
        return organism
    facts = (pair.get("facts") or {}).get("finetuned") or {}
    found = {key: facts.get(key) for key in ("subfolder", "revision")}
    return {**organism, "finetuned": pair["finetuned_id"], **found}


def _overridden(config: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A manifest's configuration with the command line's options of how models are loaded."""
    values = {**config, "model": dict(config["model"]), "pair": dict(config.get("pair") or {})}
    for override in overrides:
        key, _, text = override.partition("=")
        group, _, option = key.partition(".")
        if group in ("model", "pair") and option and option != "id":
            values[group][option] = yaml.safe_load(text)
    return values
