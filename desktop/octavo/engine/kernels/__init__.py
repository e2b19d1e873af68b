"""Kernels of our own, a folder a kind of processor; each has a twin in plain torch."""
