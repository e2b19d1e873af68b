"""`Executor`: the forward pass of one model over a KV cache of its own, whoever computes it."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

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

    def choose(
        self, hidden: torch.Tensor, temperatures: Sequence[float], keys: Sequence[int]
    ) -> SampledLater:
        """Chooses a token per row: the likeliest, or one drawn at a temperature.

        Args:
            hidden: [num_rows, hidden_size], as `forward_sampled` or `decode` gave them.
            temperatures: of each row; 0: the likeliest.
            keys: of each row's noise, 64 bits.
        """


@runtime_checkable
class DeviceExecutor(LaunchingExecutor, Protocol):
    """One that keeps the block tables of running sequences on its device."""

    def decode(self, step: DecodeStep) -> torch.Tensor:
        """As `forward`, for steps of one token per sequence."""
