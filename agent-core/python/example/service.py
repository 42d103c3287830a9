"""A web service that changes its version without refusing or cutting anybody: service.py ADDRESS

Each request is answered with the version and how many were answered before, since the very first version began.
`manager-fs job run service tell --arg of=requests --host HOST` says how many.
"""

import asyncio
import sys
from typing import Literal

import agent_core
import agent_core.aio


class Service(agent_core.Operations):
    answered = 0

    def save_state(self, schema: int) -> bytes:
        return self.answered.to_bytes(8, "little")

    def restore_state(self, schema: int, state: bytes) -> None:
        self.answered = int.from_bytes(state, "little")

    def tell(self, context: agent_core.Context, *, of: Literal["requests"]) -> dict[str, object]:
        return {of: self.answered}


async def main(address: str) -> None:
    agent = agent_core.Agent()  # first: it takes over what the stub, or the version before, left open
    intake = agent_core.aio.Intake(agent, agent.listen_tcp("http", address))
    service = Service()
    agent.on("tell", service.tell)
    agent.start(service)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: agent_core.Pass) -> None:
        await reader.readuntil(b"\r\n\r\n")
        text = f"version {agent.version} answered {service.answered} before\n"
        service.answered += 1
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + text.encode())
        await writer.drain()

    serving = asyncio.create_task(intake.serve(answer))
    await agent_core.aio.wait(agent)  # until SIGTERM
    serving.cancel()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: service.py ADDRESS")
    asyncio.run(main(sys.argv[1]))
