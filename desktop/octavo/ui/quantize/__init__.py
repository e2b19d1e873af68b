"""The quantise page: a smaller model of one on this machine, and what it cost."""
