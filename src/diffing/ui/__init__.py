"""Streamlit parts that views and pages share; imported by the dashboard and by methods/*/view.py alone."""
