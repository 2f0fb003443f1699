"""The command line as a process: what it imports, what it prints, how it ends."""

import io
import sys

import pytest

from workbench import python, start

HEAVY = ("torch", "transformers", "peft", "pyarrow", "plotly", "streamlit", "datasets", "wandb")
_IMPORTED = f"""
import sys
sys.argv = ["main.py", *sys.argv[1:]]
try:
    from diffing.cli import main
    code = main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code or 0
print("imported:", *[m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("args", "shown"),
    [
        (["--help"], ["organism", "model=custom", "--multirun", "exit codes", "infrastructure.storage.base_dir"]),
        (["--info"], ["kl", "caps", "gemma3_1B"]),
        (["--cfg", "job"], ["smollm2_135M", "max_tokens: 10000"]),
        (["--version"], ["diffing 0"]),
    ],
    ids=lambda a: a[0],
)
def test_questions_are_answered_without_loading_torch(args, shown, tmp_path):
    done = python(_IMPORTED, *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "imported:"
    for text in shown:
        assert text in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_mistake_is_told_without_loading_torch(tmp_path):
    done = python(_IMPORTED, "data.max_token=5", cwd=tmp_path)
    assert done.returncode == 2
    assert "imported:\n" in done.stderr


def test_importing_the_package_is_light(tmp_path):
    heavy = (*HEAVY, "hydra", "numpy")
    code = f"import sys, diffing; diffing.__version__; print([m for m in {heavy!r} if m in sys.modules])"
    done = python(code, cwd=tmp_path)
    assert done.stdout.strip() == "[]"
    assert not list(tmp_path.iterdir())


def test_an_unknown_name_of_the_package():
    done = python("import diffing; diffing.nothing")
    assert "AttributeError" in done.stderr


@pytest.mark.slow
def test_main_py_from_anywhere(bench, tmp_path):
    args = [
        "model=custom", "model.id=base", "organism=custom", "organism.finetuned=full", "data=custom",
        "data.path=texts.jsonl", f"infrastructure.storage.base_dir={tmp_path / 'out here'}",
    ]  # fmt: skip
    process = start(args, cwd=bench.folder)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "Report:" in out
    assert "report.html" in out
    assert "mean KL" in out
    assert "Traceback" not in err
    assert "Loading weights" not in err, "bars of transformers show through"
    assert not {p.name for p in bench.folder.iterdir()} - {"base", "adapter", "full", "texts.jsonl"}


def test_a_terminal_that_knows_ascii_only(command, bench, tmp_path, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    command(bench.command(tmp_path / "out")).done()
    assert b"report.html" in raw.getvalue()


def test_a_closed_pipe_is_no_fault(tmp_path):
    script = f"{sys.executable} -c \"from diffing.cli import main; import sys; sys.exit(main(['--info']))\" | head -1"
    done = python(f"import subprocess, sys; sys.exit(subprocess.run({script!r}, shell=True).returncode)", cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
