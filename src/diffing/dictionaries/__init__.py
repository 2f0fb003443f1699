"""Sparse autoencoders and crosscoders: modules, training, metrics, files. Input is tensors; knows no language model."""
