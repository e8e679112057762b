"""The doctor's checks: functions that look at a part of a run and say what they saw.

A check returns a ``Verdict``; ``Examination`` gives it a name and turns what crashes into a failure of that check
alone. ``rlreason.doctor`` says which checks there are and in which order.

Left out: repairs. A check says what to do, and changes nothing but weights in memory.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from rlreason.config import ConfigError

Status = Literal["pass", "warn", "fail", "skip"]
T = TypeVar("T")


@dataclass(frozen=True)
class Verdict:
    """What a check saw: ``figure`` is what was measured, ``advice`` what to do about it, if anything."""

    status: Status
    figure: str
    advice: str = ""


@dataclass(frozen=True)
class Finding:
    """A verdict with the name of its check: a row of the table."""

    check: str
    status: Status
    figure: str
    advice: str


def passed(figure: str) -> Verdict:
    return Verdict("pass", figure)


def warned(figure: str, advice: str) -> Verdict:
    return Verdict("warn", figure, advice)


def failed(figure: str, advice: str) -> Verdict:
    return Verdict("fail", figure, advice)


def skipped(figure: str) -> Verdict:
    return Verdict("skip", figure)


class Examination:
    """Runs checks one after another and keeps what they found. ``on_check`` is told the name of each before it runs."""

    def __init__(self, on_check: Callable[[str], None]) -> None:
        self.findings: list[Finding] = []
        self._on_check = on_check

    def look(
        self, name: str, check: Callable[[], Verdict], *, needs: Sequence[str] = (), unless_failed: Sequence[str] = ()
    ) -> None:
        """Run a check, unless one of those in ``needs`` found nothing good, or of those in ``unless_failed`` something
        bad: what it would say then misleads."""
        self._verdict(name, lambda: (None, check()), needs, unless_failed)

    def obtain(
        self,
        name: str,
        make: Callable[[], tuple[T, str]],
        *,
        needs: Sequence[str] = (),
        unless_failed: Sequence[str] = (),
    ) -> T | None:
        """What further checks look at, and a figure about it; None if making it crashed or was not tried."""

        def check() -> tuple[T | None, Verdict]:
            value, figure = make()
            return value, passed(figure)

        return self._verdict(name, check, needs, unless_failed)

    def _verdict(
        self,
        name: str,
        check: Callable[[], tuple[T | None, Verdict]],
        needs: Sequence[str],
        unless_failed: Sequence[str],
    ) -> T | None:
        bad = {"fail": {*needs, *unless_failed}, "skip": {*needs}}
        missing = [finding.check for finding in self.findings if finding.check in bad.get(finding.status, ())]
        value: T | None = None
        if missing:
            verdict = skipped(f"not run, since it needs: {', '.join(missing)}")
        else:
            self._on_check(name)
            try:
                value, verdict = check()
            except ConfigError as error:
                verdict = failed("refused", str(error))
            except Exception as error:  # whatever a check does, the others still have their say
                verdict = crashed(error)
        self.findings.append(Finding(name, verdict.status, verdict.figure, verdict.advice))
        return value


def crashed(error: Exception) -> Verdict:
    """The verdict on what raised ``error``, with the place that it came from."""
    *_, last = traceback.extract_tb(error.__traceback__)
    message = (str(error).splitlines() or [""])[0]
    place = "/".join(Path(last.filename).parts[-2:])
    return failed(f"{type(error).__name__}: {message}", f"raised by {place}:{last.lineno}, in {last.name}")
