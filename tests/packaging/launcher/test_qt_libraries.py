import shutil

import pytest
from launcher.qt_libraries import missing_libraries, qt_sentence


def test_missing_libraries_are_collected_in_one_go() -> None:
    error = "libEGL.so.1: cannot open shared object file: No such file or directory"
    missing = {"libxcb-cursor.so.0", "libEGL.so.1"}
    found = missing_libraries(f"ImportError: {error}", lambda name: name not in missing)
    assert found == ["libEGL.so.1", "libxcb-cursor.so.0"]
    assert missing_libraries("ImportError: no module", lambda _name: False) == []


def test_what_the_window_misses_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    sentence = qt_sentence("libEGL.so.1: cannot", ["libegl1", "libgl1"])
    assert "`sudo apt-get install libegl1 libgl1`" in sentence
    assert "terminal works without" in sentence
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert "(libEGL.so.1: cannot)" in qt_sentence("libEGL.so.1: cannot", ["libegl1"])
