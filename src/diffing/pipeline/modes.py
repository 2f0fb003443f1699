"""The modes of the pipeline: harvest, run methods and show what came out, write reports again, tend caches."""

from pathlib import Path

from diffing.core.errors import UserError
from diffing.core.method import load_method
from diffing.core.progress import say
from diffing.core.result import Result, Results
from diffing.core.settings import RunConfig
from diffing.pipeline.caches import tend_caches
from diffing.pipeline.calibrating import calibrate_around
from diffing.pipeline.planning import chosen_methods, model_label, organism_label, plan_pair_spec
from diffing.pipeline.printing import print_result
from diffing.pipeline.running import Session, run_settings
from diffing.report.render import write_report


def perform(settings: RunConfig, session: Session) -> list[Result]:
    """Do what `pipeline.mode` says and print each result's summary."""
    if settings.pipeline.mode == "cache":
        tend_caches(settings)
        return []
    results = rewrite_reports(settings) if settings.pipeline.mode == "report" else run_settings(settings, session)
    for result in results:
        print_result(result)
    return results


def rewrite_reports(settings: RunConfig) -> list[Result]:
    """Write `report.html` again for the finished results of the chosen pair and methods.

    Raises:
        UserError: There are none.
    """
    pair, _ = plan_pair_spec(settings)
    base_dir = Path(settings.infrastructure.storage.base_dir).expanduser()
    results = []
    for name in chosen_methods(settings):
        method = load_method(name)
        found = Results(base_dir).find(
            method=name, model=model_label(pair.model), organism=organism_label(pair), variant=pair.variant
        )
        for result in found:
            calibrate_around(result, base_dir)
            say(f"Writing {write_report(result, method)}")
        results += found
    if not results:
        raise UserError(
            f"No finished result of {organism_label(pair)} on {model_label(pair.model)} below {base_dir}; "
            "run pipeline.mode=full first."
        )
    return results
