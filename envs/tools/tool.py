"""What a tool is: a function that the policy may call, described by a JSON schema.

Left out: tools with a memory from one call to the next; every call stands for itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Schema = Mapping[str, Any]
"""``{"type": "function", "function": {"name", "description", "parameters"}}``, as chat templates take it; the
parameters are the JSON schema of an object."""


@dataclass(frozen=True)
class Result:
    """What a call gave. ``refused``: the tool could make nothing of its arguments, and the text says why and what to
    write instead. ``error``: the harness failed, not the policy; the episode ends and is not trained on."""

    text: str
    status: Literal["ok", "refused", "error"] = "ok"


class Tool(Protocol):
    """A tool. Instances are frozen."""

    @property
    def schema(self) -> Schema:
        """The function, for the prompt."""
        ...

    def __call__(self, arguments: Sequence[Mapping[str, Any]]) -> list[Result]:
        """The results of calls with these arguments, in order: of a whole batch, so that tools can work on several.
        Arguments have the names and types of the schema. Nothing that a policy writes may raise."""
        ...

    def validate(self) -> None:
        """Raise ValueError unless the tool gives what it should."""
        ...

    def manifest(self) -> Mapping[str, Any]:
        """What it is, for the run's manifest; plain values that JSON can hold."""
        ...


def text_function(name: str, description: str, argument: str) -> Schema:
    """The schema of a function with one argument, a string."""
    parameters = {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}
