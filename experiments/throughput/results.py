"""What was measured, on file: ``results.json``, the table, and the README's copy of it.

A rerun of one case replaces that case alone, so each entry carries its own machine, commit, versions and date.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

BEGIN, END = "<!-- table: written by bench.py -->", "<!-- end of table -->"
HEADINGS = ("case", "against", "ours", "theirs", "ratio", "range", "target", "n", "remarks")


@dataclass(frozen=True)
class Pair:
    """The same unit of work on both sides, in the same unit of measure, less being better."""

    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        return self.theirs / self.ours


@dataclass(frozen=True)
class Entry:
    """A case's result. ``ours`` and ``theirs`` are the raw values in ``unit``, pair by pair; a ratio is theirs / ours
    of a pair. ``target`` is the least that ``ratio_median`` should be, None where nothing was promised; ``runs`` are
    the whole reports of each side, ``made`` says when, where and from what."""

    case: str
    against: str
    ratio_median: float
    ratio_min: float
    ratio_max: float
    target: float | None
    unit: str
    ours: list[float]
    theirs: list[float]
    remarks: str
    runs: dict[str, list[dict[str, Any]]]
    made: dict[str, Any]


def entry(
    case: str,
    against: str,
    target: float | None,
    unit: str,
    pairs: Sequence[Pair],
    remarks: str,
    runs: Mapping[str, Sequence[Any]],
    made: Mapping[str, Any],
) -> Entry:
    """Ratios of the pairs: median and extremes. Raises ValueError without any pair."""
    if not pairs:
        raise ValueError(f"{case}: nothing was measured")
    ratios = [pair.ratio for pair in pairs]
    return Entry(
        case=case,
        against=against,
        ratio_median=median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        target=target,
        unit=unit,
        ours=[pair.ours for pair in pairs],
        theirs=[pair.theirs for pair in pairs],
        remarks=remarks,
        runs={side: [asdict(run) for run in reports] for side, reports in runs.items()},
        made=dict(made),
    )


def read(path: Path) -> list[Entry]:
    """The entries on file; none if there is no file."""
    if not path.is_file():
        return []
    return [Entry(**fields) for fields in json.loads(path.read_text(encoding="utf-8"))["cases"]]


def merge(path: Path, fresh: Iterable[Entry], order: Sequence[str]) -> list[Entry]:
    """Replace the entries of the same cases, add the new ones, write the file, return them all. They stand in
    ``order``; an entry that it does not name comes last."""
    merged = {old.case: old for old in read(path)} | {new.case: new for new in fresh}
    place = {case: i for i, case in enumerate(order)}
    entries = sorted(merged.values(), key=lambda one: place.get(one.case, len(order)))
    text = json.dumps({"cases": [asdict(one) for one in entries]}, indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
    return entries


def table(entries: Sequence[Entry]) -> Table:
    """For the terminal, whose lines are too short for the remarks. Missed targets are red."""
    shown = Table(caption="ratio = theirs / ours, the median of n pairs: more is better")
    for i, heading in enumerate(HEADINGS[:-1]):
        shown.add_column(heading, justify="left" if i < 2 else "right")
    for one in entries:
        missed = one.target is not None and one.ratio_median < one.target
        shown.add_row(*_cells(one)[:-1], style="red" if missed else "")
    return shown


def write_readme(path: Path, entries: Sequence[Entry]) -> None:
    """Put the table between the README's markers. Raises ValueError if they are not there, once each."""
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{path} must have the lines {BEGIN!r} and {END!r}, once each: the table goes between them")
    head, tail = text[: text.index(BEGIN)], text[text.index(END) :]
    path.write_text(f"{head}{BEGIN}\n{markdown(entries)}\n{tail}", encoding="utf-8")


def markdown(entries: Sequence[Entry]) -> str:
    """The table, and below it where its numbers come from."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|---|---|" + "---:|" * 6 + "---|"]
    lines += [f"| {' | '.join(_cells(one))} |" for one in entries]
    return "\n".join([*lines, "", *_provenance(entries)])


def _cells(one: Entry) -> tuple[str, ...]:
    return (
        one.case,
        one.against,
        f"{_number(median(one.ours))} {one.unit}",
        f"{_number(median(one.theirs))} {one.unit}",
        _number(one.ratio_median),
        f"{_number(one.ratio_min)} to {_number(one.ratio_max)}",
        "" if one.target is None else _number(one.target),
        str(len(one.ours)),
        one.remarks,
    )


def _provenance(entries: Sequence[Entry]) -> list[str]:
    """One line for each set of cases that were made alike."""
    sources: dict[str, list[str]] = {}
    for one in entries:
        git = one.made["git"]
        commit = f"{(git['commit'] or 'no commit')[:10]}{' with changes' if git['dirty'] else ''}"
        packages = ", ".join(f"{name} {version}" for name, version in one.made["packages"].items() if version)
        machine = one.made["machine"]
        on = ", ".join(machine["gpus"]) or f"{machine['cores']} cores of {machine['cpu']}"
        line = f"{one.made['started'][:10]}, {on}, {machine['memory_gib']} GiB, {commit}; {packages}"
        sources.setdefault(line, []).append(one.case)
    return [f"{', '.join(cases)}: {source}.  " for source, cases in sources.items()]


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
