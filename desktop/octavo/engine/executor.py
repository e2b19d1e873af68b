"""`Executor`: the forward pass of one model over a KV cache of its own, whoever computes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from octavo.engine.batch import DecodeStep, StepInputs


class Executor(Protocol):
    """Runs a loaded model, step by step; lives on the engine's thread.

    The layout of its KV cache is its own affair. What all share is the numbering: slots and blocks
    mean in every executor what `StepInputs` says, and block 0 of each group is the null block.
    """

    @property
    def name(self) -> str:
        """Short name for reports and logs."""

    @property
    def reason(self) -> str:
        """Why it was chosen, as a sentence."""

    @property
    def kv_cache_bytes(self) -> int: ...

    def copy_blocks(self, copies: Sequence[tuple[int, int, int]]) -> None:
        """Copies whole blocks in all layers of a group: (group, source, destination) in turn."""

    def forward(self, inputs: StepInputs) -> torch.Tensor:
        """Runs all layers over one step's tokens and writes their keys and values.

        Returns:
            [num_tokens, hidden_size]: hidden states after the last norm; valid until the next
            call. Of the executor's own type, on its device.
        """

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden_size], as `forward` gave them, to [num_rows, vocab_size], float32.

        The result is valid until the next call, and may be changed in place.
        """


@dataclass(frozen=True, slots=True)
class Draws:
    """How a device chooses the tokens of some rows: what of `SamplingParams` it can do by itself.

    Each sequence has a value for each row.
    """

    temperatures: Sequence[float]
    """0: the likeliest token."""
    keys: Sequence[int]
    """Of the noise, 64 bits."""
    top_ks: Sequence[int] = ()
    """0: all tokens; empty, as the next two: no row leaves anything out."""
    top_ps: Sequence[float] = ()
    min_ps: Sequence[float] = ()
    masks: Sequence[int] = ()
    """Numbers of the masks that say which tokens may come; 0: all; empty: of every row."""
    new_masks: Mapping[int, npt.NDArray[np.int32]] = field(default_factory=dict)
    """By their numbers, up to the most sequences of a step: masks that have changed since the last
    draw. [ceil(vocab_size / 32)], bit i of word w for token 32 w + i."""


class SampledLater(Protocol):
    """Tokens that are being chosen."""

    def token_ids(self) -> list[int]:
        """Waits for them; below 0 where a row's logits are not finite."""


@runtime_checkable
class LaunchingExecutor(Executor, Protocol):
    """An executor that works on a device, or on threads of its own, while the host goes on.

    Steps run in the order in which they were asked for, and nothing here waits for them. Token
    -1 - i in a step's inputs is the one that the step before chooses for its row i.
    """

    def forward_sampled(self, inputs: StepInputs) -> torch.Tensor:
        """As `forward`, for the rows that are sampled from: [num_sampled, hidden_size]."""

    def choose(self, hidden: torch.Tensor, draws: Draws) -> SampledLater:
        """Chooses a token per row.

        Args:
            hidden: [num_rows, hidden_size], as `forward_sampled` or `decode` gave them.
            draws: of these rows.
        """


@runtime_checkable
class DeviceExecutor(LaunchingExecutor, Protocol):
    """One that keeps the block tables of running sequences on its device."""

    def decode(self, step: DecodeStep) -> torch.Tensor:
        """As `forward`, for steps of one token per sequence."""
