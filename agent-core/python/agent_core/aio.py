"""For programs on asyncio."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Awaitable, Callable

from ._agent import Agent, Stop
from ._work import Pass

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter, Pass], Awaitable[None]]

#: How often a listener is looked at again while a change-over is under way; nothing is looked at otherwise.
_PAUSE = 0.01
#: Connections that are taken before others have their turn.
_AT_ONCE = 64


class Intake:
    """A listening socket whose connections are counted: none is taken that this version will not answer."""

    def __init__(self, agent: Agent, listener: socket.socket) -> None:
        """Before the agent starts."""
        self._gate = agent.gate()
        self._listener = listener
        self._tasks: set[asyncio.Task[None]] = set()
        listener.setblocking(False)

    async def serve(self, handler: Handler) -> None:
        """Gives every connection to the handler, in a task of its own, until this is cancelled. A connection is
        closed, and a change-over need not wait for it any more, when its handler has come back."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._listener, self._take, loop, handler)
        try:
            await loop.create_future()
        finally:
            loop.remove_reader(self._listener)

    def _take(self, loop: asyncio.AbstractEventLoop, handler: Handler) -> None:
        for _ in range(_AT_ONCE):
            # Before there is a connection: whoever closes the gate is certain that none is taken.
            taken = self._gate.try_enter()
            if taken is None:
                loop.remove_reader(self._listener)
                loop.call_later(_PAUSE, loop.add_reader, self._listener, self._take, loop, handler)
                return
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                taken.leave()
                return
            except OSError as fault:
                taken.leave()
                # Out of descriptors, say: those that wait go on waiting.
                loop.call_exception_handler({"message": "a connection cannot be accepted", "exception": fault})
                loop.remove_reader(self._listener)
                loop.call_later(1, loop.add_reader, self._listener, self._take, loop, handler)
                return
            task = loop.create_task(self._serve(connection, taken, handler))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket, taken: Pass, handler: Handler) -> None:
        with taken, connection:
            try:
                connection.setblocking(False)
                reader, writer = await asyncio.open_connection(sock=connection)
                try:
                    await handler(reader, writer, taken)
                finally:
                    writer.close()
                    await writer.wait_closed()
            except (ConnectionError, TimeoutError):
                pass  # whoever asked has gone
            except Exception as fault:
                loop = asyncio.get_running_loop()
                loop.call_exception_handler({"message": "a connection's handler failed", "exception": fault})


async def wait(agent: Agent) -> Stop:
    """Agent.wait, while the loop goes on."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Stop] = loop.create_future()

    def tell(stop: Stop) -> None:
        if not ended.done():
            ended.set_result(stop)

    def waiting() -> None:
        stop = agent.wait()
        loop.call_soon_threadsafe(tell, stop)

    threading.Thread(target=waiting, name="agent-wait", daemon=True).start()
    return await ended
