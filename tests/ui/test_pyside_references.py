"""Guards against PySide6 builds that lose references to None and True (6.12.0 on Python 3.11)."""

import subprocess
import sys

MEASURE = """
import sys
from PySide6 import QtCore

app = QtCore.QCoreApplication([])
thing = QtCore.QObject()

class Sender(QtCore.QObject):
    sent = QtCore.Signal(object)

sender = Sender()
sender.sent.connect(lambda value: None)
CALLS = {
    "void": lambda: thing.setObjectName("x"),
    "events": app.processEvents,
    "emit None": lambda: sender.sent.emit(None),
    "emit True": lambda: sender.sent.emit(True),
    "bool result": thing.signalsBlocked,
    "bool argument": lambda: thing.blockSignals(True),
    "None result": lambda: thing.property("absent"),
    "no parent": thing.parent,
}
for name, call in CALLS.items():
    before = [sys.getrefcount(value) for value in (True, False, None)]
    for _ in range(200):
        call()
    after = [sys.getrefcount(value) for value in (True, False, None)]
    drift = [round((b - a) / 200, 1) for a, b in zip(before, after)]
    if any(drift):
        print(name, drift)
"""


def test_calls_into_qt_keep_the_reference_counts() -> None:
    result = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
