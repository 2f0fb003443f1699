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
    limit = [] if any(o.startswith(f"{_LIMIT}=") for o in overrides) else [f"{_LIMIT}={MAX_TOKENS}"]
    entries = compose_entries(
        cases(settings.benchmark), lambda words: settings_of(arguments, [*overrides, *limit, *words])
    )
    settings = settings_of(arguments, [*overrides, *limit])
    board, folder = run_benchmark(settings, entries, session)
    show_leaderboard(board, folder)
