"""The live view of a run: the main curves as numbers, a progress bar, and now and then a whole trace.

On a terminal, lines scroll above a bar with the time left. Anywhere else (a file, a pipe, a batch system) the same
lines are plain text without control characters, each written at once.

What the model wrote is printed as it is: never read as markup, and control characters in it are shown, not obeyed.

Left out: curves drawn in the terminal, and redirecting stdout around the bar. Forked workers would inherit the
redirection together with its lock, and could hang on a print.
"""

from __future__ import annotations

import math
import os
import random
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import IO, Protocol, TextIO, cast

import rich.console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from rlreason.metrics import completion_length
from rlreason.types import Message, Rollout

Metrics = Mapping[str, float | None]

_HEADER_EVERY = 20  # lines between two headers
_PROMPT_LIMIT = 1200  # characters of a trace's prompt
_COMPLETION_LIMIT = 2400  # characters of a trace's completion
_PLAIN_WIDTH = 120  # columns where there is no terminal to ask and COLUMNS isn't set
_CELL = 8  # least width of a column


class Console(Protocol):
    """Shows a run. Display never stops it: if the output goes away, the console falls silent."""

    def step(self, step: int, metrics: Metrics, rollouts: Sequence[Rollout]) -> None:
        """Show one line of metrics and, at times, one of the rollouts."""
        ...

    def say(self, text: str) -> None:
        """Print a line of text without disturbing the bar."""
        ...

    def close(self) -> None:
        """Take the bar down; calling again does nothing."""
        ...


@dataclass(frozen=True)
class ConsoleConfig:
    """``trace_every``: steps between two sampled traces, the first step's trace aside; 0 shows none. ``quiet`` shows
    nothing at all."""

    trace_every: int = 10
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.trace_every < 0:
            raise ValueError(f"console.trace_every is {self.trace_every}; it must be 0 (no traces) or more")

    def open(self, max_steps: int, *, start: int = 0, file: TextIO | None = None, width: int | None = None) -> Console:
        """A console for a run of ``max_steps`` steps, of which ``start`` are done. It writes to ``file``, by default
        stdout, in ``width`` columns, by default the terminal's."""
        if self.quiet:
            return Quiet()
        return _Printer(self, max_steps, start, sys.stdout if file is None else file, width)


class Quiet:
    """A console that shows nothing."""

    def step(self, step: int, metrics: Metrics, rollouts: Sequence[Rollout]) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class _Stream:
    """What rich writes to: ``file``, until it fails. (Left to itself, rich ends the program on a broken pipe.)"""

    def __init__(self, file: TextIO) -> None:
        self._file: TextIO | None = file
        self.encoding = getattr(file, "encoding", None) or "utf-8"
        self.isatty = file.isatty

    def write(self, text: str) -> int:
        self._try(lambda file: file.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(lambda file: file.flush())

    def _try(self, action: Callable[[TextIO], object]) -> None:
        if self._file is None:
            return
        try:
            action(self._file)
        except (OSError, ValueError):
            # The reader of a pipe has left, or the file was closed: nobody is looking, and the run folder has it all.
            self._file = None


class _Left(ProgressColumn):
    """The time left, counting down between steps."""

    max_refresh = 0.5

    def __init__(self, left: Callable[[], float | None]) -> None:
        super().__init__()
        self._left = left

    def render(self, task: Task) -> Text:
        return Text(f"{_duration(self._left())} left")


@dataclass(frozen=True)
class _Column:
    head: str
    value: str
    rank: int  # where the line is too narrow, the highest rank goes first

    @property
    def width(self) -> int:
        return max(_CELL, len(self.head), len(self.value))


class _Printer:
    def __init__(self, config: ConsoleConfig, max_steps: int, start: int, file: TextIO, width: int | None) -> None:
        live = file.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        if width is None and not live:
            columns = os.environ.get("COLUMNS", "")
            width = int(columns) if columns.isdecimal() and int(columns) > 0 else _PLAIN_WIDTH
        stream = _Stream(file)
        self._encoding = stream.encoding
        self._trace_every = config.trace_every
        self._max_steps = max_steps
        self._out = rich.console.Console(
            file=cast(IO[str], stream),
            width=width,
            force_terminal=live,
            color_system="auto" if live else None,
            force_jupyter=False,
            markup=False,
            emoji=False,
            highlight=False,
        )
        self._shown: tuple[str, ...] = ()  # heads of the last header
        self._since_header = 0
        self._traced = False
        self._tokens: float | None = None if start else 0.0  # num_tokens of the previous line
        self._done = start
        # When each of the latest steps ended; their mean is the pace, so evaluations and checkpoints count too.
        self._ends: deque[tuple[float, int]] = deque([(time.monotonic(), start)], maxlen=50)
        self._progress: Progress | None = None
        if live:
            self._progress = Progress(
                TextColumn("step"),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=None),
                _Left(self._left),
                console=self._out,
                refresh_per_second=1,
                expand=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._task = self._progress.add_task("step", total=max_steps, completed=start)
            self._progress.start()

    def step(self, step: int, metrics: Metrics, rollouts: Sequence[Rollout]) -> None:
        if step > self._done:
            self._ends.append((time.monotonic(), step))
            self._done = step
        line = self._columns(step, metrics)
        self._tokens = metrics.get("num_tokens", self._tokens)
        if line:
            self._print_line(line)
        if evaluated := {name: value for name, value in metrics.items() if name.startswith("eval/")}:
            self._print(f"eval after step {step}: {_evaluation(evaluated)}", "bold green")
            self._since_header = _HEADER_EVERY
        if rollouts and self._trace_every and (not self._traced or step % self._trace_every == 0):
            # Drawn by the step alone, so that looking at traces moves no random state of the run.
            self._print_trace(step, rollouts[random.Random(step).randrange(len(rollouts))])
            self._traced = True
        if self._progress is not None:
            self._progress.update(self._task, completed=self._done)

    def say(self, text: str) -> None:
        self._print(text)

    def close(self) -> None:
        progress, self._progress = self._progress, None
        if progress is not None:
            progress.stop()

    def _left(self) -> float | None:
        """Seconds until the last step is done, or None before the first."""
        (first_time, first), (last_time, last) = self._ends[0], self._ends[-1]
        if last == first:
            return None
        pace = (last_time - first_time) / (last - first)
        return max(0.0, last_time + pace * (self._max_steps - last) - time.monotonic())

    def _columns(self, step: int, metrics: Metrics) -> list[_Column]:
        """The cells of a line, as many as fit; none if the metrics hold none of the main curves."""
        shown = [("reward", metrics["reward"], 1)] if "reward" in metrics else []
        parts = [name for name in metrics if re.fullmatch(r"rewards/.+/mean", name)]
        shown += [(name.split("/", 1)[1].removesuffix("/mean"), metrics[name], 4) for name in parts]
        for key, head, rank in (
            ("loss", "loss", 1),
            ("completions/mean_length", "length", 2),
            ("completions/clipped_ratio", "clipped", 5),
            ("entropy", "entropy", 6),
            ("kl", "kl", 7),
            ("epoch", "epoch", 5),
            ("step_time", "s/step", 3),
        ):
            if key in metrics:
                shown.append((head, metrics[key], rank))
        if not shown:
            return []
        tokens, seconds = metrics.get("num_tokens"), metrics.get("step_time")
        if tokens is not None and seconds:
            speed = None if self._tokens is None else (tokens - self._tokens) / seconds
            shown.append(("tokens/s", speed, 8))
        columns = [_Column("step", f"{step}/{self._max_steps}", 0)]
        columns += [_Column(visible(head, self._encoding), _number(value), rank) for head, value, rank in shown]
        if self._progress is None:
            columns.append(_Column("left", _duration(self._left()), 9))
        while len(columns) > 1 and sum(column.width + 1 for column in columns) - 1 > self._out.width:
            columns.remove(max(reversed(columns), key=lambda column: column.rank))
        return columns

    def _print_line(self, columns: Sequence[_Column]) -> None:
        heads = tuple(column.head for column in columns)
        if heads != self._shown or self._since_header >= _HEADER_EVERY:
            self._print(" ".join(f"{column.head:>{column.width}}" for column in columns), "bold")
            self._shown, self._since_header = heads, 0
        self._print(" ".join(f"{column.value:>{column.width}}" for column in columns))
        self._since_header += 1

    def _print_trace(self, step: int, rollout: Rollout) -> None:
        problem, grade = rollout.problem, rollout.grade
        said = rollout.messages[len(problem.prompt) :]
        completion = rollout.text if len(said) <= 1 else _conversation(said)
        verdict = {True: "correct", False: "wrong", None: "no verdict"}[grade.correct]
        parts = ", ".join(f"{name} {_number(value)}" for name, value in grade.parts.items())
        tokens = completion_length(rollout)
        facts = [
            f"reward {_number(grade.reward)}" + (f" ({parts})" if parts else ""),
            verdict if grade.status == "ok" else f"{verdict}, {grade.status}",
            f"answer {_cut(str(grade.answer), 80)}, gold {_cut(str(problem.answer), 80)}",
            f"{tokens} tokens, {rollout.finish}",
        ]
        colour = {True: "green", False: "red", None: ""}[grade.correct]
        self._print(f"--- a trace of step {step}, problem {problem.id}", "bold cyan")
        self._print(_cut(_conversation(problem.prompt), _PROMPT_LIMIT), "dim")
        self._print("--- the policy", "cyan")
        self._print(_cut(completion, _COMPLETION_LIMIT))
        self._print("--- " + "; ".join(facts), colour)
        self._since_header = _HEADER_EVERY

    def _print(self, text: str, style: str = "") -> None:
        self._out.print(Text(visible(text, self._encoding), style=style))


def _evaluation(metrics: Metrics) -> str:
    """``eval/<env>/<metric>`` as text, with the interval behind a metric that has one."""
    shown = []
    for name, value in metrics.items():
        if name.removesuffix("_low") in metrics and name.endswith("_low"):
            continue
        if name.removesuffix("_high") in metrics and name.endswith("_high"):
            continue
        low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
        interval = "" if low is None or high is None else f" ({_number(low)} to {_number(high)})"
        shown.append(f"{name.removeprefix('eval/')} {_number(value)}{interval}")
    return ", ".join(shown)


def _conversation(messages: Sequence[Message]) -> str:
    return "\n".join(f"[{message['role']}] {message['content']}" for message in messages)


def visible(text: str, encoding: str) -> str:
    """``text`` with control characters, but for new lines and tabs, as escapes, and so what ``encoding`` lacks."""
    text = text.replace("\r\n", "\n")
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _cut(text: str, limit: int) -> str:
    """``text`` of at most ``limit`` characters, else its two ends and how much lies between."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} ... [{len(text) - 2 * half} characters cut] ... {text[-half:]}"


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    if isinstance(value, int):
        return str(value)
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        return f"{value:.1e}"
    return f"{value:.3f}" if size < 100 else f"{value:.1f}"


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else str(timedelta(seconds=round(seconds)))
