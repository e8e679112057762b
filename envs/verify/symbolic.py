"""Formulas as sympy objects, by Math-Verify's LaTeX parser, and whether two of them have the same value.

Runs in a worker that can be killed: nothing here bounds its time. Model text reaches only the LaTeX parser, whose
grammar knows numbers, letters and functions; never ``sympify``, ``parse_expr`` or ``eval``.

Constants are compared by evaluating their difference to hundreds of digits where that is needed; formulas with
variables by their values at random points (Schwartz 1980; Zippel 1979), which decides identities of
polynomials with probability one and does not depend on how far ``simplify`` gets.

Left out: assumptions about variables (they are real numbers of either sign, so √(x²) is not x), and branches of
complex functions.
"""

from __future__ import annotations

import random
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

from envs.verify.formula import Unsupported, read
from envs.verify.nodes import Formula, Node, Number
from envs.verify.tidy import FUNCTIONS

MIN_DIGITS = 6
"""A decimal with so many significant digits, rounded or cut off correctly, stands for a value that has no finite
decimal."""

_POINTS = 6
_ENOUGH_POINTS = 3
_MAX_DIGITS = 400
_DIGITS_AT_A_POINT = 120
_LARGEST = sympy.Float(10) ** 350  # of larger ones, so many digits do not say whether they are equal

_BARE_FUNCTION = re.compile(
    rf"(?<![A-Za-z\\])({'|'.join(FUNCTIONS)})(?![A-Za-z])|(?<![A-Za-z\\])(sqrt|pi)(?=[0-9(A-Za-z])|(?<=[0-9])(pi|sqrt)"
)
_FUNCTION_NAMES = {"infinity": "infty", "inf": "infty", "asin": "arcsin", "acos": "arccos", "atan": "arctan"}
_FRAC = re.compile(r"\\(frac|binom)[ ]*([0-9A-Za-z]|(?=\{))[ ]*")
_ONE_TOKEN = re.compile(r"\\sqrt[ ]*([0-9A-Za-z])")
_POWER = re.compile(r"([\^_])[ ]*([-+]?[0-9]+(?![0-9.]))")
_MIXED = re.compile(r"(?<![0-9.^_])([0-9]+)[ ]*\\frac\{([0-9]+)\}\{([0-9]+)\}")
# What the library misreads: 2(7) as the mixed number 2 + 7, and \sin x \cdot y as the sine of a product.
_BEFORE_BRACKET = re.compile(r"(?<=[0-9)])[ ]*(?=\(|\\binom)")
_PLAIN_ARGUMENT = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc|ln|arcsin|arccos|arctan)(?![A-Za-z])(?:\^\{[^{}]*\})?|\\log_\{[^{}]*\})[ ]*"
    r"((?:[0-9]+|[A-Za-z](?:_\{[^{}]*\})?|\\(?:pi|alpha|beta|gamma|theta|phi|omega)(?![A-Za-z])[ ]*)+)"
)
_DECIMAL = re.compile(r"(?<![0-9.])([0-9]*)\.([0-9]+)")
_THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")
_DEGREES = re.compile(r"([0-9]+(?:\.[0-9]+)?)[ ]*\^[ ]*\{?[ ]*\\circ[ ]*\}?")
_UNKNOWN_WORD = re.compile(r"(?<![A-Za-z\\{])[A-Za-z]{4,}(?![A-Za-z])")
_ADJACENT_NUMBERS = re.compile(r"[0-9][ ]+[0-9]")
_LOST = re.compile(r"'|\\(?:prime|ldots|circ|angle|triangle|to|Rightarrow|text)(?![A-Za-z])|[\"#&@!?]{2}|[#&@\"?]")


class NotAFormula(ValueError):
    """The parser does not read it, or would misread it."""


@lru_cache(maxsize=4096)
def to_sympy(text: str) -> Any:
    """The sympy object of a tidy formula, unevaluated. Raises ``NotAFormula``."""
    latex = prepared(text)
    try:
        return read(latex)
    except (Unsupported, RecursionError):
        return by_grammar(latex)


def by_grammar(latex: str) -> Any:
    """As ``to_sympy``, by Math-Verify's parser alone. Raises ``NotAFormula``."""
    latex = _BEFORE_BRACKET.sub(r"\\cdot ", latex)
    latex = _PLAIN_ARGUMENT.sub(r"\1(\2)", latex)
    try:
        found = latex2sympy(
            latex,
            is_real=True,
            convert_degrees=False,
            normalization_config=None,
            # Mixed fractions are written out by now.
            conversion_config=ConversionConfig(lowercase_symbols=False, interpret_as_mixed_fractions=False),
        )
    except RecursionError:
        raise NotAFormula("it nests too deeply") from None
    except MemoryError:
        raise
    except Exception as error:
        raise NotAFormula(str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    if not isinstance(found, sympy.Expr) or isinstance(found, sympy.MatrixBase):
        raise NotAFormula("it is no scalar")
    imaginary = [symbol for symbol in found.free_symbols if symbol.name == "i"]
    return found.subs(dict.fromkeys(imaginary, sympy.I)) if imaginary else found


@lru_cache(maxsize=4096)
def prepared(text: str) -> str:
    """Plain-text mathematics as LaTeX, and what the parser would misread as what it reads."""
    if _LOST.search(text):
        if _DEGREES.search(text):
            text = _DEGREES.sub(r"(\\frac{\1\\pi}{180})", text)
        if _LOST.search(text):
            raise NotAFormula("a sign that the parser would drop")
    text = _FRAC.sub(_braced_fraction, text)
    text = _ONE_TOKEN.sub(r"\\sqrt{\1}", text)
    text = text.replace("**", "^")
    text = _BARE_FUNCTION.sub(lambda m: "\\" + _FUNCTION_NAMES.get(m[0], m[0]) + " ", text)
    text = _bracketed_arguments(text)
    text = _POWER.sub(r"\1{\2}", text)
    text = _MIXED.sub(_written_out, text)
    text = text.replace("*", r"\cdot ")
    text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    text = _DECIMAL.sub(_fraction_of, text)
    if _ADJACENT_NUMBERS.search(text):
        raise NotAFormula("two numbers side by side")
    if _UNKNOWN_WORD.search(text):
        raise NotAFormula("words among the symbols")
    return text


def _braced_fraction(match: re.Match[str]) -> str:
    return rf"\{match[1]}" + (f"{{{match[2]}}}" if match[2] else "")


def _bracketed_arguments(text: str) -> str:
    """``\\sqrt(x)`` and ``x^(y)`` with braces; the second argument of ``\\frac{1}2`` too."""
    pieces, position = [], 0
    pattern = re.compile(r"(\\sqrt|\^)[ ]*\(")
    while match := pattern.search(text, position):
        depth, end = 1, match.end()
        while end < len(text) and depth:
            depth += (text[end] == "(") - (text[end] == ")")
            end += 1
        if depth:
            raise NotAFormula("its brackets don't match")
        pieces.append(text[position : match.start()] + match[1] + "{")
        text = text[: end - 1] + "}" + text[end:]
        position = match.end()
    text = "".join(pieces) + text[position:]
    return re.sub(r"(\\(?:frac|binom)\{[^{}]*\})[ ]*([0-9A-Za-z])", r"\1{\2}", text)


def _written_out(match: re.Match[str]) -> str:
    """``2\\frac{1}{2}`` is two and a half."""
    if not 0 < int(match[2]) < int(match[3]):
        return match[0]
    return rf"({match[1]}+\frac{{{match[2]}}}{{{match[3]}}})"


def _fraction_of(match: re.Match[str]) -> str:
    digits = match[1] + match[2]
    return rf"\frac{{{int(digits)}}}{{{10 ** len(match[2])}}}"


def same_value(gold: Number | Formula, answer: Number | Formula) -> bool:
    """Whether two scalars are equal. Raises ``NotAFormula`` if one can't be read."""
    if isinstance(gold, Number) and isinstance(answer, Number):
        return _same_number(gold, answer)
    if isinstance(gold, Formula) and isinstance(answer, Formula) and _same_text(gold.text, answer.text):
        return True
    left, right = value_of(gold), value_of(answer)
    symbols = left.free_symbols | right.free_symbols
    if symbols:
        return same_function(left, right)
    for number, other in ((gold, right), (answer, left)):
        if isinstance(number, Number) and number.digits is not None and not _terminates(other):
            return rounds_to(number, other)
    return same_constant(left, right)


def _same_text(left: str, right: str) -> bool:
    return prepared(left).replace(" ", "") == prepared(right).replace(" ", "")


def value_of(node: Node) -> Any:
    """A scalar in sympy's terms. Raises ``NotAFormula`` if it is none, or can't be read."""
    if isinstance(node, Number):
        return sympy.Rational(node.value.numerator, node.value.denominator)
    if isinstance(node, Formula):
        return to_sympy(node.text)
    raise NotAFormula("no scalar")


def _same_number(left: Number, right: Number) -> bool:
    if left.value == right.value:
        return True
    for number, other in ((left, right), (right, left)):
        if number.digits is not None and not _finite_decimal(other.value):
            return _close(number, sympy.Rational(other.value.numerator, other.value.denominator))
    return False


def _finite_decimal(value: Fraction) -> bool:
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def _terminates(value: Any) -> bool:
    """Whether a constant is a rational number with a finite decimal, so that rounding it is a mistake."""
    done = value.doit()
    return isinstance(done, sympy.Rational) and _finite_decimal(Fraction(int(done.p), int(done.q)))


def rounds_to(number: Number, value: Any, least: int = MIN_DIGITS) -> bool:
    """Whether ``number`` is the constant ``value``, rounded or cut off at its last digit, with at least ``least``
    digits."""
    if not value.is_number:
        return False
    approximation = sympy.N(value, (number.digits or 0) + 15, maxn=_MAX_DIGITS)
    if not approximation.is_real or not approximation.is_finite:
        return False
    return _close(number, approximation, least)


def _close(number: Number, value: Any, least: int = MIN_DIGITS) -> bool:
    if number.digits is None or number.digits < least or not number.value:
        return False
    unit = sympy.Rational(10) ** (_magnitude(number.value) - number.digits + 1)
    written = sympy.Rational(number.value.numerator, number.value.denominator)
    missing = sympy.Abs(value) - sympy.Abs(written)
    return bool(sympy.Abs(written - value) <= unit / 2) or bool(written * value > 0 and 0 <= missing < unit)


def _magnitude(value: Fraction) -> int:
    """The power of ten of the first significant digit."""
    estimate = len(str(abs(value.numerator))) - len(str(value.denominator))
    while Fraction(10) ** estimate > abs(value):
        estimate -= 1
    while Fraction(10) ** (estimate + 1) <= abs(value):
        estimate += 1
    return estimate


def same_constant(left: Any, right: Any) -> bool:
    """Whether two constants are equal: exactly, or as far as ``_MAX_DIGITS`` digits of their difference can tell."""
    if left == right:
        return True
    difference = left - right
    if difference.is_Rational:
        return bool(difference == 0)
    if difference.has(sympy.nan, sympy.zoo, sympy.oo):
        return False
    found = sympy.N(difference, 15, maxn=_MAX_DIGITS)
    if found.has(sympy.oo, sympy.zoo, sympy.nan):
        return False
    if not found.is_number or found.atoms(sympy.Function, sympy.Symbol):
        return bool(sympy.simplify(difference) == 0)
    return _vanishes(found) and bool(abs(sympy.N(left, 5)) < _LARGEST)


def _vanishes(value: Any) -> bool:
    """Whether a number is zero, or has no significant digit left."""
    return all(part == 0 or getattr(part, "_prec", 53) == 1 for part in value.as_real_imag())


def same_function(left: Any, right: Any) -> bool:
    """Whether two expressions with variables agree at random points where both are real numbers, or, where they never
    are, at random points."""
    if left == right:
        return True
    difference = left - right
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    complex_ = left.has(sympy.I) or right.has(sympy.I)
    agreed = {True: 0, False: 0}
    disagreed = False
    for point in _points(symbols):
        first, second = (_at(side, point) for side in (left, right))
        if first is None or second is None:
            continue
        real = bool(first.is_real and second.is_real)
        if not _vanishes(difference.evalf(15, subs=point, maxn=_DIGITS_AT_A_POINT)):
            if real or complex_:
                return False
            disagreed = True
        agreed[real] += 1
    if agreed[True] >= _ENOUGH_POINTS:
        return True
    if disagreed:
        return False
    return agreed[False] >= _ENOUGH_POINTS or bool(sympy.simplify(difference) == 0)


def _points(symbols: list[Any]) -> list[dict[Any, Any]]:
    """Random points; the first variables take every combination of signs."""
    draw = random.Random("points")
    return [
        {
            symbol: sympy.Rational(draw.randint(1, 4000) * (-1) ** (index >> place & 1), 997)
            for place, symbol in enumerate(symbols)
        }
        for index in range(_POINTS)
    ]


def _at(expression: Any, point: dict[Any, Any]) -> Any:
    """The value at a point to 15 digits, or None where there is none."""
    # Not subs: with exact rational numbers (x + 1)^{1000000} would be multiplied out.
    found = expression.evalf(15, subs=point, maxn=_DIGITS_AT_A_POINT)
    if not found.is_number or found.has(sympy.nan, sympy.zoo, sympy.oo) or found.atoms(sympy.Function):
        return None
    return found
