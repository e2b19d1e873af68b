"""The parts of `packaging/launch.py`; standard library only, since nothing is installed yet."""
