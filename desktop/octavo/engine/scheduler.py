"""Decides which sequences compute how many tokens in the next step."""

import heapq
from collections.abc import Callable, Mapping, Set

from octavo.engine.block_manager import BlockManager
from octavo.engine.prompt_pace import PromptPace
from octavo.engine.request import FinishReason
from octavo.engine.sequence import ScheduledBatch, ScheduledSequence, Sequence, SequenceStatus
from octavo.errors import InvalidRequestError, PromptTooLongError

_CROWD = 8
"""When more sequences wait than this, and a quarter as many as run, streams wait for them."""


class Scheduler:
    """Continuous batching with chunked prefill and preemption by recomputation.

    There is no prefill phase and no decode phase: in every step each sequence's
    `num_computed_tokens` moves towards its `num_tokens`, as far as the step's token budget and the
    free blocks allow. Sequences rank by (priority, arrival): the best is served first, the worst
    is preempted first.

    Source: Yu et al. 2022, "Orca" (OSDI '22), section 3.1; Kwon et al. 2023, arXiv:2309.06180,
    section 4.5; Agrawal et al. 2023, arXiv:2308.16369 (chunked prefill).
    """

    def __init__(
        self,
        block_manager: BlockManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        pace: PromptPace | None = None,
    ) -> None:
        """Args:
        block_manager: of the cache.
        max_num_seqs: that run at a time.
        max_num_batched_tokens: of a step.
        max_model_len: of a sequence, in tokens.
        pace: of prompts beside streams; None: one that knows nothing of the model.
        """
        self.pace = pace or PromptPace(max_num_batched_tokens)
        self._block_manager = block_manager
        self._max_num_seqs = max_num_seqs
        self._max_model_len = max_model_len
        self._num_arrivals = 0
        self._unfinished: dict[str, list[Sequence]] = {}
        self._running: dict[int, Sequence] = {}
        # A heap. Sequences that finish while they wait stay in it until they come up.
        self._waiting: list[tuple[int, int, Sequence]] = []

    @property
    def has_work(self) -> bool:
        return bool(self._unfinished)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self._unfinished.values())) - len(self._running)

    def add(self, sequences: list[Sequence]) -> None:
        """Queues the sequences of one request; the first is the parent whose prompt all share.

        Siblings need not run at the same time, so a request fits if one of its sequences does.

        Raises:
            PromptTooLongError: the prompt can never fit into the context or the KV cache.
            InvalidRequestError: the prompt is empty, or the request's id is in use.
        """
        parent, *siblings = sequences
        self._check_fits(parent)
        if parent.request_id in self._unfinished:
            raise InvalidRequestError(
                f"A request with the id {parent.request_id!r} is being worked on.",
                hint="Give every request an id of its own.",
                field="request_id",
            )
        for sibling in siblings:
            sibling.parent = parent
        self._unfinished[parent.request_id] = list(sequences)
        for sequence in sequences:
            sequence.arrival = self._num_arrivals
            self._num_arrivals += 1
            self._enqueue(sequence)

    def abort(self, request_id: str) -> list[Sequence]:
        """Ends all sequences of a request, whatever their state; returns those it ended."""
        aborted = list(self._unfinished.get(request_id, ()))
        for sequence in aborted:
            self.finish(sequence, FinishReason.ABORT)
        return aborted

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Ends a sequence and frees its blocks; one that has ended already stays as it is."""
        if sequence.is_finished:
            return
        if sequence.status is SequenceStatus.RUNNING:
            self._stop_running(sequence)
        sequence.status = SequenceStatus.FINISHED
        sequence.finish_reason = reason
        unfinished = self._unfinished[sequence.request_id]
        unfinished.remove(sequence)
        if not unfinished:
            del self._unfinished[sequence.request_id]

    def preempt_all(self) -> list[Sequence]:
        """Takes all blocks from whoever runs; they wait for their turn as after any preemption."""
        victims = list(self._running.values())
        for sequence in victims:
            self._preempt(sequence)
        return victims

    def schedule(self) -> ScheduledBatch:
        """Hands out the token budget of one step: first to the running, then to the waiting.

        Whoever starts takes a token that the running have left over, so there are never more of
        them than tokens: in every step each decode gets its token, and some prompt at least one.
        """
        scheduled: list[ScheduledSequence] = []
        preempted: list[Sequence] = []
        finished = self._finish_outgrown()
        running = self._running_in_order()
        num_decodes = sum(one.num_remaining_tokens == 1 for one in running)
        contexts = [one.num_computed_tokens for one in running[num_decodes:]]
        budget = self._step_budget(num_decodes, contexts[0] if contexts else 0)

        for sequence in running:
            if budget == 0:
                break
            if self._make_room(sequence, scheduled, preempted):
                scheduled.append(_schedule_tokens(sequence, budget))
                budget -= scheduled[-1].num_tokens

        if not preempted:
            self._admit(scheduled, budget, set())

        return ScheduledBatch(
            sequences=tuple(scheduled),
            block_copies=self._block_manager.take_copies(),
            preempted=tuple(preempted),
            finished=tuple(finished),
        )

    def schedule_following(
        self, batch: ScheduledBatch, suits: Callable[[Sequence], bool]
    ) -> ScheduledBatch | None:
        """Plans the step after one that still runs, whose tokens nobody knows yet.

        Every sequence that runs goes on, but for those that are certain to end with the step that
        runs; whoever turns out to have ended computes one token that nobody takes. Then others
        start, as in `schedule`, as long as the host has no part in choosing their tokens.

        Args:
            batch: the step that runs; its tokens are chosen without the host.
            suits: whether a sequence's tokens can be.

        Returns:
            None if the next step has to wait for this one: somebody would be preempted, or the
            host has a part in choosing the tokens of whoever starts next.
        """
        head = self._first_waiting()
        has_room = len(self._running) < self._max_num_seqs
        if head is not None and has_room and not suits(head):
            return None
        decodes: list[ScheduledSequence] = []
        prompts: list[ScheduledSequence] = []
        num_live = 0
        for item in batch.sequences:
            sequence, position = item.sequence, item.start + item.num_tokens
            if sequence.is_finished:
                continue
            num_live += 1
            if position < sequence.num_tokens:
                if not self._block_manager.allocate(sequence, num_computed=position):
                    return None
                prompts.append(
                    ScheduledSequence(sequence, position, sequence.num_tokens - position)
                )
            elif self._ends_at(sequence, position + 1):
                continue
            elif self._block_manager.extend(sequence, position + 1):
                decodes.append(ScheduledSequence(sequence, position, 1))
            else:
                return None
        budget = self._step_budget(len(decodes), prompts[0].start if prompts else 0)
        if num_live < len(self._running) or len(decodes) >= budget:
            return None
        scheduled = decodes
        budget -= len(decodes)
        for item in prompts:
            num_tokens = min(item.num_tokens, budget)
            if num_tokens == 0:
                return None
            scheduled.append(ScheduledSequence(item.sequence, item.start, num_tokens))
            budget -= num_tokens
        if head is not None:
            under_way = set().union(*map(self._block_manager.blocks_under_way, batch.sequences))
            self._admit(scheduled, budget, under_way, suits)
        if not scheduled:
            return None
        return ScheduledBatch(tuple(scheduled), block_copies=self._block_manager.take_copies())

    def _step_budget(self, num_decodes: int, num_context_tokens: int) -> int:
        """As `PromptPace.step_budget`, unless a crowd waits, whom large steps serve soonest."""
        num_waiting = self.num_waiting
        if num_waiting > _CROWD and num_waiting * 4 >= num_decodes:
            num_decodes = 0
        return self.pace.step_budget(num_decodes, num_context_tokens)

    def _ends_at(self, sequence: Sequence, num_tokens: int) -> bool:
        """Whether a sequence of so many tokens is over, whatever they are."""
        limit = sequence.sampling_params.max_tokens
        if limit is not None and num_tokens - sequence.num_prompt_tokens >= limit:
            return True
        capacity = self._block_manager.capacity_tokens
        return num_tokens >= self._max_model_len or num_tokens > capacity

    def update(self, batch: ScheduledBatch, sampled: Mapping[int, int]) -> None:
        """Takes in what a step computed.

        Args:
            batch: the step, as `schedule` returned it.
            sampled: sequence id to token id, for all that needed a sample.
        """
        for scheduled in batch.sequences:
            sequence = scheduled.sequence
            if sequence.is_finished:  # aborted while the step ran
                continue
            needs_sample = scheduled.needs_sample
            sequence.num_computed_tokens = scheduled.start + scheduled.num_tokens
            self._block_manager.cache_computed_blocks(sequence, scheduled.start)
            if needs_sample:
                sequence.append_token(sampled[sequence.sequence_id])

    def _check_fits(self, sequence: Sequence) -> None:
        num_tokens = sequence.num_prompt_tokens
        if num_tokens == 0:
            raise InvalidRequestError(
                "The prompt is empty.", hint="Give it at least one token.", field="prompt"
            )
        if num_tokens >= self._max_model_len:
            raise PromptTooLongError(
                f"The prompt has {num_tokens} tokens; the context holds {self._max_model_len}, "
                "and at least one of them is for the answer.",
                hint="Shorten the prompt, or load the model with a longer context.",
                prompt_tokens=num_tokens,
                limit_tokens=self._max_model_len - 1,
            )
        capacity = self._block_manager.capacity_tokens
        if num_tokens > capacity:
            raise PromptTooLongError(
                f"The prompt has {num_tokens} tokens; the whole KV cache holds {capacity}.",
                hint="Shorten the prompt, or load the model with a larger KV cache.",
                prompt_tokens=num_tokens,
                limit_tokens=capacity,
            )

    def _finish_outgrown(self) -> list[Sequence]:
        """Ends sequences that could not go on even with the whole KV cache to themselves."""
        capacity = self._block_manager.capacity_tokens
        outgrown = [one for one in self._running.values() if one.num_tokens > capacity]
        for sequence in outgrown:
            self.finish(sequence, FinishReason.LENGTH)
        return outgrown

    def _running_in_order(self) -> list[Sequence]:
        """Decodes first, so that no prompt makes them wait, then what is left of prompts."""
        return sorted(
            self._running.values(), key=lambda one: (one.num_remaining_tokens > 1, *_rank(one))
        )

    def _make_room(
        self,
        sequence: Sequence,
        scheduled: list[ScheduledSequence],
        preempted: list[Sequence],
    ) -> bool:
        """Allocates blocks, preempting the worst until there are enough; False if it was the worst.

        Whoever has a part in the step already keeps its blocks.
        """
        if sequence.status is not SequenceStatus.RUNNING:
            return False
        while not self._block_manager.allocate(sequence):
            safe = {item.sequence.sequence_id for item in scheduled}
            others = [one for key, one in self._running.items() if key not in safe]
            victim = max(others, key=_rank)
            self._preempt(victim)
            preempted.append(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._stop_running(sequence)
        sequence.status = SequenceStatus.PREEMPTED
        self._enqueue(sequence)

    def _admit(
        self,
        scheduled: list[ScheduledSequence],
        budget: int,
        under_way: set[bytes],
        suits: Callable[[Sequence], bool] = lambda _: True,
    ) -> None:
        """Starts waiting sequences with what is left of a step's budget.

        Args:
            scheduled: what the step does already; is added to.
            budget: tokens left.
            under_way: hashes of blocks that a step before this one is computing.
            suits: who may start; the first who may not ends it.
        """
        held: list[Sequence] = []
        if self._waiting:
            under_way = under_way.union(*map(self._block_manager.blocks_under_way, scheduled))
        while budget > 0:
            newcomer = self._peek_waiting(held, under_way)
            if newcomer is None or not suits(newcomer):
                break
            if not self._start(newcomer):
                break
            scheduled.append(_schedule_tokens(newcomer, budget))
            budget -= scheduled[-1].num_tokens
            if self._waiting:
                under_way |= self._block_manager.blocks_under_way(scheduled[-1])
        for one in held:
            self._enqueue(one)

    def _start(self, sequence: Sequence) -> bool:
        """Starts the sequence at the head of the waiting, if there is room for it."""
        if len(self._running) == self._max_num_seqs:
            return False
        # One block in reserve for each running sequence, or it would soon preempt the newcomer.
        if not self._block_manager.admit(sequence, reserve=len(self._running)):
            return False
        heapq.heappop(self._waiting)
        if sequence.status is SequenceStatus.WAITING:
            sequence.num_cached_tokens = sequence.num_computed_tokens
        sequence.status = SequenceStatus.RUNNING
        self._running[sequence.sequence_id] = sequence
        return True

    def _first_waiting(self) -> Sequence | None:
        while self._waiting:
            sequence = self._waiting[0][-1]
            if not sequence.is_finished:
                return sequence
            heapq.heappop(self._waiting)
        return None

    def _peek_waiting(self, held: list[Sequence], under_way: Set[bytes]) -> Sequence | None:
        """The best waiting sequence; None if there is none.

        Nobody overtakes it, or a long prompt would wait for ever while short ones slip in. Only
        those for whom something is about to be ready step aside, into `held`: siblings, whose
        parent's prompt it is, and whoever begins with blocks that are being computed.
        """
        while (sequence := self._first_waiting()) is not None:
            gains = under_way and self._block_manager.next_shared(sequence) in under_way
            if not sequence.waits_for_parent and not gains:
                return sequence
            held.append(sequence)
            heapq.heappop(self._waiting)
        return None

    def _enqueue(self, sequence: Sequence) -> None:
        heapq.heappush(self._waiting, (*_rank(sequence), sequence))

    def _stop_running(self, sequence: Sequence) -> None:
        del self._running[sequence.sequence_id]
        self._block_manager.free(sequence)


def _rank(sequence: Sequence) -> tuple[int, int]:
    """Lower is served first and preempted last; no two sequences have the same."""
    return sequence.priority, sequence.arrival


def _schedule_tokens(sequence: Sequence, budget: int) -> ScheduledSequence:
    num_tokens = min(sequence.num_remaining_tokens, budget)
    return ScheduledSequence(sequence, sequence.num_computed_tokens, num_tokens)
