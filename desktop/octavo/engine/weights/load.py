"""Loads a checkpoint into a module's parameters."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from octavo.checkpoint.folder import FolderHeader
from octavo.checkpoint.header import CheckpointHeader
from octavo.engine.model_config import ModelConfig
from octavo.engine.weights.destinations import Destinations, PackedPlace
from octavo.engine.weights.gguf import GGUFWeights
from octavo.engine.weights.pieces import CheckpointWeights
from octavo.engine.weights.safetensors import SafetensorsWeights
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.jobs import JobControl, Progress

_MAX_THREADS = 8


def load_weights(
    model: nn.Module,
    header: CheckpointHeader,
    config: ModelConfig,
    control: JobControl,
    *,
    with_packed: bool = True,
) -> None:
    """Reads every weight straight to where it stays: the parameter of its name, or its layer.

    Parameters are unpacked into; layers that keep their matrices packed get them as they are
    stored. Beside the model this needs some tens of megabytes. Names are checked before anything
    is read, and progress counts bytes of the files.

    Args:
        model: waits for its weights.
        header: of the checkpoint.
        config: the model's numbers.
        control: of the load.
        with_packed: False: layers that keep their matrices packed have them already.

    Raises:
        CheckpointError: a weight is missing, damaged, or of another shape than the model's.
        UnsupportedModelError: the checkpoint has weights for which the model has no parameter.
        StorageError: the file cannot be read.
        JobCancelled: `control` was cancelled.
    """
    places = Destinations(model)
    weights = _weights_of(header, config, places)
    destinations = _find_destinations(places, weights, header)
    # Each thread unpacks a weight of its own, alone: torch's threads, which share one operation,
    # meet ten times for each slab, and where other programs keep the cores busy each meeting
    # costs milliseconds. The number of threads is partly global, so it is put back at the end.
    num_threads = torch.get_num_threads()
    executor = ThreadPoolExecutor(
        min(num_threads, _MAX_THREADS), "octavo-weights", torch.set_num_threads, (1,)
    )
    try:
        futures = {
            name: executor.submit(_read, weights, name, destination)
            for name, destination in destinations.items()
            if with_packed or not isinstance(destination, PackedPlace)
        }
        total_bytes = sum(weights.tensors[name].num_bytes for name in futures)
        done_bytes = 0
        control.report(Progress("Loading weights", done_bytes, total_bytes))
        for name, future in futures.items():
            future.result()
            done_bytes += weights.tensors[name].num_bytes
            control.report(Progress("Loading weights", done_bytes, total_bytes))
    finally:
        executor.shutdown(cancel_futures=True)
        torch.set_num_threads(num_threads)


def _read(weights: CheckpointWeights, name: str, destination: Tensor | PackedPlace) -> None:
    if isinstance(destination, PackedPlace):
        destination.fill(weights.read_packed(name, destination.target))
    else:
        weights.read_into(name, destination)


def _weights_of(
    header: CheckpointHeader, config: ModelConfig, places: Destinations
) -> CheckpointWeights:
    if isinstance(header, FolderHeader):
        return SafetensorsWeights(header, has_place=lambda name: places.find(name) is not None)
    return GGUFWeights(header, config)


def _find_destinations(
    destinations: Destinations, weights: CheckpointWeights, header: CheckpointHeader
) -> dict[str, Tensor | PackedPlace]:
    """Where each tensor goes; every piece of the model is filled, and nothing is left over."""
    for name in destinations.missing(weights.tensors):
        raise CheckpointError(
            f"{header.path.name} has no weights for {name!r}: it is incomplete.",
            path=header.path,
            tensor=name,
            hint="Download the file again, or another conversion of this model.",
        )
    found = {}
    for name, tensor in weights.tensors.items():
        destination = destinations.find(name)
        if destination is None:
            raise UnsupportedModelError(
                f"{header.path.name} has the tensor {tensor.name!r}, "
                "for which this model has no place.",
                hint="Choose another conversion of this model.",
            )
        found[name] = destination
    return found
