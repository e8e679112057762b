"""Conversations into rows: by hand, as a rollout would have made them, and against TRL's masks."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from helpers import tiny_folder
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlreason import models
from rlreason.chat import TOOLS_IN_TAGS, demonstrated, prompted, render, takes_tools
from rlreason.clock import Clock
from rlreason.models import CHATML_TEMPLATE, PLAIN_TEMPLATE
from rlreason.policy import Policy
from rlreason.rollout import roll_out
from rlreason.types import Completion, Grade, Message, Problem, Request, Sampling, Segment

ENDS = frozenset({2, 3})  # <|im_end|>, which is the tokenizer's, and <|endoftext|>

MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + "
    "'<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
"""ChatML with TRL's marks on what the assistant wrote."""

OPENS = CHATML_TEMPLATE.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>\n'")
STRIPS = CHATML_TEMPLATE.replace(
    "message['content']",
    "(message['content'] if loop.last else message['content'].split('</think>')[-1])",
)
"""As the templates of R1 and Qwen3 do: only the last turn keeps its thought."""

OTHER_END = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% if message['role'] == 'assistant' %}"
    "<|endoftext|>{% else %}|{% endif %}{% endfor %}"
)
HERMES = (
    "{% if tools %}{{ '<|im_start|>system\nTools:' }}{% for tool in tools %}{{ '\n' + (tool | tojson) }}{% endfor %}"
    "{{ '\nCall: <tool_call>{...}</tool_call><|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>' + message['content'] + '</tool_response><|im_end|>\n' }}{% else %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""A template that takes tools, in the manner of Hermes and Qwen."""

WANTS_IDS = HERMES.replace(
    "{% if message['role'] == 'tool' %}",
    "{% if message['role'] == 'tool' and message.tool_call_id is undefined %}{{ raise_exception('no id') }}"
    "{% elif message['role'] == 'tool' %}",
)
"""As Mistral's: it takes tools, but results only with the id of a structured call."""

TRIMS = CHATML_TEMPLATE.replace("message['content']", "message['content'] | trim")
TWO_ENDS = CHATML_TEMPLATE.replace("'<|im_end|>\n'", "'<|endoftext|><|im_end|>\n'")


def tokenizer_with(template: str = CHATML_TEMPLATE, *, adds_bos: bool = False) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
    tokenizer.chat_template = template
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
        )
    return tokenizer


def talk(*texts: str) -> list[Message]:
    """Turns of user and assistant, the user first."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def pieces(tokenizer: Any, segment: Segment) -> list[tuple[str, bool]]:
    """A row as runs of text with whether they are learned."""
    assert len(segment.completion_ids) == len(segment.mask) == len(segment.sampler_logp)
    assert not any(segment.sampler_logp)
    marked = zip(segment.prompt_ids + segment.completion_ids, [False] * len(segment.prompt_ids) + segment.mask)  # noqa: B905
    return [
        (tokenizer.decode([token for token, _ in run]), learned)
        for learned, run in itertools.groupby(marked, key=lambda token: token[1])
    ]


def learned(template: str, *texts: str) -> list[list[str]]:
    """Of each row, what is learned."""
    tokenizer = tokenizer_with(template)
    rows = demonstrated(tokenizer, ENDS, talk(*texts))
    return [[text for text, own in pieces(tokenizer, row) if own] for row in rows]


# By hand


def test_turns_share_a_row_where_the_template_appends() -> None:
    tokenizer = tokenizer_with()
    (row,) = demonstrated(tokenizer, ENDS, talk("hi", "yes", "why?", "so"))
    assert pieces(tokenizer, row) == [
        ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", False),
        ("yes<|im_end|>", True),
        ("\n<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n", False),
        ("so<|im_end|>", True),
    ]
    whole = tokenizer.apply_chat_template(talk("hi", "yes", "why?", "so"), tokenize=False)
    ids = tokenizer(whole, add_special_tokens=False).input_ids
    assert row.prompt_ids + row.completion_ids == ids[:-1]  # all but the line break after the last end token


def test_a_template_that_strips_earlier_thoughts_gets_a_row_a_turn() -> None:
    tokenizer = tokenizer_with(STRIPS)
    rows = demonstrated(tokenizer, ENDS, talk("hi", "<think>a</think>yes", "why?", "<think>b</think>so"))
    assert [pieces(tokenizer, row) for row in rows] == [
        [
            ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", False),
            ("<think>a</think>yes<|im_end|>", True),
        ],
        [
            (
                "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
                "<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n",
                False,
            ),
            ("<think>b</think>so<|im_end|>", True),
        ],
    ]
    # Without thoughts it only appends, and one row is enough.
    assert len(demonstrated(tokenizer, ENDS, talk("hi", "yes", "why?", "so"))) == 1


@pytest.mark.parametrize("content", ["<think>\nhm</think>yes", "<think>hm</think>yes"])
def test_a_thought_that_the_template_opens_is_not_opened_twice(content: str) -> None:
    tokenizer = tokenizer_with(OPENS)
    (row,) = demonstrated(tokenizer, ENDS, talk("hi", content))
    assert pieces(tokenizer, row) == [
        ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n", False),
        ("hm</think>yes<|im_end|>", True),
    ]
    assert learned(OPENS, "hi", "no thought") == [["no thought<|im_end|>"]]
    # Rendered as history the turn is what was learned, so that both turns share a row.
    assert len(learned(OPENS, "hi", "<think>\na</think>b", "hi", "<think>\nc</think>d")) == 1


def test_a_turn_that_was_begun_goes_on_in_an_opened_thought() -> None:
    begun = talk("hi", "<think>\n</think>\n<answer>")
    for template in (CHATML_TEMPLATE, OPENS):
        tokenizer = tokenizer_with(template)
        text, opened = prompted(tokenizer, begun)
        assert text.endswith("<|im_start|>assistant\n<think>\n</think>\n<answer>")
        assert opened == "<think>\n</think>\n<answer>"


def test_the_plain_template_gets_its_space_and_an_end_token() -> None:
    tokenizer = tokenizer_with(PLAIN_TEMPLATE)
    rows = demonstrated(tokenizer, ENDS, talk("hi", "yes", "why?", " so", "and?", "\nthen"))
    assert [pieces(tokenizer, row) for row in rows] == [  # the template writes no end token, so no row is shared
        [("User: hi\n\nAssistant:", False), (" yes<|im_end|>", True)],
        # a policy that wrote the space itself is not given another one
        [("User: hi\n\nAssistant: yes\n\nUser: why?\n\nAssistant:", False), (" so<|im_end|>", True)],
        [
            ("User: hi\n\nAssistant: yes\n\nUser: why?\n\nAssistant:  so\n\nUser: and?\n\nAssistant:", False),
            ("\nthen<|im_end|>", True),
        ],
    ]
    assert learned(PLAIN_TEMPLATE, "hi", "") == [["<|im_end|>"]]


@pytest.mark.parametrize(
    ("template", "end"),
    [(CHATML_TEMPLATE, 2), (OTHER_END, 3), (TWO_ENDS, 3), (PLAIN_TEMPLATE, 2), (OPENS, 2), (TRIMS, 2)],
    ids=["chatml", "other end", "two ends", "none", "opens", "trims"],
)
def test_every_turn_is_closed_by_one_end_token_that_is_learned(template: str, end: int) -> None:
    tokenizer = tokenizer_with(template)
    rows = demonstrated(tokenizer, ENDS, talk("hi", "yes", "why?", " so "))
    for row in rows:
        own = [token for token, mine in zip(row.completion_ids, row.mask, strict=True) if mine]
        turns = [text for text, mine in pieces(tokenizer, row) if mine]
        assert [token for token in own if token in ENDS] == [end] * len(turns)
        assert row.completion_ids[-1] == end
        assert row.mask[-1]
    assert sum(text in ("yes", " yes") for text in _texts(tokenizer, rows)) == 1


def _texts(tokenizer: Any, rows: Sequence[Segment]) -> list[str]:
    texts = [text for row in rows for text, mine in pieces(tokenizer, row) if mine]
    return [text.removesuffix("<|im_end|>").removesuffix("<|endoftext|>") for text in texts]


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_bos_is_written_once(adds_bos: bool) -> None:
    tokenizer = tokenizer_with(OTHER_END, adds_bos=adds_bos)
    assert (tokenizer("x").input_ids[0] == 1) == adds_bos
    (row,) = demonstrated(tokenizer, ENDS, talk("hi", "yes", "why?", "so"))
    assert (row.prompt_ids + row.completion_ids).count(1) == 1
    assert row.prompt_ids[0] == 1


def test_special_tokens_in_a_text_are_tokens_and_end_nothing() -> None:
    # What a policy wrote is decoded with its special tokens shown: encoded again, they are these tokens.
    (row,) = demonstrated(tokenizer_with(), ENDS, talk("hi", "a<|im_start|>b<|endoftext|>c"))
    assert row.completion_ids == [*_bytes("a"), 1, *_bytes("b"), 3, *_bytes("c"), 2]
    (row,) = demonstrated(tokenizer_with(OPENS), ENDS, talk("hi", "<think>\nb<|endoftext|>c"))
    assert row.completion_ids == [*_bytes("b"), 3, *_bytes("c"), 2]


def _bytes(text: str) -> list[int]:
    ids: list[int] = AutoTokenizer.from_pretrained(tiny_folder())(text).input_ids
    return ids


def test_start_leaves_earlier_turns_to_the_prompt() -> None:
    tokenizer = tokenizer_with()
    messages = talk("hi", "yes", "why?", "so", "and?", "then")
    (row,) = demonstrated(tokenizer, ENDS, messages, start=3)
    assert pieces(tokenizer, row) == [
        (
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
            "<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n",
            False,
        ),
        ("so<|im_end|>", True),
        ("\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\n", False),
        ("then<|im_end|>", True),
    ]
    (whole,) = demonstrated(tokenizer, ENDS, messages)
    assert row.prompt_ids + row.completion_ids == whole.prompt_ids + whole.completion_ids


@pytest.mark.parametrize(
    ("messages", "start", "said"),
    [
        ([{"role": "assistant", "content": "hi"}], 0, "begins with the assistant's turn"),
        ([{"role": "user", "content": "hi"}], 0, "no assistant's turn"),
        ([], 0, "no assistant's turn"),
        (talk("hi", "yes"), 2, "no assistant's turn"),
    ],
)
def test_what_has_nothing_to_learn_is_refused(messages: list[Message], start: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        demonstrated(tokenizer_with(), ENDS, messages, start=start)


def test_what_a_template_refuses_is_said() -> None:
    """As Gemma's does a system message."""
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    tokenizer = tokenizer_with(refuses + CHATML_TEMPLATE)
    with pytest.raises(ValueError, match="template refuses this conversation: System role not supported"):
        demonstrated(tokenizer, ENDS, [{"role": "system", "content": "S"}, *talk("hi", "yes")])
    assert len(demonstrated(tokenizer, ENDS, talk("hi", "yes"))) == 1


# As a rollout would have made them


class Scripted:
    """An engine that says what it is told to, prompt by prompt."""

    def __init__(self, tokenizer: Any, turns: list[str], end: int) -> None:
        self.ids = [[*tokenizer(turn, add_special_tokens=False).input_ids, end] for turn in turns]
        self.asked = 0
        self.queue: list[int] = []

    @property
    def max_length(self) -> int:
        return 1 << 20

    def submit(self, request: Request) -> int:
        self.queue.append(self.asked)
        self.asked += 1
        return self.queue[-1]

    def completed(self) -> Iterator[tuple[int, Completion]]:
        while self.queue:
            ticket = self.queue.pop(0)
            yield ticket, Completion(self.ids[ticket], [-1.0] * len(self.ids[ticket]), "stop", 0)

    def sync(self, policy: Any) -> None: ...


class Asks:
    """An environment that asks "why?" ``times`` times."""

    name = "asks"

    def __init__(self, times: int) -> None:
        self.times = times

    def split(self, name: str) -> Any:
        raise AssertionError("the problems are given")

    def start(self, problem: Problem, seed: int) -> None: ...

    def replies(self, states: Any, conversations: Sequence[list[Message]]) -> list[list[Message] | None]:
        return [talk("why?") if len(c) < 2 * (self.times + 1) else None for c in conversations]

    def grade(self, episodes: Sequence[Any]) -> list[Grade]:
        return [Grade(0.0, False) for _ in episodes]

    def validate(self) -> None: ...

    def manifest(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("template", "turns", "end", "rows", "segments"),
    [
        (CHATML_TEMPLATE, ["yes", "so\n"], 2, 1, 1),
        (OPENS, ["hm</think>yes", "hm</think>so"], 2, 2, 2),  # its history has another line break
        (STRIPS, ["<think>a</think>yes", "<think>b</think>so"], 2, 2, 2),
        (OTHER_END, ["yes", "so"], 3, 1, 1),
        (PLAIN_TEMPLATE, [" yes", " so"], 2, 2, 2),
        (TRIMS, [" yes", "so "], 2, 2, 1),  # a rollout has the very ids; from the text alone they are not to be had
    ],
    ids=["chatml", "opens", "strips", "other end", "plain", "trims"],
)
def test_rows_are_what_a_rollout_would_have_made(
    template: str, turns: list[str], end: int, rows: int, segments: int, tmp_path: Path
) -> None:
    policy = models.load(tiny_folder(), dtype="float32")
    policy.tokenizer.chat_template = template
    (rollout,) = roll_out(
        Scripted(policy.tokenizer, turns, end), Asks(1), policy, [Problem("p", talk("hi"), None)], Sampling(),
        samples=1, groups=[0], seed=0, clock=Clock(),
    )  # fmt: skip
    found = demonstrated(policy.tokenizer, policy.end_ids, rollout.messages)
    assert len(found) == rows
    assert len(rollout.segments) == segments
    if rows == segments:
        assert [(s.prompt_ids, s.completion_ids, s.mask) for s in rollout.segments] == [
            (s.prompt_ids, s.completion_ids, s.mask) for s in found
        ]
    else:
        (segment,) = rollout.segments
        own = [[*ids, end] for ids in (policy.tokenizer(t, add_special_tokens=False).input_ids for t in turns)]
        runs = itertools.groupby(zip(segment.completion_ids, segment.mask, strict=True), key=lambda token: token[1])
        assert [[token for token, _ in run] for written, run in runs if written] == own


# Tools


def function(name: str, **kinds: str) -> dict[str, Any]:
    properties = {argument: {"type": kind} for argument, kind in kinds.items()}
    parameters = {"type": "object", "properties": properties, "required": [*kinds]}
    return {"type": "function", "function": {"name": name, "description": f"{name}s.", "parameters": parameters}}


CALCULATE = function("calc", expression="string")
CALLED: list[Message] = [
    {"role": "user", "content": "1 + 2?"},
    {"role": "assistant", "content": "<calc>1 + 2</calc>"},
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "It is 3."},
]


def shipped(name: str) -> str:
    """A chat template as it came with a model, out of TRL's package."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("template", "takes"),
    [
        (HERMES, True),
        (shipped("qwen2_5"), True),
        (shipped("qwen3"), True),
        (shipped("llama3_2"), True),
        (CHATML_TEMPLATE, False),
        (PLAIN_TEMPLATE, False),
        (WANTS_IDS, False),
        (shipped("gemma"), False),
        (shipped("deepseek_r1_distill"), False),  # it knows results, but no list of tools
    ],
    ids=["hermes", "qwen2.5", "qwen3", "llama3.2", "chatml", "plain", "wants ids", "gemma", "r1 distill"],
)
def test_which_templates_take_tools(template: str, takes: bool) -> None:
    tokenizer = tokenizer_with(template)
    assert takes_tools(tokenizer) is takes
    text = render(tokenizer, CALLED[:3], generate=True, tools=[CALCULATE])
    assert (TOOLS_IN_TAGS in text) is not takes
    assert "calcs." in text
    before = render(tokenizer, CALLED[:1], generate=True, tools=[CALCULATE]).removesuffix("<think>\n")
    assert text.startswith(before)
    assert text[len(before) :].lstrip().startswith("<calc>1 + 2</calc>")


def test_a_template_writes_tools_where_it_takes_them() -> None:
    tokenizer = tokenizer_with(HERMES)
    (row,) = demonstrated(tokenizer, ENDS, CALLED, tools=[CALCULATE])
    schema = (
        '{"type": "function", "function": {"name": "calc", "description": "calcs.", "parameters": {"type": "object", '
        '"properties": {"expression": {"type": "string"}}, "required": ["expression"]}}}'
    )
    assert pieces(tokenizer, row) == [
        (
            f"<|im_start|>system\nTools:\n{schema}\nCall: <tool_call>{{...}}</tool_call><|im_end|>\n"
            "<|im_start|>user\n1 + 2?<|im_end|>\n<|im_start|>assistant\n",
            False,
        ),
        ("<calc>1 + 2</calc><|im_end|>", True),
        ("\n<|im_start|>user\n<tool_response>3</tool_response><|im_end|>\n<|im_start|>assistant\n", False),
        ("It is 3.<|im_end|>", True),
    ]


@pytest.mark.parametrize("template", [CHATML_TEMPLATE, WANTS_IDS], ids=["no tools", "wants ids"])
def test_elsewhere_tools_are_told_in_plain_tags(template: str) -> None:
    tokenizer = tokenizer_with(template)
    messages: list[Message] = [{"role": "system", "content": "Be brief."}, *CALLED]
    messages.insert(4, {"role": "tool", "content": "4"})  # to a second call in the same turn
    before = [*messages]
    (row,) = demonstrated(tokenizer, ENDS, messages, tools=[CALCULATE, function("look", word="string", top="integer")])
    assert pieces(tokenizer, row) == [
        (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
            f"{TOOLS_IN_TAGS}\n<calc>expression</calc>: calcs.\n"
            '<look>{"word": "string", "top": "integer"}</look>: looks.\n\n'
            "1 + 2?<|im_end|>\n<|im_start|>assistant\n",
            False,
        ),
        ("<calc>1 + 2</calc><|im_end|>", True),
        (
            "\n<|im_start|>user\n<tool_response>\n3\n</tool_response>\n<tool_response>\n4\n</tool_response><|im_end|>\n"
            "<|im_start|>assistant\n",
            False,
        ),
        ("It is 3.<|im_end|>", True),
    ]
    assert messages == before


def test_results_are_rendered_without_a_list_of_tools_too() -> None:
    text = render(tokenizer_with(), CALLED[:3], generate=True)
    assert text.count("tool_response") == 2
    assert TOOLS_IN_TAGS not in text


def test_a_conversation_without_tools_is_left_as_it_is() -> None:
    for template in (HERMES, CHATML_TEMPLATE):
        tokenizer = tokenizer_with(template)
        messages = talk("hi", "yes", "why?")
        plain = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert render(tokenizer, messages, generate=True) == plain


def test_tools_need_a_users_message_to_stand_in() -> None:
    with pytest.raises(ValueError, match="no user's message"):
        render(tokenizer_with(), [{"role": "system", "content": "S"}], generate=True, tools=[CALCULATE])


# Against TRL

TRL = [  # see test_trl
    pytest.mark.filterwarnings("ignore:TRL currently supports vLLM versions:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
]


@pytest.fixture
def trl_leaves_the_device_alone() -> Iterator[None]:
    """As in test_trl."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def trl_rows(folder: Path, rows: list[dict[str, Any]], tokenizer: Any, **options: Any) -> list[dict[str, list[int]]]:
    """``input_ids`` and ``labels`` that TRL's SFTTrainer makes of a data set."""
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(
        output_dir=str(folder), report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
        max_length=None, **options,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tiny_folder(), dtype=torch.float32)
    data = Dataset.from_list(rows)
    return list(SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer).train_dataset)


CONVERSATIONS: list[list[Message]] = [
    talk("hi", "yes", "why?", "so be it", "and?", ""),
    [{"role": "system", "content": "Be brief."}, *talk("Name it!", "Ω")],
]


class TestAgainstTRL:
    pytestmark = TRL

    def test_the_masks_of_assistants_turns(self, tmp_path: Path, trl_leaves_the_device_alone: None) -> None:
        """Where a template has marks, TRL learns what they enclose. Ids and masks are ours, but for the last line
        break, which no policy sees: ours ends at the end token."""
        tokenizer = tokenizer_with(MARKED)
        theirs = trl_rows(tmp_path, [{"messages": m} for m in CONVERSATIONS], tokenizer, assistant_only_loss=True)
        for messages, row in zip(CONVERSATIONS, theirs, strict=True):
            (ours,) = demonstrated(tokenizer, ENDS, messages)
            ids = ours.prompt_ids + ours.completion_ids
            mask = [False] * len(ours.prompt_ids) + ours.mask
            assert [*ids, *_bytes("\n")] == row["input_ids"]
            assert [*(i if m else -100 for i, m in zip(ids, mask, strict=True)), -100] == row["labels"]

    def test_the_masks_of_completions(self, tmp_path: Path, trl_leaves_the_device_alone: None) -> None:
        """Of a prompt and its completion TRL learns all that follows the prompt, the template's line break after the
        end token too. Ours ends at the end token, where a policy's turn ends."""
        tokenizer = tokenizer_with()
        pairs = [(m[:-1], m[-1:]) for m in CONVERSATIONS]
        theirs = trl_rows(tmp_path, [{"prompt": p, "completion": c} for p, c in pairs], tokenizer)
        for (prompt, completion), row in zip(pairs, theirs, strict=True):
            (ours,) = demonstrated(tokenizer, ENDS, prompt + completion, start=len(prompt))
            assert all(ours.mask)
            assert [*ours.prompt_ids, *ours.completion_ids, *_bytes("\n")] == row["input_ids"]
            assert [-100] * len(ours.prompt_ids) + [*ours.completion_ids, *_bytes("\n")] == row["labels"]


def test_the_policys_own_end_tokens_are_those_of_the_tests() -> None:
    policy: Policy = models.load(tiny_folder(), dtype="float32")
    assert policy.end_ids == ENDS
