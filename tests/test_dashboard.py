"""The dashboard's place until it is built: one sentence, on the page and in the terminal."""

import subprocess
import sys
from pathlib import Path

from streamlit.testing.v1 import AppTest

DASHBOARD = Path(__file__).parents[1] / "dashboard.py"


def test_the_page_says_that_it_is_not_built_yet():
    page = AppTest.from_file(str(DASHBOARD)).run(timeout=60)
    assert not page.exception
    assert "not built yet" in page.info[0].value


def test_without_streamlit_it_ends_with_a_sentence():
    done = subprocess.run([sys.executable, str(DASHBOARD)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "not built yet" in done.stderr
