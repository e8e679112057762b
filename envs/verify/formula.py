"""The everyday part of LaTeX's formulas as sympy objects, some thirty times faster than the full grammar.

Numbers, letters, Greek letters, the four operations, powers, roots, fractions, factorials, binomials and elementary
functions of a bracketed or plain argument. Whatever else occurs, or could be read in two ways, raises
``Unsupported``, and ``symbolic`` asks Math-Verify's parser; on what both read they agree (tests).

Integers are not multiplied out where the result would be enormous: ``9^{9^9}`` stays a power.

Left out: everything ambiguous. ``1/2x``, ``f(x)``, ``\\sin xy`` and subscripts are the other parser's to decide.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import sympy

from envs.verify.tidy import GREEK

_TOKEN = re.compile(r"[ ]*(?:([0-9]+(?:\.[0-9]+)?|\.[0-9]+)|\\([A-Za-z]+)|([A-Za-z])|(.))", re.DOTALL)
_MAX_BITS = 20_000
_MAX_NESTING = 60

_GREEK = frozenset(GREEK.values()) - {"Pi"}
_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "sin": sympy.sin,
    "cos": sympy.cos,
    "tan": sympy.tan,
    "cot": sympy.cot,
    "sec": sympy.sec,
    "csc": sympy.csc,
    "arcsin": sympy.asin,
    "arccos": sympy.acos,
    "arctan": sympy.atan,
    "ln": sympy.log,
    "exp": sympy.exp,
}
_FUNCTION_LETTERS = frozenset("fghFGHPT")  # before a bracket: a function's name, perhaps


class Unsupported(ValueError):
    """This is not in the everyday part, or not unambiguous."""


def read(latex: str) -> Any:
    """The sympy expression of a tidy formula; ``i`` is the imaginary unit, ``e`` Euler's number, letters are real.
    Raises ``Unsupported``."""
    tokens = [
        ("number", match[1])
        if match[1]
        else ("command", match[2])
        if match[2]
        else ("letter", match[3])
        if match[3]
        else ("sign", match[4])
        for match in _TOKEN.finditer(latex.strip())
    ]
    reader = _Reader(tokens)
    found = reader.sum(0)
    if reader.place != len(tokens):
        raise Unsupported("something is left over")
    return found


_Token = tuple[str, str]
_END: _Token = ("end", "")


class _Reader:
    """Recursive descent: a sum of products of powers."""

    def __init__(self, tokens: list[_Token]) -> None:
        self.tokens = tokens
        self.place = 0

    @property
    def next(self) -> _Token:
        return self.tokens[self.place] if self.place < len(self.tokens) else _END

    def take(self) -> _Token:
        token = self.next
        self.place += 1
        return token

    def expect(self, sign: str) -> None:
        if self.take() != ("sign", sign):
            raise Unsupported(f"no {sign}")

    def sum(self, depth: int) -> Any:
        if depth > _MAX_NESTING:
            raise Unsupported("too deep")
        terms = []
        sign = 1
        if self.next in (("sign", "-"), ("sign", "+")):
            sign = -1 if self.take()[1] == "-" else 1
        while True:
            terms.append(sign * self.product(depth))
            if self.next not in (("sign", "-"), ("sign", "+")):
                return sympy.Add(*terms)
            sign = -1 if self.take()[1] == "-" else 1

    def product(self, depth: int) -> Any:
        found = self.power(depth)
        divided = False
        while True:
            token = self.next
            if token in (("sign", "*"), ("command", "cdot"), ("command", "times")):
                self.take()
                found = found * self.power(depth)
            elif token == ("sign", "/"):
                if divided:
                    raise Unsupported("a/b/c")
                self.take()
                found = found / self.power(depth)
                divided = True
            elif token[0] in ("letter", "command") or token in (("sign", "("), ("sign", "{")):
                if divided:
                    raise Unsupported("a/bc")
                found = found * self.power(depth)
            elif token[0] == "number":
                raise Unsupported("a number behind a factor")
            else:
                return found

    def power(self, depth: int) -> Any:
        base = self.atom(depth)
        while self.next == ("sign", "!"):
            self.take()
            base = _factorial(base)
        if self.next != ("sign", "^"):
            return base
        self.take()
        exponent = self.argument(depth)
        if self.next in (("sign", "^"), ("sign", "!")):
            raise Unsupported("a^b^c")
        return _power(base, exponent)

    def argument(self, depth: int) -> Any:
        """A braced expression or a single token."""
        kind, text = self.next
        if (kind, text) == ("sign", "{"):
            return self.bracketed("{", "}", depth)
        if kind == "number" and len(text) == 1:
            self.take()
            return sympy.Integer(text)
        if kind == "letter" or (kind == "command" and (text == "pi" or text in _GREEK)):
            return self.atom(depth)
        raise Unsupported("an argument")

    def bracketed(self, opening: str, closing: str, depth: int) -> Any:
        self.expect(opening)
        found = self.sum(depth + 1)
        self.expect(closing)
        return found

    def atom(self, depth: int) -> Any:
        kind, text = self.next
        if kind == "number":
            self.take()
            return sympy.Rational(text)
        if kind == "letter":
            self.take()
            if text in _FUNCTION_LETTERS and self.next == ("sign", "("):
                raise Unsupported("a function's name")
            return {"e": sympy.E, "i": sympy.I}.get(text) or sympy.Symbol(text, real=True)
        if (kind, text) == ("sign", "("):
            return self.bracketed("(", ")", depth)
        if (kind, text) == ("sign", "{"):
            return self.bracketed("{", "}", depth)
        if kind == "command":
            self.take()
            return self.command(text, depth)
        raise Unsupported(text)

    def command(self, name: str, depth: int) -> Any:
        if name == "pi":
            return sympy.pi
        if name == "infty":
            return sympy.oo
        if name in _GREEK:
            return sympy.Symbol(name, real=True)
        if name == "frac":
            top, bottom = self.argument(depth), self.argument(depth)
            if bottom == 0:
                raise Unsupported("a division by zero")
            return top / bottom
        if name == "sqrt":
            index = self.bracketed("[", "]", depth) if self.next == ("sign", "[") else sympy.Integer(2)
            if index == 0:
                raise Unsupported("a zeroth root")
            inside = self.argument(depth)
            if index.is_odd and inside.is_negative:  # the real root, as everybody means it
                return -_power(-inside, 1 / index)
            return _power(inside, 1 / index)
        if name == "binom":
            top, bottom = self.argument(depth), self.argument(depth)
            if not (top.is_Integer and bottom.is_Integer and 0 <= top <= 2000):
                raise Unsupported("a large binomial")
            return sympy.binomial(top, bottom)
        if name == "log":
            base = sympy.Integer(10)
            if self.next == ("sign", "_"):
                self.take()
                base = self.argument(depth)
            else:
                raise Unsupported("a logarithm without its base")
            return sympy.log(self.plain_argument(depth), base)
        if name in _FUNCTIONS:
            exponent = None
            if self.next == ("sign", "^"):
                self.take()
                exponent = self.argument(depth)
                if exponent == -1:
                    raise Unsupported("an inverse function")
            found = _FUNCTIONS[name](self.plain_argument(depth))
            return found if exponent is None else found**exponent
        raise Unsupported(name)

    def plain_argument(self, depth: int) -> Any:
        """A function's argument: bracketed, or one factor with a number before it, and nothing behind that could
        belong to it."""
        if self.next == ("sign", "("):
            found = self.bracketed("(", ")", depth)
            if self.next == ("sign", "^"):
                raise Unsupported("f(x)^n")
            return found
        if self.next == ("sign", "{"):
            return self.bracketed("{", "}", depth)
        factor: Any = sympy.Integer(1)
        if self.next[0] == "number":
            factor = sympy.Rational(self.take()[1])
        if self.next[0] == "letter" or (
            self.next[0] == "command" and (self.next[1] in _GREEK or self.next[1] in ("pi", "frac", "sqrt"))
        ):
            factor = factor * self.power(depth)
        elif factor == 1:
            raise Unsupported("no argument")
        token = self.next
        if token[0] in ("letter", "number") or token in (("sign", "("), ("sign", "^"), ("sign", "/")):
            raise Unsupported("an argument that goes on")
        if token[0] == "command" and token[1] not in _FUNCTIONS and token[1] not in ("cdot", "times"):
            raise Unsupported("an argument that goes on")
        return factor


def _power(base: Any, exponent: Any) -> Any:
    if base.is_Rational and exponent.is_Rational:
        size = max(int(base.p).bit_length(), int(base.q).bit_length()) * abs(exponent)
        if size > _MAX_BITS:
            return sympy.Pow(base, exponent, evaluate=False)
    if base == 0 and exponent.is_negative:
        raise Unsupported("a division by zero")
    return base**exponent


def _factorial(value: Any) -> Any:
    if value.is_Integer and 0 <= value <= 2000:
        return sympy.factorial(value)
    return sympy.factorial(value, evaluate=False)
