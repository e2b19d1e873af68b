"""`octavo bench --against`: both run the same prompts in turn; a peer that is missing is named."""

import json
import sys
from pathlib import Path

import pytest

from octavo.cli.bench_against import read_bandwidth
from tests.cli.conftest import Cli

PEER = """#!{python}
import json, sys
print(json.dumps({{"version": "0.0 for tests"}}), flush=True)
for line in sys.stdin:
    prompts, num_output = json.loads(line)
    with open({seen!r}, "a") as file:
        file.write(f"{{len(prompts)}} {{len(prompts[0])}} {{num_output}}\\n")
    print(json.dumps({{"prefill_s": 1000.0, "decode_s": 2000.0}}), flush=True)
"""
SIZES = ("--prompt-tokens", "5", "--output-tokens", "3", "--streams", "2", "--repetitions", "2")


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    script = tmp_path / "peer"
    script.write_text(PEER.format(python=sys.executable, seen=str(tmp_path / "seen")))
    script.chmod(0o755)
    return script


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a script with a first line")
def test_rates_and_ratios_of_both(cli: Cli, tiny: Path, peer: Path) -> None:
    arguments = ("bench", "tiny", *SIZES, "--against", "llama.cpp", "--peer-python", str(peer))
    found = json.loads(cli(*arguments, "--json").out)
    assert found["peer"] == "llama-cpp-python 0.0 for tests"
    one, two = found["rows"]
    assert (one["streams"], two["streams"]) == (1, 2)
    assert two["peer_prefill_tokens_per_second"] == pytest.approx(2 * 5 / 1000)
    assert two["peer_decode_tokens_per_second"] == pytest.approx(2 * 2 / 2000)
    for kind in ("decode", "prefill"):
        ours, theirs = one[f"{kind}_tokens_per_second"], one[f"peer_{kind}_tokens_per_second"]
        assert one[f"{kind}_ratio"] == pytest.approx(ours / theirs, rel=0.9)
        assert ours > theirs
    seen = (peer.parent / "seen").read_text().splitlines()
    assert seen == ["1 5 3"] * 3 + ["2 5 3"] * 3  # a warm-up and two rounds of each


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


def test_memory_is_read_at_some_rate() -> None:
    assert read_bandwidth(2) > 1e8
