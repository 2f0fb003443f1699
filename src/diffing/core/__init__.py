"""Contracts every other room relies on: specs, results on disk, errors, progress, seeds."""
