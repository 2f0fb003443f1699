"""The null runs that an option names: what of their content decides the numbers."""

from pathlib import Path

from diffing.core.errors import UserError
from diffing.core.result import Result
from diffing.methods.diff_mining.config import DiffMiningConfig

TENSORS = "tensors/tensors.safetensors"


def null_results(config: DiffMiningConfig) -> list[Result]:
    """The runs that `null_runs` names.

    Raises:
        UserError: One is no finished `diff_mining` run, or is named twice.
    """
    results = [Result(Path(p).expanduser()) for p in config.null_runs]
    for result in results:
        if result.method != "diff_mining":
            raise UserError(
                f"diffing.method.null_runs names {result.folder}, a run of {result.method}; name runs of diff_mining."
            )
    folders = [r.folder.resolve() for r in results]
    if twice := next((f for f in folders if folders.count(f) > 1), None):
        raise UserError(f"diffing.method.null_runs names {twice} twice; name each run once.")
    return results


def inputs_of(config: DiffMiningConfig) -> dict[str, str]:
    """Digest of each null run's counts, by its place in the option.

    Raises:
        UserError: One is no finished `diff_mining` run.
    """
    return {f"null_runs.{i}": _counts_digest(r) for i, r in enumerate(null_results(config))}


def _counts_digest(result: Result) -> str:
    digest = result.manifest.get("files", {}).get(TENSORS)
    if not isinstance(digest, str):
        raise UserError(f"Run {result.folder} holds no counts ({TENSORS}); run it again with overwrite=true.")
    return digest
