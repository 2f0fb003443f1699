"""`streamlit run dashboard.py`: the dashboard's place; it is not built yet and says so."""

import sys

import streamlit as st
from streamlit.runtime import exists as runs_under_streamlit

SENTENCE = "The dashboard is not built yet: run `python main.py`, then open the report.html it names."

if not runs_under_streamlit():
    print(f"error: {SENTENCE}", file=sys.stderr)
    sys.exit(2)
st.set_page_config(page_title="diffing")
st.title("diffing")
st.info(SENTENCE)
