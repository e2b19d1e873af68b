"""Errors of a card in the middle of a step: who fails, who goes on, and what is said."""

import gc
import weakref
from typing import Any

import pytest
import torch

from octavo.engine.batch import DecodeStep, StepInputs
from octavo.engine.device_errors import device_errors, free_device_memory
from octavo.engine.engine import Engine
from octavo.engine.request import FinishReason, GenerationRequest
from octavo.engine.sampling_params import SamplingParams
from octavo.engine.torch_executor import TorchExecutor
from octavo.errors import DeviceLostError, DeviceMemoryError
from tests.engine.test_overlapped_steps import DelayedExecutor, make_engine
from tests.support.engines import Result
from tests.support.tiny_decoders import random_tokens

OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 8.00 GiB of"
    " which 1.00 GiB is free."
)


class _Faults:
    """Makes an executor fail: while more tokens than `most_tokens` are in a step, or at once."""

    most_tokens = 10**9
    error: Exception | None = None
    num_failed = 0

    def check(self, num_tokens: int) -> None:
        if self.error is not None:
            raise self.error
        if num_tokens > self.most_tokens:
            self.num_failed += 1
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)


class FaultyExecutor(TorchExecutor):
    """On the host's side alone."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.faults = _Faults()

    def forward(self, inputs: StepInputs) -> torch.Tensor:
        self.faults.check(len(inputs.token_ids))
        return super().forward(inputs)


class FaultyDelayedExecutor(DelayedExecutor):
    """A device that is given steps ahead."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.faults = _Faults()

    def forward_sampled(self, inputs: StepInputs) -> torch.Tensor:
        self.faults.check(len(inputs.token_ids))
        return super().forward_sampled(inputs)

    def decode(self, step: DecodeStep) -> torch.Tensor:
        hidden = super().decode(step)
        self.faults.check(step.packed.shape[1])
        return hidden


def request(name: str, length: int, max_tokens: int = 12, **sampling: Any) -> GenerationRequest:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, **sampling)
    return GenerationRequest(name, tuple(random_tokens(length, length)), params)


def run(engine: Engine, requests: list[GenerationRequest]) -> dict[str, Result]:
    for one in requests:
        engine.add_request(one)
    results: dict[str, Result] = {}
    for _ in range(1000):
        if not engine.has_work:
            break
        for delta in engine.step():
            results.setdefault(delta.request_id, Result()).add(delta)
    assert not engine.has_work
    assert engine.stats().num_used_blocks == 0
    return results


KINDS = pytest.mark.parametrize("kind", [FaultyExecutor, FaultyDelayedExecutor])
WINDOWS = pytest.mark.parametrize("windows", [(), (16, None)])


@KINDS
@WINDOWS
def test_a_step_without_memory_is_tried_again_in_half_the_size(
    kind: type[TorchExecutor], windows: tuple[int | None, ...]
) -> None:
    """And every token is what it would have been."""
    requests = [request("a", 9), request("b", 30), request("c", 61), request("d", 3, 30)]
    untroubled, _ = make_engine(kind, windows, 200)
    expected = {name: one.token_ids for name, one in run(untroubled, requests).items()}
    engine, executor = make_engine(kind, windows, 200)
    executor.faults.most_tokens = 20
    results = run(engine, requests)
    assert executor.faults.num_failed == 1
    assert {name: one.token_ids for name, one in results.items()} == expected


@KINDS
def test_who_asked_for_the_memory_fails_and_the_others_go_on(kind: type[TorchExecutor]) -> None:
    untroubled, _ = make_engine(kind, (), 200)
    expected = run(untroubled, [request("short", 5, 60)])["short"].token_ids
    engine, executor = make_engine(kind, (), 200)
    engine.add_request(request("short", 5, 60))
    results: dict[str, Result] = {}
    while "short" not in results:
        for delta in engine.step():
            results.setdefault(delta.request_id, Result()).add(delta)
    executor.faults.most_tokens = 2
    later = run(engine, [request("long", 50)])
    failed = later.pop("long")
    assert failed.finish_reason is FinishReason.ERROR
    assert isinstance(failed.error, DeviceMemoryError)
    assert failed.error.needed_bytes == int(2.5 * 2**30)
    assert "2.5 GiB more were needed" in failed.error.message
    assert failed.error.hint
    assert results["short"].token_ids + later["short"].token_ids == expected
    executor.faults.most_tokens = 10**9
    assert run(engine, [request("next", 50)])["next"].finish_reason is FinishReason.LENGTH


@KINDS
def test_a_step_of_single_tokens_without_memory_fails_in_the_end(
    kind: type[TorchExecutor],
) -> None:
    engine, executor = make_engine(kind, (), 200)
    engine.add_request(request("a", 5, 60))
    engine.add_request(request("b", 6, 60))
    for _ in range(3):
        engine.step()
    executor.faults.most_tokens = 0
    results = run(engine, [])
    assert {one.finish_reason for one in results.values()} == {FinishReason.ERROR}


@KINDS
@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError(
            "CUDA error: an illegal memory access was encountered\nCompile with"
        ),
        RuntimeError("Triton Error [CUDA]: uncorrectable ECC error encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    ],
)
def test_a_lost_device_ends_the_step_with_its_cause(
    kind: type[TorchExecutor], error: Exception
) -> None:
    engine, executor = make_engine(kind, (), 200)
    engine.add_request(request("a", 5, 60))
    engine.step()
    executor.faults.error = error
    with pytest.raises(DeviceLostError) as raised:
        run(engine, [])
    assert str(error).splitlines()[0] in raised.value.message
    assert "Restart the engine" in raised.value.hint
    deltas = engine.fail_all(raised.value)
    assert [delta.error for delta in deltas] == [raised.value]


def test_other_errors_keep_their_class() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), device_errors():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(ValueError, match="out of memory"), device_errors():
        raise ValueError("out of memory")


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "Triton Error [CUDA]: out of memory",
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_every_library_runs_out_of_memory_in_its_own_words(text: str) -> None:
    with pytest.raises(DeviceMemoryError, match="ran out"), device_errors():
        raise RuntimeError(text)


def test_an_error_that_is_kept_keeps_no_tensors() -> None:
    """A window shows it for hours."""
    held: list[weakref.ref[torch.Tensor]] = []

    def compute() -> None:
        tensor = torch.zeros(1000)
        held.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    with pytest.raises(DeviceMemoryError) as kept, device_errors():
        compute()
    gc.collect()
    assert held[0]() is None
    assert kept.value.__cause__ is not None


@pytest.mark.gpu
@pytest.mark.whole_card
def test_a_real_card_runs_out_of_memory_and_goes_on() -> None:
    def fill() -> None:
        tensors = []
        while True:
            tensors.append(torch.empty(2**33, dtype=torch.uint8, device="cuda"))

    before = torch.cuda.mem_get_info()[0]
    with pytest.raises(DeviceMemoryError) as raised, device_errors():
        fill()
    assert raised.value.needed_bytes == 2**33
    assert raised.value.free_bytes is not None
    assert torch.cuda.get_device_name() in raised.value.message
    free_device_memory()
    assert torch.cuda.mem_get_info()[0] > before - 2**30
