"""Tools for any single-turn environment: the policy calls, the harness runs the call and answers, the policy goes on.

Where to read on: ``env`` (the environment), ``calls`` (how a call is written), ``tool`` (what a tool is), and the tools
``calculator``, ``python`` and ``search``.
"""

from envs.tools.calculator import Calculator
from envs.tools.calls import Call, Malformed, read_calls, written
from envs.tools.env import ToolUse
from envs.tools.python import Python
from envs.tools.search import Search
from envs.tools.tool import Result, Tool, text_function

__all__ = [
    "Calculator",
    "Call",
    "Malformed",
    "Python",
    "Result",
    "Search",
    "Tool",
    "ToolUse",
    "read_calls",
    "text_function",
    "written",
]
