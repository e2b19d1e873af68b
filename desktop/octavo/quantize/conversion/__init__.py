"""Turns what a checkpoint says about itself into the metadata or the files of another kind."""
