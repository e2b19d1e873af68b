"""Runs one command line: the one place where errors become sentences on the terminal.

Options and help texts are in `cli.parsers`.
"""

import argparse
import contextlib
import importlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence

from octavo.cli.parsers import make_parser
from octavo.cli.parsers.manual import EXIT_FAILED, EXIT_INTERRUPTED
from octavo.errors import OctavoError
from octavo.log import setup_logging
from octavo.paths import AppPaths


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit status: 0, 1 failed, 2 usage, 130 interrupted."""
    arguments, opened = split_opened(arguments)
    options = make_parser().parse_args(arguments, argparse.Namespace(opened=opened))
    paths = AppPaths.default()
    setup_logging(paths.log_file, verbose=options.verbose)
    try:
        return _find_verb(options.verb)(options, paths)
    except OctavoError as error:
        print(f"octavo: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"        {error.hint}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has left: silence is what it wants.
        sys.stderr.close()
        return EXIT_FAILED


def leave_if_stuck(status: int) -> None:
    """Ends the process at once if an engine was asked to end and has not come back.

    It is in the middle of a kernel; an interpreter that closes meanwhile is aborted.
    """
    if threading.active_count() == 1:
        return
    from octavo.engine.thread import ENGINE_THREAD

    if any(thread.name == ENGINE_THREAD for thread in threading.enumerate()):
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # the reader has left, or it is closed
                stream.flush()
        os._exit(status)


def split_opened(arguments: Sequence[str]) -> tuple[list[str], str]:
    """Takes a model file or a hub's address off a command line without a verb, for the window.

    Desktops start programs so when a file is opened with them; argparse would see a wrong verb.
    """
    words = [argument for argument in arguments if not argument.startswith("-")]
    if len(words) == 1 and (words[0].lower().endswith(".gguf") or "://" in words[0]):
        return [argument for argument in arguments if argument != words[0]], words[0]
    return list(arguments), ""


def _find_verb(name: str) -> Callable[[argparse.Namespace, AppPaths], int]:
    """Imports a verb's module only when it runs, so that `octavo --help` is quick."""
    module, function = name.split(":")
    verb: Callable[[argparse.Namespace, AppPaths], int]
    verb = getattr(importlib.import_module(f"octavo.cli.{module}"), function)
    return verb
