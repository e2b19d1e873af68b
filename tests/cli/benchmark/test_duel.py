"""`octavo bench --against`: all run the same prompts in turn; a peer that is missing is named."""

import json
import sys
from pathlib import Path

import pytest

from octavo.cli.benchmark.peer import Peer
from octavo.cli.benchmark.peer_kinds import PEERS, PeerKind
from octavo.errors import EngineError
from tests.cli.conftest import Cli

PEER = """#!{python}
import json, sys
print(json.dumps({{"version": "0.0 for tests"}}), flush=True)
for line in sys.stdin:
    question = json.loads(line)
    prompts, output_tokens = question["prompts"], question["output_tokens"]
    with open({seen!r}, "a") as file:
        print(sys.argv[4:], len(prompts), len(prompts[0]), output_tokens, file=file)
    times = {{"prefill_s": 1000.0, "decode_s": 2000.0, "decode_cpu_s": 3000.0}}
    print(json.dumps(times), flush=True)
    if output_tokens == 9:
        sys.exit("enough")
"""
SIZES = ("--prompt-tokens", "5", "--output-tokens", "3", "--streams", "1", "2")
MODEL = Path("model.gguf")

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="the stand-in is a script with a first line"
)


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    script = tmp_path / "peer"
    script.write_text(PEER.format(python=sys.executable, seen=str(tmp_path / "seen")))
    script.chmod(0o755)
    return script


def test_rates_and_ratios_of_all(cli: Cli, tiny: Path, peer: Path) -> None:
    arguments = ("bench", "tiny", *SIZES, "--repetitions", "2", "--peer-python", str(peer))
    both = ("--against", "llama.cpp", "llama.cpp-q4_0")
    found = json.loads(cli(*arguments, *both, "--json").out)
    assert found["peers"] == {
        "llama.cpp": "0.0 for tests",
        "llama.cpp, Q4_0": "0.0 for tests",
    }
    one, two = found["rows"]
    assert (one["streams"], two["streams"]) == (1, 2)
    for row in (one, two):
        streams, ours = row["streams"], row["octavo"]
        assert [figures["engine"] for figures in row["peers"]] == list(found["peers"])
        for theirs in row["peers"]:
            assert theirs["prefill_tokens_per_second"] == pytest.approx(streams * 5 / 1000)
            assert theirs["decode_tokens_per_second"] == pytest.approx(streams * 2 / 2000)
            assert theirs["decode_cpu_ms_per_token"] == pytest.approx(3e6 / (streams * 2))
            for ratio, name in (
                ("decode_ratio", "decode_tokens_per_second"),
                ("prefill_ratio", "prefill_tokens_per_second"),
                ("decode_cpu_ratio", "decode_cpu_ms_per_token"),
            ):
                # Theirs is the same in every round, so the median of ratios is that of medians.
                assert theirs[ratio] == pytest.approx(ours[name] / theirs[name])
            assert theirs["decode_ratio"] > 1 > theirs["decode_cpu_ratio"] > 0
    # A warm-up and two rounds of each number of streams, one peer after the other.
    rounds = [f"{kind} {n} 5 3" for n in (1, 2) for _ in range(3) for kind in ("[]", "['q4_0']")]
    assert (peer.parent / "seen").read_text().splitlines() == rounds


def test_the_floor_is_what_memory_gives(cli: Cli, tiny: Path, peer: Path) -> None:
    arguments = ("bench", "tiny", *SIZES, "--repetitions", "1", "--peer-python", str(peer))
    found = json.loads(cli(*arguments, "--against", "openvino", "--json").out)
    weights, (row, _) = found["weight_bytes_per_token"], found["rows"]
    assert 0 < weights < tiny.stat().st_size  # the header is not read anew for each token
    read = row["read_bytes_per_second"]
    share = row["octavo"]["decode_tokens_per_second"] * weights / read
    assert row["bandwidth_share"] == pytest.approx(share)
    text = cli(*arguments, "--against", "openvino").out
    assert "OpenVINO GenAI: 0.0 for tests" in text
    assert "memory gives" in text


def test_threads_are_the_same_for_all(cli: Cli, tiny: Path, peer: Path) -> None:
    arguments = ("bench", "tiny", *SIZES, "--repetitions", "1", "--peer-python", str(peer))
    out = cli(*arguments, "--against", "llama.cpp", "--cpu-threads", "1", "--json").out
    assert json.loads(out)["threads"] == 1


def test_a_peer_that_does_not_start_is_an_error_with_a_way_out(
    cli: Cli, tiny: Path, tmp_path: Path
) -> None:
    script = tmp_path / "llama_cpp.py"
    script.write_text("raise ImportError('not here')")
    broken = tmp_path / "python"
    broken.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    broken.chmod(0o755)
    outcome = cli("bench", "tiny", *SIZES, "--against", "llama.cpp", "--peer-python", str(broken))
    assert outcome.status == 1
    assert "not here" in outcome.err
    assert "octavo[peers]" in outcome.err
    nowhere = str(tmp_path / "nowhere")
    outcome = cli("bench", "tiny", *SIZES, "--against", "llama.cpp", "--peer-python", nowhere)
    assert outcome.status == 1
    assert "cannot be started" in outcome.err


def test_a_peer_that_ends_too_soon_says_why(peer: Path) -> None:
    kind: PeerKind = PEERS["llama.cpp"]
    with Peer(kind, str(peer), MODEL, 1) as found:
        assert found.run([[1, 2]], 9).decoded_tokens == 8
        with pytest.raises(EngineError, match=r"llama\.cpp ended .* enough"):
            found.run([[1, 2]], 9)
