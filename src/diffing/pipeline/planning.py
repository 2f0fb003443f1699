"""From settings to specs: which pair, which text, which method, and where the result belongs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffing.core.config import fingerprint, parse
from diffing.core.errors import UserError
from diffing.core.method import MethodConfig, MethodSpec, load_method, method_names
from diffing.core.runs import SCHEMA, RunKey
from diffing.core.settings import RunConfig
from diffing.core.specs import (
    EMBEDDED,
    CorpusSpec,
    DatasetSpec,
    ModelSpec,
    OrganismSpec,
    PairSpec,
    TrainingSpec,
    VariantSpec,
)
from diffing.core.suggest import did_you_mean

_NULL_ADAPTERS = {"generic": 1, "generic_other": 2, "seeds": 2}
QUICK = ("kl", "normdiff", "diff_mining", "weight_spectrum")


@dataclass(frozen=True)
class Subject:
    """What is looked at: a pair and a text, with everything that was asked for.

    Args:
        settings: Everything that was asked for.
        pair: The pair.
        corpus: The text.
    """

    settings: RunConfig
    pair: PairSpec
    corpus: CorpusSpec


@dataclass(frozen=True)
class Job:
    """One method on one pair and text, fully decided.

    Args:
        settings: Everything that was asked for.
        method: The method.
        options: Its parsed options.
        pair: The pair.
        corpus: The text.
    """

    settings: RunConfig
    method: MethodSpec
    options: MethodConfig
    pair: PairSpec
    corpus: CorpusSpec

    @cached_property
    def inputs(self) -> Mapping[str, str]:
        """Content of files that the method's options name.

        Raises:
            UserError: One cannot be found.
        """
        return self.method.inputs(self.options)

    @property
    def subject(self) -> Subject:
        """The job without its method."""
        return Subject(self.settings, self.pair, self.corpus)

    def key(
        self, pair_fingerprint: str, corpus_fingerprint: str, activations: Mapping[str, Any] | None = None
    ) -> RunKey:
        """The run's place, named by everything that determines its numbers.

        Args:
            pair_fingerprint: Of the pair.
            corpus_fingerprint: Of the tokens.
            activations: Slots and dtype of the activations that the method reads, if it reads any.
        """
        determined_by = {
            **self._analysis(corpus_fingerprint),
            "pair": pair_fingerprint,
            "null_pair": self.settings.null_pair,
        }
        if activations is not None:
            determined_by["activations"] = dict(activations)
        return RunKey(
            model_label(self.pair.model), organism_label(self.pair), self.pair.variant, self.method.name,
            fingerprint(determined_by),
        )  # fmt: skip

    def comparison(self, base_identity: str, corpus_fingerprint: str, slots: Sequence[str]) -> str:
        """Fingerprint of everything but what was put on the base: a run and its nulls have it in common.

        Args:
            base_identity: Of the base's files.
            corpus_fingerprint: Of the tokens.
            slots: Names of the activations that the method reads.
        """
        text = corpus_fingerprint if self.method.reads_corpus else ""
        return fingerprint({**self._analysis(text), "base": base_identity, "slots": list(slots)})

    def _analysis(self, corpus_fingerprint: str) -> dict[str, Any]:
        """What determines a result's numbers besides the pair and the dtype of stored activations."""
        return {
            "schema": SCHEMA,
            "corpus": corpus_fingerprint,
            "method": self.options.model_dump(mode="json"),
            "seed": self.settings.seed,
            "skip_first_tokens": self.settings.skip_first_tokens,
            "skip_template_tokens": self.corpus.skip_template_tokens,
            "batch_tokens": self.settings.preprocessing.batch_tokens,
            **({"inputs": dict(self.inputs)} if self.inputs else {}),
        }


def plan_jobs(settings: RunConfig) -> list[Job]:
    """One job per chosen method.

    Raises:
        UserError: An option, method, variant or source name does not fit.
    """
    pair, training = plan_pair_spec(settings)
    corpus = plan_corpus(settings, training)
    jobs = []
    for name in chosen_methods(settings):
        method = load_method(name)
        given = settings.diffing.method if settings.diffing.method["name"] == name else {"name": name}
        jobs.append(Job(settings, method, parse(method.config, dict(given), "diffing.method"), pair, corpus))
    return jobs


def chosen_methods(settings: RunConfig) -> list[str]:
    """Names of the methods to run: `pipeline.methods`, else the one under `diffing/method`."""
    chosen: list[str] = []
    for name in settings.pipeline.methods or (settings.diffing.method["name"],):
        if name == "all":
            chosen += method_names()
        elif name == "quick":
            chosen += [m for m in QUICK if m in method_names()]
        else:
            chosen.append(name)
    return list(dict.fromkeys(chosen))


def plan_pair_spec(settings: RunConfig) -> tuple[PairSpec, TrainingSpec | None]:
    """The pair, and the training set of its organism."""
    model, organism = settings.model, settings.organism
    if model.id is None:
        raise UserError(
            f"Model {model.name} has no source; set model.id=DIR_OR_ID (a folder, a .gguf file or a hub id)."
        )
    null = settings.null_pair
    base_adapter, variant, name = (
        (*null_variants(organism, model, null), _null_label(organism, model, null))
        if null != "none"
        else (None, *choose_variant(organism, model, settings.organism_variant))
    )
    amplification = organism.amplification
    if amplification is not None and null != "none" and variant is None:
        raise UserError(
            f"organism.amplification scales what finetuning changed, and null_pair={null} compares the base with "
            "itself; drop one."
        )
    pair = PairSpec(
        model=model,
        finetuned=variant,
        base_adapter=base_adapter,
        organism=organism.name,
        variant=f"{name}{amplification.label}" if amplification else name,
        sharing=settings.pair.sharing,
        allow_rounding=settings.pair.allow_rounding,
        null_pair=null,
        amplification=amplification,
    )
    if null != "none":
        variant = _read_by_null(organism, model, settings.organism_variant)
    return pair, training_text(organism, model, variant)


def _read_by_null(organism: OrganismSpec, model: ModelSpec, wanted: str | None) -> VariantSpec | None:
    """The variant whose text a null pair reads: the one that is asked for; None: the default one, if there is one."""
    return None if wanted is None or organism.finetuned else choose_variant(organism, model, wanted)[0]


def training_text(organism: OrganismSpec, model: ModelSpec, variant: VariantSpec | None) -> TrainingSpec | None:
    """The text that a variant was trained on, else the default variant on this base, else the organism."""
    default = organism.models.get(model.name, {}).get("default")
    known = (v.training for v in (variant, default) if v is not None and v.training is not None)
    return next(known, organism.training)


def null_variants(organism: OrganismSpec, model: ModelSpec, null: str) -> tuple[VariantSpec | None, VariantSpec | None]:
    """What a null pair puts on the base, and what it compares with that: None and None where it trains nothing.

    Raises:
        UserError: The base has no adapters trained on generic text, or too few.
    """
    wanted = _NULL_ADAPTERS.get(null, 0)
    if not wanted:
        return None, None
    adapters = organism.null_adapter or model.null_adapters
    if len(adapters) < wanted:
        form = "DIR_OR_ID" if wanted == 1 else "[DIR_OR_ID,DIR_OR_ID]"
        raise UserError(
            f"null_pair={null} needs {'an adapter' if wanted == 1 else 'two adapters'} of {model.name} trained on "
            f"generic text, and {len(adapters) or 'none'} is named; set organism.null_adapter={form}, or use "
            "null_pair=identical or null_pair=dtype."
        )
    if null != "seeds":
        return None, VariantSpec(id=adapters[0 if null == "generic" else -1], kind="adapter")
    first, second = (VariantSpec(id=a, kind="adapter", merged=True) for a in adapters[:2])
    return first, second


def _null_label(organism: OrganismSpec, model: ModelSpec, null: str) -> str:
    """Name of a null's variant; one whose adapters stand in for the model's own says which."""
    if not model.null_adapters or not organism.null_adapter:
        return f"null-{null}"
    named = [_last_part(v.id.removeprefix(EMBEDDED)) for v in null_variants(organism, model, null) if v is not None]
    return f"null-{null}({','.join(named)})" if named else f"null-{null}"


def choose_variant(organism: OrganismSpec, model: ModelSpec, wanted: str | None) -> tuple[VariantSpec, str]:
    """The finetuned model an organism has for this base.

    Raises:
        UserError: There is none, or the variant has to be named.
    """
    if organism.finetuned:
        if wanted not in (None, "default"):
            raise UserError(
                f"organism_variant={wanted} and organism.finetuned both name the finetuned model; drop one."
            )
        return VariantSpec(id=organism.finetuned, subfolder=organism.subfolder, revision=organism.revision), "default"
    if organism.name == "custom" and not organism.models:
        raise UserError(
            "organism=custom has no source; set organism.finetuned=DIR_OR_ID (an adapter or a full finetune)."
        )
    variants = organism.models.get(model.name)
    if variants is None:
        known = ", ".join(organism.models) or "none"
        raise UserError(
            f"Organism {organism.name} has no finetuned model for {model.name} (it has: {known}); "
            "choose one of these, or name your own with organism.finetuned=DIR_OR_ID."
        )
    name = wanted or "default"
    if name not in variants:
        problem = f"has no variant {wanted!r}" if wanted else "has no default variant"
        remedy = did_you_mean(wanted, variants) if wanted else f"choose from {', '.join(variants)}"
        raise UserError(
            f"Organism {organism.name} on {model.name} {problem}; organism_variant=NAME: {remedy.rstrip('.')}."
        )
    return variants[name], name


def plan_corpus(settings: RunConfig, training: TrainingSpec | None) -> CorpusSpec:
    """The datasets and limits of a run.

    Raises:
        UserError: No dataset is left.
    """
    data = settings.data
    sets = list(data.datasets)
    if data.path is not None:
        text, messages = data.text_column, data.messages_column
        sets.append(DatasetSpec(name="custom", id=data.path, text_column=text, messages_column=messages))
    if data.training and training is not None:
        sets.append(DatasetSpec(name="training", **training.model_dump()))
    if not sets:
        raise UserError("No text to read: set data.path=FILE, or choose data=embedded or data=hub.")
    return CorpusSpec(
        datasets=tuple(sets),
        max_samples=data.max_samples,
        max_length=data.max_length,
        max_tokens=data.max_tokens,
        skip_template_tokens=data.skip_template_tokens,
        half=data.half,
        seed=settings.seed,
    )


def model_label(model: ModelSpec) -> str:
    """Folder name of a base model: its configured name, or the last part of a custom id."""
    return model.name if model.name != "custom" else _last_part(model.id or "custom")


def organism_label(pair: PairSpec) -> str:
    """Folder name of an organism: its configured name, or the last part of a custom id."""
    if pair.organism != "custom" or pair.finetuned is None or pair.null_pair != "none":
        return pair.organism
    return _last_part("/".join(filter(None, (pair.finetuned.id, pair.finetuned.subfolder))))


def _last_part(source_id: str) -> str:
    path = Path(source_id).expanduser()
    return (path.resolve() if path.exists() else path).name or "custom"


def method_defaults(method: MethodSpec, options: Mapping[str, Any]) -> MethodConfig:
    """A method's options from keyword arguments, defaults elsewhere."""
    return parse(method.config, {"name": method.name, **options}, "diffing.method")
