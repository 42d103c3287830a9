"""Arguments of an operation, which come as text, as what a function says that they are."""

from __future__ import annotations

import enum
import inspect
import types
import typing
from typing import Any, Callable, Optional, Union

Function = Callable[..., Optional[typing.Mapping[str, object]]]


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("want true or false")
    return text == "true"


def _reader(kind: Any) -> Optional[Callable[[str], Any]]:
    """What makes a text into a value of this type."""
    if typing.get_origin(kind) in (Union, getattr(types, "UnionType", Union)):
        inner = [each for each in typing.get_args(kind) if each is not type(None)]
        return _reader(inner[0]) if len(inner) == 1 else None
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)

        def chosen(text: str) -> Any:
            if text not in choices:
                raise ValueError(f"want one of {', '.join(map(str, choices))}")
            return text

        return chosen
    if kind is bool:
        return _boolean
    if kind in (str, int, float):
        return typing.cast(Callable[[str], Any], kind)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind
    return None


class Signature:
    """The arguments that a function takes beside its context."""

    def __init__(self, function: Function) -> None:
        hints = typing.get_type_hints(function)
        self._readers: dict[str, Callable[[str], Any]] = {}
        self._needed: list[str] = []
        parameters = list(inspect.signature(function).parameters.values())
        if not parameters:
            raise TypeError("the function of an operation takes a context first")
        for parameter in parameters[1:]:
            reader = _reader(hints.get(parameter.name, str))
            if reader is None or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                kinds = "want str, int, float, bool, an enum, a Literal, or one of them or None"
                raise TypeError(f"argument '{parameter.name}' of an operation: {kinds}")
            self._readers[parameter.name] = reader
            if parameter.default is parameter.empty:
                self._needed.append(parameter.name)

    @property
    def names(self) -> list[str]:
        return list(self._readers)

    def read(self, given: dict[str, str]) -> dict[str, Any]:
        """The values for a call; a ValueError names the argument that cannot be one."""
        for name in self._needed:
            if name not in given:
                raise ValueError(f"argument '{name}' is missing (--arg {name}=VALUE)")
        values = {}
        for name, text in given.items():
            try:
                values[name] = self._readers[name](text)
            except ValueError as fault:
                raise ValueError(f"argument '{name}' is '{text}': {fault}") from None
        return values
