"""`streamlit run dashboard.py`: explore every result, and try both models live; options follow after `--`."""

import sys
from pathlib import Path

from streamlit.runtime import exists as runs_under_streamlit

if not runs_under_streamlit():
    print("error: Start the dashboard with `streamlit run dashboard.py -- OPTION=VALUE …`.", file=sys.stderr)
    sys.exit(2)

from diffing.cli import settings_from
from diffing.dashboard.app import main
from diffing.dashboard.site import Launch

main(Launch(tuple(sys.argv[1:]), settings_from, Path(__file__).with_name("main.py")))
