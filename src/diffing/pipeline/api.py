"""The Python API: load a pair, harvest activations, run a method, open results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffing.activations.source import ActivationSource
from diffing.core.config import parse
from diffing.core.errors import UserError
from diffing.core.files import disk_errors
from diffing.core.method import load_method
from diffing.core.result import Result, Results
from diffing.core.settings import RunConfig
from diffing.core.specs import CorpusSpec, DataConfig, ModelSpec, OrganismSpec, PairSpec, VariantSpec, is_local
from diffing.core.suggest import did_you_mean
from diffing.data.documents import documents_from_texts
from diffing.data.tokens import Corpus, tokenize_documents
from diffing.models.pair import ModelPair
from diffing.models.pair import load_pair as load_pair_from_spec
from diffing.pipeline.catalogue import data_named, model_named, names, organism_named
from diffing.pipeline.planning import Job, Subject, choose_variant, method_defaults, null_variants, plan_corpus
from diffing.pipeline.running import Session, run_job, source_of

DEFAULT_MAX_LENGTH = 256


def load_pair(
    model: str,
    adapter: str | None = None,
    finetuned: str | None = None,
    *,
    variant: str | None = None,
    subfolder: str | None = None,
    sharing: str = "auto",
    null_pair: str = "none",
    null_adapter: str | Sequence[str] | None = None,
    amplification: Any = None,
    must_share_tokens: bool = True,
    **model_options: Any,
) -> ModelPair:
    """Load a base model and its finetuned variant.

    Args:
        model: A configured name (`smollm2_135M`), a folder, a .gguf file, or a hub id.
        adapter: An organism's name (`caps`), or a LoRA adapter's folder or hub id.
        finetuned: A full finetune (or an adapter): folder or hub id.
        variant: Variant of the organism.
        subfolder: Subfolder of the adapter or finetuned model.
        sharing: `auto`, `adapter`, `merged` or `separate`.
        null_pair: Then no finetuned model is named: `identical` and `dtype` compare the base with itself, `generic`
            with an adapter trained on generic text, `generic_other` with one trained on other such text, `seeds`
            two with each other.
        null_adapter: The adapters, where the model names none: `generic` takes the first, `seeds` the first two,
            `generic_other` the last.
        amplification: Scales what finetuning changed: a factor, a preset (`double`, `late_only`, …), a file of rules,
            or rules; see `AmplificationSpec`.
        must_share_tokens: Refuse models whose tokenizers differ; False for `perplexity_diff`, which compares texts.
        **model_options: Options of `ModelSpec`: dtype, revision, device_map, attn_implementation, chat_template, …

    Raises:
        UserError: A source cannot be had, does not fit, or changes nothing.
    """
    spec = model_named(model) or ModelSpec(name="custom", id=model)
    spec = parse(ModelSpec, {**spec.model_dump(), **model_options}, "model")
    named = adapter or finetuned
    if (named is None) == (null_pair == "none"):
        raise UserError("Name what to compare with: adapter=NAME_OR_ID or finetuned=ID, or a null_pair.")
    on_base = None
    if named is None:
        own = parse(OrganismSpec, {"name": "custom", "null_adapter": null_adapter}, "organism")
        on_base, chosen = null_variants(own, spec, null_pair)
        organism, variant_name = "custom", f"null-{null_pair}"
    else:
        organism, chosen, variant_name = _chosen(spec, named, variant, subfolder)
    values = {
        "model": spec, "finetuned": chosen, "base_adapter": on_base, "organism": organism, "variant": variant_name,
        "sharing": sharing, "null_pair": null_pair, "amplification": amplification,
    }  # fmt: skip
    pair = parse(PairSpec, values)
    if pair.amplification is not None:
        pair = pair.model_copy(update={"variant": f"{pair.variant}{pair.amplification.label}"})
    return load_pair_from_spec(pair, must_share_tokens)


def _chosen(model: ModelSpec, named: str, variant: str | None, subfolder: str | None) -> tuple[str, VariantSpec, str]:
    organism = organism_named(named)
    if organism is None:
        if "/" not in named and not is_local(named):
            raise UserError(
                f"There is no organism, folder or hub id {named!r}: {did_you_mean(named, names('organism'))}"
            )
        return "custom", VariantSpec(id=named, subfolder=subfolder), "default"
    chosen, variant_name = choose_variant(organism, model, variant)
    return organism.name, chosen, variant_name


def run(
    method: str,
    pair: ModelPair,
    data: str | Path | Sequence[str | Sequence[dict[str, str]]] = "embedded",
    *,
    max_length: int = DEFAULT_MAX_LENGTH,
    max_tokens: int | None = None,
    max_samples: int | None = None,
    skip_template_tokens: bool = False,
    seed: int = 0,
    base_dir: str | Path = "./outputs",
    overwrite: bool = False,
    skip_first_tokens: int = 1,
    batch_tokens: int = 2048,
    store: str = "disk",
    **options: Any,
) -> Result:
    """Run one method on a loaded pair.

    Args:
        method: Name, such as `kl`.
        pair: From `load_pair`.
        data: Texts or chats (lists of {"role", "content"}), a path, or a data configuration ("embedded", "hub").
        max_length: Tokens per document.
        max_tokens: Tokens per dataset; with data="embedded" 10,000 unless given.
        max_samples: Documents per dataset.
        skip_template_tokens: Leave chat template tokens out of statistics.
        seed: Seed of every draw.
        base_dir: Output folder.
        overwrite: Compute again what is finished.
        skip_first_tokens: Leading positions that norm-scaled statistics leave out.
        batch_tokens: Padded tokens per batch.
        store: Where a method that reads activations has them from: `disk` (harvested below `base_dir` and shared by
            methods) or `live` (nothing is stored).
        **options: The method's own options.

    Returns:
        The result; a finished one is found by its fingerprint and not computed again.

    Raises:
        UserError: An option, text or folder does not fit.
    """
    spec = load_method(method)
    chosen = method_defaults(spec, options)
    settings = _settings(
        pair, data, chosen.model_dump(), base_dir, seed, overwrite, skip_first_tokens,
        {"batch_tokens": batch_tokens, "store": store},
        _limits(max_length, max_tokens, max_samples, skip_template_tokens),
    )  # fmt: skip
    corpus, corpus_spec = _corpus(data, settings, pair)
    job = Job(settings, spec, chosen, pair.spec, corpus_spec)
    with disk_errors(Path(base_dir), "set base_dir to a folder that can be written"):
        return run_job(job, Path(base_dir).expanduser(), Session(), corpus, pair)


def harvest(
    pair: ModelPair,
    data: str | Path | Sequence[str | Sequence[dict[str, str]]] = "embedded",
    layers: Sequence[int | float | str] = (0.5,),
    sites: Sequence[str] = ("residual",),
    *,
    store: str = "disk",
    dtype: str | None = None,
    max_length: int = DEFAULT_MAX_LENGTH,
    max_tokens: int | None = None,
    max_samples: int | None = None,
    skip_template_tokens: bool = False,
    seed: int = 0,
    base_dir: str | Path = "./outputs",
    overwrite: bool = False,
    skip_first_tokens: int = 1,
    batch_tokens: int = 2048,
) -> ActivationSource:
    """Activations of both models at the same tokens.

    Args:
        pair: From `load_pair`.
        data: Texts or chats, a path, or a data configuration, as for `run`.
        layers: Indices, shares of the depth, or "all".
        sites: `residual` (after a block), `attention`, `mlp`.
        store: `disk`: kept below `base_dir/activations`, and only what is missing is computed; `live`: computed as it
            is read.
        dtype: Of the activations: float32, bfloat16 or float16; None: as the models compute.
        max_length: Tokens per document.
        max_tokens: Tokens per dataset; with data="embedded" 10,000 unless given.
        max_samples: Documents per dataset.
        skip_template_tokens: Leave chat template tokens out of statistics.
        seed: Seed of samples.
        base_dir: Output folder.
        overwrite: Compute again what is there.
        skip_first_tokens: Leading positions that statistics leave out.
        batch_tokens: Padded tokens per batch.

    Returns:
        A source of aligned rows: `source.blocks()` in order, `shuffled_rows(source, …)` of
        `diffing.activations.shuffle` mixed.

    Raises:
        UserError: A layer, site, text or folder does not fit, or the disk is full.
    """
    preprocessing = {"store": store, "layers": tuple(layers), "sites": tuple(sites), "dtype": dtype}
    settings = _settings(
        pair, data, {"name": "none"}, base_dir, seed, overwrite, skip_first_tokens,
        {**preprocessing, "batch_tokens": batch_tokens},
        _limits(max_length, max_tokens, max_samples, skip_template_tokens),
    )  # fmt: skip
    if pair.vocabulary.refusal is not None:
        raise UserError(pair.vocabulary.refusal)
    corpus, corpus_spec = _corpus(data, settings, pair)
    subject = Subject(settings, pair.spec, corpus_spec)
    folder = Path(base_dir).expanduser()
    with disk_errors(folder, "set base_dir to a folder that can be written"):
        return source_of(subject, corpus, pair, folder)


def open_results(base_dir: str | Path = "./outputs") -> Results:
    """The finished results below an output folder.

    Raises:
        UserError: There is no such folder.
    """
    return Results(base_dir)


def _data_config(data: Any) -> DataConfig:
    if isinstance(data, str) and data in names("data") and data != "custom":
        return data_named(data)
    path = str(data) if isinstance(data, (str, Path)) else "memory"
    return DataConfig(name="custom", path=path, training=False)


def _training(pair: ModelPair):
    if pair.spec.finetuned and pair.spec.finetuned.training:
        return pair.spec.finetuned.training
    organism = organism_named(pair.spec.organism)
    return organism.training if organism else None


def _limits(
    max_length: int, max_tokens: int | None, max_samples: int | None, skip_template_tokens: bool
) -> dict[str, Any]:
    given = {k: v for k, v in {"max_tokens": max_tokens, "max_samples": max_samples}.items() if v is not None}
    return {"max_length": max_length, "skip_template_tokens": skip_template_tokens, **given}


def _organism(spec: PairSpec) -> OrganismSpec:
    return OrganismSpec(name=spec.organism, amplification=spec.amplification)


def _settings(
    pair: ModelPair, data: Any, method: dict[str, Any], base_dir: str | Path, seed: int, overwrite: bool,
    skip_first_tokens: int, preprocessing: dict[str, Any], limits: dict[str, Any],
) -> RunConfig:  # fmt: skip
    values = {
        "model": pair.spec.model, "organism": _organism(pair.spec),
        "data": parse(DataConfig, {**_data_config(data).model_dump(), **limits}, "data"),
        "diffing": {"method": method}, "infrastructure": {"storage": {"base_dir": str(base_dir)}},
        "preprocessing": preprocessing, "overwrite": overwrite, "seed": seed,
        "null_pair": pair.spec.null_pair, "skip_first_tokens": skip_first_tokens,
    }  # fmt: skip
    return parse(RunConfig, values)


def _corpus(data: Any, settings: RunConfig, pair: ModelPair) -> tuple[Corpus | None, CorpusSpec]:
    """Tokens of text in memory, None for what is read later; and the text's spec."""
    if isinstance(data, (str, Path)):
        return None, plan_corpus(settings, _training(pair))
    spec = plan_corpus(settings, None)
    documents = documents_from_texts("custom", list(data))
    return tokenize_documents({"custom": documents}, spec, pair.tokenizer, pair.rules), spec
