"""What the launcher says: lines, numbered steps, and the sentence it stops with."""


class SetupError(Exception):
    """Stops the launcher; the text is one sentence with the next step."""


class Steps:
    """Counts the steps aloud."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0

    def __call__(self, what: str) -> None:
        self._done += 1
        say(f"[{self._done}/{self._total}] {what}")


def say(line: str) -> None:
    """Prints at once, in order with what pip and the tests print."""
    print(line, flush=True)


def detail(line: str) -> None:
    """Prints a line that belongs to the step above it."""
    say(f"      {line}")


def shorten(text: str, limit: int = 200) -> str:
    """One line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]} ..."
