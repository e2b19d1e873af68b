"""`Engine`: requests in, deltas out, one step at a time. Synchronous, for one thread; no torch."""

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from octavo.engine.block_manager import BlockManager
from octavo.engine.detokenizer import IncrementalDetokenizer
from octavo.engine.load_report import LoadReport
from octavo.engine.request import (
    EngineStats,
    FinishReason,
    GenerationDelta,
    GenerationRequest,
    RequestMetrics,
    TokenLogprob,
)
from octavo.engine.scheduler import Scheduler
from octavo.engine.sequence import ScheduledBatch, ScheduledSequence, StepOutput
from octavo.engine.sequence import Sequence as TokenSequence
from octavo.engine.token_rules import make_token_rules
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import DeviceMemoryError, InvalidRequestError, OctavoError
from octavo.jobs import JobControl

logger = logging.getLogger(__name__)


class Runner(Protocol):
    """What the engine needs of a `ModelRunner`; tests put a small fake here."""

    def execute(self, batch: ScheduledBatch) -> StepOutput:
        """Computes one step and samples where a sequence's tokens are all in the cache."""

    def release(self, sequence: TokenSequence) -> None:
        """Frees what the runner keeps for a sequence that finished or was preempted."""

    def recover(self, sequences: Iterable[TokenSequence]) -> None:
        """After a step of these sequences that failed: all they hold is made anew by the next."""

    def close(self) -> None:
        """Gives back the model's memory; no step may follow."""


class LaunchedStep(Protocol):
    """A step that runs on a device."""

    def result(self) -> StepOutput:
        """Waits for it."""


@runtime_checkable
class LaunchingRunner(Runner, Protocol):
    """A runner that can begin a step before it knows the tokens of the one that runs."""

    def launch(self, batch: ScheduledBatch) -> LaunchedStep | None:
        """Begins a step; None, and nothing is done, if the host has a part in sampling it."""

    def suits(self, sequence: TokenSequence) -> bool:
        """Whether a sequence's tokens can be chosen without the host."""

    def launch_following(self, batch: ScheduledBatch) -> LaunchedStep:
        """Begins the step after the one launched last, as `schedule_following` planned it."""


class Upgrade(Protocol):
    """A faster runner in the making for an engine that answers already."""

    def prepare(self, control: JobControl) -> None:
        """Makes the runner; blocking, on a thread of its own.

        Raises:
            JobCancelled: `control` was cancelled.
        """

    def apply(self) -> LoadReport:
        """Lets the engine go on with it; between two steps, on the engine's thread."""

    def give_up(self, error: OctavoError) -> LoadReport:
        """Says that it could not be made, and that the engine stays as it is."""


@dataclass(slots=True)
class _Completion:
    """One of a request's n continuations."""

    sequence: TokenSequence
    detokenizer: IncrementalDetokenizer
    first_token_at: float | None = None


@dataclass(slots=True)
class _Running:
    """A request the engine has taken and not yet ended."""

    request: GenerationRequest
    arrived_at: float
    completions: list[_Completion]
    first_scheduled_at: float | None = None
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    num_unfinished: int = 0


class Engine:
    """Continuous batching over one model.

    Call `step` while `has_work`; each call runs one batch and returns what it added to each
    completion. A request's last delta of each completion carries its finish reason and metrics.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        scheduler: Scheduler,
        block_manager: BlockManager,
        *,
        max_model_len: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._runner = runner
        self._launcher = runner if isinstance(runner, LaunchingRunner) else None
        # The step that was begun before the results of the one before it were in.
        self._ahead: tuple[ScheduledBatch, LaunchedStep] | None = None
        self._tokenizer = tokenizer
        self._scheduler = scheduler
        self._block_manager = block_manager
        self._max_model_len = max_model_len
        self._clock = clock
        self.upgrade: Upgrade | None = None
        """What whoever steps this engine prepares beside it and then applies; None: nothing."""
        # Since when the device computes without a break, and how much so far.
        self._busy_since: float | None = None
        self._busy_work = 0.0
        self._running: dict[str, _Running] = {}
        self._next_sequence_id = 0
        # Whether the latest step found too little memory.
        self._is_short_of_memory = False
        self._num_steps = 0
        self._prompt_tokens_computed = 0
        self._output_tokens = 0

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def add_request(self, request: GenerationRequest) -> None:
        """Queues a request for the next step.

        Raises:
            InvalidRequestError: empty prompt, token ids outside the vocabulary, id in use,
                sampling parameters that contradict each other.
            PromptTooLongError: it can never fit.
        """
        self._check(request)
        sequences = self._make_sequences(request)
        self._scheduler.add(sequences)
        params = request.sampling_params
        self._running[request.request_id] = _Running(
            request=request,
            arrived_at=self._clock(),
            completions=[
                _Completion(
                    sequence,
                    IncrementalDetokenizer(
                        self._tokenizer,
                        request.prompt_token_ids,
                        stop=params.stop,
                        min_tokens=params.min_tokens,
                        include_stop_str_in_output=params.include_stop_str_in_output,
                    ),
                )
                for sequence in sequences
            ],
            num_unfinished=len(sequences),
        )

    def abort(self, request_id: str) -> list[GenerationDelta]:
        """Ends a request from any state and frees its blocks; unknown ids are ignored."""
        running = self._running.pop(request_id, None)
        if running is None:
            return []
        for sequence in self._scheduler.abort(request_id):
            self._runner.release(sequence)
        return [
            self._last_delta(running, completion, FinishReason.ABORT)
            for completion in running.completions
        ]

    def fail_all(self, error: Exception) -> list[GenerationDelta]:
        """Ends every request with an error and forgets all cached blocks.

        After a failed step the cache may hold blocks that were only half written.
        """
        self._ahead = self._busy_since = None
        self._busy_work = 0.0
        deltas: list[GenerationDelta] = []
        for request_id in tuple(self._running):
            deltas += self._fail(request_id, error)
        self._block_manager.reset_prefix_cache()
        return deltas

    def switch_runner(self, runner: Runner) -> None:
        """Goes on with another runner from the next step; its KV cache holds nothing yet.

        Whoever runs is preempted and computes its tokens anew, so no token is lost or chosen again.

        Args:
            runner: of the same model; its blocks have the same numbers and sizes in tokens.
        """
        assert self._ahead is None, "a step runs on the present runner"
        for sequence in self._scheduler.preempt_all():
            self._runner.release(sequence)
        self._block_manager.reset_prefix_cache()
        self._runner = runner
        self._launcher = runner if isinstance(runner, LaunchingRunner) else None

    def close(self) -> None:
        """Gives back the model's memory; no step may follow."""
        self._runner.close()

    def step(self) -> list[GenerationDelta]:
        """Schedules, runs and samples one batch.

        Where the runner's device chooses tokens by itself, the next step is begun before this
        one's tokens are read: the device goes on while the host does the rest.

        A step that finds no memory is tried once more in a smaller size; then the requests that
        asked for it fail, and the others go on.

        Raises:
            DeviceLostError: nothing can be computed any more.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is not None and not all(one.sequence.is_finished for one in ahead[0].sequences):
            batch, launched = ahead
            return self._compute(batch, lambda: self._await(batch, launched))
        batch = self._scheduler.schedule()
        for sequence in (*batch.preempted, *batch.finished):
            self._runner.release(sequence)
        deltas = [self._end_of_pool(sequence) for sequence in batch.finished]
        if not batch.sequences:
            return deltas
        self._note_scheduled(batch)
        if self._busy_since is None:
            self._busy_since = self._clock()
        return deltas + self._compute(batch, lambda: self._execute(batch))

    def _compute(
        self, batch: ScheduledBatch, run: Callable[[], StepOutput]
    ) -> list[GenerationDelta]:
        """Runs a step, and takes in what it gives or what it lacks."""
        try:
            output = run()
        except DeviceMemoryError as error:
            return self._do_without(batch, error)
        self._is_short_of_memory = False
        return self._take(batch, output)

    def _execute(self, batch: ScheduledBatch) -> StepOutput:
        begun = None if self._launcher is None else self._launcher.launch(batch)
        return self._runner.execute(batch) if begun is None else self._await(batch, begun)

    def _await(self, batch: ScheduledBatch, launched: LaunchedStep) -> StepOutput:
        """Begins the step after a launched one, if it can be planned, then waits for this one."""
        assert self._launcher is not None
        following = self._scheduler.schedule_following(batch, self._launcher.suits)
        if following is not None:
            try:
                self._ahead = following, self._launcher.launch_following(following)
                self._note_scheduled(following)
            except DeviceMemoryError as error:
                # The step that runs is not touched by it.
                self._make_room(following, error)
        return launched.result()

    def _do_without(self, batch: ScheduledBatch, error: DeviceMemoryError) -> list[GenerationDelta]:
        """After a step that found no memory: tries once more, then fails who asked for it."""
        was_short, self._is_short_of_memory = self._is_short_of_memory, True
        self._make_room(batch, error)
        if not was_short:
            return []
        self._is_short_of_memory = False
        asking = _asking_for_memory(batch.sequences)
        request_ids = dict.fromkeys(one.sequence.request_id for one in asking)
        return [delta for one in request_ids for delta in self._fail(one, error)]

    def _make_room(self, batch: ScheduledBatch, error: DeviceMemoryError) -> None:
        """Frees what a failed step held; steps with prompts are smaller from now on."""
        logger.warning("A step of %d tokens found no memory: %s", batch.num_tokens, error)
        self._ahead = self._busy_since = None
        self._busy_work = 0.0
        self._runner.recover([item.sequence for item in batch.sequences])
        if any(item.num_tokens > 1 for item in batch.sequences):
            self._scheduler.pace.lower(batch.num_tokens // 2)

    def _fail(self, request_id: str, error: Exception) -> list[GenerationDelta]:
        running = self._running.pop(request_id)
        for sequence in self._scheduler.abort(request_id):
            self._runner.release(sequence)
        return [
            self._last_delta(running, completion, FinishReason.ERROR, error=error)
            for completion in running.completions
        ]

    def _take(self, batch: ScheduledBatch, output: StepOutput) -> list[GenerationDelta]:
        """Hands out what a step computed."""
        self._note_pace(batch, output)
        self._scheduler.update(batch, output.tokens)
        self._num_steps += 1
        deltas = []
        for scheduled in batch.sequences:
            if scheduled.sequence.is_finished:  # it ended while the step ran
                continue
            delta = self._advance(scheduled, output)
            if delta is not None:
                deltas.append(delta)
        return deltas

    def _note_pace(self, batch: ScheduledBatch, output: StepOutput) -> None:
        """Measures steps by when their tokens come: one without any may not be over yet."""
        if batch.num_tokens > len(batch.sequences):
            self._busy_work += self._scheduler.pace.work(batch)
        if not output.tokens or self._busy_since is None:
            return
        now = self._clock()
        self._scheduler.pace.note(self._busy_work, now - self._busy_since)
        self._busy_work = 0.0
        self._busy_since = None if self._ahead is None else now

    def stats(self) -> EngineStats:
        blocks = self._block_manager
        return EngineStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            num_blocks=blocks.num_blocks - 1,
            num_used_blocks=blocks.num_used_blocks,
            num_cached_blocks=blocks.num_cached_blocks,
            block_size=blocks.block_size,
            prefix_queried_tokens=blocks.num_queried_tokens,
            prefix_hit_tokens=blocks.num_hit_tokens,
            num_steps=self._num_steps,
            prompt_tokens_computed=self._prompt_tokens_computed,
            output_tokens=self._output_tokens,
        )

    def _check(self, request: GenerationRequest) -> None:
        vocab_size = self._tokenizer.vocab_size
        if request.request_id in self._running:
            raise InvalidRequestError(f"Request id {request.request_id!r} is in use.")
        if not request.prompt_token_ids:
            raise InvalidRequestError(
                "The prompt is empty.", hint="Give it at least one token.", field="prompt"
            )
        _check_token_ids("prompt_token_ids", request.prompt_token_ids, vocab_size)
        params = request.sampling_params
        _check_token_ids("logit_bias", params.logit_bias, vocab_size)
        _check_token_ids("stop_token_ids", params.stop_token_ids, vocab_size)
        _check_token_ids("allowed_token_ids", params.allowed_token_ids or (), vocab_size)

    def _make_sequences(self, request: GenerationRequest) -> list[TokenSequence]:
        params = request.sampling_params
        seed = secrets.randbits(63) if params.seed is None else params.seed
        token_rules = make_token_rules(params, self._tokenizer)
        sequences = []
        for index in range(params.n):
            sequences.append(
                TokenSequence(
                    self._next_sequence_id,
                    request.request_id,
                    index,
                    request.prompt_token_ids,
                    params,
                    seed=_completion_seed(seed, index),
                    priority=request.priority,
                    cache_salt=request.cache_salt,
                    use_prefix_cache=params.prompt_logprobs is None,
                    token_rules=token_rules,
                )
            )
            self._next_sequence_id += 1
        return sequences

    def _note_scheduled(self, batch: ScheduledBatch) -> None:
        now = self._clock()
        for scheduled in batch.sequences:
            running = self._running[scheduled.sequence.request_id]
            if running.first_scheduled_at is None:
                running.first_scheduled_at = now
            computed_before = scheduled.start
            prompt_left = scheduled.sequence.num_prompt_tokens - computed_before
            self._prompt_tokens_computed += max(0, min(prompt_left, scheduled.num_tokens))

    def _advance(self, scheduled: ScheduledSequence, output: StepOutput) -> GenerationDelta | None:
        """Takes over what the step computed for one sequence; None while it is still prefilling."""
        sequence = scheduled.sequence
        running = self._running[sequence.request_id]
        completion = running.completions[sequence.index]
        if sequence.index == 0 and sequence.sequence_id in output.prompt_logprobs:
            # By position, not appended: after a preemption the prompt is computed once more.
            running.prompt_logprobs[scheduled.start :] = output.prompt_logprobs[
                sequence.sequence_id
            ]
        token_id = output.tokens.get(sequence.sequence_id)
        if token_id is None:
            return None
        self._output_tokens += 1
        is_first = completion.first_token_at is None
        if is_first:
            completion.first_token_at = self._clock()
        # A stop token ends the answer; it is counted and reported, but its text is not shown.
        stop_token = self._stop_token(sequence, token_id)
        text = "" if stop_token else completion.detokenizer.push(token_id)
        reason = FinishReason.STOP if stop_token else self._finish_reason(sequence, completion)
        logprob = output.logprobs.get(sequence.sequence_id)
        delta = GenerationDelta(
            request_id=sequence.request_id,
            index=sequence.index,
            token_ids=(token_id,),
            text=text,
            logprobs=None if logprob is None else (logprob,),
            prompt_logprobs=_prompt_logprobs(running) if is_first and sequence.index == 0 else None,
        )
        if reason is None:
            return delta
        self._scheduler.finish(sequence, reason)
        self._runner.release(sequence)
        is_listed = token_id in sequence.sampling_params.stop_token_ids
        stop_reason = token_id if stop_token and is_listed else completion.detokenizer.stopped_by
        return self._last_delta(running, completion, reason, after=delta, stop_reason=stop_reason)

    def _stop_token(self, sequence: TokenSequence, token_id: int) -> bool:
        params = sequence.sampling_params
        if sequence.num_output_tokens <= params.min_tokens:
            return False
        if token_id in params.stop_token_ids:
            return True
        return not params.ignore_eos and token_id in self._tokenizer.stop_token_ids

    def _finish_reason(
        self, sequence: TokenSequence, completion: _Completion
    ) -> FinishReason | None:
        if completion.detokenizer.stopped_by is not None:
            return FinishReason.STOP
        limit = sequence.sampling_params.max_tokens
        if limit is not None and sequence.num_output_tokens >= limit:
            return FinishReason.LENGTH
        if sequence.num_tokens >= self._max_model_len:
            return FinishReason.LENGTH
        return None

    def _end_of_pool(self, sequence: TokenSequence) -> GenerationDelta:
        """A sequence that has the whole KV pool for itself and needs more ends here."""
        running = self._running[sequence.request_id]
        completion = running.completions[sequence.index]
        return self._last_delta(running, completion, FinishReason.LENGTH)

    def _last_delta(
        self,
        running: _Running,
        completion: _Completion,
        reason: FinishReason,
        *,
        after: GenerationDelta | None = None,
        stop_reason: str | int | None = None,
        error: Exception | None = None,
    ) -> GenerationDelta:
        """The delta that ends a completion: what the step added plus the text held back."""
        running.num_unfinished -= 1
        if running.num_unfinished == 0:
            self._running.pop(running.request.request_id, None)
        sequence = completion.sequence
        before = after.text if after is not None else ""
        return GenerationDelta(
            request_id=sequence.request_id,
            index=sequence.index,
            token_ids=after.token_ids if after is not None else (),
            text=before + completion.detokenizer.finish(),
            logprobs=after.logprobs if after is not None else None,
            prompt_logprobs=after.prompt_logprobs if after is not None else None,
            finish_reason=reason,
            stop_reason=stop_reason,
            metrics=self._metrics(running, completion),
            error=error,
        )

    def _metrics(self, running: _Running, completion: _Completion) -> RequestMetrics:
        now = self._clock()
        sequence = completion.sequence
        scheduled_at = running.first_scheduled_at if running.first_scheduled_at is not None else now
        first_at = completion.first_token_at if completion.first_token_at is not None else now
        return RequestMetrics(
            prompt_tokens=sequence.num_prompt_tokens,
            cached_tokens=sequence.num_cached_tokens,
            output_tokens=sequence.num_output_tokens,
            queue_s=scheduled_at - running.arrived_at,
            time_to_first_token_s=first_at - running.arrived_at,
            total_s=now - running.arrived_at,
        )


def _prompt_logprobs(running: _Running) -> tuple[TokenLogprob | None, ...] | None:
    """One entry per prompt token; nothing comes before the first."""
    if running.request.sampling_params.prompt_logprobs is None:
        return None
    return (None, *running.prompt_logprobs[: len(running.request.prompt_token_ids) - 1])


def _asking_for_memory(scheduled: Sequence[ScheduledSequence]) -> Sequence[ScheduledSequence]:
    """Who needs more than a token's step does: prompts, or else special sampling, or else all."""
    live = [item for item in scheduled if not item.sequence.is_finished]
    prompts = [item for item in live if item.num_tokens > 1]
    return prompts or [item for item in live if not item.sequence.is_plain] or live


def _completion_seed(seed: int, index: int) -> int:
    """The first completion keeps the request's seed; the others are derived from it."""
    if index == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _check_token_ids(name: str, token_ids: Collection[int], vocab_size: int) -> None:
    # Both at the speed of C: a prompt may have a hundred thousand tokens.
    if not token_ids or (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        return
    outside = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
    raise InvalidRequestError(
        f"{name} holds {outside}; this model's token ids go from 0 to {vocab_size - 1}.",
        field=name,
    )
