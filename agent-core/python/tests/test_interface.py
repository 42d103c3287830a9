"""The package by itself: what it declares, how it reads arguments, and how it takes connections.

Run by tests/tests/languages.rs, with the wheel installed, and AGENT_CORE_HEADER.
"""

import asyncio
import ctypes
import enum
import inspect
import os
import re
import socket
import typing
import unittest
from pathlib import Path

import agent_core
import agent_core.aio
from agent_core import _library
from agent_core._arguments import Signature

HEADER = re.sub(r"/\*.*?\*/", "", Path(os.environ["AGENT_CORE_HEADER"]).read_text(), flags=re.DOTALL)


def kind(text):
    """How the package writes a type of the header."""
    text = text.replace("const ", "").strip()
    known = {
        "void": None,
        "char *": ctypes.c_char_p,
        "char **": ctypes.POINTER(ctypes.c_char_p),
        "void *": ctypes.c_void_p,
        "bool": ctypes.c_bool,
        "int32_t": ctypes.c_int32,
        "int32_t *": ctypes.POINTER(ctypes.c_int32),
        "uint32_t": ctypes.c_uint32,
        "uint64_t": ctypes.c_uint64,
        "size_t": ctypes.c_size_t,
        "size_t *": ctypes.POINTER(ctypes.c_size_t),
        "uint8_t *": _library.bytes_p,
        "agent_core_error *": _library.error_p,
        "agent_core_operations *": ctypes.POINTER(_library.Operations),
        "agent_core_run": _library.Run,
        "agent_core_pass **": ctypes.POINTER(ctypes.c_void_p),
    }
    if text in known:
        return known[text]
    if re.fullmatch(r"agent_core\w* \*", text):
        return ctypes.c_void_p
    raise AssertionError(f"the package has no type for {text!r}")


def parameters(text):
    found = [re.sub(r"\w+$", "", each).strip() for each in text.split(",") if each.strip() != "void"]
    return [kind(each if each else text) for each in found]


class Declared(unittest.TestCase):
    def test_every_function_of_the_header_with_its_types(self):
        pattern = r"^(?:const )?([\w]+(?: \*)?) ?\bagent_core_(\w+)\(([^)]*)\);"
        found = re.findall(pattern, HEADER, flags=re.MULTILINE)
        declared = {name: (kind(gives.strip()), parameters(takes)) for gives, name, takes in found}
        self.assertGreater(len(declared), 20)
        self.assertEqual(declared.keys(), _library.FUNCTIONS.keys())
        for name, (gives, takes) in _library.FUNCTIONS.items():
            # Bytes are given as such, where the library reads them.
            given = [_library.bytes_p if name in ("answer_write", "checkpoint") and t is ctypes.c_char_p else t for t in takes]
            self.assertEqual(declared[name], (gives, given), name)

    def test_the_structures_and_the_codes(self):
        table = HEADER.split("typedef struct agent_core_operations {")[1].split("}")[0]
        names = re.findall(r"(\w+)(?:\)\(|;|,(?= writes_max))", table)
        self.assertEqual(names, [field[0] for field in _library.Operations._fields_])
        self.assertEqual((ctypes.sizeof(_library.Operations), ctypes.sizeof(_library.Error)), (88, 1024))
        for codes in (agent_core.Code, agent_core.Demand, agent_core.Stop):
            for code in codes:
                self.assertRegex(HEADER, rf"AGENT_CORE_{code.name} = {code.value}\b")

    def test_whatever_is_public_has_types(self):
        for name in agent_core.__all__:
            thing = getattr(agent_core, name)
            functions = [thing] if inspect.isfunction(thing) else [
                each for _, each in inspect.getmembers(thing, inspect.isfunction) if each.__module__.startswith("agent_core")
            ]
            for function in functions:
                hints = typing.get_type_hints(function)
                for parameter in inspect.signature(function).parameters:
                    self.assertTrue(parameter in hints or parameter == "self", f"{name}: {function.__name__}")
                self.assertIn("return", hints, f"{name}: {function.__name__}")
        self.assertTrue((Path(agent_core.__file__).parent / "py.typed").is_file())

    def test_a_program_that_was_not_launched_is_told_what_to_do(self):
        os.environ.pop("MANAGER_FS_PRODUCT", None)
        with self.assertRaises(agent_core.AgentError) as caught:
            agent_core.Agent()
        self.assertEqual(caught.exception.code, agent_core.Code.NOT_LAUNCHED)
        self.assertIn("manager-fs launch PRODUCT", str(caught.exception))


class Colour(enum.Enum):
    RED = "red"


class Arguments(unittest.TestCase):
    def test_texts_become_what_the_function_says(self):
        def run(
            context: agent_core.Context,
            log: str,
            keep: int = 3,
            *,
            dry: bool = False,
            part: typing.Optional[float] = None,
            colour: Colour = Colour.RED,
            mode: typing.Literal["fast", "safe"] = "safe",
        ) -> None: ...

        signature = Signature(run)
        self.assertEqual(signature.names, ["log", "keep", "dry", "part", "colour", "mode"])
        given = {"log": "x", "keep": "7", "dry": "true", "part": "0.5", "colour": "red", "mode": "fast"}
        read = {"log": "x", "keep": 7, "dry": True, "part": 0.5, "colour": Colour.RED, "mode": "fast"}
        self.assertEqual(signature.read(given), read)
        self.assertEqual(signature.read({"log": ""}), {"log": ""})
        for name, text in [("keep", "many"), ("dry", "yes"), ("part", "half"), ("colour", "blue"), ("mode", "slow")]:
            with self.assertRaisesRegex(ValueError, f"argument '{name}' is '{text}'"):
                signature.read({"log": "x", name: text})
        with self.assertRaisesRegex(ValueError, "argument 'log' is missing"):
            signature.read({})

    def test_a_function_that_no_operation_can_be_is_refused_when_it_is_registered(self):
        for wrong in (lambda: None, lambda context, *many: None, lambda context, **named: None):
            with self.assertRaises(TypeError):
                Signature(wrong)

        def of_bytes(context: agent_core.Context, data: bytes) -> None: ...

        with self.assertRaisesRegex(TypeError, "'data'"):
            Signature(of_bytes)


class Gate:
    """As the library's: passes are counted, and none is had while it is closed."""

    def __init__(self):
        self.closed, self.under_way = False, 0

    def try_enter(self):
        if self.closed:
            return None
        self.under_way += 1
        return self

    def leave(self):
        self.under_way -= 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.leave()


class Connections(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.gate = Gate()
        agent = type("Agent", (), {"gate": lambda _: self.gate})()
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = listener.getsockname()
        intake = agent_core.aio.Intake(agent, listener)
        self.serving = asyncio.create_task(intake.serve(self.answer))

    async def asyncTearDown(self):
        self.serving.cancel()

    async def answer(self, reader, writer, taken):
        line = await reader.readline()
        if line == b"fail\n":
            raise RuntimeError("as asked")
        writer.write(line.upper())
        await writer.drain()

    async def ask(self, line=b"hello\n"):
        reader, writer = await asyncio.open_connection(*self.address)
        writer.write(line)
        answer = await reader.read()
        writer.close()
        return answer

    async def test_connections_are_counted_and_wait_while_the_gate_is_closed(self):
        self.assertEqual(await self.ask(), b"HELLO\n")
        self.gate.closed = True
        waiting = asyncio.create_task(self.ask())
        await asyncio.sleep(0.05)
        self.assertEqual((self.gate.under_way, waiting.done()), (0, False))
        self.gate.closed = False
        self.assertEqual(await asyncio.wait_for(waiting, 30), b"HELLO\n")
        while self.gate.under_way:
            await asyncio.sleep(0.001)

    async def test_a_handler_that_fails_is_told_and_leaves(self):
        told = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
        self.assertEqual(await self.ask(b"fail\n"), b"")
        while self.gate.under_way:
            await asyncio.sleep(0.001)
        self.assertEqual([str(fault) for fault in told], ["as asked"])
        self.assertEqual(await self.ask(), b"HELLO\n")


if __name__ == "__main__":
    unittest.main()
