"""Where Triton's kernels are tested: on the card, or without one in Triton's interpreter.

`tests/conftest.py` says to Triton that it is to interpret them.
"""

from typing import Any

import pytest
import torch

HAS_CARD = torch.cuda.is_available()
pytest.importorskip("triton")

DEVICE = torch.device("cuda" if HAS_CARD else "cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16] if HAS_CARD else [torch.float32]
"""The interpreter holds bfloat16 as raw bits and rounds by cutting off."""


def tolerance(dtype: torch.dtype) -> dict[str, Any]:
    """What two orders of the same sums may differ by."""
    if dtype is torch.float32:
        return {"rtol": 2e-4, "atol": 2e-4}
    return {"rtol": 2e-2, "atol": 2e-2} if dtype is torch.bfloat16 else {"rtol": 4e-3, "atol": 4e-3}


def _mend_interpreter() -> None:
    """Numpy 2.4 converts no arrays of one element to numbers, which Triton 3.6 relies on."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_lang_tensor


if not HAS_CARD:
    _mend_interpreter()


def cases(few: list[Any], *, on_card: list[Any]) -> list[Any]:
    """Parameters of a test: a few for any machine, and those that only a card has time for."""
    return [*few, *(pytest.param(case, marks=pytest.mark.gpu) for case in on_card)]
