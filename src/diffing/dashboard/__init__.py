"""The dashboard: explores results on disk, and tries both models live."""
