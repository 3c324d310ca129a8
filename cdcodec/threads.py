"""Two ends of a pipeline in threads: a source that runs ahead, a sink that runs behind. Standard library only."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")

_END = object()


class Source(Generic[Item]):
    """Iterates over `items`, which a thread takes from their iterator, at most `ahead` of them waiting.

    What the iterator raises is raised here, in its place.
    """

    def __init__(self, items: Iterable[Item], ahead: int) -> None:
        self._queue: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(ahead)
        self._stopped = threading.Event()
        threading.Thread(target=self._run, args=(items,), daemon=True, name="source").start()

    def __iter__(self) -> Iterator[Item]:
        while True:
            item, error = self._queue.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item

    def stop(self) -> None:
        """No more items are wanted. Does not wait: the thread may hang in a read."""
        self._stopped.set()

    def _run(self, items: Iterable[Item]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
            self._put(_END)
        except BaseException as error:
            self._put(None, error)

    def _put(self, item: Any, error: BaseException | None = None) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False


class Sink(Generic[Item]):
    """Hands items to `take` in a thread, in order, at most `behind` of them waiting.

    What `take` raises is raised by the next put or by close, and later items are dropped.
    """

    def __init__(self, take: Callable[[Item], None], behind: int) -> None:
        self._take = take
        self._error: BaseException | None = None
        self._queue: queue.Queue[Any] = queue.Queue(behind)
        self._thread = threading.Thread(target=self._run, daemon=True, name="sink")
        self._thread.start()

    def put(self, item: Item) -> None:
        self._check()
        self._queue.put(item)

    def close(self) -> None:
        """Wait until all items are taken."""
        self._queue.put(_END)
        self._thread.join()
        self._check()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (item := self._queue.get()) is not _END:
            if self._error is None:
                try:
                    self._take(item)
                except BaseException as error:
                    self._error = error
