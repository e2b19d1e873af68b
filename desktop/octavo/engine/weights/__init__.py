"""Checkpoints into modules: one file a format, and `load`, which all formats share."""
