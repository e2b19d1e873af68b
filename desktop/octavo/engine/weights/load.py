"""Loads a checkpoint into a module's parameters."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from octavo.checkpoint.gguf import GGUFHeader
from octavo.engine.model_config import ModelConfig
from octavo.engine.weights.gguf import GGUFWeights
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.jobs import JobControl, Progress

_MAX_THREADS = 8


def load_weights(
    model: nn.Module, header: GGUFHeader, config: ModelConfig, control: JobControl
) -> None:
    """Unpacks every weight straight into the parameter of its name, on the parameter's device.

    Beside the model this needs some tens of megabytes. Names are checked before anything is
    read, and progress counts bytes of the file.

    Raises:
        CheckpointError: a weight is missing, damaged, or of another shape than the model's.
        UnsupportedModelError: the checkpoint has weights for which the model has no parameter.
        StorageError: the file cannot be read.
        JobCancelled: `control` was cancelled.
    """
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    weights = GGUFWeights(header, config)
    _check_names(parameters, weights, header)
    # Each thread unpacks a weight of its own, alone: torch's threads, which share one operation,
    # meet ten times for each slab, and where other programs keep the cores busy each meeting
    # costs milliseconds. The number of threads is partly global, so it is put back at the end.
    num_threads = torch.get_num_threads()
    executor = ThreadPoolExecutor(
        min(num_threads, _MAX_THREADS), "octavo-weights", torch.set_num_threads, (1,)
    )
    try:
        futures = {
            name: executor.submit(weights.read_into, name, parameters[name])
            for name in weights.tensors
        }
        total_bytes = sum(tensor.num_bytes for tensor in weights.tensors.values())
        done_bytes = 0
        control.report(Progress("Loading weights", done_bytes, total_bytes))
        for name, tensor in weights.tensors.items():
            futures[name].result()
            done_bytes += tensor.num_bytes
            control.report(Progress("Loading weights", done_bytes, total_bytes))
    finally:
        executor.shutdown(cancel_futures=True)
        torch.set_num_threads(num_threads)


def _check_names(
    parameters: Mapping[str, Tensor], weights: GGUFWeights, header: GGUFHeader
) -> None:
    for name in parameters:
        if name not in weights.tensors:
            raise CheckpointError(
                f"{header.path.name} has no weights for {name!r}: it is incomplete.",
                path=header.path,
                tensor=name,
                hint="Download the file again, or another conversion of this model.",
            )
    for name, tensor in weights.tensors.items():
        if name not in parameters:
            raise UnsupportedModelError(
                f"{header.path.name} has the tensor {tensor.name!r}, "
                "for which this model has no place.",
                hint="Choose another conversion of this model.",
            )
