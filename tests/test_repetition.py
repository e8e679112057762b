from __future__ import annotations

import itertools
import math

import pandas as pd
import pytest

from rlreason.analysis.repetition import Loop, ending_loop, repeated_share, repetition_frame, script_shares


def test_the_share_of_units_within_repeated_n_grams() -> None:
    # "b c" stands at 1 and 4, so the units 1, 2, 4 and 5 of 7 are covered.
    assert repeated_share("abcxbcy", 2) == 4 / 7
    assert repeated_share("abcabc", 3) == 1.0
    assert repeated_share("abcdef", 1) == 0.0
    assert repeated_share("aab", 1) == 2 / 3
    # An n-gram that overlaps itself: "aa" at 0, 1 and 2 covers 0 to 3.
    assert repeated_share("aaaab", 2) == 4 / 5
    assert repeated_share([5, 6, 5, 6], 2) == 1.0
    assert repeated_share("abc", 8) == 0.0
    assert repeated_share("", 2) == 0.0
    with pytest.raises(ValueError, match="n is 0"):
        repeated_share("abc", 0)


@pytest.mark.parametrize(
    ("units", "loop"),
    [
        ("xyz" + "abcd" * 3, Loop(3, 4, 3.0)),
        ("xyz" + "abcd" * 3 + "ab", Loop(3, 4, 3.5)),
        ("xyd" + "abcd" * 3, Loop(2, 4, 3.25)),  # the loop had begun with the last letter of a round
        ("a" * 12, Loop(0, 1, 12.0)),
        ("abab" * 3 + "a" * 12, Loop(12, 1, 12.0)),
        ("abcd" * 3 + "x", None),
        ("abcdef" * 2, None),  # twice is no loop
        ("xyzxyzxyz", None),  # 9 units are too few
        ("", None),
        ("a", None),
    ],
)
def test_a_text_that_ends_in_a_loop(units: str, loop: Loop | None) -> None:
    assert ending_loop(units) == loop
    assert ending_loop(list(units)) == loop


def test_what_counts_as_a_loop_can_be_set() -> None:
    assert ending_loop("abcdef" * 2, repeats=2) == Loop(0, 6, 2.0)
    assert ending_loop("xyzxyzxyz", least=9) == Loop(0, 3, 3.0)
    with pytest.raises(ValueError, match="repeats is 1"):
        ending_loop("abc", repeats=1)


def test_a_loop_is_what_brute_force_finds() -> None:
    def brute(units: str, repeats: int, least: int) -> Loop | None:
        for period in range(1, len(units)):
            for start in range(len(units)):
                size = len(units) - start
                fits = all(units[i] == units[i - period] for i in range(start + period, len(units)))
                if fits and size >= least and size >= repeats * period:
                    return Loop(start, period, size / period)
        return None

    for letters in itertools.product("ab", repeat=9):
        units = "".join(letters)
        assert ending_loop(units, repeats=2, least=4) == brute(units, 2, 4), units


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("3 + 4 = 7", {}),
        ("seven: 7", {"LATIN": 1.0}),
        ("sieben für fünf", {"LATIN": 1.0}),
        ("ab 漢字", {"LATIN": 0.5, "CJK": 0.5}),
        ("漢字ひらカナ々", {"CJK": 1.0}),
        ("ＡＢ", {"LATIN": 1.0}),
        ("abc д", {"LATIN": 0.75, "CYRILLIC": 0.25}),
        # Mathematics: π and θ stand alone, 𝑥, ℝ and µ are symbols; a Greek word is Greek.
        ("area is π r", {"LATIN": 1.0}),
        ("sin θ, 𝑥 in ℝ, µm", {"LATIN": 1.0}),
        ("abc και", {"LATIN": 0.5, "GREEK": 0.5}),
    ],
)
def test_the_scripts_of_a_text(text: str, shares: dict[str, float]) -> None:
    assert script_shares(text) == shares


def test_the_frame_is_on_the_index_of_the_traces() -> None:
    texts = ["so it is " * 6, "one two three", "3 + 4 = 7", "ab 漢字字"]
    traces = pd.DataFrame({"text": texts, "completion_ids": [[1, 2], [5] * 20, [], [1]]}, index=[4, 4, 2, 0])
    words = repetition_frame(traces, n=3)
    assert list(words.index) == [4, 4, 2, 0]
    assert words["repeated_share"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert words["loop_period"].tolist() == [3, 0, 0, 0]
    assert words["script"].dropna().tolist() == ["LATIN", "LATIN", "CJK"]
    assert words["script"].isna().tolist() == [False, False, True, False]
    assert words["mixing"].tolist()[:2] == [0.0, 0.0]
    assert math.isnan(words["mixing"].iloc[2])
    assert words["mixing"].iloc[3] == pytest.approx(0.4)
    tokens = repetition_frame(traces, units="tokens")
    assert tokens["loop_period"].tolist() == [0, 1, 0, 0]
    assert tokens["repeated_share"].tolist() == [0.0, 1.0, 0.0, 0.0]
