"""The modes of the pipeline: harvest, run methods and show what came out, write the report of a pair, tend caches."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diffing.core.blocks import Paragraph
from diffing.core.errors import UserError
from diffing.core.files import disk_errors
from diffing.core.method import load_method, method_names
from diffing.core.progress import say, warn
from diffing.core.result import Result, Results
from diffing.core.runs import pair_folder
from diffing.core.settings import RunConfig
from diffing.pipeline.caches import tend_caches
from diffing.pipeline.calibrating import calibrate_around
from diffing.pipeline.planning import model_label, organism_label, plan_pair_spec
from diffing.pipeline.printing import print_blocks, print_result
from diffing.pipeline.running import REMEDY, Attempt, Session, attempt_settings, run_settings
from diffing.pipeline.stability import measure_stability
from diffing.report.pair.findings import findings
from diffing.report.pair.gathering import gather
from diffing.report.pair.page import pair_title, write_pair_report
from diffing.report.pair.words import summary
from diffing.report.render import write_report

_READ_BY_A_PAIR = ("evidence.json", "summary.json", "tables/token_scores.parquet")


def perform(settings: RunConfig, session: Session) -> list[Result]:
    """Do what `pipeline.mode` says and print each result's summary."""
    if settings.pipeline.mode == "cache":
        tend_caches(settings)
        return []
    if settings.pipeline.mode == "report":
        report(settings, session)
        return []
    results = run_settings(settings, session)
    for result in _measure_stability(results, settings, session):
        write_report(result, load_method(result.method))
    for result in results:
        print_result(result)
    return results


def _measure_stability(results: Sequence[Result], settings: RunConfig, session: Session) -> list[Result]:
    """Measure the stability of results where it is asked for and can be; which were measured."""
    measured = []
    for result in results if settings.stability else []:
        try:
            measure_stability(result, settings, session)
            measured.append(result)
        except UserError as error:
            warn(f"Stability of {result.method} was not measured: {error}")
    return measured


def report(settings: RunConfig, session: Session) -> None:
    """Write the report of a pair, and again those of its results, whatever methods made them.

    Methods that `pipeline.methods` names are run first where they are not done; one that fails is left out with a word.

    Raises:
        UserError: There is no result.
    """
    failed: list[Attempt] = []
    made: list[Result] = []
    if settings.pipeline.methods:
        attempts = attempt_settings(settings, session)
        failed = [a for a in attempts if a.result is None]
        made = [a.result for a in attempts if a.result is not None]
        _measure_stability(made, settings, session)
    elif settings.stability:
        raise UserError(
            "stability=true runs methods again: name them with pipeline.methods=[NAME], or run it without report."
        )
    spec, _ = plan_pair_spec(settings)
    base_dir = Path(settings.infrastructure.storage.base_dir).expanduser()
    model, organism = model_label(spec.model), organism_label(spec)
    folder = pair_folder(base_dir, model, organism, spec.variant)
    with disk_errors(base_dir, REMEDY):
        results = Results(base_dir)
        damaged = results.broken(below=folder)
        for error in damaged.values():
            warn(error)
        damaged |= _rewritten(results.find(model=model, organism=organism, variant=spec.variant), base_dir)
        pair = gather(base_dir, model, organism, spec.variant, set(damaged), made, spec.sources)
        broken = [f"Left out as damaged: {error}" for error in damaged.values()]
        lacking = [f"{a.method} gave no result: {a.reason}" for a in failed]
        known = {a.method for a in failed} | {run.parent.name for run in damaged}
        not_run = tuple(m for m in pair.not_run if m not in known)
        pair = replace(pair, notes=(*pair.notes, *broken, *lacking), not_run=not_run)
        found = findings(pair.results)
        path = write_pair_report(pair, found, folder)
    print_blocks(pair_title(pair), [Paragraph(s) for s in summary(pair, found)])
    say(f"Report of the pair: {path} (also report.md and report.json)")


def _rewritten(results: Sequence[Result], base_dir: Path) -> dict[Path, str]:
    """Write the results' own reports again, judged anew; which of them are damaged, and how.

    Raises:
        UserError: All of them are.
    """
    damaged = {}
    for result in results:
        try:
            _rewrite(result, base_dir)
        except UserError as error:
            damaged[result.folder] = str(error)
    if damaged and len(damaged) == len(results):
        raise UserError(next(iter(damaged.values())))
    for error in damaged.values():
        warn(error)
    return damaged


def _rewrite(result: Result, base_dir: Path) -> None:
    for name in _READ_BY_A_PAIR:
        if name in result.manifest.get("files", {}):
            result.path(name)
    if result.method not in method_names():
        return
    if result.null_pair != "none" or not calibrate_around(result, base_dir):
        say(f"Writing {write_report(result, load_method(result.method))}")
