"""`pipeline.mode=benchmark`: composes the pairs of the suite and hands them to the evaluation."""

from typing import TYPE_CHECKING

from diffing.cli.composition import Arguments, settings_of
from diffing.core.errors import UserError
from diffing.core.settings import RunConfig
from diffing.evaluation.benchmark import compose_entries, run_benchmark
from diffing.evaluation.showing import show_leaderboard
from diffing.evaluation.suite import MAX_TOKENS, cases

if TYPE_CHECKING:
    from diffing.pipeline.running import Session

# What the suite decides for each of its pairs.
_ITS_OWN = ("organism", "organism_variant", "null_pair", "diffing/method")
_LIMIT = "data.max_tokens"


def benchmark(arguments: Arguments, overrides: list[str], settings: RunConfig, session: "Session") -> None:
    """Run the suite, print the leaderboard and say where it is.

    Raises:
        UserError: An option does not fit a benchmark, or no method gave a result.
    """
    if own := next((o for o in overrides if o.partition("=")[0].lstrip("+~") in _ITS_OWN), None):
        raise UserError(
            f"{own} does not fit pipeline.mode=benchmark, which runs the pairs of its suite; choose others with "
            "benchmark.organisms=[NAME,NAME+VARIANT] and methods with pipeline.methods=[NAME]."
        )
    if settings.stability:
        raise UserError(
            "stability=true does not fit pipeline.mode=benchmark; benchmark.seeds=3 runs everything three times."
        )
    is_limited = any(o.partition("=")[0].lstrip("+") == _LIMIT for o in overrides) or _is_own_data(overrides)
    limit = [] if is_limited else [f"{_LIMIT}={MAX_TOKENS}"]
    entries = compose_entries(
        cases(settings.benchmark, settings.organism.null_adapter or settings.model.null_adapters),
        lambda words: settings_of(arguments, [*overrides, *limit, *words]),
    )
    settings = settings_of(arguments, [*overrides, *limit])
    board, folder = run_benchmark(settings, entries, session)
    show_leaderboard(board, folder)


def _is_own_data(overrides: list[str]) -> bool:
    """Whether a user's own data group was chosen, whose limits are the user's."""
    return any(o.startswith("data=") and o.partition("=")[2] not in ("embedded", "custom") for o in overrides)
