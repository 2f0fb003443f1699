"""`streamlit run dashboard.py`: the dashboard's place; it is not built yet and says so."""

import streamlit as st

st.set_page_config(page_title="diffing")
st.title("diffing")
st.info("The dashboard is not built yet. Run `python main.py`, then open the report.html it names.")
