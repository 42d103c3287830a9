"""The program as an agent."""

from __future__ import annotations

import ctypes
import enum
import os
import socket
from typing import Any, BinaryIO, Callable, Optional, Protocol, Union

from . import _library
from ._arguments import Function, Signature
from ._errors import Stopped
from ._library import call, checked
from ._work import Gate, Intake


class HasDescriptor(Protocol):
    """A file, a socket: what has a descriptor."""

    def fileno(self) -> int: ...


class Demand(enum.IntEnum):
    """What is asked of a running operation."""

    NOTHING = 0
    FINISH = 1
    CHECKPOINT = 2
    CANCEL = 3


class Stop(enum.IntEnum):
    """Why Agent.wait came back."""

    TERMINATED = 1
    STUB_GONE = 2


class Operations:
    """What the library calls, from threads of its own. Whatever is not written does nothing.

    An exception is an answer: what follows from it stands with each.
    """

    #: The schemas in which save_state can write; None is the newest one of this version's record.
    writes_schemas: Optional[tuple[int, int]] = None

    def quiesce(self, within: float) -> None:
        """A change-over is next: begin nothing more of your own, finish within so many seconds, come back."""

    def resume(self) -> None:
        """The change-over did not come about: go on."""

    def save_state(self, schema: int) -> bytes:
        """The state for the next version. An exception: the change-over does not come about."""
        return b""

    def restore_state(self, schema: int, state: bytes) -> None:
        """Takes over what the version before saved. An exception: this version fails, the one before returns."""

    def save_state_to(self, schema: int, file: BinaryIO) -> None:
        """As save_state, and called in its place where it is written: for a state of any size, into a memory file. Nothing
        may have the file mapped for writing when this comes back."""

    def restore_state_from(self, schema: int, file: BinaryIO) -> None:
        """As restore_state, and called in its place where it is written, however the state was saved: out of a memory file
        that nobody can change, and that may be mapped for reading. It is closed when this comes back."""

    def healthy(self) -> None:
        """Returns if the program is fit to work. An exception says why it is not; it is asked again."""

    def confirmed(self) -> None:
        """This version has proved itself and is believed."""


class Context:
    """What a running operation may use."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    @property
    def job(self) -> int:
        """The manager's number of the job."""
        return int(call("job", self._handle))

    @property
    def demand(self) -> Demand:
        """What is asked of the operation. Cheap; ask often."""
        return Demand(call("demand", self._handle))

    @property
    def resumed(self) -> Optional[bytes]:
        """The last checkpoint of an earlier call, perhaps of another version."""
        length = ctypes.c_size_t()
        state = call("resume", self._handle, ctypes.byref(length))
        return ctypes.string_at(state, length.value) if state else None

    def go_on(self) -> None:
        """At every unit boundary: returns, or raises Stopped for a cancel, or to go on under the next version."""
        if self.demand >= Demand.CHECKPOINT:
            raise Stopped

    def checkpoint(self, state: bytes) -> None:
        """Makes this durable as the place from which the operation goes on."""
        checked("checkpoint", self._handle, state, len(state))

    def units(self, done: int, units: int, now: str = "") -> None:
        """So many units of so many are done, and what is being done."""
        call("units", self._handle, done, units, _text(now))

    def problem(self, problem: object) -> None:
        """An error that was passed over: the job is then done with problems."""
        call("problem", self._handle, _text(problem))


class Agent:
    """A program that changes its own version. Make it first, before anything that opens descriptors, and once."""

    def __init__(self) -> None:
        self._handle: int = checked("open")
        # What the library calls must live as long as it may.
        self._kept_alive: list[Any] = []

    def take(self, name: str) -> Optional[int]:
        """A duplicate of the descriptor that is kept under this name, which is the caller's; None where nothing is."""
        descriptor = int(call("take", self._handle, _text(name)))
        return None if descriptor < 0 else descriptor

    def keep(self, name: str, descriptor: Union[int, HasDescriptor]) -> None:
        """Keeps a duplicate under this name, over change-overs in both directions and crashes."""
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        checked("keep", self._handle, _text(name), number)

    def forget(self, name: str) -> None:
        """Closes what is kept under a name; what was taken stays open."""
        call("forget", self._handle, _text(name))

    def listen_tcp(self, name: str, address: Union[str, tuple[str, int]]) -> socket.socket:
        """The listener of this name, bound to an address if nobody had it yet, and kept."""
        if not isinstance(address, str):
            host, port = address
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        descriptor = checked("listen_tcp", self._handle, _text(name), _text(address))
        return socket.socket(fileno=descriptor)

    def gate(self) -> Gate:
        """A gate that is closed at every change-over. Before start."""
        return Gate(checked("gate_new", self._handle))

    def intake(self, listener: socket.socket) -> Intake:
        """Connections for threads. Before start; the socket is the intake's from now on."""
        return Intake(checked("intake_new", self._handle, listener.detach()))

    def on(self, kind: str, function: Function) -> None:
        """Registers an operation of the program's own: `job run PRODUCT KIND --arg NAME=VALUE`. Before start.

        The function gets a Context, and the arguments as its annotations say; what it returns is what it did.
        """
        signature = Signature(function)
        run = _library.Run(lambda _user, context, why: _performed(function, signature, context, why))
        names = (ctypes.c_char_p * (len(signature.names) + 1))(*map(_text, signature.names), None)
        checked("on", self._handle, _text(kind), names, run, None)
        self._kept_alive.append(run)

    def start(self, operations: Optional[Operations] = None) -> None:
        """Serves the manager. From now on SIGTERM is the library's: wait tells; set no handler for it."""
        operations = operations or Operations()
        table = _table(operations)
        self._kept_alive.append(table)
        checked("start", self._handle, ctypes.byref(table))

    @property
    def version(self) -> str:
        """The version that runs. After start."""
        version: Optional[bytes] = call("version", self._handle)
        return (version or b"").decode()

    def remark(self, line: str) -> None:
        """What the program adds to the reason that `status` shows. After start."""
        call("remark", self._handle, _text(line))

    def wait(self) -> Stop:
        """Waits until the program is to end, and quiesces it. Exit with 0 after it."""
        why = ctypes.c_int32()
        checked("wait", self._handle, ctypes.byref(why))
        return Stop(why.value)


def _text(value: object) -> bytes:
    # A NUL would end the text for the library.
    return str(value).replace("\0", " ").encode("utf-8", "replace")


def _write(answer: int, data: bytes) -> None:
    call("answer_write", answer, data, len(data))


def _answered(why: int, work: Callable[[], Any]) -> int:
    """0, or 1 with the exception's words: nothing is raised through the library."""
    try:
        work()
        return 0
    except BaseException as fault:
        _write(why, _text(f"{type(fault).__name__}: {fault}"))
        return 1


def _performed(function: Function, signature: Signature, handle: int, why: int) -> int:
    stopped = False

    def work() -> None:
        nonlocal stopped
        arguments = {name: call("argument", handle, _text(name)) for name in signature.names}
        given = {name: text.decode() for name, text in arguments.items() if text is not None}
        try:
            results = function(Context(handle), **signature.read(given))
        except Stopped:
            stopped = True
            return
        for name, value in (results or {}).items():
            call("result", handle, _text(name), _text(value))

    ended = _answered(why, work)
    return -1 if stopped else ended


def _table(operations: Operations) -> _library.Operations:
    def save(_user: int, schema: int, answer: int) -> int:
        state = b""

        def work() -> None:
            nonlocal state
            state = bytes(operations.save_state(schema))

        ended = _answered(answer, work)
        if ended == 0:
            _write(answer, state)
        return ended

    def restore(_user: int, schema: int, state: Any, length: int, why: int) -> int:
        return _answered(why, lambda: operations.restore_state(schema, ctypes.string_at(state, length)))

    def save_to(_user: int, schema: int, file: int, why: int) -> int:
        def work() -> None:
            with os.fdopen(file, "r+b") as stream:
                operations.save_state_to(schema, stream)

        return _answered(why, work)

    def restore_from(_user: int, schema: int, file: int, why: int) -> int:
        def work() -> None:
            with os.fdopen(file, "rb") as stream:
                operations.restore_state_from(schema, stream)

        return _answered(why, work)

    functions: dict[str, Any] = {
        "quiesce": lambda _user, within, why: _answered(why, lambda: operations.quiesce(within / 1000)),
        "resume": lambda _user, why: _answered(why, operations.resume),
        "save_state": save,
        "restore_state": restore,
        "healthy": lambda _user, why: _answered(why, operations.healthy),
        "confirmed": lambda _user: operations.confirmed(),
        "save_state_to": save_to,
        "restore_state_from": restore_from,
    }
    table = _library.Operations(size=ctypes.sizeof(_library.Operations))
    for field in _library.Operations._fields_:
        name, kind = field[0], field[1]
        # What the program did not write is not called.
        if name in functions and getattr(type(operations), name) is not getattr(Operations, name):
            setattr(table, name, kind(functions[name]))
    if operations.writes_schemas is not None:
        table.writes_min, table.writes_max = operations.writes_schemas
    return table
