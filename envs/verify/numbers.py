"""Numbers in text: find them, read them exactly, compare them.

Values are ``fractions.Fraction``, so 0.1 + 0.2 is 0.3 and 18.00 is 18. Model text is only ever matched by regular
expressions that take linear time, never evaluated, and the size of a number is capped (``MAX_DIGITS``,
``MAX_EXPONENT``), so a million digits or ``1e999999999`` cost nothing.

Left out: LaTeX, roots, units, intervals, sets, mixed numbers (``1 1/2``) and everything else that needs a
full mathematical verifier, which is a separate piece of work.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_DIGITS = 100
"""Longest number that is read, in digits (numerator and denominator, or before and after the point, together)."""

MAX_EXPONENT = 100
"""Largest magnitude of the exponent in ``1.5e3``."""

_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]++)"  # 1,234 or 1234
_FRACTION = rf"{_INTEGER}[ ]?/[ ]?{_INTEGER}(?!\.?[0-9])"
_DECIMAL = rf"(?:{_INTEGER}(?:\.[0-9]++)?|\.[0-9]++)(?:[eE][+-]?[0-9]++)?"
_SIGN = "[-+\u2212]"
_MINUS = "-\u2212"

# The sign may stand on either side of the dollar.
_WHOLE = re.compile(
    rf"(?P<sign>{_SIGN}?)\$?(?P<inner_sign>{_SIGN}?)"
    rf"(?:(?P<numerator>{_INTEGER})[ ]?/[ ]?(?P<denominator>{_INTEGER})"
    rf"|(?P<integer>{_INTEGER})?(?:\.(?P<decimals>[0-9]++))?(?:[eE](?P<exponent>[+-]?[0-9]++))?)"
    r"[ ]?[%$]?\.?"
)
# A number inside a text does not continue a word or another number (km2, x3, 1.2.3), and its sign does not follow
# an operand: the last number of 10-5 is 5.
_INSIDE = re.compile(rf"(?<![A-Za-z0-9_])(?:(?:(?<![)\]}}]){_SIGN})?\$?(?:(?<=\$){_SIGN})?)(?:{_FRACTION}|{_DECIMAL})")


def parse_number(text: str) -> Fraction | None:
    """The exact value of a string that is one number and nothing else; None if it is not.

    Read are integers, decimals (``.5`` too), thousands separated by commas (``1,234``; not ``12,34``), ``a/b`` of two
    integers, ``1.5e3``, a sign (+, - or the Unicode minus U+2212), and ASCII digits only. White space around, a
    dollar sign before or after, and one trailing full stop are ignored. A percent sign is ignored as a unit, like the
    dollar: ``50%`` is 50, not 1/2. None too for a zero denominator, and for more digits or a larger exponent than
    ``MAX_DIGITS`` and ``MAX_EXPONENT``.
    """
    match = _WHOLE.fullmatch(text.strip())
    if match is None or (match["sign"] and match["inner_sign"]):
        return None
    negative = (match["sign"] or match["inner_sign"] or "+") in _MINUS
    if match["numerator"] is not None:
        numerator, denominator = match["numerator"].replace(",", ""), match["denominator"].replace(",", "")
        if len(numerator) + len(denominator) > MAX_DIGITS or not denominator.strip("0"):
            return None
        value = Fraction(int(numerator), int(denominator))
    else:
        integer, decimals = (match["integer"] or "").replace(",", ""), match["decimals"] or ""
        exponent = match["exponent"] or "0"
        if not 1 <= len(integer) + len(decimals) <= MAX_DIGITS:
            return None
        if len(exponent) > MAX_DIGITS or abs(int(exponent)) > MAX_EXPONENT:
            return None
        value = Fraction(int(integer + decimals)) * Fraction(10) ** (int(exponent) - len(decimals))
    return -value if negative else value


def last_number(text: str) -> str | None:
    """The last number in ``text`` as it is written there (for ``parse_number``); None if there is none.

    A number that is too long to be read is still the last one, and ``parse_number`` then gives None: padding an
    answer with digits does not bring an earlier number back.
    """
    last = None
    for match in _INSIDE.finditer(text):
        last = match.group()
    return last


def canonical(value: Fraction) -> str:
    """One spelling for each value, for voting and for traces: ``18``, ``-3``, ``3/4`` (lowest terms)."""
    return str(value)
