"""What the policy reads and how its turn ends: chat template, begin and end tokens.

Left out: whether a template is the one that the model was trained with. Nothing in its files says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rlreason.chat import encode, prompted, render
from rlreason.checks import Verdict, failed, passed, skipped, warned
from rlreason.policy import Policy
from rlreason.types import Message, Problem

# A tag such as <think>, <reasoning> or <|begin_of_thought|> at the end of a prompt.
_OPENED = re.compile(r"(<[^<>/\s]*(?:think|thought|reason)[^<>\s]*>)\s*$", re.IGNORECASE)


def template(policy: Policy, problems: Sequence[Problem]) -> Verdict:
    """Whether prompts survive the tokenizer, and end where the assistant's turn begins."""
    tokenizer = policy.tokenizer
    for problem in problems:
        text, _ = prompted(tokenizer, problem.prompt, problem.tools)
        back = _decoded(tokenizer, policy.render(problem.prompt, problem.tools).ids)
        if "".join(back.split()) != "".join(_without_begin(tokenizer, text).split()):
            return failed(
                f"problem {problem.id} comes back from its tokens as {_end(back, 60)!r}",
                f"the template wrote {_end(text, 60)!r}: tokenizer and chat template don't belong together",
            )
    before = _before_turn(problems[0].prompt)
    if render(tokenizer, before, generate=True) == render(tokenizer, before, generate=False):
        return warned(
            "the template writes nothing where the assistant's turn begins",
            "right for templates whose user turn ends it ([/INST]); else make it heed add_generation_prompt, or the "
            "policy has to write the header itself",
        )
    text = render(tokenizer, before, generate=True)
    return passed(f"{len(problems)} prompts survive the tokenizer; they end in {_end(text, 24)!r}")


def begin_token(policy: Policy, problems: Sequence[Problem]) -> Verdict:
    """Whether a prompt begins with the begin token once, where the tokenizer writes one by itself."""
    tokenizer = policy.tokenizer
    bos = tokenizer.bos_token_id
    if bos is None:
        return passed("the tokenizer has none")
    name = tokenizer.bos_token
    wanted = tokenizer("x").input_ids[:1] == [bos]
    for problem in problems:
        ids = policy.render(problem.prompt, problem.tools).ids
        if ids[:2] == [bos, bos]:
            return failed(
                f"problem {problem.id} begins with {name} twice",
                "template and tokenizer write it both: let one of them (chat_template, or add_bos_token=false)",
            )
        if wanted and ids[:1] != [bos]:
            return failed(
                f"problem {problem.id} does not begin with {name}",
                "the tokenizer writes it before plain text, so the model was trained with it: begin the chat template "
                "with {{ bos_token }}",
            )
    return passed(f"{name} once" if wanted else f"no prompt has {name} twice")


def opened_thought(policy: Policy, problems: Sequence[Problem]) -> Verdict:
    """Whether a thought that the template opens is part of the text that gets graded."""
    text, _ = prompted(policy.tokenizer, problems[0].prompt, problems[0].tools)
    graded = policy.render(problems[0].prompt, problems[0].tools).opened
    found = _OPENED.search(text)
    if found is None:
        return passed("the template opens none")
    if found[1] not in graded:
        return failed(
            f"the template opens {found[1]}, and graded texts don't begin with it",
            "a reward for the format would be 0 for ever: use a template that leaves the tag to the policy, or <think>",
        )
    return passed(f"{found[1]} is opened by the template, and graded")


def end_tokens(policy: Policy, problems: Sequence[Problem]) -> Verdict:
    """Whether what the template writes at the end of a turn ends a completion, and all sources name the same."""
    model, tokenizer = policy.model, policy.tokenizer
    sources = {
        "generation config": _ids(model.generation_config.eos_token_id),
        "model config": _ids(model.config.eos_token_id),
        "tokenizer": _ids(tokenizer.eos_token_id),
    }
    ending = ", ".join(tokenizer.convert_ids_to_tokens(sorted(policy.end_ids)))
    written = _written_after_turn(tokenizer, _before_turn(problems[0].prompt))
    if written is None:
        return skipped(f"the template doesn't show a whole turn; completions end on {ending}")
    added = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    special = [token for token in written if token in added]
    if special and special[0] not in policy.end_ids:
        return failed(
            f"the template ends a turn with {tokenizer.convert_ids_to_tokens(special[0])}, completions end on {ending}",
            "every completion would run on after its end: put that token into eos_token_id of the model's "
            "generation_config.json",
        )
    named = {name: ids for name, ids in sources.items() if ids}
    if not frozenset.intersection(*named.values()):
        listed = ", ".join(f"{name} {sorted(ids)}" for name, ids in named.items())
        return warned(f"no end token that all name: {listed}", "all of them end a completion; mend the one that is off")
    if not special:
        return warned(
            f"the template writes no end token after a turn; completions end on {ending}",
            "a model learns nothing of it from such turns: expect completions that run into the length limit, or give "
            "sampling.stop",
        )
    return passed(f"completions end on {ending}")


def _ids(value: Any) -> frozenset[int]:
    return frozenset() if value is None else frozenset([value] if isinstance(value, int) else value)


def _before_turn(prompt: list[Message]) -> list[Message]:
    """A prompt without a turn that was begun for the policy."""
    return prompt[:-1] if prompt[-1]["role"] == "assistant" else prompt


def _written_after_turn(tokenizer: Any, before: list[Message]) -> list[int] | None:
    """Ids of what the template writes after an assistant's turn; None if it changes the turn's text."""
    said = "The answer is 7."
    text = render(tokenizer, [*before, {"role": "assistant", "content": said}], generate=False)
    _, found, after = text.rpartition(said)
    return encode(tokenizer, after) if found else None


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return _without_begin(tokenizer, text)


def _without_begin(tokenizer: Any, text: str) -> str:
    """Without begin tokens at its head, which are ``begin_token``'s business."""
    while tokenizer.bos_token and text.startswith(tokenizer.bos_token):
        text = text.removeprefix(tokenizer.bos_token)
    return text


def _end(text: str, length: int) -> str:
    return text if len(text) <= length else "…" + text[-length:]
