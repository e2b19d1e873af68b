"""`kill -9` in the middle of a download costs next to nothing."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.hub.hub_server import CHUNK_BYTES, COMMIT, serving_hub
from tests.hub.test_hub_pull import FILE, NAME, bytes_in, leftovers, padded_gguf, repos

# Imports once and forks for each try: what is killed is a real process, its start is not measured.
PULLER = """
import os
import sys
from pathlib import Path
from octavo.hub.hub_cache import HubCache
from octavo.hub.hub_files import HubAddress
from octavo.hub.hub_pull import pull_from_hub
from octavo.hub.hugging_face import HuggingFace
from octavo.jobs import JobControl
from octavo.hub.hugging_face import _library
_library()
_, url, name, models = sys.argv
for _ in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            pull_from_hub(
                HuggingFace(url), HubAddress(name), HubCache(Path(models)), JobControl(),
                check=lambda header: None,
            )
            os._exit(0)
        finally:
            os._exit(1)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 here")
@pytest.mark.parametrize(
    "line",
    [
        # The server waits for what has been written: the same on a machine of any speed.
        "acknowledged",
        # Some 12 MB/s whatever the client does: what waits in the system's buffers is lost, too.
        pytest.param("paced", marks=pytest.mark.slow),
    ],
)
def test_killed_ten_times_it_arrives_with_two_percent_more_at_most(
    tmp_path: Path, line: str
) -> None:
    size_bytes = 100_000_000
    content = padded_gguf(tmp_path, size_bytes)
    models = tmp_path / "models"
    chance = random.Random(7)
    kill_points = sorted(chance.randrange(size_bytes) for _ in range(10))
    with (
        serving_hub(repos(content)) as server,
        subprocess.Popen(
            [sys.executable, "-c", PULLER, server.url, NAME, str(models)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as puller,
    ):
        assert puller.stdin is not None
        assert puller.stdout is not None
        if line == "acknowledged":
            server.arrived, server.window_bytes = lambda: bytes_in(models), 8 * CHUNK_BYTES
        else:
            # The server's own buffer is small, or it would count megabytes as sent that never leave
            # this machine's memory.
            server.pause_s, server.chunk_bytes = 0.001, 16384
            server.send_buffer_bytes = 65536
        for point in kill_points:
            print(file=puller.stdin, flush=True)
            pid = int(puller.stdout.readline())
            while server.num_bytes_sent < point:
                time.sleep(0.001)
            os.kill(pid, signal.SIGKILL)
            assert int(puller.stdout.readline()) == signal.SIGKILL
        print(file=puller.stdin, flush=True)
        puller.stdout.readline()
        assert int(puller.stdout.readline()) == 0
        puller.stdin.close()
        sent_bytes = server.num_bytes_sent
    arrived = (models / "models--acme--Tiny-GGUF" / "snapshots" / COMMIT / FILE).read_bytes()
    assert hashlib.sha256(arrived).digest() == hashlib.sha256(content).digest()
    print(f"{sent_bytes / size_bytes - 1:.2%} more")
    assert sent_bytes <= 1.02 * size_bytes
    assert leftovers(models) == []
