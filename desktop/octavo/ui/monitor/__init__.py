"""The monitor page: what the machine and the engine do now, and which cards are in it."""
