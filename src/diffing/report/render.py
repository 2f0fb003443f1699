"""Renders a result as `report.html`."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from diffing.core.evidence import Evidence
from diffing.core.files import write_text
from diffing.core.method import MethodSpec
from diffing.core.result import Result
from diffing.display import colours, headline
from diffing.display.calibrated import NULL_PAIRS, judged, stable
from diffing.display.columns import column_kinds
from diffing.display.numbers import intervals, number
from diffing.display.token_marks import flowing, marked
from diffing.report import layout, making
from diffing.report.scripts import policy, script

_TEMPLATES = Path(__file__).parent / "templates"


def write_report(result: Result, spec: MethodSpec) -> Path:
    """Write `report.html` into the result's folder, whole or not at all."""
    path = result.folder / "report.html"
    write_text(path, render_report(result, spec))
    return path


def render_report(result: Result, spec: MethodSpec) -> str:
    """The page as text.

    Args:
        result: Summary, evidence, figures and tables are read from its folder, the rest from its manifest.
        spec: The result's method; its section is shown.
    """
    section = spec.section(result)
    placed = layout.place(section)
    figures = layout.figure_scripts(result, section)
    scripts = scripts_of(bool(figures))
    page = environment().get_template("page.html")
    text = page.render(
        pair=result.manifest["pair"],
        n_tokens=result.manifest["data"].get("n_tokens"),
        notes=result.manifest.get("notes"),
        command=result.manifest.get("command"),
        spec=spec,
        title=_title(result),
        null_pair=NULL_PAIRS.get(result.null_pair),
        judged=None if result.null_pair in NULL_PAIRS else judged(result.calibration()),
        stable=stable(result.stability()),
        text_sets=_listed(result.manifest["data"].get("datasets", ())),
        scalars=headline.scalars(result.summary),
        evidence=_evidence(result),
        section=section,
        placed=placed,
        contents=layout.contents(placed),
        figures={name: Markup(escaped) for name, escaped in figures.items()},
        facts=making.facts(result.manifest),
        records=making.records(result.manifest),
        policy=policy(scripts),
        scripts=[Markup(s) for s in scripts],
        style=Markup(style()),
    )
    return encodable(text)


def _title(result: Result) -> str:
    pair = result.manifest["pair"]
    variant = "" if pair["variant"] == "default" else f" ({pair['variant']})"
    return f"{pair['organism']}{variant} against {pair['model']}"


def _evidence(result: Result) -> Evidence:
    return result.evidence() if (result.folder / "evidence.json").exists() else Evidence()


def _listed(names: Any) -> str:
    *most, last = [str(n) for n in names] or [""]
    return f"{', '.join(most)} and {last}" if most else last


def style() -> str:
    """The style sheet of every page."""
    dark = f"@media (prefers-color-scheme: dark) {{\n{colours.css(colours.DARK)}\n}}"
    return "\n".join([_file("style.css"), colours.css(colours.LIGHT), dark])


def scripts_of(has_figures: bool) -> list[str]:
    """What runs on a page; plotly only where there is something to draw."""
    ours = [script(_file("page.js"))]
    if not has_figures:
        return ours
    from plotly.offline import get_plotlyjs

    return [*ours, script(get_plotlyjs()), script(_file("figures.js"))]


def _file(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def encodable(text: str) -> str:
    """Model text read from JSON may hold half a surrogate pair, which no file can."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


@cache
def environment() -> Environment:
    """The templates with their filters."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "intervals": intervals,
        "marked": marked,
        "flowing": flowing,
        "claim": headline.claim,
        "top_tokens": headline.top_tokens,
        "kinds": column_kinds,
        "peak": layout.peak,
        "step": colours.step,
        "ticks": colours.ticks,
    }
    environment.globals |= {"lines": layout.lines, "n_steps": colours.N_STEPS}
    return environment
