"""Reading numbers: whole strings, last numbers in texts, and time on hostile input."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest

from envs.verify.numbers import MAX_DIGITS, canonical, last_number, parse_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", Fraction(18)),
        ("0", Fraction(0)),
        ("-0", Fraction(0)),
        ("007", Fraction(7)),
        (" 18\n", Fraction(18)),
        ("18.", Fraction(18)),
        ("18.00", Fraction(18)),
        ("18.00.", Fraction(18)),
        ("+18", Fraction(18)),
        ("-18", Fraction(-18)),
        ("\u221218", Fraction(-18)),
        ("$18", Fraction(18)),
        ("$18$", Fraction(18)),
        ("18$", Fraction(18)),
        ("-$18", Fraction(-18)),
        ("$-18", Fraction(-18)),
        ("$18.50.", Fraction(37, 2)),
        ("50%", Fraction(50)),
        ("50 %.", Fraction(50)),
        ("1,234", Fraction(1234)),
        ("1,234,567.5", Fraction(2469135, 2)),
        ("-109,200,000", Fraction(-109200000)),
        ("0.1", Fraction(1, 10)),
        (".5", Fraction(1, 2)),
        ("-.5", Fraction(-1, 2)),
        ("0.30000000000000004", Fraction(30000000000000004, 10**17)),
        ("3/4", Fraction(3, 4)),
        ("6 / 8", Fraction(3, 4)),
        ("-3/4", Fraction(-3, 4)),
        ("1,000/4", Fraction(250)),
        ("0/7", Fraction(0)),
        ("1e3", Fraction(1000)),
        ("1.5E+2", Fraction(150)),
        ("25e-1", Fraction(5, 2)),
        ("1e100", Fraction(10**100)),
        ("9" * MAX_DIGITS, Fraction(10**MAX_DIGITS - 1)),
        # not a number
        ("", None),
        (" ", None),
        (".", None),
        ("-", None),
        ("$", None),
        ("%", None),
        ("e5", None),
        ("--18", None),
        ("-$-18", None),
        ("- 18", None),
        ("18..", None),
        ("18 apples", None),
        ("x = 18", None),
        ("1 1/2", None),
        ("18 19", None),
        ("12,34", None),
        ("1234,567", None),
        ("1,2345", None),
        ("1_000", None),
        ("0x12", None),
        ("3/0", None),
        ("3/000", None),
        ("1/2/3", None),
        ("1.5/2", None),
        ("nan", None),
        ("inf", None),
        ("\uff11\uff18", None),  # full-width digits
        ("\u0661\u0668", None),  # Arabic-Indic digits
        ("\u00b2", None),  # superscript two
        ("1e101", None),
        ("1e999999999999999999999", None),
        ("1e-101", None),
        ("9" * (MAX_DIGITS + 1), None),
        ("1/" + "9" * MAX_DIGITS, None),
        ("2+2", None),
        ("__import__('os')", None),
    ],
)
def test_parse_number(text: str, value: Fraction | None) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The answer is 18.", "18"),
        ("3 + 5 = 8", "8"),
        ("3+5=8", "8"),
        ("10-5", "5"),  # a difference, not a negative number
        ("(10)-5", "5"),
        ("x-5", "5"),
        ("3 - 5 = -2", "-2"),
        ("3 - 5 = \u22122.", "\u22122"),
        ("=-$1,200.50!", "-$1,200.50"),
        ("it costs $-3", "$-3"),
        ("US$18", "18"),
        ("**18**", "18"),
        ("\\boxed{18}", "18"),
        ("答案是18", "18"),
        ("about 50% of them", "50"),
        ("48/2 = 24", "24"),
        ("so 3/4", "3/4"),
        ("3/4.5", "4.5"),
        ("1,234,567 people", "1,234,567"),
        ("1, 2, 3", "3"),
        ("1.2.3", "3"),
        ("8 km2", "8"),
        ("8 in step_2", "8"),
        ("18.50.", "18.50"),
        ("2e3 of them", "2e3"),
        ("5 / 0", "5 / 0"),
        ("no number", None),
        ("", None),
        ("x2 and y3", None),
    ],
)
def test_last_number(text: str, found: str | None) -> None:
    assert last_number(text) == found


def test_whatever_last_number_finds_is_read_or_refused_as_a_whole() -> None:
    assert parse_number(last_number("first 8, then 5 / 0") or "") is None
    assert parse_number(last_number("first 8, then " + "7" * 200) or "") is None
    assert parse_number(last_number("it costs $-1,200.50 now") or "") == Fraction(-2401, 2)


@pytest.mark.parametrize(
    ("text", "spelling"),
    [("18.00", "18"), ("$18", "18"), ("36/2", "18"), ("0.75", "3/4"), ("6/8", "3/4"), ("-1,000", "-1000"), ("-0", "0")],
)
def test_equal_values_have_one_spelling(text: str, spelling: str) -> None:
    value = parse_number(text)
    assert value is not None
    assert canonical(value) == spelling
    assert parse_number(spelling) == value


@pytest.mark.parametrize(
    "piece",
    ["9", "1,", "1,000", ",000", "9.", "1/", "1 / ", "-", "$-", "1e", "e9", "a9", " ", ".", "9/9.", "####", "1,0000"],
)
def test_time_is_linear_on_hostile_text(piece: str) -> None:
    """Half a megabyte each; anything quadratic takes minutes."""
    text = piece * (500_000 // len(piece))
    start = time.process_time()
    last_number(text)
    parse_number(text)
    last_number("1" + text + "x")
    parse_number("1" + text + "x")
    assert time.process_time() - start < 5
