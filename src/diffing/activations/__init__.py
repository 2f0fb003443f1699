"""Activations of both models, token by token: harvested once to disk, or read live."""
