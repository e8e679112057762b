"""Repetition and language mixing in texts: how much of one repeats itself, whether it ends in a loop, which scripts it
is written in.

Units are words, or tokens by their ids: anything that can be compared. Words are what white space separates, so in
scripts without it (Chinese, Japanese) count tokens.

Left out: languages that share a script (French within English), which would need a model to be told apart.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import pandas as pd

# Scripts that one language mixes by its nature.
_ONE_LANGUAGE = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "BOPOMOFO": "CJK", "IDEOGRAPHIC": "CJK"}


@dataclass(frozen=True)
class Loop:
    """The units from ``start`` to the end repeat with ``period``: each equals the one ``period`` before it, from
    ``start + period`` on. ``repeats`` is how often the period fits, the last time perhaps not wholly."""

    start: int
    period: int
    repeats: float


def repeated_share(units: Sequence[Hashable], n: int = 8) -> float:
    """The share of units that lie in an n-gram which occurs more than once, in [0, 1]; 0 if there are fewer than n + 1.

    Every occurrence counts, the first too, and a unit counts once however many n-grams it lies in. (Rae et al. 2021,
    Gopher, arXiv:2112.11446, table A1: the fraction of characters within duplicate n-grams, here of units.)
    """
    if n < 1:
        raise ValueError(f"n is {n}; an n-gram has 1 unit or more")
    grams = [tuple(units[at : at + n]) for at in range(len(units) - n + 1)]
    counts = Counter(grams)
    covered = np.zeros(len(units) + 1, dtype=np.int64)
    for at, gram in enumerate(grams):
        if counts[gram] > 1:
            covered[at] += 1
            covered[at + n] -= 1
    return float((covered.cumsum()[:-1] > 0).mean()) if grams else 0.0


def ending_loop(units: Sequence[Hashable], *, repeats: int = 3, least: int = 12) -> Loop | None:
    """The loop that the units end in: at least ``least`` of them, in which a period fits ``repeats`` times or more.
    None without one. Where several fit, that of the shortest period, at its longest.

    By the border array of the reversed units (Knuth, Morris and Pratt 1977): the shortest period of the last m units
    is m less the length of their longest border. Linear time.
    """
    if repeats < 2 or least < 2:
        raise ValueError(f"repeats is {repeats} and least {least}; a loop needs 2 or more of each")
    reverse = units[::-1]
    border = [0] * len(reverse)
    best: Loop | None = None
    for at in range(1, len(reverse)):
        length = border[at - 1]
        while length and reverse[at] != reverse[length]:
            length = border[length - 1]
        border[at] = length + (reverse[at] == reverse[length])
        size, period = at + 1, at + 1 - border[at]
        if size >= least and size >= repeats * period and (best is None or period <= best.period):
            best = Loop(len(units) - size, period, size / period)
    return best


def script_shares(text: str) -> dict[str, float]:
    """The share of each Unicode script among a text's letters, largest first, by the first word of the letters' Unicode
    names: ``LATIN``, ``CJK`` (with kana and bopomofo), ``CYRILLIC``, ``ARABIC``, ``HANGUL``, ... Empty without letters.

    Mathematics is no mixing: a Greek letter that stands alone is not counted, nor are letter-like symbols (𝑥, ℝ, µ).
    """
    if text.isascii():
        return {"LATIN": 1.0} if any(map(str.isalpha, text)) else {}
    scripts = [_script(letter) for letter in text]
    counts: Counter[str] = Counter()
    for before, script, after in zip(["", *scripts], scripts, [*scripts[1:], ""], strict=False):
        if script and not (script == "GREEK" and before != "GREEK" and after != "GREEK"):
            counts[script] += 1
    return {script: count / counts.total() for script, count in counts.most_common()}


def repetition_frame(
    traces: pd.DataFrame, *, units: Literal["words", "tokens"] = "words", n: int = 8, repeats: int = 3, least: int = 12
) -> pd.DataFrame:
    """For each row, on the traces' index: ``repeated_share`` and ``loop_period`` (0 without an ending loop), counted in
    words of ``text`` or tokens of ``completion_ids``; and, of the text, ``script`` (that of most letters) and
    ``mixing``, the share of letters in any other script, both missing where there are no letters.

    ``1 - mixing`` is what DeepSeek-R1 (arXiv:2501.12948, section 2.3.2) rewards as language consistency, the share of
    the target language in the thought, as far as scripts tell languages apart.
    """
    sequences = [text.split() for text in traces["text"]] if units == "words" else map(list, traces["completion_ids"])
    rows = []
    for text, sequence in zip(traces["text"], sequences, strict=True):
        loop = ending_loop(sequence, repeats=repeats, least=least)
        shares = script_shares(text)
        script = next(iter(shares), None)
        mixing = float("nan") if script is None else 1 - shares[script]
        rows.append((repeated_share(sequence, n), loop.period if loop else 0, script, mixing))
    return pd.DataFrame(rows, columns=["repeated_share", "loop_period", "script", "mixing"], index=traces.index)


@lru_cache(maxsize=65536)
def _script(letter: str) -> str:
    """The script of a letter, empty for what is no letter."""
    if not letter.isalpha():
        return ""
    name = unicodedata.name(letter, "")
    if not any(kind in name for kind in ("LETTER", "SYLLABLE", "IDEOGRAPH", "LIGATURE")):
        return ""  # a symbol that Unicode counts as a letter: 𝑥, ℝ, µ
    script = name.removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ").partition(" ")[0]
    return _ONE_LANGUAGE.get(script, script)
