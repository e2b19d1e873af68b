"""Triton kernels, one file a kernel. Only backends import them, when they have been chosen."""
