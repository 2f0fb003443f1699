"""What a run of a dictionary method reads and how."""

from dataclasses import dataclass

from diffing.activations.rows import SlotRows
from diffing.analysis.context import RunContext
from diffing.analysis.latents.config import DictionaryConfig
from diffing.analysis.latents.sites import Input, Split
from diffing.core.layers import Slot


@dataclass(frozen=True, eq=False)
class Setting:
    """What a run reads and how.

    Args:
        config: Options.
        context: The run's.
        kind: What the dictionary learns from.
        slot: Where.
        rows: The activations there.
        split: Which of them are learned from.
        notes: Sentences so far.
    """

    config: DictionaryConfig
    context: RunContext
    kind: Input
    slot: Slot
    rows: SlotRows
    split: Split
    notes: tuple[str, ...]
