"""The C interface, as `agent_core.h` declares it."""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, POINTER, c_bool, c_char_p, c_int32, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any, Optional

from ._errors import AgentError, Code


class Error(ctypes.Structure):
    _fields_ = [("code", c_int32), ("text", ctypes.c_char * 1020)]

    def raised(self) -> AgentError:
        return AgentError(Code(self.code), self.text.decode("utf-8", "replace"))


bytes_p = POINTER(c_uint8)
error_p = POINTER(Error)

Quiesce = CFUNCTYPE(c_int32, c_void_p, c_uint64, c_void_p)
Resume = CFUNCTYPE(c_int32, c_void_p, c_void_p)
SaveState = CFUNCTYPE(c_int32, c_void_p, c_uint32, c_void_p)
RestoreState = CFUNCTYPE(c_int32, c_void_p, c_uint32, bytes_p, c_size_t, c_void_p)
Healthy = CFUNCTYPE(c_int32, c_void_p, c_void_p)
Confirmed = CFUNCTYPE(None, c_void_p)
OfFile = CFUNCTYPE(c_int32, c_void_p, c_uint32, c_int32, c_void_p)
Run = CFUNCTYPE(c_int32, c_void_p, c_void_p, c_void_p)


class Operations(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t),
        ("user", c_void_p),
        ("writes_min", c_uint32),
        ("writes_max", c_uint32),
        ("quiesce", Quiesce),
        ("resume", Resume),
        ("save_state", SaveState),
        ("restore_state", RestoreState),
        ("healthy", Healthy),
        ("confirmed", Confirmed),
        ("save_state_to", OfFile),
        ("restore_state_from", OfFile),
    ]


# NAME: what it gives, what it takes. A handle is a c_void_p; a test compares this with the header.
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "open": (c_void_p, [error_p]),
    "close": (None, [c_void_p]),
    "take": (c_int32, [c_void_p, c_char_p]),
    "keep": (c_int32, [c_void_p, c_char_p, c_int32, error_p]),
    "forget": (None, [c_void_p, c_char_p]),
    "listen_tcp": (c_int32, [c_void_p, c_char_p, c_char_p, error_p]),
    "intake_new": (c_void_p, [c_void_p, c_int32, error_p]),
    "accept": (c_int32, [c_void_p, POINTER(c_void_p), error_p]),
    "gate_new": (c_void_p, [c_void_p, error_p]),
    "enter": (c_void_p, [c_void_p]),
    "try_enter": (c_void_p, [c_void_p]),
    "is_wanted_back": (c_bool, [c_void_p]),
    "leave": (None, [c_void_p]),
    "before_child": (c_void_p, []),
    "after_child": (None, [c_void_p]),
    "answer_write": (c_int32, [c_void_p, c_char_p, c_size_t]),
    "start": (c_int32, [c_void_p, POINTER(Operations), error_p]),
    "version": (c_char_p, [c_void_p]),
    "remark": (c_int32, [c_void_p, c_char_p]),
    "wait": (c_int32, [c_void_p, POINTER(c_int32), error_p]),
    "on": (c_int32, [c_void_p, c_char_p, POINTER(c_char_p), Run, c_void_p, error_p]),
    "argument": (c_char_p, [c_void_p, c_char_p]),
    "demand": (c_int32, [c_void_p]),
    "job": (c_uint64, [c_void_p]),
    "checkpoint": (c_int32, [c_void_p, c_char_p, c_size_t, error_p]),
    "resume": (bytes_p, [c_void_p, POINTER(c_size_t)]),
    "units": (None, [c_void_p, c_uint32, c_uint32, c_char_p]),
    "result": (c_int32, [c_void_p, c_char_p, c_char_p]),
    "problem": (c_int32, [c_void_p, c_char_p]),
}


def load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name, (gives, takes) in FUNCTIONS.items():
        function = getattr(library, f"agent_core_{name}")
        function.restype, function.argtypes = gives, takes
    return library


_loaded: Optional[ctypes.CDLL] = None


def call(name: str, *arguments: Any) -> Any:
    """Calls a function that has no error to tell. Other threads of Python go on meanwhile."""
    global _loaded
    if _loaded is None:
        _loaded = load(Path(__file__).with_name("libagent_core.so.0"))
    return getattr(_loaded, f"agent_core_{name}")(*arguments)


def checked(name: str, *arguments: Any) -> Any:
    """Calls a function whose last argument is an error, which is raised."""
    error = Error()
    value = call(name, *arguments, ctypes.byref(error))
    if error.code != Code.OK:
        raise error.raised()
    return value
