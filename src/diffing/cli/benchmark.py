"""`pipeline.mode=benchmark`: composes the pairs of the suite and hands them to the evaluation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffing.cli.composition import Arguments, settings_of
from diffing.core.errors import UserError
from diffing.core.settings import RunConfig
from diffing.evaluation.benchmark import compose_entries, own_texts, refuse_gaps, run_benchmark
from diffing.evaluation.showing import show_leaderboard
from diffing.evaluation.suite import MAX_TOKENS, cases, organisms_of

if TYPE_CHECKING:
    from diffing.pipeline.running import Session

# What the suite decides for each of its pairs.
_ITS_OWN = ("organism", "organism_variant", "null_pair", "diffing/method")
_LIMIT = "data.max_tokens"


def benchmark(arguments: Arguments, overrides: list[str], settings: RunConfig, session: "Session") -> None:
    """Run the suite, print the leaderboard and say where it is.

    Raises:
        UserError: An option does not fit a benchmark, or a method gave no result on an organism; the leaderboard is
            written where there is any.
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

    def compose(words: Sequence[str]) -> RunConfig:
        return settings_of(arguments, [*overrides, *limit, *words])

    adapters = settings.organism.null_adapter or settings.model.null_adapters
    own = own_texts(organisms_of(settings.benchmark), compose)
    entries = compose_entries(cases(settings.benchmark, adapters, own), compose)
    settings = compose(())
    board, folder = run_benchmark(settings, entries, session)
    show_leaderboard(board, folder)
    if not session.faults:
        refuse_gaps(board)


def _is_own_data(overrides: list[str]) -> bool:
    """Whether a user's own data group was chosen, whose limits are the user's."""
    return any(o.startswith("data=") and o.partition("=")[2] not in ("embedded", "custom") for o in overrides)
