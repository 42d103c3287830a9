"""A program that changes its own version without losing anybody: agent-core for Python.

Begin with an Agent; agent_core.aio is for programs on asyncio. docs/embedding.md has a program, docs/swap.md every way
of failing.
"""

from ._agent import Agent, Context, Demand, HasDescriptor, Operations, Stop
from ._errors import AgentError, Code, Stopped
from ._work import Gate, Intake, Pass, starting_child

__all__ = [
    "Agent",
    "AgentError",
    "Code",
    "Context",
    "Demand",
    "Gate",
    "HasDescriptor",
    "Intake",
    "Operations",
    "Pass",
    "Stop",
    "Stopped",
    "starting_child",
]
