"""A typed list of callbacks: how a lower part tells a higher one that something changed."""

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Event(Generic[T]):
    """Callbacks in the order they were connected; all calls on the thread that emits."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[T], None]] = []

    def connect(self, callback: Callable[[T], None]) -> Callable[[], None]:
        """Adds a callback and returns the function that removes it again."""
        self._callbacks.append(callback)

        def disconnect() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return disconnect

    def emit(self, value: T) -> None:
        """Calls every callback; one connected or removed meanwhile counts from the next emit."""
        for callback in tuple(self._callbacks):
            callback(value)
