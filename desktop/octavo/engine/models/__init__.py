"""The decoder; a model family is a configuration of it."""
