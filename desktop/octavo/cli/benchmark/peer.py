"""`Peer`: another engine in a process of its own, so that it may have its own Python.

Each kind of peer is a program beside this module that knows nothing of Octavo. It is called with
the model's path and a number of threads. Its first line says who it is: `{"version": "…"}`. Then it
reads lines `{"prompts": [[token ids]], "output_tokens": N}`, runs the prompts greedily and without
end of text, and answers each line with `{"prefill_s": X, "decode_s": X, "decode_cpu_s": X}`, which
mean what they mean in `TimedRun`.
"""

import contextlib
import json
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from octavo.cli.benchmark.peer_kinds import PeerKind
from octavo.cli.benchmark.timed_run import TimedRun
from octavo.errors import EngineError, InvalidInputError


class Peer:
    """One peer with one model, asked line by line."""

    def __init__(self, kind: PeerKind, python: str, model: Path, num_threads: int) -> None:
        """Raises InvalidInputError: that Python does not have it, or it refuses the file."""
        self.kind = kind
        # A file, because a pipe that nobody reads would fill up and stop the peer.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        script = Path(__file__).with_name(kind.script)
        try:
            self._process = subprocess.Popen(  # noqa: S603
                [python, str(script), str(model), str(num_threads), *kind.arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
            )
        except OSError as error:
            self._errors.close()
            raise InvalidInputError(
                f"{python} cannot be started: {error.strerror}.",
                hint="Name a Python with --peer-python.",
            ) from error
        assert self._process.stdout is not None
        first = self._process.stdout.readline()
        if not first:
            cause = self._last_words()
            self._close()
            raise InvalidInputError(
                f"{kind.title} does not start with {python}. {cause}",
                hint="Install the extra `peers` (pip install octavo[peers]), or name a Python that"
                f" has {kind.package} with --peer-python.",
            )
        self.version = str(json.loads(first)["version"])

    def __enter__(self) -> "Peer":
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._close()

    def run(self, prompts: list[list[int]], output_tokens: int) -> TimedRun:
        """Runs prompts together.

        Raises:
            EngineError: the peer has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        question = json.dumps({"prompts": prompts, "output_tokens": output_tokens})
        answer = ""
        with contextlib.suppress(BrokenPipeError):  # it has ended, as the empty answer says
            self._process.stdin.write(question + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            raise EngineError(
                f"{self.kind.title} ended while it was measured. {self._last_words()}",
                hint="Use fewer streams or tokens.",
            )
        times = json.loads(answer)
        return TimedRun(
            prompt_tokens=sum(map(len, prompts)),
            output_tokens=output_tokens * len(prompts),
            prefill_s=times["prefill_s"],
            decode_s=times["decode_s"],
            decoded_tokens=(output_tokens - 1) * len(prompts),
            decode_cpu_s=times["decode_cpu_s"],
        )

    def _last_words(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        *_, cause = self._errors.read().strip().splitlines() or ["It said nothing."]
        return cause

    def _close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # what it was asked last stays unread
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()
