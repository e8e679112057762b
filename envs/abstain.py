"""Knowing what one doesn't know: a single-turn environment in which "I don't know" is an allowed answer.

A grader that pays for right answers alone teaches to guess: a guess is sometimes right, and silence never is (Kalai et
al. 2025, "Why language models hallucinate", arXiv:2509.04664). Here a text is *right*, *abstains* or is a *confident
error*, one of the three, and each has its reward; abstaining pays more where the policy does not know the answer. What
it knows, a probe says (``envs/known.py``): questions that it was asked several times beforehand.

What counts as abstaining: one of ``PHRASES``, case and punctuation around it aside, as the whole content of the place
where the answer stands, and nothing else there. An abstention and an answer together are wrong, whichever way round;
so is a text that gives neither, or that the token limit has cut off: saying nothing is no abstention.

Left out: a stated confidence ("70 % sure"), and other words that decline ("unknown" may be an answer). What the policy
comes to know in training is not probed again: probe a checkpoint, and start a run from it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import Any

from envs.base import Answer, BatchGradedEnv, GeneratedSplit, splits_of
from envs.formats import R1, Boxed, Hash, Plain
from envs.known import Tally, tallies
from rlreason.types import Grade, Message, Problem, Split

PHRASES = ("i don't know", "i do not know", "i'm not sure", "i am not sure")
"""What counts as abstaining; apostrophes may be typographic."""

ABSTAINED = "I don't know"
"""The extracted answer of every abstention: they agree with each other in votes."""

LOOKED_THROUGH = 1000
"""So many problems of an endless split are looked up in the probe, to see whether it belongs to the environment."""

_SAID = re.compile(rf"\b(?:{'|'.join(map(re.escape, PHRASES))})\b")
_APOSTROPHES = str.maketrans("\u2018\u2019\u02bc", "'''")
# Possessive: what a policy writes must not cost more than one pass.
_TAGGED = re.compile(r"<answer>([^<]*+)</answer>")
_BOX = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*+\})*+)\}")
_HASH = re.compile(r"####([^\n]*+)")
_LATEX_TEXT = re.compile(r"\\text\{([^{}]*+)\}")


def _after_thought(text: str) -> str:
    _, closed, rest = text.partition("</think>")
    return rest if closed else text


_SLOTS: Mapping[str, Callable[[str], list[str]]] = {
    "answer": lambda text: _TAGGED.findall(text.partition("</think>")[2]),
    "boxed": lambda text: _BOX.findall(_after_thought(text)),
    "hash": _HASH.findall,
    "text": lambda text: [text],
}
"""The contents of the places in a text where an answer stands."""

_SLOT_OF: Mapping[type, str] = {R1: "answer", Boxed: "boxed", Hash: "hash", Plain: "text"}


@dataclass(frozen=True)
class Rewards:
    """What each outcome earns. Answering pays where ``p right + (1 - p) wrong``, p being the chance of being right, is
    more than abstaining pays: with 1, -1 and 0.5 above p = 3/4. ValueError unless right > abstain_unknown >=
    abstain_known >= wrong, and abstain_unknown > wrong."""

    right: float = 1.0
    abstain_unknown: float = 0.5
    abstain_known: float = 0.0
    wrong: float = -1.0

    def __post_init__(self) -> None:
        ordered = self.right > self.abstain_unknown >= self.abstain_known >= self.wrong
        if not all(map(math.isfinite, astuple(self))) or not ordered or self.abstain_unknown == self.wrong:
            raise ValueError(
                f"rewards are {self}; they must be finite numbers with right > abstain_unknown >= abstain_known >= "
                "wrong, and abstain_unknown above wrong"
            )


@dataclass(frozen=True)
class Abstain(BatchGradedEnv):
    """``env`` with "I don't know" as an allowed answer. Its own reward gives way to ``rewards``; its parts stay, with
    ``accuracy``, ``abstained``, ``abstained_known`` and ``confident_error`` (1 or 0) beside them. ``correct`` stays
    "the answer was right", which an abstention is not.

    A question is unknown if ``probe`` (paths as in ``envs.known.tallies``) has it asked at least ``min_asked`` times,
    and a share of at most ``unknown_at_most`` of the answers right; without a probe all are known. Questions that the
    probe lacks, or has asked less often, are known too (``unprobed`` is ``known``) or ``left_out`` of the splits.

    ``instruction`` is added to the question on a line of its own. ``slot``: where the answer stands, ``answer`` (tags,
    after the thought, as R1 wants them), ``boxed``, ``hash`` (a line ``#### ...``) or ``text`` (the whole text is the
    answer: no thinking aloud); None: where the environment's format has it. ``name`` is the environment's with
    ``_abstain`` unless it is given.

    Raises ValueError for settings that make no sense, and for a probe of other problems; and what reading it raises.
    """

    env: BatchGradedEnv
    probe: Sequence[str] = ()
    unknown_at_most: float = 0.0
    min_asked: int = 4
    unprobed: str = "known"
    rewards: Rewards = field(default_factory=Rewards)
    instruction: str = 'If you do not know the answer, write "I don\'t know" in its place.'
    slot: str | None = None
    name: str = ""
    _probed: Mapping[str, Tally] = field(init=False, repr=False, compare=False)
    _hashes: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.env, BatchGradedEnv):
            raise ValueError(
                f"abstain: env is {type(self.env).__name__}; it must be a single-turn environment, one that is no "
                "wrapper itself"
            )
        if not 0 <= self.unknown_at_most < 1:
            raise ValueError(f"abstain: unknown_at_most is {self.unknown_at_most}; it must be 0 or more and below 1")
        if self.min_asked < 1:
            raise ValueError(f"abstain: min_asked is {self.min_asked}; it must be at least 1")
        if self.unprobed not in ("known", "left_out"):
            raise ValueError(f"abstain: unprobed is {self.unprobed!r}; it must be known or left_out")
        object.__setattr__(self, "probe", (self.probe,) if isinstance(self.probe, str) else tuple(self.probe))
        object.__setattr__(self, "slot", self.slot or _SLOT_OF.get(type(getattr(self.env, "format", None))))
        if self.slot not in _SLOTS:
            raise ValueError(
                f"abstain: slot is {self.slot!r}; say where {self.env.name} has its answer: {', '.join(_SLOTS)}"
            )
        object.__setattr__(self, "name", self.name or f"{self.env.name}_abstain")
        counted, hashes = tallies(self.probe)
        probed = {problem: tally for problem, tally in counted.items() if tally.asked >= self.min_asked}
        object.__setattr__(self, "_probed", probed)
        object.__setattr__(self, "_hashes", hashes)
        self._check_probe(counted)

    def _check_probe(self, counted: Mapping[str, Tally]) -> None:
        if not self.probe:
            if self.unprobed == "left_out":
                raise ValueError("abstain: unprobed is left_out, but there is no probe; give env.probe=[<run folder>]")
            return
        if not self._probed:
            raise ValueError(
                f"abstain: of the {len(counted)} questions in {', '.join(self.probe)} none was asked {self.min_asked} "
                "times; probe with a larger num_samples, or lower env.min_asked"
            )
        for problems in splits_of(self.env).values():
            if self.unprobed == "left_out" and problems.size is None:
                raise ValueError(
                    f"abstain: {self.env.name} has no end, so unprobed questions can't be left out of it; set "
                    "env.unprobed=known"
                )
            size = LOOKED_THROUGH if problems.size is None else problems.size
            if any(problems[index].id in self._probed for index in range(size)):
                return
        raise ValueError(
            f"abstain: none of the questions in {', '.join(self.probe)} is one of {self.env.name}'s; probe with the "
            "same env and the same settings"
        )

    @property
    def max_reward(self) -> float:
        return self.rewards.right

    def split(self, name: str) -> Split:
        problems = self.env.split(name)
        if self.unprobed == "known" or problems.size is None:
            return GeneratedSplit(problems.size, lambda index: self._posed(problems[index]))
        places = [index for index in range(problems.size) if problems[index].id in self._probed]
        if not places:
            raise ValueError(
                f"abstain: no question of the {name} split is in the probe, so nothing is left of it; probe that split "
                f"too (python -m rlreason.sample split={name}) and add it to env.probe, or set env.unprobed=known"
            )
        return GeneratedSplit(len(places), lambda index: self._posed(problems[places[index]]))

    def grade_texts(self, answers: Sequence[Answer]) -> list[Grade]:
        own = self.env.grade_texts([replace(answer, problem=self._asked(answer.problem)) for answer in answers])
        return [self._judged(answer, grade) for answer, grade in zip(answers, own, strict=True)]

    def gold(self, problem: Problem) -> str:
        return self.env.gold(self._asked(problem))

    def manifest(self) -> Mapping[str, Any]:
        unknown = sum(not self._knows(problem) for problem in self._probed)
        return {
            **self.env.manifest(),
            "name": self.name,
            "abstain": {
                "phrases": list(PHRASES),
                "slot": self.slot,
                "instruction": self.instruction,
                "rewards": asdict(self.rewards),
                "probe": dict(self._hashes),
                "probed": {"known": len(self._probed) - unknown, "unknown": unknown},
                "unknown_at_most": self.unknown_at_most,
                "min_asked": self.min_asked,
                "unprobed": self.unprobed,
            },
        }

    def _judged(self, answer: Answer, own: Grade) -> Grade:
        if own.status == "error":
            return own
        if own.correct is None:
            raise ValueError(
                f"abstain: {self.env.name} does not say whether the answer to {answer.problem.id} is right; use an "
                "environment that does"
            )
        known = self._knows(answer.problem.id)
        said, alone = self._declined(answer.text)
        abstained = alone and answer.finish == "stop"
        right = own.correct and not said
        parts = {
            **own.parts,
            "accuracy": float(right),
            "abstained": float(abstained),
            "abstained_known": float(abstained and known),
            "confident_error": float(not right and not abstained),
        }
        if abstained:
            reward = self.rewards.abstain_known if known else self.rewards.abstain_unknown
            return Grade(reward, False, "ok", parts, ABSTAINED)
        if said:
            return Grade(self.rewards.wrong, False, "unparseable", parts)
        return Grade(self.rewards.right if right else self.rewards.wrong, right, own.status, parts, own.answer)

    def _declined(self, text: str) -> tuple[bool, bool]:
        """Whether an answer says that it doesn't know, and whether all answers in the text say that and no more. The
        instruction, quoted, says nothing."""
        assert self.slot is not None  # __post_init__ has seen to that
        text = text.replace(self.instruction, " ") if self.instruction else text
        slots = [_plain(content) for content in _SLOTS[self.slot](text)]
        said = any(_SAID.search(content) for content in slots)
        return said, said and all(content in PHRASES for content in slots)

    def _knows(self, problem: str) -> bool:
        tally = self._probed.get(problem)
        return tally is None or tally.right / tally.asked > self.unknown_at_most

    def _posed(self, problem: Problem) -> Problem:
        tally = self._probed.get(problem.id)
        meta = {**problem.meta, "known": self._knows(problem.id), "probe": None if tally is None else asdict(tally)}
        return replace(problem, prompt=_at_the_last_question(problem.prompt, self._with_instruction), meta=meta)

    def _asked(self, problem: Problem) -> Problem:
        """As the environment posed it, which lets no echo of its own prompt pass for an answer."""
        return replace(problem, prompt=_at_the_last_question(problem.prompt, self._without_instruction))

    def _with_instruction(self, content: str) -> str:
        return f"{content}\n{self.instruction}" if self.instruction else content

    def _without_instruction(self, content: str) -> str:
        return content.removesuffix(f"\n{self.instruction}") if self.instruction else content


def _at_the_last_question(prompt: Sequence[Message], change: Callable[[str], str]) -> list[Message]:
    place = max(index for index, message in enumerate(prompt) if message["role"] == "user")
    changed: Message = {"role": "user", "content": change(prompt[place]["content"])}
    return [*prompt[:place], changed, *prompt[place + 1 :]]


def _plain(content: str) -> str:
    """In lower case, without LaTeX's ``\\text``, typographic apostrophes, and punctuation around it."""
    words = _LATEX_TEXT.sub(r"\1", content).lower().translate(_APOSTROPHES).split()
    return " ".join(words).strip(" .,!;:*_\"'`$")
