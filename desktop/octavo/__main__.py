"""`octavo` and `python -m octavo`."""

import sys


def main() -> int:
    """Runs the command line; no verb opens the window."""
    from octavo.cli.main import leave_if_stuck, run

    status = run(sys.argv[1:])
    leave_if_stuck(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
