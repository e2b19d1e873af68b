"""Kernels for the processor itself: Numba functions on SIMD instructions, compiled on this machine.

Only this folder knows Numba and llvmlite, and nothing imports it before a CPU engine is loaded.
"""
