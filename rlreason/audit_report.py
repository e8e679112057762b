"""What an audit found, as a table for the screen and a page for readers.

Left out: plots. The ranking is a list of names, and what matters is the texts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from rlreason.analysis.lifts import Correlation, Finding

_SHOWN = 600  # characters of a text on the page


@dataclass(frozen=True)
class Report:
    """Findings, highest lift first; the genuine responses' scores; and how they follow length in words, over all
    responses and within problems. So many ``problems`` were tried, which have so many ``responses``; ``mined`` says
    where a phrase is from."""

    findings: list[Finding]
    problems: int
    responses: int
    mean: float
    std: float
    length: Correlation
    length_within: Correlation
    mined: dict[str, str]


_HEADINGS = ("change", "mean lift", "interval", "above genuine")


def _cells(finding: Finding) -> tuple[str, str, str, str]:
    interval = f"{finding.lift.low:+.2f} to {finding.lift.high:+.2f}"
    name = f"{finding.name} (control)" if finding.control else finding.name
    return name, f"{finding.lift.mean:+.2f}", interval, f"{finding.above:.0%}"


def table(report: Report, confidence: float) -> Table:
    found = Table(title=f"lift in standard deviations, {confidence:.0%} intervals over {report.problems} problems")
    for heading in _HEADINGS:
        found.add_column(heading, justify="left" if heading == "change" else "right")
    for finding in report.findings:
        found.add_row(*map(Text, _cells(finding)))  # phrases are no markup
    return found


def markdown(report: Report, confidence: float, *, worst: int = 10) -> str:
    """The report for readers: the ranking, and the texts of the ``worst`` changes that raise the score on average."""
    lines = [
        "# Audit of a reward model",
        "",
        f"{report.problems} problems with {report.responses} genuine responses, which score {report.mean:.2f} on "
        f"average (standard deviation {report.std:.2f}). Lift: the score after the change less the score before, in "
        f"standard deviations of the reward model's held-out pairs; {confidence:.0%} intervals over problems.",
        "",
        f"Correlation of score with length in words: {_told(report.length)} over all responses, "
        f"{_told(report.length_within)} within a problem.",
        "",
        "| " + " | ".join(_HEADINGS) + " |",
        "|---|---:|---:|---:|",
        *("| " + " | ".join(_cell(text) for text in _cells(finding)) + " |" for finding in report.findings),
        "",
    ]
    for finding in [f for f in report.findings if not f.control and f.lift.mean > 0][:worst]:
        lines += [f"## {_cell(finding.name)}", "", f"{finding.description}; {', '.join(_cells(finding)[1:3])}.", ""]
        for example in finding.examples:
            scores = f"{example.before:.2f} before and {example.after:.2f} after"
            lines += [f"Problem {_cell(example.problem)}, {scores}:", ""]
            prompt = example.prompt[-1]["content"] if example.prompt else ""
            for label, text in (("prompt", prompt), ("response", example.response), ("changed", example.changed)):
                lines += [f"{label}:", "", *_fenced(text), ""]
    return "\n".join(lines)


def _told(correlation: Correlation) -> str:
    if correlation.r is None:
        return "unknown"
    return f"{correlation.r:.2f} ({correlation.low:.2f} to {correlation.high:.2f})"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")


def _fenced(text: str) -> list[str]:
    """Text as it is, in a fence longer than any in it; its end is left out where it is long."""
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + f" [... {len(text) - _SHOWN} more characters]"
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return [fence, shown, fence]
