"""From what is asked for to what is read: the pair's plan, the tokens, the activations, from disk or live."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffing.activations.cache import Cache, CacheKey
from diffing.activations.harvest import Kept, harvest
from diffing.activations.plan import BlockPlan, plan_blocks
from diffing.activations.reading import PairReader, comparable_sequences
from diffing.activations.source import ActivationSource
from diffing.activations.sources import DiskSource, LiveSource
from diffing.core.errors import UserError
from diffing.core.layers import Slot, layers, slots
from diffing.core.method import Needs
from diffing.core.settings import RunConfig
from diffing.core.templates import TemplateRules
from diffing.data.token_table import TokenTable
from diffing.data.tokens import Corpus, tokenize_corpus
from diffing.models.pair import ModelPair
from diffing.models.plan import PairPlan, plan_facts, plan_pair
from diffing.pipeline.planning import Job, Subject, model_label, organism_label

if TYPE_CHECKING:
    from diffing.data.tokens import Tokenizer

_MAIN = "python main.py"


@dataclass(frozen=True)
class Prepared:
    """What is known of a pair and a text before any weights are read.

    Args:
        fingerprint: Of the pair.
        tokenizer: The base's.
        n_layers: Decoder layers of the base.
        corpus: The tokens.
        load_plan: Gives the pair's files and decisions.
    """

    fingerprint: str
    tokenizer: "Tokenizer"
    n_layers: int
    corpus: Corpus
    load_plan: Callable[[], PairPlan]


def prepare(subject: Subject, corpus: Corpus | None = None, pair: ModelPair | None = None) -> Prepared:
    """Resolve sources and tokenise.

    Raises:
        UserError: A source or dataset cannot be had, or a layer is not in the model.
    """
    rules: TemplateRules
    if pair is None:
        plan = plan_pair(subject.pair)
        load_plan = partial(_given, plan)
        fingerprint, tokenizer, rules, n_layers = plan.fingerprint, plan.tokenizer, plan.rules, plan.n_layers
    else:
        fingerprint, tokenizer, rules = pair.fingerprint, pair.tokenizer, pair.rules
        n_layers = len(pair.base.sites.layers)
        load_plan = partial(plan_pair, pair.spec)
    layers(subject.settings.preprocessing.layers, n_layers)
    corpus = corpus or tokenize_corpus(subject.corpus, tokenizer, rules)
    return Prepared(fingerprint, tokenizer, n_layers, corpus, load_plan)


def _given(plan: PairPlan) -> PairPlan:
    return plan


def slots_of(job: Job, n_layers: int) -> list[Slot]:
    """The activations a job's method reads; none for a method that reads no activations.

    Raises:
        UserError: A layer is not in the model.
    """
    needs, settings = job.method.needs(job.options), job.settings.preprocessing
    if needs is None:
        return []
    chosen = _chosen_layers(needs, settings.store == "live")
    found = slots(chosen, needs.sites or settings.sites, n_layers, needs.option) if chosen else []
    if chosen is None or needs.with_preprocessing_layers:
        found += slots(settings.layers, needs.sites or settings.sites, n_layers)
    return sorted(set(found), key=_depth)


def _chosen_layers(needs: Needs, is_live: bool) -> Any:
    return needs.live_layers if is_live and needs.live_layers is not None else needs.layers


def preprocessing_slots(settings: RunConfig, n_layers: int) -> list[Slot]:
    """What `pipeline.mode=preprocessing` harvests whatever the method."""
    return slots(settings.preprocessing.layers, settings.preprocessing.sites, n_layers)


def joined(several: Sequence[Sequence[Slot]]) -> list[Slot]:
    """Every slot once, from the first layer to the last."""
    return sorted({slot for some in several for slot in some}, key=_depth)


def _depth(slot: Slot) -> tuple[int, int]:
    return slot.layer, ("residual", "attention", "mlp").index(slot.site)


def storage_dtype(settings: RunConfig) -> str:
    """Dtype of stored activations: as asked for, else as the models compute."""
    computed = "float32" if settings.null_pair == "dtype" else settings.model.dtype
    return settings.preprocessing.dtype or computed


def cache_of(subject: Subject, prepared: Prepared, base_dir: Path, command: str | None) -> Cache:
    """The cache that belongs to a pair and text; its plan covers all documents."""
    settings = subject.settings.preprocessing
    key = CacheKey(
        prepared.fingerprint, prepared.corpus.fingerprint, settings.batch_tokens, storage_dtype(subject.settings)
    )
    plan = plan_blocks(TokenTable.of(prepared.corpus), settings.batch_tokens)
    return Cache(key.folder(base_dir), key, plan, settings.shard_bytes, settings.shard_tokens, remake_command(command))


def remake_command(command: str | None) -> str:
    """The command that harvests what the given one lacks."""
    if command is None:
        return "diffing.run(…, store='disk')"
    words = [w for w in command.split(" ") if not w.startswith(("pipeline.mode=", "overwrite="))]
    return " ".join([*words, "pipeline.mode=preprocessing"])


def harvest_for(
    subject: Subject, prepared: Prepared, wanted: Sequence[Slot], base_dir: Path, command: str | None,
    load_pair: Callable[[], ModelPair], overwrite: bool,
) -> Cache:  # fmt: skip
    """Make sure that the activations of `wanted` are on disk and whole; the models are loaded only if some are missing.

    Raises:
        UserError: They cannot be made; what was made stays.
    """
    cache = cache_of(subject, prepared, base_dir, command)
    if not overwrite and not cache.missing(wanted) and not cache.damaged(wanted):
        return _as_made(cache)
    pair = load_pair()
    sequences, notes = comparable_sequences(prepared.corpus, pair)
    cache = _covering(cache, sequences)
    settings = subject.settings
    kept = Kept(_bos_id(prepared), settings.skip_first_tokens, subject.corpus.skip_template_tokens)
    described = {
        "pair": {
            "model": model_label(subject.pair.model),
            "organism": organism_label(subject.pair),
            "variant": subject.pair.variant,
            "facts": pair.facts,
        },
        "data": {"spec": subject.corpus.model_dump(mode="json"), "n_documents": dict(prepared.corpus.n_documents)},
        "left_out": None if sequences is None else len(prepared.corpus.sequences) - len(sequences),
        "comparable": sequences,
    }
    harvest(pair, prepared.corpus, cache, wanted, kept, described, notes, overwrite)
    return cache


def _as_made(cache: Cache) -> Cache:
    """The cache with the plan that it was made by."""
    facts = cache.facts()
    return cache if facts is None else _covering(cache, facts["comparable"])


def _covering(cache: Cache, sequences: Sequence[int] | None) -> Cache:
    """The cache with a plan of those sequences only that both models can read; None: all."""
    if sequences is None:
        return cache
    plan: BlockPlan = plan_blocks(cache.plan.tokens, cache.key.batch_tokens, sequences)
    return Cache(cache.folder, cache.key, plan, cache.shard_bytes, cache.shard_tokens, cache.remake)


def _bos_id(prepared: Prepared) -> int | None:
    bos = prepared.tokenizer.bos_token_id
    return bos if isinstance(bos, int) else None


def open_source(
    subject: Subject, prepared: Prepared, wanted: Sequence[Slot], base_dir: Path, command: str | None,
    load_pair: Callable[[], ModelPair], verify: bool,
) -> ActivationSource:  # fmt: skip
    """The activations that are asked for, as `preprocessing.store` says; `verify` compares a cache with its checksums.

    Raises:
        UserError: They are not on disk or damaged; names the command that makes them.
    """
    if subject.settings.preprocessing.store == "disk":
        cache = _as_made(cache_of(subject, prepared, base_dir, command))
        return DiskSource(cache, wanted, verify)
    pair = load_pair()
    sequences, notes = comparable_sequences(prepared.corpus, pair)
    reader = PairReader(pair, prepared.corpus, tuple(wanted), getattr(torch, storage_dtype(subject.settings)))
    plan = plan_blocks(TokenTable.of(prepared.corpus), subject.settings.preprocessing.batch_tokens, sequences)
    return LiveSource(reader, plan, subject.settings.skip_first_tokens, notes)


def pair_facts(source: ActivationSource | None, pair: ModelPair | None, prepared: Prepared) -> dict[str, Any]:
    """How the pair was loaded: of the pair at hand, else as the cache remembers it, else as it is planned."""
    if pair is not None:
        return pair.facts
    return source.pair_facts if isinstance(source, DiskSource) else plan_facts(prepared.load_plan())


def refuse_live_preprocessing(settings: RunConfig) -> None:
    """Raises UserError: nothing would be kept."""
    if settings.preprocessing.store == "live":
        raise UserError(
            "pipeline.mode=preprocessing stores activations and preprocessing.store=live stores none; "
            "use preprocessing.store=disk, or pipeline.mode=full."
        )
