"""python -m rlreason.analysis.behaviours labelled.jsonl

Reasoning behaviours in traces, found by rules that anyone can read (``behaviour_rules``): verification, backtracking,
sub-goals, enumeration, answer switching and "aha" moments. Every hit is a ``Span`` of characters, so that a page can
show why it was counted.

The rules see words, not thoughts. A policy may write "Let me check" and check nothing, or check without a word: read a
sample of the spans before you believe a curve. The rules are written for precision, at the price of hits that are
missed.

The command measures both on snippets labelled by hand, one JSON object a line: ``{"id", "text", "labels": [names of
behaviours], "split": "tune"|"held-out"}``, and lists every miss. ``tests/data/behaviours.jsonl`` was labelled before
there were rules. These were tuned on its ``tune`` half, on word problems and on traces, and no miss of the other half
was mended. But whoever labelled it also wrote the rules and two thirds of the snippets: on the traces of another model
expect less, of recall above all.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from rlreason.analysis.behaviour_rules import RULES
from rlreason.analysis.cues import Reading, Span
from rlreason.stats import wilson_interval


def behaviours(text: str) -> list[Span]:
    """Every behaviour in a text, in the order in which they begin. Spans of different behaviours may overlap."""
    reading = Reading.of(text)
    return sorted((span for rule in RULES for span in rule.spans(reading)), key=lambda span: (span.start, span.name))


def behaviour_frame(traces: pd.DataFrame) -> pd.DataFrame:
    """How often each behaviour occurs in each row's ``text``: a column of int64 a behaviour, on the traces' index.

    Every row is read; of a conversation in several segments the last text stands in each, so keep ``segment == 0`` to
    count rollouts. Texts that occur more than once are read once.
    """
    codes, texts = pd.factorize(traces["text"])
    counts = [[len(rule.spans(reading)) for rule in RULES] for reading in map(Reading.of, texts)]
    frame = pd.DataFrame(counts, columns=[rule.name for rule in RULES], dtype="int64")
    return frame.iloc[codes].set_index(traces.index)


@dataclass(frozen=True)
class Snippet:
    """A text and the behaviours that a reader found in it."""

    id: str
    text: str
    labels: frozenset[str]
    split: str


@dataclass(frozen=True)
class Measured:
    """How one behaviour's rule does on labelled snippets: those that it rightly found, found without a label
    (``wrong``), and missed."""

    name: str
    right: list[Snippet]
    wrong: list[Snippet]
    missed: list[Snippet]

    @property
    def precision(self) -> float:
        """The share of the snippets found that are labelled; NaN if none was found."""
        return _share(len(self.right), len(self.wrong))

    @property
    def recall(self) -> float:
        """The share of the labelled snippets that was found; NaN if none is labelled."""
        return _share(len(self.right), len(self.missed))


def read_snippets(path: str | Path) -> list[Snippet]:
    """Snippets of a file as the module describes it. Raises ValueError, with file and line, for one that is broken."""
    names = {rule.name for rule in RULES}
    snippets = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            labels = frozenset(row["labels"])
            if unknown := labels - names:
                raise ValueError(
                    f"no behaviour is called {', '.join(sorted(unknown))}; there are {', '.join(sorted(names))}"
                )
            snippets.append(Snippet(row["id"], row["text"], labels, row["split"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number} is no labelled snippet ({type(error).__name__}: {error})") from error
    return snippets


def measure(snippets: Sequence[Snippet]) -> list[Measured]:
    """Each rule against the labels. A snippet counts once, however many spans it has."""
    found = {snippet.id: {span.name for span in behaviours(snippet.text)} for snippet in snippets}
    return [
        Measured(
            rule.name,
            [s for s in snippets if rule.name in s.labels and rule.name in found[s.id]],
            [s for s in snippets if rule.name not in s.labels and rule.name in found[s.id]],
            [s for s in snippets if rule.name in s.labels and rule.name not in found[s.id]],
        )
        for rule in RULES
    ]


def _share(part: int, rest: int) -> float:
    return part / (part + rest) if part + rest else float("nan")


def _cell(part: int, rest: int) -> str:
    if not part + rest:
        return "-"
    low, high = wilson_interval(part, part + rest)
    return f"{part / (part + rest):.3f} ({part}/{part + rest}; {low:.3f} to {high:.3f})"


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m rlreason.analysis.behaviours labelled.jsonl", file=sys.stderr)
        return 2
    try:
        snippets = read_snippets(arguments[0])
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    console = Console(soft_wrap=True)
    splits = {"all": snippets, "held-out": [snippet for snippet in snippets if snippet.split == "held-out"]}
    for title, chosen in splits.items():
        table = Table("behaviour", "precision (of those found; 95%)", "recall (of those labelled; 95%)")
        table.title = f"{title}: {len(chosen)} snippets"
        for one in measure(chosen):
            right = len(one.right)
            table.add_row(one.name, _cell(right, len(one.wrong)), _cell(right, len(one.missed)))
        console.print(table)
    for one in measure(snippets):
        for kind, misses in (("found, not labelled", one.wrong), ("labelled, not found", one.missed)):
            for snippet in misses:
                print(f"{one.name}: {kind}: {snippet.id} ({snippet.split}) {snippet.text!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
