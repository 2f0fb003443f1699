"""The results that a pair's report is about: of each method the newest, all of the same two models."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffing.core.errors import UserError
from diffing.core.method import method_names
from diffing.core.result import Result, Results
from diffing.core.sensitivity import Sensitivity, measured_sensitivity
from diffing.core.staleness import Staleness


@dataclass(frozen=True)
class PairResults:
    """A pair and what was found on it.

    Args:
        model: Base model, as its folder is called.
        organism: Organism, as its folder is called.
        variant: Its variant.
        results: One for each method that ran, by name.
        not_run: Methods without a result.
        not_installed: Methods with a result that this installation does not know.
        notes: What a reader must know before results are put side by side.
        sensitivity: How faint a change methods find on this base, where a benchmark measured it.
    """

    model: str
    organism: str
    variant: str
    results: tuple[Result, ...]
    not_run: tuple[str, ...]
    not_installed: tuple[str, ...]
    notes: tuple[str, ...]
    sensitivity: dict[str, Sensitivity]

    @property
    def null_pair(self) -> str:
        """The null pair that it is; `none` for an organism."""
        return self.results[0].null_pair


def gather(
    base_dir: Path,
    model: str,
    organism: str,
    variant: str,
    left_out: Collection[Path] = (),
    preferred: Sequence[Result] = (),
    sources: tuple[str | None, str | None] | None = None,
) -> PairResults:
    """The newest readable result of each method, of the pair that was asked for or else looked at last.

    Args:
        base_dir: Output folder.
        model: Base model, as its folder is called.
        organism: Organism, as its folder is called.
        variant: Its variant.
        left_out: Folders of results that are not to be used.
        preferred: Results that were asked for: of their methods these, and of others those of the same pair.
        sources: Where base and finetuned model come from, for those of several pairs under one name.

    Raises:
        UserError: No method has a result.
    """
    found = [
        r for r in Results(base_dir).find(model=model, organism=organism, variant=variant) if r.folder not in left_out
    ]
    if not found:
        named = organism if variant == "default" else f"{organism} ({variant})"
        raise UserError(
            f"No finished result of {named} on {model} below {base_dir}; run methods first (pipeline.mode=full), or "
            "with the report: pipeline.methods=quick."
        )
    asked = [r for r in found if sources == (r.manifest["pair"]["base_id"], r.manifest["pair"]["finetuned_id"])]
    pair = [*preferred, *asked, *found][0].manifest["pair"].get("fingerprint")
    mine = [r for r in found if r.manifest["pair"].get("fingerprint") == pair]
    newest: dict[str, Result] = {r.method: r for r in preferred if r.folder not in left_out}
    for result in mine:
        newest.setdefault(result.method, result)
    names = method_names()
    if not set(newest) & set(names):
        raise UserError(
            f"The results of {organism} on {model} are of methods that are not installed here ({', '.join(newest)}); "
            "install them, or run others with pipeline.methods=quick."
        )
    results = [newest[name] for name in sorted(newest)]
    return PairResults(
        model=model,
        organism=organism,
        variant=variant,
        results=tuple(r for r in results if r.method in names),
        not_run=tuple(name for name in names if name not in newest),
        not_installed=tuple(name for name in newest if name not in names),
        notes=tuple(_notes(results, len(found) - len(mine), len(mine) - len(newest))),
        sensitivity=measured_sensitivity(base_dir, model),
    )


def _notes(results: Sequence[Result], n_other: int, n_more: int) -> list[str]:
    said = []
    if n_more > 0:
        said.append(
            f"Of these methods on this pair there {'is 1 result' if n_more == 1 else f'are {n_more} results'} more, "
            "with other text, options or seed: of each method the newest is shown, or the one that was asked for."
        )
    if n_other:
        said.append(
            f"Of other weights under the same name, and left out: {n_other} result{'s' if n_other > 1 else ''}."
        )
    staleness = Staleness()
    staleness.begin()
    said += [f"{r.method} is stale: {why}" for r in results if (why := staleness.reason(r.folder)) is not None]
    said += _differing("text", results, lambda r: r.manifest["data"].get("fingerprint") if _reads_text(r) else None)
    said += _differing("seed", results, lambda r: str(r.manifest["seed"]))
    said += _differing("version of diffing", results, lambda r: r.manifest.get("versions", {}).get("diffing"))
    said += _differing("state of the source", results, lambda r: r.manifest.get("git"))
    return said


def _reads_text(result: Result) -> bool:
    return bool(result.manifest["data"].get("n_tokens"))


def _differing(what: str, results: Sequence[Result], value_of: Callable[[Result], str | None]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for result in results:
        value = value_of(result)
        if value is not None:
            groups.setdefault(value, []).append(result.method)
    if len(groups) < 2:
        return []
    apart = "; ".join(f"{', '.join(methods)}: {value[:12]}" for value, methods in groups.items())
    return [f"Not all results have the same {what} ({apart}): compare them with care, or run them again."]
