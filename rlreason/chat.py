"""Conversations into token ids with a mask: which tokens the assistant wrote.

Each assistant turn is what a policy would have produced: the prompt as ``Policy.render`` renders it, then the turn's
own text, tokenised by itself, and the end token. So nothing depends on a template's marks for generated text, which
few templates have. Where the template appends and the ids allow it, all turns of a conversation share one row; where
it rewrites history (strips earlier thoughts, say), or the joint text would be tokenised otherwise, a new row starts.

Tools, and messages of role ``tool``, which hold their results, are the template's to write where it takes them. Where
it doesn't, both become text of the user's, and calls are shown in plain tags: ``<calculator>1 + 2</calculator>``.

Left out: packing several conversations into one row; a batch runs without its padding anyway (``packing.py``). Calls as
structured messages (``tool_calls``), which some templates want before a ``tool`` message (Mistral's): a turn stays the
text that the policy wrote, and such templates get the tags.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from rlreason.types import Message, Segment

Tools = Sequence[Mapping[str, Any]]

TOOLS_IN_TAGS = "You can use tools: write a call, end your turn, and read the result in <tool_response>."
"""What stands before the list of tools where the template has no words for them. Short, for small models."""


def render(tokenizer: Any, messages: Sequence[Message], *, generate: bool, tools: Tools = ()) -> str:
    """The text of a conversation, up to where the assistant speaks if ``generate``, else up to its end. Raises
    ValueError for one that the template refuses, as Gemma's does a system message."""
    used = bool(tools) or any(message["role"] == "tool" for message in messages)
    if used and not takes_tools(tokenizer):
        messages, tools = _in_plain_tags(messages, tools), ()
    return _rendered(tokenizer, messages, tools, generate)


def _rendered(tokenizer: Any, messages: Sequence[Message], tools: Tools, generate: bool) -> str:
    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), tools=list(tools) or None, tokenize=False, add_generation_prompt=generate
        )
    except TemplateError as error:
        raise ValueError(f"the model's chat template refuses this conversation: {error}") from error
    return text


_PROBE: Tools = (
    {
        "type": "function",
        "function": {
            "name": "probed",
            "description": "Probes.",
            "parameters": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
        },
    },
)


def takes_tools(tokenizer: Any) -> bool:
    """Whether the chat template writes what tools there are and, after a turn of plain text, what they answered."""
    called: list[Message] = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "asks"},
        {"role": "tool", "content": "answers"},
    ]
    try:
        text = _rendered(tokenizer, called, _PROBE, generate=True)
    except ValueError:
        return False
    return all(word in text for word in ("probed", "asks", "answers"))


def _in_plain_tags(messages: Sequence[Message], tools: Tools) -> list[Message]:
    """A conversation without tools: what they are at the head of the first user's message, since not every template
    knows a system message; results in ``<tool_response>``, neighbours in one message, as users speak once at a time."""
    said: list[Message] = []
    for results, run in itertools.groupby(messages, key=lambda message: message["role"] == "tool"):
        if results:
            blocks = [f"<tool_response>\n{message['content']}\n</tool_response>" for message in run]
            said.append({"role": "user", "content": "\n".join(blocks)})
        else:
            said.extend(run)
    if tools:
        place = next((i for i, message in enumerate(said) if message["role"] == "user"), None)
        if place is None:
            raise ValueError("the conversation has no user's message, in which the tools could be described")
        described = "\n".join([TOOLS_IN_TAGS, *map(_in_tags, tools)])
        said[place] = {"role": "user", "content": f"{described}\n\n{said[place]['content']}"}
    return said


def _in_tags(tool: Mapping[str, Any]) -> str:
    """A function and how it is called, on one line: with the text itself if it takes one string, else with JSON."""
    function = tool["function"]
    properties = function.get("parameters", {}).get("properties", {})
    about = {name: own.get("description") or own.get("type", "") for name, own in properties.items()}
    inside = json.dumps(about)
    if len(properties) == 1:
        ((name, own),) = properties.items()
        inside = name if own.get("type") == "string" else inside
    return f"<{function['name']}>{inside}</{function['name']}>: {function['description']}"


def encode(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text. The template writes every special token; the tokenizer adds none, so a BOS can't be doubled."""
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def opened_thought(text: str) -> str:
    """``<think>`` if a rendered prompt ends in it, which the policy's turn then goes on from; else nothing."""
    return "<think>" if text.rstrip().endswith("<think>") else ""


def prompted(tokenizer: Any, messages: Sequence[Message], tools: Tools = ()) -> tuple[str, str]:
    """The text of a conversation up to where the policy goes on, and what of its turn is already there: the content of
    a last message that is the assistant's own, or else what the template opens for it."""
    if messages[-1]["role"] != "assistant":
        text = render(tokenizer, messages, generate=True, tools=tools)
        return text, opened_thought(text)
    begun = messages[-1]["content"]
    text = render(tokenizer, messages[:-1], generate=True, tools=tools)
    return text + _after_opened(text, begun), begun


def appended(tokenizer: Any, before: str, written: str, end: int | None, text: str) -> list[int] | None:
    """The ids that take a conversation from the end of the policy's turn to where it goes on, so that nothing that is
    there already is tokenised again: what ``text``, the conversation as it is rendered now, has after ``before``, the
    text that the turn was written to, and ``written``, the turn, whose last token was ``end`` (None: no end token).

    None where the template has rewritten what went before, or closes the turn with another token: the ids of ``text``
    have to be made anew. White space around a turn is left as the policy wrote it, where a template trims it.
    """
    if not text.startswith(before):
        return None
    rest, turn = text[len(before) :], written.strip()
    at = rest.find(turn)
    if at < 0 or rest[:at].strip():
        return None
    after = rest[at + len(turn) :].removeprefix(written[len(written.rstrip()) :])
    ids = encode(tokenizer, after)
    if end is None:
        return ids
    return ids[1:] if ids[:1] == [end] else None


def demonstrated(
    tokenizer: Any, end_ids: frozenset[int], messages: Sequence[Message], *, start: int = 0, tools: Tools = ()
) -> list[Segment]:
    """Rows of a conversation whose mask is True on the assistant's tokens from message ``start`` on, end tokens
    included; ``sampler_logp`` is 0.

    The end token is the one that the template writes after a turn, or else the tokenizer's. Raises ValueError if
    there is no assistant's turn, or one of them is the first message.
    """
    segments: list[Segment] = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant" or place < start:
            continue
        if place == 0:
            raise ValueError("the conversation begins with the assistant's turn: there is nothing to answer")
        prompt = render(tokenizer, messages[:place], generate=True, tools=tools)
        written = _after_opened(prompt, message["content"])
        space, end = _template_around(tokenizer, end_ids, messages[: place + 1], prompt, written, tools)
        own = [*encode(tokenizer, space + written), end]
        before = encode(tokenizer, prompt)
        so_far = segments[-1].prompt_ids + segments[-1].completion_ids if segments else []
        if so_far and before[: len(so_far)] == so_far:
            last, between = segments[-1], before[len(so_far) :]
            ids = last.completion_ids + between + own
            mask = last.mask + [False] * len(between) + [True] * len(own)
            segments[-1] = Segment(last.prompt_ids, ids, [0.0] * len(ids), mask)
        else:
            segments.append(Segment(before, own, [0.0] * len(own), [True] * len(own)))
    if not segments:
        raise ValueError("the conversation has no assistant's turn: there is nothing to learn")
    return segments


def _after_opened(prompt: str, content: str) -> str:
    """What is left of a turn to be written after a rendered prompt that may have opened its thought. The white space
    that the prompt ends in there (``<think>\\n``) is not written a second time."""
    opened = opened_thought(prompt)
    if not opened or not content.startswith(opened):
        return content
    return content.removeprefix(opened).removeprefix(prompt.rpartition(opened)[2])


def _template_around(
    tokenizer: Any, end_ids: frozenset[int], messages: Sequence[Message], prompt: str, written: str, tools: Tools
) -> tuple[str, int]:
    """What the template writes around the text ``written`` of the last message: white space before it, unless the
    text brings its own, and the token that ends it."""
    whole = render(tokenizer, messages, generate=False, tools=tools)
    if not whole.startswith(prompt):
        return "", tokenizer.eos_token_id
    turn = whole[len(prompt) :]
    at = turn.find(written)
    if at < 0 or turn[:at].strip():  # it writes the text in another way, or something else before it
        space, after = "", turn
    else:
        space, after = turn[:at], turn[at + len(written) :]
    ends = [token for token in encode(tokenizer, after) if token in end_ids]
    return "" if written[:1].isspace() else space, ends[0] if ends else tokenizer.eos_token_id
