"""What a policy knows, from a probe: each question asked several times, and how many answers were right.

A probe is the traces of ``python -m rlreason.sample`` or ``rlreason.evaluate`` with ``num_samples`` above 1, or what

    python -m envs.known runs/sample/<time> [runs/evaluate/<time> ...] known.jsonl

makes of them: a line ``{"problem": "arithmetic/3+5", "asked": 8, "right": 6}`` a question, small enough to keep.

After Llama 3's factuality probing (Grattafiori et al. 2024, arXiv:2407.21783, section 4.3.6): teach a model to decline
what it was asked several times and answered wrongly. Left out: whether the wrong answers agree with each other
(a firm mistake and a guess count alike), and questions written from what the model was trained on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from envs.data.traces import read_rows
from envs.jsonl import json_lines, malformed

_EXAMPLE = '{"problem": "arithmetic/3+5", "asked": 8, "right": 6}'


@dataclass(frozen=True)
class Tally:
    """A question was asked ``asked`` times, and ``right`` answers were right."""

    asked: int
    right: int


def tallies(paths: Sequence[str]) -> tuple[dict[str, Tally], dict[str, str]]:
    """By the problem's id, over all ``paths``: run folders, files of traces, or ``.jsonl`` files of this module; and
    the SHA-256 of every file that was read. Samples that ended in ``error`` are not counted.

    Raises FileNotFoundError for a path without any of these, and ValueError, saying where, for rows that can't be used
    and for samples that nobody judged.
    """
    found: dict[str, Tally] = {}
    hashes: dict[str, str] = {}
    for path in paths:
        counted, own = _from_lines(Path(path)) if path.endswith(".jsonl") else _from_traces(path)
        hashes |= own
        for problem, tally in counted:
            before = found.get(problem, Tally(0, 0))
            found[problem] = Tally(before.asked + tally.asked, before.right + tally.right)
    return found, hashes


def write(path: Path, found: Mapping[str, Tally]) -> None:
    """A line for each question, in the order of ``found``; the file is there whole or not at all."""
    lines = [
        json.dumps({"problem": problem, "asked": tally.asked, "right": tally.right}, ensure_ascii=False) + "\n"
        for problem, tally in found.items()
    ]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(lines), encoding="utf-8")
    os.replace(temporary, path)


def _from_traces(path: str) -> tuple[list[tuple[str, Tally]], dict[str, str]]:
    rows, hashes = read_rows(path, ("problem", "segment", "correct", "status"))
    counted = []
    for file, row in rows:
        if row["segment"] != 0 or row["status"] == "error":
            continue
        if row["correct"] is None:
            raise ValueError(
                f"{file}: nothing says whether the answers to problem {row['problem']} are right; probe with an "
                "environment that has right answers"
            )
        counted.append((row["problem"], Tally(1, int(row["correct"]))))
    return counted, hashes


def _from_lines(path: Path) -> tuple[list[tuple[str, Tally]], dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; make it by: python -m envs.known <run folder> {path}")
    content = path.read_bytes()
    counted = []
    for where, row in json_lines(path, content, _EXAMPLE):
        if not isinstance(row, dict) or not isinstance(row.get("problem"), str):
            raise malformed(where, "there is no problem's id", _EXAMPLE)
        asked, right = row.get("asked"), row.get("right")
        # Not isinstance: True is an int.
        if type(asked) is not int or type(right) is not int or not 0 <= right <= asked or asked < 1:
            raise malformed(where, f"{right!r} right of {asked!r} asked is no count", _EXAMPLE)
        counted.append((row["problem"], Tally(asked, right)))
    return counted, {str(path): hashlib.sha256(content).hexdigest()}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0, or 2 after an error that the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m envs.known", description="How often a policy was right on each question, from its traces."
    )
    parser.add_argument("probe", nargs="+", help="a run folder, a .parquet file of its traces, or a .jsonl of these")
    parser.add_argument("out", type=Path, help="the .jsonl file to write")
    given = parser.parse_args(arguments)
    if given.out.suffix != ".jsonl":
        parser.error(f"{given.out} is to be written: name it with .jsonl at its end")
    try:
        found, _ = tallies(given.probe)
        write(given.out, found)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    asked, never = sum(tally.asked for tally in found.values()), sum(not tally.right for tally in found.values())
    print(f"{len(found)} questions, asked {asked} times; never answered right: {never}; written to {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
