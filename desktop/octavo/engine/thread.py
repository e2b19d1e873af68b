"""`EngineThread`: runs an engine on its own thread; `generate` is the async door to it.

Commands go in through one queue; what a step produced goes out with one `call_soon_threadsafe` per
listening event loop. Nothing else is shared, so that the engine can move into a process.
"""

import asyncio
import contextlib
import logging
import queue
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from octavo.engine.load_report import LoadReport
from octavo.engine.request import EngineStats, FinishReason, GenerationDelta, GenerationRequest
from octavo.errors import DeviceLostError, EngineClosedError, EngineError, OctavoError
from octavo.jobs import JobCancelled, JobControl

if TYPE_CHECKING:
    from octavo.engine.engine import Upgrade

logger = logging.getLogger(__name__)

ENGINE_THREAD = "octavo-engine"
"""Name of the threads that step engines."""

_T = TypeVar("_T")


class SteppedEngine(Protocol):
    """What the thread needs of an `Engine`."""

    @property
    def has_work(self) -> bool: ...
    def add_request(self, request: GenerationRequest) -> None: ...
    def abort(self, request_id: str) -> list[GenerationDelta]: ...
    def fail_all(self, error: Exception) -> list[GenerationDelta]: ...
    def step(self) -> list[GenerationDelta]: ...
    def stats(self) -> EngineStats: ...
    def close(self) -> None: ...


@runtime_checkable
class UpgradableEngine(SteppedEngine, Protocol):
    """An engine that may have a faster way to compute in the making."""

    upgrade: "Upgrade | None"


MakeEngine = Callable[[JobControl], tuple[SteppedEngine, LoadReport]]


@dataclass(frozen=True, slots=True)
class _Add:
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


@dataclass(frozen=True, slots=True)
class _Upgrade:
    """What was prepared beside the engine is ready, or failed."""

    upgrade: "Upgrade"
    error: OctavoError | None


@dataclass(frozen=True, slots=True)
class _Close:
    pass


@dataclass(slots=True, eq=False)
class _Listener:
    """The stream of one request, in the event loop that asked for it."""

    loop: asyncio.AbstractEventLoop
    inbox: asyncio.Queue[GenerationDelta] = field(default_factory=asyncio.Queue)


class EngineThread:
    """Owns a thread that makes an engine, steps it while there is work, and sleeps otherwise."""

    def __init__(
        self,
        make_engine: MakeEngine,
        *,
        on_lost: Callable[[DeviceLostError], None] = lambda _: None,
    ) -> None:
        """Args:
        make_engine: loads the engine, on the engine thread; reports progress, may be cancelled.
        on_lost: called in the loop of `load` if the engine ends because its device failed.
        """
        self._make_engine = make_engine
        self._on_lost = on_lost
        self._commands: queue.SimpleQueue[_Add | _Abort | _Upgrade | _Close] = queue.SimpleQueue()
        self._listeners: dict[str, _Listener] = {}
        self._lock = threading.Lock()
        self._is_open = False
        self._stats = EngineStats()
        # Daemon: a kernel that never returns must not keep the app from closing.
        self._thread = threading.Thread(target=self._run, name=ENGINE_THREAD, daemon=True)
        self._upgrading: threading.Thread | None = None
        self._control = JobControl()
        self._on_report: Callable[[LoadReport], None] = lambda _report: None
        self._loaded: asyncio.Future[LoadReport] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def stats(self) -> EngineStats:
        """The state after the latest step."""
        return self._stats

    async def load(
        self, control: JobControl, on_report: Callable[[LoadReport], None] | None = None
    ) -> LoadReport:
        """Starts the thread and waits until the engine can take requests.

        Args:
            control: of the load, and of what is prepared beside the engine afterwards.
            on_report: called in this event loop with a report that replaces the one returned, when
                the engine has gone over to something faster, or will not.

        Raises:
            OctavoError: what stood in the way. JobCancelled: `control` was cancelled.
        """
        self._control = control
        self._on_report = on_report or self._on_report
        self._loop = asyncio.get_running_loop()
        self._loaded = self._loop.create_future()
        self._thread.start()
        try:
            return await self._loaded
        except asyncio.CancelledError:
            self.stop()
            raise

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        """Streams a request's deltas until each of its n completions has ended.

        Leave it through `contextlib.aclosing`: leaving early aborts the request.

        Raises:
            OctavoError: the request was refused, or the engine failed under it.
            EngineClosedError: the engine is closed or closes meanwhile.
        """
        listener = _Listener(asyncio.get_running_loop())
        with self._lock:
            if not self._is_open:
                raise EngineClosedError("No model is loaded.", hint="Load one first.")
            self._listeners[request.request_id] = listener
        self._commands.put(_Add(request))
        num_unfinished = request.sampling_params.n
        try:
            while num_unfinished:
                delta = await listener.inbox.get()
                if delta.error is not None:
                    num_unfinished = 0
                    raise delta.error
                if delta.finish_reason is not None:
                    num_unfinished -= 1
                yield delta
        finally:
            with self._lock:
                self._listeners.pop(request.request_id, None)
            if num_unfinished:
                self._commands.put(_Abort(request.request_id))

    def abort(self, request_id: str) -> None:
        """Ends a request from outside its stream; the stream gets its last deltas."""
        self._commands.put(_Abort(request_id))

    def stop(self) -> None:
        """Asks the thread to end, also in the middle of a load, and does not wait."""
        self._control.cancel()
        self._commands.put(_Close())

    async def close(self, timeout_s: float = 5.0) -> bool:
        """Ends all requests and the thread; False if it did not come back in time."""
        self.stop()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            engine, report = self._make_engine(self._control)
        except Exception as error:  # noqa: BLE001  (one of the app's three catch-alls)
            self._post_loaded(_as_octavo_error(error, "The model could not be loaded"))
            return
        with self._lock:
            self._is_open = True
        self._stats = engine.stats()
        self._post_loaded(report)
        lost: DeviceLostError | None = None
        if isinstance(engine, UpgradableEngine) and engine.upgrade is not None:
            self._begin_upgrade(engine.upgrade)
            engine.upgrade = None
        while self._obey(engine):
            try:
                deltas = engine.step()
            except DeviceLostError as error:
                logger.exception("The device is lost")
                lost = error
                self._control.cancel()
                break
            except Exception as error:
                logger.exception("A step failed")
                deltas = engine.fail_all(_as_octavo_error(error, "The engine failed"))
            self._stats = engine.stats()
            self._publish(deltas)
        if self._upgrading is not None:
            # It asks the control, which `stop` has cancelled, several times a second.
            self._upgrading.join()
        with self._lock:
            self._is_open = False
        closed = lost or EngineClosedError("The model was unloaded.", hint="Load it and try again.")
        self._publish(engine.fail_all(closed))
        self._publish(
            GenerationDelta(request_id=request_id, finish_reason=FinishReason.ERROR, error=closed)
            for request_id in tuple(self._listeners)
        )
        if lost is None:
            engine.close()
        else:
            self._post(self._on_lost, lost)

    def _obey(self, engine: SteppedEngine) -> bool:
        """Takes the waiting commands and sleeps while there is no work; False: close."""
        while True:
            try:
                command = self._commands.get(block=not engine.has_work)
            except queue.Empty:
                return True
            match command:
                case _Add(request):
                    self._add(engine, request)
                case _Abort(request_id):
                    self._publish(engine.abort(request_id))
                    self._stats = engine.stats()
                case _Upgrade(upgrade, error):
                    self._finish_upgrade(upgrade, error)
                case _Close():
                    return False

    def _begin_upgrade(self, upgrade: "Upgrade") -> None:
        def prepare() -> None:
            error: OctavoError | None = None
            try:
                upgrade.prepare(self._control)
            except JobCancelled:
                return
            except Exception as raised:
                logger.exception("What was to make the engine faster failed")
                error = _as_octavo_error(raised, "Something faster could not be prepared")
            self._commands.put(_Upgrade(upgrade, error))

        self._upgrading = threading.Thread(target=prepare, name="octavo-upgrade", daemon=True)
        self._upgrading.start()

    def _finish_upgrade(self, upgrade: "Upgrade", error: OctavoError | None) -> None:
        assert self._loop is not None
        report = upgrade.apply() if error is None else upgrade.give_up(error)
        logger.info("From now on %s computes. %s", report.executor, report.executor_reason)
        with contextlib.suppress(RuntimeError):  # the loop has closed
            self._loop.call_soon_threadsafe(self._on_report, report)

    def _add(self, engine: SteppedEngine, request: GenerationRequest) -> None:
        try:
            engine.add_request(request)
        except OctavoError as error:
            self._publish(
                [GenerationDelta(request.request_id, finish_reason=FinishReason.ERROR, error=error)]
            )

    def _publish(self, deltas: Iterable[GenerationDelta]) -> None:
        """One post per listening loop, whatever the number of deltas."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Listener, GenerationDelta]]]
        by_loop = defaultdict(list)
        with self._lock:
            for delta in deltas:
                if (listener := self._listeners.get(delta.request_id)) is not None:
                    by_loop[listener.loop].append((listener, delta))
        for loop, items in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver, items)
            except RuntimeError:
                # The loop has closed: nobody will leave these streams, so they are ended here.
                with self._lock:
                    for _, delta in items:
                        self._listeners.pop(delta.request_id, None)
                for request_id in {delta.request_id for _, delta in items}:
                    self._commands.put(_Abort(request_id))

    def _post_loaded(self, outcome: LoadReport | OctavoError) -> None:
        self._post(self._resolve_loaded, outcome)

    def _post(self, call: Callable[[_T], None], argument: _T) -> None:
        """Calls something in the loop that loaded the model."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # that loop has closed meanwhile
            self._loop.call_soon_threadsafe(call, argument)

    def _resolve_loaded(self, outcome: LoadReport | OctavoError) -> None:
        assert self._loaded is not None
        if self._loaded.done():
            return
        if isinstance(outcome, OctavoError):
            self._loaded.set_exception(outcome)
        else:
            self._loaded.set_result(outcome)


def _deliver(items: list[tuple[_Listener, GenerationDelta]]) -> None:
    for listener, delta in items:
        listener.inbox.put_nowait(delta)


def _as_octavo_error(error: Exception, what: str) -> OctavoError:
    if isinstance(error, OctavoError):
        return error
    wrapped = EngineError(
        f"{what}: {type(error).__name__}: {error}.",
        hint="The log has the details. Try again, or load the model anew.",
    )
    wrapped.__cause__ = error
    return wrapped
