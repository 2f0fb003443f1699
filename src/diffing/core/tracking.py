"""Optional tracking of a run: nothing, or Weights & Biases. Nothing leaves the machine unless asked."""

from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from diffing.core.errors import UserError


@runtime_checkable
class Log(Protocol):
    """Receives named numbers."""

    def __call__(self, values: Mapping[str, float]) -> None:
        """Log `values`."""
        ...


@contextmanager
def tracker(enabled: bool, project: str, entity: str | None, name: str, config: Mapping[str, Any]):
    """Yield a `Log`: one that drops everything, or one that sends it to wandb.

    Raises:
        UserError: wandb was asked for and is not installed.
    """
    if not enabled:
        yield lambda values: None
        return
    try:
        import wandb
    except ImportError:
        raise UserError("wandb.enabled=true needs the package wandb; pip install 'diffing[wandb]'.") from None
    run = wandb.init(project=project, entity=entity, name=name, config=dict(config))
    try:
        yield lambda values: run.log(dict(values))
    finally:
        run.finish()
