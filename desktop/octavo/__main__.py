"""`octavo` and `python -m octavo`."""

import sys


def main() -> int:
    """Runs the command line; no verb opens the window."""
    from octavo.cli.main import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
