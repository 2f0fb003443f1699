"""What a method is given besides its own options."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from diffing.activations.source import ActivationSource
from diffing.core.specs import NullPair
from diffing.core.tracking import Log
from diffing.data.tokens import Corpus
from diffing.models.pair import ModelPair
from diffing.models.plan import PairPlan

if TYPE_CHECKING:
    from diffing.data.tokens import Tokenizer


@dataclass(frozen=True)
class RunContext:
    """The pair, the text, and where to keep unfinished work.

    Args:
        load_pair: Gives both models; loads them unless they are at hand.
        tokenizer: The base's.
        corpus: The token sequences to read.
        seed: Seed of every draw.
        skip_first_tokens: Leading positions that norm-scaled statistics leave out.
        batch_tokens: Padded tokens per batch.
        skip_template_tokens: Whether chat template tokens are left out of statistics.
        null_pair: Whether the pair is one in which nothing changed, and which.
        scratch: Folder inside the run folder for units of work that survive an interruption.
        log: Receives named numbers when tracking is on.
        activations: The activations that the method's `needs` name; None when it names none.
        load_plan: Gives the pair's files and decisions; None where there are no files.
    """

    load_pair: Callable[[], ModelPair]
    tokenizer: "Tokenizer"
    corpus: Corpus
    seed: int
    skip_first_tokens: int
    batch_tokens: int
    skip_template_tokens: bool
    null_pair: NullPair
    scratch: Path
    log: Log
    activations: ActivationSource | None = None
    load_plan: Callable[[], PairPlan] | None = None

    @cached_property
    def pair(self) -> ModelPair:
        """Both models, loaded when first asked for: a method that reads a cache alone never waits for them."""
        return self.load_pair()

    @cached_property
    def plan(self) -> PairPlan:
        """Where the pair's files are and what was decided of it; no weights are read."""
        assert self.load_plan is not None
        return self.load_plan()
