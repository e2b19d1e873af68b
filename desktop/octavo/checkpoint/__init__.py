"""Reads the headers of checkpoint files; no torch, no network, no weights."""
