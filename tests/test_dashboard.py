"""`dashboard.py` outside Streamlit, and what looking at results imports."""

import subprocess
import sys

import pytest

from workbench import ROOT, environment, python, run_folder

DASHBOARD = ROOT / "dashboard.py"
HEAVY = ("torch", "transformers", "peft", "tokenizers")
LOOK = """
import sys
from streamlit.testing.v1 import AppTest
from streamlit.util import calc_hash
_, dashboard, base_dir, run = sys.argv
sys.argv = ["dashboard.py", f"infrastructure.storage.base_dir={base_dir}"]
for page, query in (("", {}), ("result", {"run": run}), ("result", {"run": run, "show": "Tables"}), ("compare", {}),
                    ("try_it", {}), ("chat", {}), ("steer", {}), ("amplify", {})):
    app = AppTest.from_file(dashboard, default_timeout=60)
    app._page_hash = calc_hash(page)
    app.query_params.update(query)
    app.run()
    assert app.title and not app.exception and not app.error, (page, app.exception, app.error)
print(*(name for name in sys.modules if "." not in name))
"""


def test_without_streamlit_it_ends_with_a_sentence():
    done = subprocess.run(
        [sys.executable, str(DASHBOARD)], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if "ScriptRunContext" not in line]
    assert line.startswith("error: ")
    assert "`streamlit run dashboard.py -- OPTION=VALUE …`" in line


def modules(code, *args):
    done = python(code, *map(str, args))
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_the_dashboard_imports_no_models():
    code = (
        "import pkgutil, importlib, sys, diffing.dashboard, diffing.ui\n"
        "for room in (diffing.dashboard, diffing.ui):\n"
        "    for found in pkgutil.walk_packages(room.__path__, room.__name__ + '.'):\n"
        "        importlib.import_module(found.name)\n"
        "print(*sys.modules)"
    )
    found = modules(code)
    assert {"diffing.dashboard.app", "diffing.dashboard.pages.chat", "diffing.ui.paged_table"} <= found
    assert not found & set(HEAVY)
    assert "hydra" not in found


@pytest.mark.slow
def test_looking_at_results_imports_no_models(bench, tmp_path, command):
    command(bench.command(tmp_path / "out", "diffing/method=normdiff", "data.max_samples=4")).done()
    run = run_folder(tmp_path / "out").relative_to(tmp_path / "out" / "results").as_posix()
    found = modules(LOOK, DASHBOARD, tmp_path / "out", run)
    assert {"streamlit", "duckdb", "diffing"} <= found
    assert not found & set(HEAVY)
