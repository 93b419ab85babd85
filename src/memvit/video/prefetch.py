"""Run an iterator ahead of its consumer in a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

JOIN_TIMEOUT_S = 5.0


class Channel(Generic[T]):
    """A bounded queue from one producer to one consumer, either of which may end it.

    Args:
        max_items: room for this many items, at least 1.
    """

    def __init__(self, max_items: int) -> None:
        if max_items < 1:
            raise ValueError(f"max_items={max_items} leaves no room in the queue: give at least 1")
        self._max_items = max_items
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._finished = False
        self._closed = False
        self._error: BaseException | None = None

    def put(self, item: T) -> bool:
        """Append an item, waiting for room. ``False`` when the consumer has closed the channel."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._max_items)
            return self._append(item)

    def put_newest(self, item: T) -> int:
        """Append an item without waiting; returns how many of the oldest had to be dropped to make room."""
        with self._changed:
            num_dropped = 0
            while len(self._items) >= self._max_items:
                self._items.popleft()
                num_dropped += 1
            self._append(item)
            return num_dropped

    def _append(self, item: T) -> bool:
        if self._closed:
            return False
        self._items.append(item)
        self._changed.notify_all()
        return True

    def finish(self, error: BaseException | None = None) -> None:
        """Say that no more items come; the consumer meets ``error`` after the last one."""
        with self._changed:
            self._finished, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """Forget what is queued; the consumer's iteration ends and the producer is told to stop."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether the consumer has gone."""
        return self._closed

    def wait_closed(self, timeout_s: float) -> bool:
        """Sleep for ``timeout_s`` or until the channel is closed; returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed, timeout_s)

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._finished or bool(self._items))
                if self._closed:
                    return
                if not self._items:
                    error, self._error = self._error, None
                    if error is not None:
                        raise error
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item


class Prefetcher(Generic[T]):
    """Iterate over ``iterable`` while a thread prepares the next items.

    An exception of the iterable is raised where it happened: after the items before it. Every iteration runs its own
    thread, which ends with it: when the items are used up, when the consumer leaves the loop, or at :meth:`close`.
    Generators are closed in the thread that ran them.

    Args:
        iterable: gives the items; used by one thread at a time.
        max_items: how many finished items may wait for the consumer.
    """

    def __init__(self, iterable: Iterable[T], max_items: int = 8) -> None:
        self._iterable = iterable
        self._max_items = max_items
        self._passes: list[tuple[Channel[T], threading.Thread]] = []
        if max_items < 1:
            raise ValueError(f"max_items={max_items} leaves no room to work ahead: give at least 1")

    def __iter__(self) -> Iterator[T]:
        channel: Channel[T] = Channel(self._max_items)
        thread = threading.Thread(target=_fill, args=(self._iterable, channel), name="memvit-prefetch", daemon=True)
        self._passes.append((channel, thread))
        thread.start()
        try:
            yield from channel
        finally:
            self._stop(channel, thread)

    def close(self) -> None:
        """End every iteration. Waits for the item in the making; safe to call more than once."""
        for channel, thread in list(self._passes):
            self._stop(channel, thread)

    def _stop(self, channel: Channel[T], thread: threading.Thread) -> None:
        channel.close()
        if thread is not threading.current_thread():
            thread.join(JOIN_TIMEOUT_S)
        if thread.is_alive():
            logger.warning("the source being prefetched does not respond; its thread ends when it does")
        if (channel, thread) in self._passes:
            self._passes.remove((channel, thread))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _fill(iterable: Iterable[T], channel: Channel[T]) -> None:
    """The thread: move items into the channel until either side ends."""
    error: BaseException | None = None
    try:
        items = iter(iterable)
        try:
            for item in items:
                if not channel.put(item):
                    break
        finally:
            close = getattr(items, "close", None)
            # Only what iter() made for this pass is ours to close; an iterator that was passed in belongs to its owner.
            if close is not None and items is not iterable:
                close()
    except BaseException as raised:
        error = raised
    channel.finish(error)
