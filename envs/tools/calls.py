"""Calls in what a policy wrote, in the syntaxes that chat templates teach, and in plain tags.

- Hermes, Qwen: ``<tool_call>{"name": "calculator", "arguments": {"expression": "1 + 2"}}</tool_call>``
- Llama 3: the whole turn is ``{"name": ..., "parameters": {...}}``, perhaps after ``<|python_tag|>``
- Mistral: ``[TOOL_CALLS] [{"name": ..., "arguments": {...}}]``, to the end of the turn
- plain tags: ``<calculator>1 + 2</calculator>``, the text itself where the function takes one string, else a JSON
  object of its arguments. Prompts show them where the model's template takes no tools (``rlreason/chat.py``): 8 tokens
  of SmolLM2's around an expression, where Hermes's syntax has 28, and no quotes to escape.

All of them are read whatever the prompt has shown: models fall back into the one that they were trained on. A call
counts wherever it stands, within a thought too: what is meant and what is mused can't be told apart.

Left out: several objects in one Llama turn, Mistral's ``[ARGS]``, Python-like calls, and templates with yet another
syntax (DeepSeek's, GPT-OSS's), whose calls are read as answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envs.tools.tool import Schema

_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}
_TAG, _LIST, _PYTHON = "tool_call", "[TOOL_CALLS]", "<|python_tag|>"
_RESPONSE = re.compile(r"<tool_response>.*?(?:</tool_response>|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Call:
    """A call that can be run: there is such a function, and it takes such arguments."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Malformed:
    """What was meant as a call and can't be run; ``why`` is for the policy to read."""

    why: str


def read_calls(text: str, functions: Sequence[Schema]) -> list[Call | Malformed]:
    """The calls in a turn, in order; none: it is an answer."""
    known = {function["function"]["name"]: function["function"].get("parameters", {}) for function in functions}
    return [_checked(found, known) for found in _found(text, known)]


def without_responses(text: str) -> str:
    """A turn without what it says a tool has answered: only the harness answers."""
    return _RESPONSE.sub("", text)


def written(function: Schema, arguments: Mapping[str, Any], syntax: str) -> str:
    """A call in one of ``SYNTAXES``."""
    name, parameters = function["function"]["name"], function["function"].get("parameters", {})
    return SYNTAXES[syntax](name, arguments, parameters)


def _in_tags(name: str, arguments: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    single = _single_text(parameters)
    return f"<{name}>{json.dumps(arguments) if single is None else arguments[single]}</{name}>"


def _as_hermes(name: str, arguments: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def _as_llama(name: str, arguments: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    return json.dumps({"name": name, "parameters": arguments})


SYNTAXES: Mapping[str, Callable[[str, Mapping[str, Any], Mapping[str, Any]], str]] = {
    "tags": _in_tags,
    "hermes": _as_hermes,
    "llama": _as_llama,
}


def _found(text: str, known: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Any] | Malformed]:
    """(name, arguments), unchecked, of each call."""
    before, listed, calls = text.partition(_LIST)
    stripped = text.strip()
    if listed:
        yield from _in_list(calls)
    elif stripped.startswith((_PYTHON, "{")):
        yield from _alone(stripped)
    names = "|".join(map(re.escape, (_TAG, *known)))
    # A block ends where it is closed, or the next one of its kind begins, so that what is left open costs one pass too.
    for block in re.finditer(rf"<({names})>(.*?)(</\1>|(?=<\1>)|\Z)", before, re.DOTALL):
        name, body, closed = block.groups()
        if not closed:
            yield Malformed(f"<{name}> is not closed by </{name}>")
        elif name == _TAG:
            yield _named(_json(body), body)
        else:
            single = _single_text(known[name])
            yield name, _json(body) if single is None else {single: body.strip()}


def _alone(text: str) -> Iterator[tuple[str, Any] | Malformed]:
    """A turn that is nothing but a JSON object with a name and arguments."""
    body = text.removeprefix(_PYTHON)
    content = _json(body)
    if text != body or (isinstance(content, dict) and "name" in content and {"parameters", "arguments"} & {*content}):
        yield _named(content, body)


def _in_list(body: str) -> Iterator[tuple[str, Any] | Malformed]:
    content = _json(body)
    if isinstance(content, list):
        yield from (_named(item, body) for item in content)
    else:
        yield Malformed(f"{_shown(body)} is no JSON list of calls")


def _named(content: Any, body: str) -> tuple[str, Any] | Malformed:
    if not isinstance(content, dict) or not isinstance(content.get("name"), str):
        return Malformed(f'{_shown(body)} is no call; write {{"name": "...", "arguments": {{...}}}}, in JSON')
    return content["name"], content.get("arguments", content.get("parameters", {}))


def _checked(found: tuple[str, Any] | Malformed, known: Mapping[str, Mapping[str, Any]]) -> Call | Malformed:
    if isinstance(found, Malformed):
        return found
    name, arguments = found
    if name not in known:
        return Malformed(f"there is no tool {_shown(name)}; there is {', '.join(known)}")
    properties, required = known[name].get("properties", {}), known[name].get("required", ())
    if not isinstance(arguments, dict):
        return Malformed(f"the arguments of {name} must be a JSON object of {', '.join(properties)}")
    for key in arguments:
        if key not in properties:
            return Malformed(f"{name} has no argument {_shown(key)}; it has {', '.join(properties)}")
    for key in required:
        if key not in arguments:
            return Malformed(f"{name} needs the argument {key}")
    for key, value in arguments.items():
        kind = properties[key].get("type")
        if isinstance(kind, str) and not _is_a(value, kind):
            return Malformed(f"the argument {key} of {name} must be of type {kind}")
    return Call(name, arguments)


def _is_a(value: Any, kind: str) -> bool:
    """As far as the types that are known here go. In Python a bool is an int."""
    return isinstance(value, _TYPES.get(kind, (object,))) and (not isinstance(value, bool) or kind == "boolean")


def _single_text(parameters: Mapping[str, Any]) -> str | None:
    """The argument of a function that takes one string and nothing else."""
    properties = parameters.get("properties", {})
    kinds = [(name, about.get("type")) for name, about in properties.items()]
    return kinds[0][0] if len(kinds) == 1 and kinds[0][1] == "string" else None


def _json(text: str) -> Any:
    """None for what is no JSON; ``null`` is no call either."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
