"""What every setting gave, and which factor is looked at."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffing.analysis.text_form import repetition
from diffing.data.tokens import Corpus
from diffing.methods.weight_amplification.plan import WHOLE, Setting
from diffing.methods.weight_amplification.reading import Effect
from diffing.methods.weight_amplification.writing import Written

_MOST_BROKEN = 95


@dataclass(frozen=True, eq=False)
class Outcome:
    """One setting.

    Args:
        setting: How the change was scaled.
        effect: What it does to the slice.
        texts: What it writes; empty where none were asked for or none could be written.
        problem: Why there are no numbers or no texts.
    """

    setting: Setting
    effect: Effect
    texts: Sequence[Written]
    problem: str | None


@dataclass(frozen=True, eq=False)
class Gathered:
    """All settings, in order.

    Args:
        outcomes: One per setting.
        corpus: The slice.
    """

    outcomes: Sequence[Outcome]
    corpus: Corpus

    @property
    def datasets_S(self) -> np.ndarray:
        """Index of each sequence's dataset in the slice's."""
        number = {name: i for i, name in enumerate(self.corpus.datasets)}
        return np.array([number[s.dataset] for s in self.corpus.sequences])

    def whole(self, factor: float) -> Outcome:
        """The whole change at a factor of the grid."""
        return next(o for o in self.grid() if o.setting.factor == factor)

    def grid(self) -> list[Outcome]:
        """The whole change, factors ascending."""
        return [o for o in self.outcomes if o.setting.part == WHOLE]

    def parts(self) -> list[Outcome]:
        """The parts of the change."""
        return [o for o in self.outcomes if o.setting.part != WHOLE]

    def looked_at(self) -> float:
        """The largest factor whose texts do not fall apart: the one that tokens, phrases and evidence are read at.

        Its texts repeat themselves, in the mean, no more than the 95th percentile of the base's and the finetuned
        model's own, and one of both finds them, in the mean, no less likely than the 5th percentile of these. Where
        none above 1 does, it is 1.
        """
        own = [t for f in (0.0, 1.0) for t in self.whole(f).texts]
        most = float(np.percentile([repetition(t.ids) for t in own], _MOST_BROKEN)) if own else 0.0
        least = float(np.percentile([t.likelihood for t in own], 100 - _MOST_BROKEN)) if own else 0.0

        def is_whole(outcome: Outcome) -> bool:
            if outcome.problem is not None or not outcome.texts:
                return False
            repeated = np.mean([repetition(t.ids) for t in outcome.texts])
            return bool(repeated <= most and np.mean([t.likelihood for t in outcome.texts]) >= least)

        return max((o.setting.factor for o in self.grid() if o.setting.factor > 1 and is_whole(o)), default=1.0)
