"""python -m rlreason.play env=<name>

A person in the policy's place: reads the prompts, answers at the terminal, and sees reward, parts and verdict as the
policy would get them. The quickest way to find out whether a task can be done, and what a reward pays for.

An answer ends at an empty line or at the end of the input (Ctrl-D). ``:skip`` goes on to the next problem, ``:gold``
shows the right answer to the last one that was answered, ``:quit`` ends. Answers may be piped in:
``printf '8\\n\\n12\\n\\n' | python -m rlreason.play``.

Left out: answers with empty lines in them, an empty answer, a limit on tokens and turns (a person is never cut off, so
``finish`` is always ``stop``), and traces of what was answered.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import TextIOWrapper
from statistics import fmean

import hydra
from omegaconf import DictConfig

from rlreason.config import CONF, ConfigError, build, guarded, naming, resolved, start
from rlreason.console import visible
from rlreason.policy import Policy
from rlreason.sampler import derived_seed
from rlreason.types import Env, Episode, Grade, Message, Problem

HELP = "An empty line or Ctrl-D ends an answer. Or :skip (the problem), :gold (of the last one answered), :quit"

_COMMAND = re.compile(r":[a-z]+")


class Quit(Exception):
    """The player has had enough, or the input is at its end."""


class Skip(Exception):
    """The player wants another problem."""


@dataclass
class Player:
    """Someone at the terminal. ``policy`` renders what is shown, where there is one."""

    policy: Policy | None = None
    gold: str = "nothing has been answered yet"

    def answer(self) -> str:
        """What is typed until an empty line or the end of the input; empty lines before it are passed over. Raises Quit
        and Skip where that is typed instead."""
        lines: list[str] = []
        while True:
            try:
                line = input()
            except EOFError:
                if not lines:
                    raise Quit from None
                return "\n".join(lines)
            if not lines and _COMMAND.fullmatch(line.strip()):
                self._obey(line.strip())
            elif line.strip():
                lines.append(line)
            elif lines:
                return "\n".join(lines)

    def _obey(self, command: str) -> None:
        if command == ":quit":
            raise Quit
        if command == ":skip":
            raise Skip
        say(self.gold if command == ":gold" else HELP)

    def show(self, problem: Problem, messages: list[Message], new: list[Message]) -> str:
        """What the policy reads: the ``new`` ones of ``messages``, or with a policy all its tokens. Returns what of its
        turn is already there, by the environment or the template."""
        if self.policy is not None:
            prompt = self.policy.render(messages, problem.tools)
            pieces = [self.policy.tokenizer.decode([token]) for token in prompt.ids]
            say(f"[{len(prompt.ids)} tokens] " + "|".join(pieces))
            return prompt.opened
        first = len(new) == len(messages)  # a chat template puts the tools before the first turn
        for tool in problem.tools if first else ():
            say(f"[tool] {json.dumps(tool, ensure_ascii=False)}")
        for message in new:
            say(f"[{message['role']}] {message['content']}")
        return messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""


@dataclass
class Score:
    """What was earned."""

    grades: list[Grade] = field(default_factory=list)
    skipped: int = 0

    def __str__(self) -> str:
        found = [grade for grade in self.grades if grade.status != "error"]
        counts = {"answered": len(found), "skipped": self.skipped, "failed to grade": len(self.grades) - len(found)}
        told = [", ".join(f"{count} {what}" for what, count in counts.items() if count or what == "answered")]
        judged = [grade.correct for grade in found if grade.correct is not None]
        if judged:
            told.append(f"{sum(judged)} of {len(judged)} right ({fmean(judged):.3f})")
        if found:
            parts = defaultdict(list)
            for grade in found:
                for name, value in grade.parts.items():
                    parts[name].append(value)
            means = ", ".join(f"{name} {fmean(values):.3f}" for name, values in parts.items())
            told.append(f"reward {fmean(grade.reward for grade in found):.3f}" + (f" ({means})" if means else ""))
        return "; ".join(told)


def play(env: Env, problems: Iterator[Problem], player: Player, seed: int) -> Score:
    """Problem after problem, as ``rollout.roll_out`` has the policy meet them, until the player quits."""
    score = Score()
    try:
        for number, problem in enumerate(problems):
            say(f"--- {problem.id}")
            try:
                grade = _episode(env, problem, player, derived_seed(seed, number))
            except Skip:
                score.skipped += 1
                continue
            score.grades.append(grade)
            player.gold = f"{problem.id}: {'no single right answer' if problem.answer is None else problem.answer}"
            say(f"--- {_told(grade)}")
    except (Quit, KeyboardInterrupt):
        pass
    return score


def _episode(env: Env, problem: Problem, player: Player, seed: int) -> Grade:
    state = env.start(problem, seed)
    messages, new = list(problem.prompt), list(problem.prompt)
    while True:
        opened = player.show(problem, messages, new)
        say("--- your turn" + (f", which begins: {opened}" if opened else ""))
        text = opened + player.answer()
        if messages[-1]["role"] == "assistant":  # a turn that was begun for the policy
            messages.pop()
        messages.append({"role": "assistant", "content": text})
        (reply,) = env.replies([state], [messages])
        if reply is None:
            (grade,) = env.grade([Episode(problem, state, messages, text, "stop")])
            return grade
        messages, new = [*messages, *reply], reply


def _told(grade: Grade) -> str:
    """A grade in one line; the status only where it is not ``ok``."""
    parts = ", ".join(f"{name} {value:.3f}" for name, value in grade.parts.items())
    turns = ", ".join(f"{value:.3f}" for value in grade.turn_rewards)
    facts = [
        f"reward {grade.reward:.3f}" + (f" ({parts})" if parts else "") + (f", by turns {turns}" if turns else ""),
        {True: "correct", False: "wrong", None: "no verdict"}[grade.correct],
        "no answer found" if grade.answer is None else f"answer {grade.answer}",
    ]
    return "; ".join(facts + ([] if grade.status == "ok" else [grade.status]))


def say(text: str) -> None:
    """Print; control characters, which could move the cursor, as escapes."""
    print(visible(text, sys.stdout.encoding), flush=True)


def run(cfg: DictConfig) -> None:
    """Play as ``cfg`` says, on stdin and stdout. Raises ConfigError for whatever the user can mend."""
    resolved(cfg)
    if cfg.first < 0:
        raise ConfigError(f"first is {cfg.first}; it must be 0 or more")
    if cfg.limit is not None and cfg.limit < 1:
        raise ConfigError(f"limit is {cfg.limit}; it must be at least 1, or null")
    if cfg.show_tokens and cfg.model is None:
        raise ConfigError("show_tokens needs a model, whose tokens are shown: model=smollm2_135m")
    env: Env = build(cfg, "env")
    with naming("split"):
        problems = env.split(cfg.split)
    end = float("inf") if problems.size is None else problems.size
    if cfg.first >= end:
        raise ConfigError(f"first is {cfg.first}, but the {cfg.split} split has {problems.size} problems, from 0")
    end = min(end, float("inf") if cfg.limit is None else cfg.first + cfg.limit)
    policy: Policy | None = None
    if cfg.show_tokens:
        with naming("model"):
            policy = build(cfg, "model")(device="cpu")

    def drawn() -> Iterator[Problem]:
        number = cfg.first
        while number < end:
            yield problems[number]
            number += 1

    say(f"{env.name}, {cfg.split}, {'no end' if problems.size is None else f'{problems.size} problems'}. {HELP}")
    score = play(env, drawn(), Player(policy), cfg.seed)
    say(f"--- {score}")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="play")
def main(cfg: DictConfig) -> None:
    """The entry point that Hydra calls."""
    guarded(lambda: run(cfg))


if __name__ == "__main__":
    if {"-m", "--multirun"} & set(sys.argv):
        raise SystemExit("error: one plays one environment: leave -m away and give one value for each key")
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, TextIOWrapper):  # whatever is typed or shown, in whatever encoding
            stream.reconfigure(errors="replace" if stream is sys.stdin else "backslashreplace")
    start(main)
