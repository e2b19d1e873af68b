"""The headless verbs of `octavo`, a module each."""
