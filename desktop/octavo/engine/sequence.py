"""What the scheduler runs: sequences, and the batch of them that makes up one step."""

import collections.abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from octavo.engine.request import FinishReason, TokenLogprob
from octavo.engine.sampling_params import SamplingParams
from octavo.engine.token_rules import TokenRules


class SequenceStatus(Enum):
    """Where a sequence stands; only running ones hold blocks."""

    WAITING = auto()
    RUNNING = auto()
    PREEMPTED = auto()
    """It ran and lost its blocks: it waits like a new one and computes all its tokens again."""
    FINISHED = auto()


class Sequence:
    """One completion on its way: its tokens, and how many of them are in the KV cache.

    The scheduler lets `num_computed_tokens` chase `num_tokens`; whether the tokens between the two
    come from the prompt, or from the completion after a preemption, makes no difference to it.
    """

    __slots__ = (
        "arrival",
        "block_hashes",
        "block_tables",
        "cache_salt",
        "finish_reason",
        "index",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_prompt_tokens",
        "parent",
        "priority",
        "request_id",
        "row",
        "sampling_params",
        "seed",
        "sequence_id",
        "status",
        "token_ids",
        "token_rules",
        "use_prefix_cache",
    )

    def __init__(
        self,
        sequence_id: int,
        request_id: str,
        index: int,
        prompt_token_ids: collections.abc.Sequence[int],
        sampling_params: SamplingParams,
        *,
        seed: int,
        priority: int = 0,
        cache_salt: str = "",
        use_prefix_cache: bool = True,
        token_rules: TokenRules | None = None,
    ) -> None:
        self.sequence_id = sequence_id
        self.request_id = request_id
        self.index = index
        self.sampling_params = sampling_params
        self.seed = seed
        self.priority = priority
        self.cache_salt = cache_salt
        # False: logits of every prompt position are wanted, so none may be skipped.
        self.use_prefix_cache = use_prefix_cache
        # None: the parameters hold no text that the sampler would have to know in tokens.
        self.token_rules = token_rules

        self.token_ids = list(prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.num_computed_tokens = 0
        # Prompt tokens found computed, in the prefix cache or at the parent, on first admission.
        self.num_cached_tokens = 0
        # Of each KV group; what left a group's window is the null block.
        self.block_tables: list[list[int]] = [[]]
        # Of the leading full blocks; grown on demand by the block manager, which alone reads it.
        self.block_hashes: list[bytes] = []

        self.status = SequenceStatus.WAITING
        self.finish_reason: FinishReason | None = None
        self.arrival = 0
        # The sequence whose prompt blocks this one shares; None for the first of a request.
        self.parent: Sequence | None = None
        self.row: int | None = None

    @property
    def block_table(self) -> list[int]:
        """Of the first KV group, which is the only one of most models."""
        return self.block_tables[0]

    @block_table.setter
    def block_table(self, block_ids: list[int]) -> None:
        self.block_tables = [block_ids]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_remaining_tokens(self) -> int:
        """Tokens still to be computed; 1 while decoding."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def prompt_token_ids(self) -> list[int]:
        return self.token_ids[: self.num_prompt_tokens]

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def is_finished(self) -> bool:
        return self.status is SequenceStatus.FINISHED

    @property
    def can_fork(self) -> bool:
        """Whether all of the prompt that siblings share is in the cache: all but the last token.

        The last one each sibling computes itself, for its logits give the first sampled token.
        """
        return (
            self.status is SequenceStatus.RUNNING
            and self.num_computed_tokens >= self.num_prompt_tokens - 1
        )

    @property
    def waits_for_parent(self) -> bool:
        """Whether waiting saves computing the prompt: the parent lives and will be ready."""
        return self.parent is not None and not self.parent.is_finished and not self.parent.can_fork

    @property
    def is_plain(self) -> bool:
        """Whether the next token is chosen from its logits and the temperature alone."""
        params = self.sampling_params
        return params.is_plain and self.num_output_tokens >= params.min_tokens

    @property
    def suits_device(self) -> bool:
        """Whether a device can choose the next token by itself, before it knows the last one."""
        rules = self.token_rules
        if rules is not None and any(len(word) > 1 for word in rules.bad_words):
            return False
        return self.sampling_params.suits_device

    def append_token(self, token_id: int) -> None:
        self.token_ids.append(token_id)


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """A sequence's share of one step: the tokens from `start` on."""

    sequence: Sequence
    start: int
    num_tokens: int

    @property
    def needs_sample(self) -> bool:
        """Whether the step reaches the last known token; read it before another is appended.

        It may reach beyond, to one that the step before it is choosing.
        """
        return self.start + self.num_tokens >= self.sequence.num_tokens

    @property
    def is_prompt(self) -> bool:
        """Whether it begins with a token that was given, not chosen."""
        return self.start < self.sequence.num_prompt_tokens


@dataclass(frozen=True, slots=True)
class ScheduledBatch:
    """What one step does."""

    sequences: tuple[ScheduledSequence, ...]
    block_copies: tuple[tuple[int, int, int], ...] = ()
    """(KV group, source, destination): blocks to be copied before the step writes anything.

    In any order: in a group no block is both, and none is a destination twice.
    """
    preempted: tuple[Sequence, ...] = ()
    """Lost their blocks and wait again; what the runner holds of them is void."""
    finished: tuple[Sequence, ...] = ()
    """Ended by the scheduler: they have outgrown the whole KV cache."""

    @property
    def num_tokens(self) -> int:
        return sum(scheduled.num_tokens for scheduled in self.sequences)


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step computed, by sequence id."""

    tokens: Mapping[int, int]
    """Sampled token ids, of the sequences whose known tokens are all in the cache now."""
    logprobs: Mapping[int, TokenLogprob] = field(default_factory=dict)
    """Of the sampled tokens, where they were asked for."""
    prompt_logprobs: Mapping[int, collections.abc.Sequence[TokenLogprob]] = field(
        default_factory=dict
    )
    """Of the prompt tokens that follow the positions computed in this step, where asked for."""
