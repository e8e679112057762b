"""Conversations as data sets hold them, checked turn by turn.

Left out: calls that are not in the text (``tool_calls``), and content that is not text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlreason.types import Message

ROLES = ("system", "user", "assistant", "tool")

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


def turns(value: Any, key: str, role: str | None = None) -> list[Message]:
    """Messages as a row holds them under ``key``: a list of them, or, where ``role`` is given, a string that is one.

    Raises ValueError saying what is wrong with them.
    """
    if role is not None and isinstance(value, str):
        value = [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{key!r} is not a list of messages{'' if role is None else ' or a text'}, or is empty")
    return [_message(turn, f"{key}[{place}]") for place, turn in enumerate(value)]


def functions(value: Any) -> tuple[Mapping[str, Any], ...]:
    """The functions that a row says may be called, under ``tools``: a list of JSON schemas, or that as JSON text, as
    TRL takes it; () without. Raises ValueError saying what is wrong with them."""
    try:
        listed = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"'tools' is no JSON: {error}") from None
    if listed is None:
        return ()
    if not isinstance(listed, list) or not all(isinstance(item, Mapping) for item in listed):
        raise ValueError("'tools' is not a list of JSON schemas")
    return tuple(listed)


def transcript(text: str, key: str) -> list[Message]:
    """The messages of a text like ``\\n\\nHuman: ...\\n\\nAssistant: ...`` (Bai et al. 2022, arXiv:2204.05862).

    Two turns of one speaker in a row are one turn, which had a blank line and the speaker's name within.

    Raises ValueError if it does not begin so, or has an empty turn.
    """
    head, *pieces = _SPEAKER.split(text)
    if head or not pieces:
        raise ValueError(f"{key!r} does not begin with a blank line and 'Human:' or 'Assistant:'")
    messages: list[Message] = []
    for speaker, content in zip(pieces[::2], pieces[1::2], strict=True):
        role = {"Human": "user", "Assistant": "assistant"}[speaker]
        said = _message({"role": role, "content": content.strip()}, f"{key}, turn {len(messages) + 1}")
        if messages and messages[-1]["role"] == role:
            messages[-1] = {"role": role, "content": f"{messages[-1]['content']}\n\n{said['content']}"}
        else:
            messages.append(said)
    return messages


def check_answered(messages: Sequence[Message], key: str) -> None:
    """ValueError unless the user speaks before the assistant does, and the assistant last."""
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise ValueError(f"{key!r} has no assistant turn")
    if "user" not in roles[: roles.index("assistant")]:
        raise ValueError(f"{key!r} has no user turn before the assistant's first")
    if roles[-1] != "assistant":
        raise ValueError(f"the last turn of {key!r} is the {roles[-1]}'s, not the assistant's")


def opening(messages: Sequence[Message]) -> str:
    """The first user turn, to tell conversations apart by: those that ask the same are kept on one side of a split,
    whatever the system message says and wherever they part later."""
    return next(message["content"] for message in messages if message["role"] == "user")


def as_text(messages: Sequence[Message]) -> str:
    """JSON; equal conversations have equal texts."""
    return json.dumps([(message["role"], message["content"]) for message in messages])


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise ValueError(f"{where} is not a message with 'role' and 'content'")
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        raise ValueError(f"{where} has the role {role!r}; the roles are {', '.join(ROLES)}")
    if not isinstance(content, str) or not content.strip():
        raise ValueError(f"{where} has no content, or one that is not text")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(content[error.start]):04x}"
        raise ValueError(f"{where} has half a character, {half}, which is no text by itself") from None
    return {"role": role, "content": content}
