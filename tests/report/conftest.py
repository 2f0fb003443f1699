"""A small fake result folder, and its page."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_fakes import BLOCKS, HOSTILE, SCALARS, TOKENS, manifest, method

from diffing.core.evidence import Evidence, write_evidence
from diffing.core.files import write_json
from diffing.core.result import Result
from diffing.report.render import render_report


@pytest.fixture
def make_result(tmp_path: Path) -> Callable[..., Result]:
    def make(evidence: Evidence | None = None, scalars: list[dict[str, Any]] | None = None, **changes: Any) -> Result:
        folder = tmp_path / "run"
        write_json(folder / "summary.json", {"schema": 1, "scalars": SCALARS if scalars is None else scalars})
        if evidence is not None:
            write_evidence(folder / "evidence.json", evidence)
        figure = {
            "data": [
                {"type": "scatter", "x": [1, None], "y": [2, 3], "name": HOSTILE, "text": ["<a href='//x'>t</a>"]}
            ],
            "layout": {"title": {"text": HOSTILE}, "template": {"layout": {"font": {"color": "template-colour"}}}},
        }
        (folder / "figures").mkdir(exist_ok=True)
        (folder / "figures" / "curve.json").write_text(json.dumps(figure).replace("null", "NaN"), encoding="utf-8")
        content = {**manifest(), **changes}
        write_json(folder / "manifest.json", content)
        return Result(folder)

    return make


@pytest.fixture
def full_page(make_result: Callable[..., Result]) -> str:
    return render_report(make_result(Evidence(tokens=TOKENS)), method(BLOCKS))
