"""What goes wrong."""

from __future__ import annotations

import enum


class Code(enum.IntEnum):
    """Kinds of faults, as a program may tell them apart."""

    OK = 0
    ARGUMENT = 1
    NOT_LAUNCHED = 2
    WRONG_TIME = 3
    STATE = 4
    HOST = 5
    PANIC = 6


class AgentError(Exception):
    """The library cannot do what it should; the text says why, and what to do."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


class Stopped(Exception):
    """Raised by Context.go_on: the operation is to end here. Let it through."""
