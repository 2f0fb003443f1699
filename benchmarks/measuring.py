"""What the processes of the harvest benchmark measure, in any environment: memory, and that the work is the same."""

import resource
from pathlib import Path
from typing import Any, NamedTuple

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Harvested(NamedTuple):
    """Seconds and tokens, mean norms of the rows, bytes resident when loaded, at most, and as weights."""

    seconds: float
    tokens: int
    base_norm: float
    delta_norm: float
    loaded: int
    peak: int
    weights: int


class Memory:
    """Resident bytes from now on; where the kernel cannot forget an earlier peak, of the whole process."""

    def __init__(self) -> None:
        try:
            _CLEAR.write_text("5")
            self.loaded = _resident("VmRSS")
        except OSError:
            self.loaded = 0

    def peak(self) -> int:
        """Most bytes that were resident since."""
        if self.loaded:
            return _resident("VmHWM")
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def row_norms(base_ND: Any, finetuned_ND: Any, position_N: Any) -> tuple[float, float]:
    """Mean norm of the base's rows and of the differences, without the first position of each sequence."""
    rest_N = position_N > 0
    base, finetuned = base_ND[rest_N].double(), finetuned_ND[rest_N].double()
    return float(base.norm(dim=1).mean()), float((finetuned - base).norm(dim=1).mean())
