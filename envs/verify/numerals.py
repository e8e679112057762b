"""Numbers, read exactly from tidy text: decimals, fractions, powers, repeating decimals, other bases.

Everything is a regular expression over at most ``MAX_DIGITS`` characters and arithmetic on integers of that size.

Left out: Roman numerals, and numbers written in words above twenty.
"""

from __future__ import annotations

import re
from fractions import Fraction

from envs.verify.nodes import Number

MAX_DIGITS = 4000
"""Longest number that is read as one, in digits; Python itself refuses to print longer ones."""

NUMBER_WORDS = {
    word: number
    for number, word in enumerate(
        """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
        seventeen eighteen nineteen twenty""".split()  # noqa: SIM905  a column of words reads worse
    )
}

_DIGITS = r"[0-9]++"
_PLAIN = re.compile(rf"({_DIGITS})?(?:\.({_DIGITS})?)?")
_GROUPS = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]{1,3}(?:[ ][0-9]{3})+(?:\.[0-9]+)?")
_SCIENTIFIC = re.compile(
    r"""(?P<head>.*?)[ ]*
    (?:(?:\\times|\\cdot|\*|x)[ ]*10[ ]*(?:\^|\*\*)[ ]*
    (?:\{[ ]*(?P<braced>[-+]?[0-9]{1,6})[ ]*\}|\((?P<bracketed>[-+]?[0-9]{1,6})\)|(?P<bare>[-+]?[0-9]{1,6}))
    |(?<=[0-9.])[eE](?P<short>-?[0-9]{1,6}|\+[0-9]{2,6}))  # 2e+1 is twice Euler's number and one
    """,
    re.VERBOSE,
)
_FRACTION = re.compile(r"\\frac[ ]*(?:\{([^{}]*)\}|([0-9]))[ ]*(?:\{([^{}]*)\}|([0-9]))")
_MIXED = re.compile(rf"({_DIGITS})[ ]*(\\frac.*)|({_DIGITS})[ ]+({_DIGITS}[ ]?/[ ]?{_DIGITS})")
_POWER = re.compile(r"([0-9]{1,6})[ ]*\^[ ]*(?:\{[ ]*([0-9]{1,5})[ ]*\}|([0-9]{1,5}))")
_REPEATING = re.compile(
    r"""([0-9]*)\.([0-9]*)
    (?:\\(?:overline|bar|dot|overbar)[ ]*\{([0-9]+)\}|\\(?:overline|bar|dot)[ ]*([0-9])|\(([0-9]+)\))
    (?:\\ldots|\.{2,3})?""",
    re.VERBOSE,
)
_DOTS = re.compile(r"([0-9]*)\.([0-9]{2,})[ ]*(?:\\ldots|\.{2,})")
_MAX_POWER_OF_TEN = 4000


def exact(text: str) -> Number | None:
    """The number that a tidy text is, or None: ``-1,234.5``, ``1 234``, ``\\frac{3}{4}``, ``3/4``, ``1 1/2``, ``6.02
    \\times 10^{23}``, ``2^{10}``, ``0.\\overline{3}``, ``0.1666...``. Nothing else is read as a number, and none
    above ``MAX_DIGITS`` digits."""
    text = text.strip()
    sign = 1
    while text[:1] in ("-", "+"):
        sign = -sign if text[0] == "-" else sign
        text = text[1:].lstrip()
        if text[:1] in ("-", "+") and sign:
            return None
    if len(text) > MAX_DIGITS or not text:
        return None
    found = _unsigned(text)
    return None if found is None else Number(sign * found.value, found.digits)


def _unsigned(text: str) -> Number | None:
    if _GROUPS.fullmatch(text):
        text = text.replace(",", "").replace(" ", "")
    plain = _PLAIN.fullmatch(text)
    if plain and (plain[1] or plain[2]):
        return _decimal(plain[1] or "", plain[2], 0)
    if text[0] not in "0123456789.\\":
        return None
    if text.startswith(r"\frac") or "/" in text:
        return _fraction(text)
    mixed = _MIXED.fullmatch(text)
    if mixed:
        whole, part = int(mixed[1] or mixed[3]), _fraction(mixed[2] or mixed[4])
        if part is not None and part.digits is None and 0 <= part.value < 1:
            return Number(whole + part.value)
        return None
    scientific = _SCIENTIFIC.fullmatch(text)
    if scientific:
        head = _PLAIN.fullmatch(scientific["head"])
        exponent = int(next(filter(None, scientific.group("braced", "bracketed", "bare", "short"))))
        if head and (head[1] or head[2]) and abs(exponent) <= _MAX_POWER_OF_TEN:
            return _decimal(head[1] or "", head[2], exponent)
        return None
    power = _POWER.fullmatch(text)
    if power:
        base, exponent = int(power[1]), int(power[2] or power[3])
        return Number(Fraction(base**exponent)) if exponent * len(power[1]) <= _MAX_POWER_OF_TEN else None
    return _endless(text)


def _decimal(integer: str, decimals: str | None, exponent: int) -> Number:
    digits = integer + (decimals or "")
    value = Fraction(int(digits)) * Fraction(10) ** (exponent - len(decimals or ""))
    if decimals is None and exponent >= 0:
        return Number(value)
    return Number(value, max(1, len(digits.lstrip("0"))))


def _fraction(text: str) -> Number | None:
    match = _FRACTION.fullmatch(text)
    if match:
        top, bottom = match[1] or match[2], match[3] or match[4]
    elif text.count("/") == 1 and not text.startswith("\\"):
        top, bottom = text.split("/")
        mixed = _MIXED.fullmatch(text)
        if mixed and mixed[3]:
            part = _fraction(mixed[4])
            return None if part is None or part.value >= 1 else Number(int(mixed[3]) + part.value)
        if "\\" in text or " " in top.strip() or " " in bottom.strip():
            return None
    else:
        return None
    if top is None or bottom is None:
        return None
    numerator, denominator = exact(top), exact(bottom)
    if numerator is None or denominator is None or not denominator.value:
        return None
    return Number(numerator.value / denominator.value)


def _endless(text: str) -> Number | None:
    """Repeating decimals: marked as such, or broken off by dots where what repeats is plain to see."""
    match = _REPEATING.fullmatch(text)
    if match:
        start, period = match[2], match[3] or match[4] or match[5]
        return _repeating(match[1], start, period)
    match = _DOTS.fullmatch(text)
    if match:
        digits = match[2]
        for length in range(1, len(digits) // 2 + 1):
            period = digits[-length:]
            repeats = 1
            while digits.endswith(period * (repeats + 1)):
                repeats += 1
            if repeats >= (3 if length == 1 else 2) and set(period) != {"0"}:
                return _repeating(match[1], digits[: len(digits) - length * repeats], period)
        return _decimal(match[1], digits, 0)
    return None


def _repeating(integer: str, start: str, period: str) -> Number:
    nines = 10 ** len(period) - 1
    value = Fraction(int((integer + start) or "0") * nines + int(period), nines * 10 ** len(start))
    return Number(value)


_BASED = re.compile(r"\(?(-?)([0-9A-Za-z]+)\)?[ ]*_[ ]*(?:\{[ ]*(.*?)[ ]*\}|([0-9]|[a-z]{3,}))")
_BASE_WORD = re.compile(r"(-?)([0-9][0-9A-Za-z]*)[ ]*\(?(?:in[ ])?base[ ]*(?:([a-z]+)|([0-9]{1,2}))\)?")
_BASE_NAMES = NUMBER_WORDS | {"hex": 16}
_PREFIXED = re.compile(r"0(?:b([01]+)|o([0-7]+)|x([0-9a-fA-F]+))")


def based(text: str) -> Number | None:
    """An integer with its base as an index, ``1010_2``, in words, ``1010 base 2``, or in a programmer's spelling,
    ``0x1F``; None for all else. ``text`` is tidy and without ``\\text``."""
    text = text.strip()
    prefixed = _PREFIXED.fullmatch(text)
    if prefixed:
        base = 2 if prefixed[1] else 8 if prefixed[2] else 16
        return Number(Fraction(int(prefixed[1] or prefixed[2] or prefixed[3], base)))
    match = _BASED.fullmatch(text) or _BASE_WORD.fullmatch(text)
    if not match or len(match[2]) > MAX_DIGITS:
        return None
    name = (match[3] or match[4] or "").strip("() ").removeprefix("base").strip().lower()
    base = int(name) if re.fullmatch(r"[0-9]{1,2}", name) else _BASE_NAMES.get(name, 0)
    digits = match[2].upper()
    if not 2 <= base <= 36 or not (any(map(str.isdigit, digits)) or (base == 16 and match[2].isupper())):
        return None
    values = [int(digit, 36) for digit in digits]
    if max(values) >= base:
        return None
    value = 0
    for digit in values:
        value = value * base + digit
    return Number(Fraction(-value if match[1] else value))
