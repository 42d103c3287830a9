"""What is under way, for a change-over to wait for."""

from __future__ import annotations

import ctypes
import socket
import threading
from contextlib import contextmanager
from types import TracebackType
from typing import Iterator, Optional

from ._library import call, checked


class Pass:
    """Something is under way until this is left. Usable in a `with` statement."""

    def __init__(self, handle: int) -> None:
        self._handle: Optional[int] = handle
        self._lock = threading.Lock()

    def is_wanted_back(self) -> bool:
        """Whether a change-over waits for this: finish what was begun, and begin nothing more."""
        with self._lock:
            return self._handle is not None and bool(call("is_wanted_back", self._handle))

    def leave(self) -> None:
        """What was under way is done. A second call does nothing."""
        with self._lock:
            handle, self._handle = self._handle, None
        if handle is not None:
            call("leave", handle)

    def __enter__(self) -> Pass:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.leave()


class Gate:
    """Counts what is under way, and lets nothing new begin while a change-over is."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def enter(self) -> Pass:
        """Waits while a change-over is under way. For threads; a coroutine uses try_enter."""
        return Pass(call("enter", self._handle))

    def try_enter(self) -> Optional[Pass]:
        """As enter, without waiting: None while a change-over is under way."""
        handle = call("try_enter", self._handle)
        return None if handle is None else Pass(handle)


class Intake:
    """A listening socket whose connections are counted. Several threads may accept from it."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def accept(self) -> tuple[socket.socket, Pass]:
        """Waits for the next connection. Leave the pass when it was answered and closed."""
        handle = ctypes.c_void_p()
        descriptor = checked("accept", self._handle, ctypes.byref(handle))
        assert handle.value is not None
        return socket.socket(fileno=descriptor), Pass(handle.value)


@contextmanager
def starting_child() -> Iterator[None]:
    """Hold this while starting a child process, so that none is started that a change-over does not know of."""
    permit = call("before_child")
    try:
        yield
    finally:
        call("after_child", permit)
