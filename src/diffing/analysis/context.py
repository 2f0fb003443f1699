"""What a method is given besides its own options."""

from dataclasses import dataclass
from pathlib import Path

from diffing.core.tracking import Log
from diffing.data.tokens import Corpus
from diffing.models.pair import ModelPair


@dataclass(frozen=True)
class RunContext:
    """The pair, the text, and where to keep unfinished work.

    Args:
        pair: Both models.
        corpus: The token sequences to read.
        seed: Seed of every draw.
        skip_first_tokens: Leading positions that norm-scaled statistics leave out.
        batch_tokens: Padded tokens per batch.
        skip_template_tokens: Whether chat template tokens are left out of statistics.
        scratch: Folder inside the run folder for units of work that survive an interruption.
        log: Receives named numbers when tracking is on.
    """

    pair: ModelPair
    corpus: Corpus
    seed: int
    skip_first_tokens: int
    batch_tokens: int
    skip_template_tokens: bool
    scratch: Path
    log: Log
