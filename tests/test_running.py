import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from octavo.running import RunningModels, running_models

LOAD = """
import sys, time
from pathlib import Path
from octavo.running import RunningModels
RunningModels(Path(sys.argv[1])).add("big", "cuda:0", 5)
print("loaded", flush=True)
time.sleep(60)
"""


def test_a_loaded_model_is_listed_until_it_is_unloaded(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert running_models(run_dir) == []
    here = RunningModels(run_dir)
    here.add("tiny", "CPU", 1000)
    (model,) = running_models(run_dir)
    assert (model.model, model.device, model.memory_bytes) == ("tiny", "CPU", 1000)
    assert model.pid == os.getpid()
    assert abs(model.since - time.time()) < 60
    here.add("other", "CPU", 2000)
    assert [model.model for model in running_models(run_dir)] == ["other"]
    here.remove()
    here.remove()
    assert running_models(run_dir) == []


def test_a_killed_process_is_cleared(tmp_path: Path) -> None:
    RunningModels(tmp_path).add("tiny", "CPU", 1)
    with subprocess.Popen(
        [sys.executable, "-c", LOAD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "loaded\n"
        assert [model.model for model in running_models(tmp_path)] == ["tiny", "big"]
        child.kill()
    assert [model.model for model in running_models(tmp_path)] == ["tiny"]
    assert len(list(tmp_path.glob("*.json"))) == 1


def test_another_process_with_the_same_number_does_not_count(tmp_path: Path) -> None:
    RunningModels(tmp_path).add("tiny", "CPU", 1)
    (path,) = tmp_path.glob("*.json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "process_started": record["process_started"] - 100}))
    assert running_models(tmp_path) == []
    assert not path.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "null"])
def test_what_is_no_record_is_cleared(tmp_path: Path, content: str) -> None:
    (tmp_path / "1.json").write_text(content)
    assert running_models(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_cannot_be_written_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").write_text("a file is in the way")
    with caplog.at_level(logging.WARNING):
        RunningModels(tmp_path / "run").add("tiny", "CPU", 1)
    assert "Cannot write" in caplog.text
