"""As agent-core/examples/conduct.rs: conduct.py ADDRESS NOTES VERSION [--FLAG [VALUE]]..."""

import mmap
import os
import signal
import sys
import threading
import time

import agent_core

_, ADDRESS, NOTES, VERSION, *FLAGS = sys.argv


def value(name: str) -> str:
    return FLAGS[FLAGS.index(name) + 1] if name in FLAGS else ""


def note(word: str) -> None:
    with open(NOTES, "a") as file:
        file.write(f"{VERSION} {word}\n")


def called(callback: str) -> None:
    note(callback)
    # What a child of a callback does: it ends as a program does, or goes on where its parent does.
    if value("--forks") == callback and os.fork() == 0 and callback == "save_state":
        os._exit(0)
    if value("--blocks") == callback:
        threading.Event().wait()
    if value("--fails") == callback:
        raise RuntimeError("told to fail")


#: Bytes that the state has behind the number, in a memory file.
LARGE = int(value("--large") or 0) << 10


def pattern(length: int) -> bytes:
    return (bytes(range(251)) * (length // 251 + 1))[:length]


class Conduct(agent_core.Operations):
    answered = 0
    lock = threading.Lock()

    def quiesce(self, within: float) -> None:
        called("quiesce")

    def resume(self) -> None:
        called("resume")

    def save_state(self, schema: int) -> bytes:
        called("save_state")
        return self.answered.to_bytes(8, "little")

    def restore_state(self, schema: int, state: bytes) -> None:
        called("restore_state")
        self.answered = int.from_bytes(state[:8], "little")

    def healthy(self) -> None:
        if "--sick" in FLAGS:
            raise RuntimeError("told to be sick")

    def confirmed(self) -> None:
        note("confirmed")

    def before(self) -> int:
        with self.lock:
            self.answered += 1
            return self.answered - 1


class Large(Conduct):
    def save_state_to(self, schema: int, file) -> None:
        called("save_state_to")
        if "--maps" in FLAGS:
            file.truncate(4096)
            self.mapped = mmap.mmap(file.fileno(), 4096)
        file.write(self.answered.to_bytes(8, "little") + pattern(LARGE))

    def restore_state_from(self, schema: int, file) -> None:
        called("restore_state_from")
        length = os.fstat(file.fileno()).st_size
        with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ) as state:
            self.answered = int.from_bytes(state[:8], "little")
            if state[8:] != pattern(length - 8):
                raise ValueError("these are other bytes")


def count(context: agent_core.Context, units: int, pause_ms: int = 0) -> dict[str, object]:
    for done in range(units):
        context.go_on()
        time.sleep(pause_ms / 1000)
        context.units(done + 1, units, "counting")
    return {"units": units}


def extra(agent: agent_core.Agent) -> None:
    """Takes the descriptor twice, or makes it: the notes themselves."""
    for when in ("once", "twice"):
        kept = agent.take("extra")
        if kept is not None:
            os.write(kept, f"{VERSION} took extra {when}\n".encode())
            os.close(kept)
        else:
            with open(NOTES, "a") as made:
                agent.keep("extra", made)


def leave_child() -> None:
    """A child that is nobody's and never executes anything: it keeps every descriptor that is open."""
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            note(f"child {os.getpid()}")
            while True:
                signal.pause()
        os._exit(0)
    os.waitpid(child, 0)


def main() -> None:
    agent = agent_core.Agent()
    if "--without-extra" not in FLAGS:
        extra(agent)
    intake = agent.intake(agent.listen_tcp("http", ADDRESS))
    conduct = Large() if LARGE else Conduct()
    agent.on("count", count)
    agent.start(conduct)

    def answer(stream, taken) -> None:
        with taken, stream:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += stream.recv(1) or b"\r\n\r\n"
            text = f"{VERSION} answered {conduct.before()}\n"
            stream.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + text.encode())

    def serve() -> None:
        while True:
            threading.Thread(target=answer, args=intake.accept(), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    if value("--forks") == "start":
        leave_child()
    agent.wait()
    note("ended")


main()
