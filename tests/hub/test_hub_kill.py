"""`kill -9` in the middle of a download costs next to nothing."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hub.hub_server import CHUNK_BYTES, COMMIT, HubServer, serving_hub
from tests.hub.test_hub_pull import FILE, NAME, bytes_in, leftovers, padded_gguf, repos

# Imports once and forks for each try: what is killed is a real process, its start is not measured.
# The count is shared with all tries, so that it outlives them: what each took from its connections.
PULLER = """
import mmap, os, socket, struct, sys
from pathlib import Path
from octavo.hub.download_list import Download
from octavo.hub.hub_cache import HubCache
from octavo.hub.hugging_face import HuggingFace
from octavo.hub.queue_transfer import QueueTransfer
from octavo.jobs import JobControl
from octavo.hub.hugging_face import _library
_library()
_, url, name, label, models = sys.argv
taken = mmap.mmap(-1, 8)
receive = socket.SocketIO.readinto
def count(self, buffer):
    num_bytes = receive(self, buffer)
    struct.pack_into("<Q", taken, 0, struct.unpack_from("<Q", taken)[0] + (num_bytes or 0))
    return num_bytes
socket.SocketIO.readinto = count
transfer = QueueTransfer(
    lambda: HuggingFace(url), lambda: HubCache(Path(models)), check=lambda header: None,
    looks_dir=Path(models, "looks"),
)
for _ in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            transfer.run(Download("one", name, label), JobControl())
            os._exit(0)
        finally:
            os._exit(1)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
print(struct.unpack_from("<Q", taken)[0], flush=True)
"""


@dataclass(frozen=True)
class Counted:
    """Bytes of one download that was killed again and again."""

    sent: int
    """As the server sees it: handed to its system."""
    taken: int
    """By our processes from their connections, heads of answers included."""


@pytest.mark.timeout(300)
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 here")
@pytest.mark.parametrize(
    "line",
    [
        # The server waits for what has been written: the same on a machine of any speed.
        "acknowledged",
        # Some 12 MB/s whatever the client does: what waits in the system's buffers is lost, too.
        pytest.param("paced", marks=pytest.mark.slow),
        pytest.param("as fast as can", marks=pytest.mark.slow),
    ],
)
def test_killed_ten_times_it_arrives_with_two_percent_more_at_most(
    tmp_path: Path, line: str
) -> None:
    size_bytes = 100_000_000
    content = padded_gguf(tmp_path, size_bytes)
    models = tmp_path / "models"
    with serving_hub(repos(content)) as server:
        if line == "acknowledged":
            server.arrived, server.window_bytes = lambda: bytes_in(models), 8 * CHUNK_BYTES
        elif line == "paced":
            # The server's own buffer is small, or it would count megabytes as sent that never leave
            # this machine's memory.
            server.pause_s, server.chunk_bytes = 0.001, 16384
            server.send_buffer_bytes = 65536
        counted = pull_and_kill(server, models, size_bytes)
    arrived = (models / "models--acme--Tiny-GGUF" / "snapshots" / COMMIT / FILE).read_bytes()
    assert hashlib.sha256(arrived).digest() == hashlib.sha256(content).digest()
    more = {"sent": counted.sent / size_bytes - 1, "taken": counted.taken / size_bytes - 1}
    print(", ".join(f"{share:.2%} more {kind}" for kind, share in more.items()))
    # How much a server has sent into buffers when its client dies is not ours to say.
    assert 0 <= more["taken"] <= 0.02
    assert line == "as fast as can" or more["sent"] <= 0.02
    assert leftovers(models) == []


def pull_and_kill(server: HubServer, models: Path, size_bytes: int) -> Counted:
    """Pulls one file with ten kills at random places of it."""
    chance = random.Random(7)
    kill_points = sorted(chance.randrange(size_bytes) for _ in range(10))
    with subprocess.Popen(
        [sys.executable, "-c", PULLER, server.url, NAME, "Q4_0", str(models)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as puller:
        assert puller.stdin is not None
        assert puller.stdout is not None
        for point in kill_points:
            print(file=puller.stdin, flush=True)
            pid = int(puller.stdout.readline())
            while server.num_bytes_sent < point:
                time.sleep(0.001)
            os.kill(pid, signal.SIGKILL)
            # Where nothing holds the server back it may have sent all before the kill.
            assert int(puller.stdout.readline()) in (signal.SIGKILL, 0)
        print(file=puller.stdin, flush=True)
        puller.stdout.readline()
        assert int(puller.stdout.readline()) == 0
        puller.stdin.close()
        return Counted(server.num_bytes_sent, int(puller.stdout.readline()))
