"""The models that pages try out: loaded on first need, one pair at a time, shared by all browser sessions."""

import gc
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from diffing.core.config import fingerprint
from diffing.core.progress import listening
from diffing.core.specs import PairSpec

if TYPE_CHECKING:
    from diffing.models.pair import ModelPair


@dataclass
class PairStore:
    """Holds at most one loaded pair.

    Args:
        lock: Held for every pass through the models: a toggled adapter and steering hooks are states of the module.
    """

    lock: threading.RLock = field(default_factory=threading.RLock)
    _key: str | None = None
    _spec: PairSpec | None = None
    _pair: "ModelPair | None" = None

    @property
    def spec(self) -> PairSpec | None:
        """The pair at hand; None when none is loaded."""
        return self._spec

    def holds(self, spec: PairSpec) -> bool:
        """Whether `spec` is the pair at hand."""
        return self._pair is not None and self._key == fingerprint(spec)

    def get(
        self, spec: PairSpec, tell: Callable[[str], None] = lambda line: None, threads: int | None = None
    ) -> "ModelPair":
        """The pair, loaded unless it is at hand; another one is let go first.

        Args:
            spec: What to load.
            tell: Receives what is being done, line by line.
            threads: Processor threads that PyTorch uses; None: its own choice.

        Raises:
            UserError: A source cannot be had, does not fit, is damaged, or changes nothing.
        """
        with self.lock:
            if self._pair is not None and self.holds(spec):
                return self._pair
            self.unload()
            tell("Importing PyTorch and transformers …")
            import torch

            from diffing.models.pair import load_pair

            if threads is not None:
                torch.set_num_threads(threads)
            tell(f"Loading {spec.model.name} and its finetuned variant …")
            with listening(tell):
                pair = load_pair(spec)
            self._key, self._spec, self._pair = fingerprint(spec), spec, pair
            return pair

    def unload(self) -> None:
        """Let the pair go and give its memory back."""
        with self.lock:
            if self._pair is None:
                return
            self._key = self._spec = self._pair = None
            gc.collect()
            import torch

            if torch.cuda.is_available():
                torch.cuda.empty_cache()
