"""The rooms keep to themselves, and files stay small enough to read."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from workbench import ROOT, environment

SOURCES = sorted((ROOT / "src" / "diffing").rglob("*.py"))
LONGEST = 400
# Reads published dictionaries; imports the name of an error from pickle, and calls torch.load with weights_only alone.
UNPICKLING = "dictionaries/layouts/dictionary_learning.py"


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path):
    """Top-level names of what a module imports, wherever in it."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def test_import_contracts_hold():
    pytest.importorskip("importlinter")
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "KEPT" in done.stdout
    assert not list(ROOT.glob(".import_linter_cache/*.lock"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT / "src").as_posix())
def test_files_are_short_and_say_what_they_are_for(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST
    assert ast.get_docstring(tree(path))


def test_names_say_something():
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [p for p in SOURCES if vague & {p.stem, *p.relative_to(ROOT).parts}]


@pytest.mark.parametrize(
    ("package", "places"),
    [
        ("hydra", ["cli"]),
        ("omegaconf", ["cli"]),
        ("peft", ["models/"]),
        ("wandb", ["core/tracking.py"]),
        ("transformers", ["models/", "data/"]),
        ("pickle", [UNPICKLING]),
    ],
)
def test_a_package_stays_in_its_room(package, places):
    users = [p.relative_to(ROOT / "src" / "diffing").as_posix() for p in SOURCES if package in set(imported(p))]
    assert not [u for u in users if not u.startswith(tuple(places))]


def is_drawing(place):
    """Whether a module may draw pages: the dashboard, the parts it is made of, and each method's view."""
    folder, _, rest = place.partition("/")
    return folder in ("dashboard", "ui") or (folder == "methods" and rest.endswith("/view.py") and rest.count("/") == 1)


@pytest.mark.parametrize("package", ["streamlit", "duckdb"])
def test_what_pages_are_drawn_with_stays_where_pages_are_drawn(package):
    users = [p.relative_to(ROOT / "src" / "diffing").as_posix() for p in SOURCES if package in set(imported(p))]
    assert users
    assert not [u for u in users if not is_drawing(u)]
    if package == "duckdb":
        assert not [u for u in users if u.startswith("methods/")]


def test_the_parts_of_pages_are_used_by_pages_alone():
    users = [p for p in SOURCES if any(m == "diffing.ui" or m.startswith("diffing.ui.") for m in modules_of(p))]
    places = [p.relative_to(ROOT / "src" / "diffing").as_posix() for p in users]
    assert {"methods/kl/view.py", "dashboard/pages/result.py"} <= set(places)
    assert not [p for p in places if not is_drawing(p)]


def modules_of(path):
    """Full names of what a module imports, wherever in it."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_nothing_is_unpickled():
    for path in SOURCES:
        calls = [n for n in ast.walk(tree(path)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
        found = [c for c in calls if ast.unparse(c.func) in ("torch.load", "np.load", "eval")]
        if path == ROOT / "src" / "diffing" / UNPICKLING:
            assert [ast.unparse(c.func) for c in found] == ["torch.load"]
            assert "weights_only=True" in [ast.unparse(k) for k in found[0].keywords]
            assert [m for m in modules_of(path) if m.startswith("pickle")] == ["pickle.UnpicklingError"]
        else:
            assert not found


def test_every_test_folder_mirrors_a_room():
    rooms = {p.name for p in (ROOT / "src" / "diffing").iterdir()} | {"cli", "pipeline", "recipes", "assets", "docs"}
    assert not [p for p in Path(__file__).parent.iterdir() if p.is_dir() and p.name not in rooms | {"__pycache__"}]
