"""Figures and sections of dictionary results, from their tables."""
