"""The structure of an answer: lists, intervals, relations, matrices, quantities, read from LaTeX or plain text.

``parse`` reads the structure; what is left at the leaves is a number (``numerals``), words, or a formula that
``symbolic`` hands to Math-Verify's LaTeX parser when it comes to comparing. Nothing is evaluated here and every
step takes linear or quadratic time in an answer of at most ``tidy.MAX_LENGTH`` characters.

Left out: prose. What reads like a sentence, a doubt or a denial is no answer (``Unreadable``).
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Literal

from envs.verify import prose, units
from envs.verify.nodes import (
    Formula,
    Group,
    Matrix,
    NamedSet,
    Node,
    Number,
    Quantity,
    Ratio,
    Relation,
    SetOperation,
    Unreadable,
    Words,
)
from envs.verify.numerals import NUMBER_WORDS, based, exact
from envs.verify.tidy import FUNCTIONS, tidy

MAX_ITEMS = 1000
MAX_DEPTH = 60
"""How deep lists, brackets and relations may nest."""


_AND_OR = re.compile(r"(?:,[ ]*)?(?:\\text\{[ ]*(?:and|or)[ ]*\}|(?<![A-Za-z\\{])(?:and|or)(?![A-Za-z}]))")
_OPENERS, _CLOSERS = "([{", ")]}"
_COMMAND = re.compile(r"\\(?:[A-Za-z]+|.)", re.DOTALL)
_OPERATORS = {
    r"\le": "<=",
    r"\ge": ">=",
    r"\ne": "!=",
    r"\in": "in",
    r"\notin": "notin",
    r"\approx": "~",
    r"\equiv": "=",
    "<": "<",
    ">": ">",
    "=": "=",
}
_NAMED_SETS = {rf"\mathbb{{{name}}}": name for name in "RZNQC"} | {
    r"\emptyset": "empty",
    r"\{\}": "empty",
    "DNE": "empty",
}
_MATRIX = re.compile(
    r"""(?P<factor>[^\\&(\[]*|-?\\frac\{[^{}]*\}\{[^{}]*\})[ ]*(?:\\cdot)?[ ]*
    \\begin\{(?P<kind>[pbBvV]?matrix|smallmatrix|array)\}(?:\{[lcr|\s]*\})?(?P<cells>.*)\\end\{(?P=kind)\}""",
    re.DOTALL | re.VERBOSE,
)
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_WORDS = re.compile(r"\(?[A-Za-z][A-Za-z0-9 .'&-]*\)?")
_WORD = re.compile(r"(?<![\\A-Za-z{])(?!sqrt|pi|sin|cos|tan|log|ln|exp)[A-Za-z]{2,}")
_MATH_WORDS = frozenset(FUNCTIONS) | {"oo", "e", "i"}


def parse(text: str, *, trusted: bool = False) -> Node:
    """The structure of an answer, as a data set or a model wrote it. Raises ``Unreadable`` where there is none.

    ``trusted`` answers, a data set's own, may hold words that in a model's would be a doubt or a denial.
    """
    try:
        clean = tidy(text)
    except ValueError as error:
        raise Unreadable(str(error)) from None
    in_text = _TEXT.fullmatch(clean)
    clean = in_text[1].strip() if in_text else clean
    plain = _TEXT.sub(r"\1", clean).strip()
    if prose.is_placeholder(plain):
        raise Unreadable("there is no answer in it")
    if not trusted and prose.is_doubtful(plain):
        raise Unreadable("it denies or doubts what it says")
    _check_balance(clean)
    named = _named(plain)
    if named is not None:
        return named
    if not trusted and _depth(clean):
        raise Unreadable("its brackets don't match")
    return _list(_plain_operators(clean), MAX_DEPTH)


_SHORT_WORDS = frozenset(
    ["yes", "no", "odd", "all", "any", "day", "red", "sun", "mon", "tue", "wed", "thu", "fri", "sat", "am", "pm"]
)


_LABEL = re.compile(r"(?:option|choice)[ ]*\(?([A-Z])\)?", re.IGNORECASE)
_CLOCK = re.compile(r"([0-9]{1,2})(?::([0-5][0-9]))?[ ]*([ap])\.?[ ]?m\.?", re.IGNORECASE)
_TIME = re.compile(r"[0-9]{1,2}:[0-5][0-9]")


def _named(plain: str) -> Words | Number | None:
    """Words if the text is nothing else: a letter in brackets, or words that mathematics is not written in. A small
    number's name is that number."""
    clock = _CLOCK.fullmatch(plain)
    if clock:
        return Words(f"{int(clock[1])}:{clock[2] or '00'} {clock[3].lower()}m")
    if _TIME.fullmatch(plain):
        return Words(plain)
    if plain.lower() in NUMBER_WORDS:
        return Number(Fraction(NUMBER_WORDS[plain.lower()]))
    if not _WORDS.fullmatch(plain):
        return None
    bare = plain.strip("(). ")
    label = _LABEL.fullmatch(plain)
    if label:
        return Words(label[1])
    found = re.findall(r"[A-Za-z]+", bare)
    if not found or any(word.lower() in _MATH_WORDS for word in found):
        return None
    if len(found) > 12:
        raise Unreadable("it is a sentence")
    if len(bare) == 1:
        return Words(bare) if plain != bare or bare.isupper() else None
    if len(found) > 1 and max(map(len, found)) < 3:
        return None  # a - b
    if based(plain) is not None or _AND_OR.search(plain):
        return None
    if re.fullmatch(r"[a-z]{2,3}", bare) and bare not in _SHORT_WORDS:
        return None  # a product of variables, rather
    return Words(" ".join(bare.split())) if re.fullmatch(r"[A-Za-z][A-Za-z .'&-]*", bare) else None


def _check_balance(text: str) -> None:
    depth = 0
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if match[0] == "{":
            depth += 1
        elif match[0] == "}":
            depth -= 1
        if depth < 0:
            break
    if depth:
        raise Unreadable("its braces don't match")


def _depth(text: str) -> int:
    """Brackets of all kinds that open, less those that close."""
    opened = text.count("(") + text.count("[") - text.count(")") - text.count("]")
    return opened + text.count(r"\{") - text.count(r"\}")


def _plain_operators(text: str) -> str:
    text = re.sub(r"!=|=/=", r"\\ne ", text)
    text = re.sub(r"<=|=<", r"\\le ", text)
    text = re.sub(r">=|=>", r"\\ge ", text)
    text = re.sub(r"==|:=", "=", text)
    return re.sub(r"(?<![A-Za-z\\])U(?=[ ]*[(\[])(?<=[)\] ]U)", r"\\cup ", text)


def _pieces(text: str, separator: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """``text`` cut where ``separator`` matches outside all brackets, and what matched there."""
    pieces, found, depth, start, position = [], [], 0, 0, 0
    while position < len(text):
        match = separator.match(text, position) if depth == 0 else None
        if match and match.end() > position:
            pieces.append(text[start:position])
            found.append(match[0])
            position = start = match.end()
            continue
        if text[position] == "\\":
            command = _COMMAND.match(text, position)
            step = command[0] if command else "\\"
            if step in (r"\{", r"\langle", r"\lfloor", r"\lceil"):
                depth += 1
            elif step in (r"\}", r"\rangle", r"\rfloor", r"\rceil"):
                depth -= 1
            elif step == r"\begin":
                depth += 1
            elif step == r"\end":
                depth -= 1
            position += len(step)
            continue
        depth += (text[position] in _OPENERS) - (text[position] in _CLOSERS)
        position += 1
    pieces.append(text[start:])
    return [piece.strip() for piece in pieces], found


_SEPARATOR = re.compile(rf"[ ]*(?:{_AND_OR.pattern}|[,;])[ ]*")
_SPACED = re.compile(rf"[ ]*(?:{_AND_OR.pattern}|;|,(?![0-9]{{3}}(?![0-9])))[ ]*")
_THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])")


def _list(text: str, depth: int, *, bracketed: bool = False) -> Node:
    """A bare list, or what a single item is. Commas between groups of three digits are no separators outside
    brackets."""
    if depth == 0:
        raise Unreadable("it nests too deeply")
    pieces, separators = _pieces(text, _SEPARATOR if bracketed or not _THOUSANDS.search(text) else _SPACED)
    if any(not piece for piece in pieces):
        pieces = [piece for piece in pieces if piece]
        if not pieces:
            raise Unreadable("there is no answer in it")
    if len(pieces) > MAX_ITEMS:
        raise Unreadable("it has too many items")
    if len(pieces) == 1:
        return _relation(pieces[0], depth - 1)
    items: list[Node] = []
    for piece in pieces:
        node = _relation(piece, depth - 1)
        items.extend(node.items if isinstance(node, Group) and node.brackets == "" else [node])
    words = " ".join(separators)
    return Group("", tuple(items), "or" if "or" in words else "and" if "and" in words else "")


_RELATION = re.compile(r"[ ]*(?:\\(?:le|ge|ne|in|notin|approx|equiv)(?![A-Za-z])|[<>=])[ ]*")


def _relation(text: str, depth: int) -> Node:
    if depth <= 0:
        raise Unreadable("it nests too deeply")
    pieces, found = _pieces(text, _RELATION)
    if not found:
        return _set(text, depth - 1)
    if pieces[0] == "" and len(pieces) > 1:  # "= 5": the answer to a question left of it
        if found[0].strip() != "=":
            raise Unreadable("a relation without its left side")
        pieces, found = pieces[1:], found[1:]
        if not found:
            return _set(pieces[0], depth - 1)
    if any(not piece for piece in pieces):
        raise Unreadable("a relation without one of its sides")
    operators = tuple(_OPERATORS[operator.strip()] for operator in found)
    return Relation(tuple(_set(piece, depth - 1) for piece in pieces), operators)


_SET_OPERATION = re.compile(r"[ ]*\\(?:cup|cap|setminus)(?![A-Za-z])[ ]*")


def _set(text: str, depth: int) -> Node:
    pieces, found = _pieces(text, _SET_OPERATION)
    if any(not piece for piece in pieces):
        raise Unreadable("a set operation without one of its sides" if found else "there is no answer in it")
    node = _ratio(pieces[0], depth)
    for operator, piece in zip(found, pieces[1:], strict=True):
        node = SetOperation(operator.strip(" \\"), node, _ratio(piece, depth))
    return node


_COLON = re.compile(r"[ ]*:[ ]*")


def _ratio(text: str, depth: int) -> Node:
    pieces, found = _pieces(text, _COLON)
    if found and all(re.fullmatch(r"[-+0-9./ ]+|[a-z]|\\(?:frac|sqrt).*", piece) for piece in pieces):
        return Ratio(tuple(_bracketed(piece, depth) for piece in pieces))
    return _bracketed(text, depth)


_OUTWARD: dict[str, Literal["()", "[)", "(]"]] = {"][": "()", "[[": "[)", "]]": "(]"}
_PAIRS = {r"\{": r"\}", r"\langle": r"\rangle", "(": ")", "[": "]", "{": "}"}


def _bracketed(text: str, depth: int) -> Node:
    """A tuple, an interval, a set, a list; or the scalar that brackets were put around."""
    if depth <= 0:
        raise Unreadable("it nests too deeply")
    text = text.strip()
    name = _NAMED_SETS.get(text.replace(" ", ""))
    if name:
        return NamedSet(name)
    matrix = _MATRIX.fullmatch(text)
    if matrix and matrix["kind"] not in ("vmatrix", "Vmatrix"):
        return _matrix(matrix["cells"], matrix["factor"], depth - 1)
    if text[:1] + text[-1:] in _OUTWARD:  # intervals whose open ends are written with brackets turned outwards
        return Group(_OUTWARD[text[0] + text[-1]], _items(text[1:-1], depth - 1))
    opener = next((o for o in _PAIRS if text.startswith(o)), None)
    if opener is None or not _closes_at_end(text):
        return _scalar(text, depth - 1)
    closer = next((c for c in (*_PAIRS.values(),) if text.endswith(c) and len(c) > 1), text[-1])
    inside = text[len(opener) : len(text) - len(closer)].strip()
    if opener == r"\{" and closer == r"\}":
        return _set_builder(inside, depth - 1) or Group("{}", _items(inside, depth - 1))
    if opener == r"\langle" and closer == r"\rangle":
        return Group("()", _items(inside, depth - 1))
    if opener == "{" and closer == "}":
        node = _list(inside, depth - 1)
        return Group("{}", node.items) if isinstance(node, Group) and node.brackets == "" else node
    if opener in "([" and closer in ")]":
        items = _items(inside, depth - 1)
        if len(items) == 1 and opener + closer in ("()", "[]"):
            return items[0]
        if len(items) >= 2:
            brackets = opener + closer
            assert brackets in ("()", "[]", "[)", "(]")
            return Group(brackets, items)  # type: ignore[arg-type]
    raise Unreadable("its brackets don't match")


def _items(inside: str, depth: int) -> tuple[Node, ...]:
    node = _list(inside, depth, bracketed=True)
    return node.items if isinstance(node, Group) and node.brackets == "" else (node,)


_SUCH_THAT = re.compile(r"[ ]*[|:][ ]*")


def _set_builder(inside: str, depth: int) -> Node | None:
    """``x | x > 3`` as the relation behind the bar; None for anything else."""
    pieces, found = _pieces(inside, _SUCH_THAT)
    if len(found) != 1:
        return None
    whose = re.fullmatch(r"(?:[A-Za-z]|\\[a-z]+)(?:[ ]*\\in[ ]*\\mathbb[ ]*\{?([RZNQ])\}?)?", pieces[0])
    if whose is None:
        return None
    such_that = _list(pieces[1], depth, bracketed=True)
    return such_that if whose[1] in (None, "R") else SetOperation("cap", such_that, NamedSet(whose[1]))


def _closes_at_end(text: str) -> bool:
    """Whether the bracket that opens the text is closed by its last character, of whatever kind."""
    depth, position = 0, 0
    while position < len(text):
        command = _COMMAND.match(text, position)
        token = command[0] if command else text[position]
        depth += (token in _PAIRS) - (token in _PAIRS.values())
        position += len(token)
        if depth == 0:
            return position == len(text)
    return False


def _matrix(inside: str, factor: str, depth: int) -> Matrix:
    """``factor`` is what stands before it, to be multiplied in."""
    rows = [row for row in inside.split("\\\\") if row.strip()]
    cells = [[_relation(cell.strip(), depth) for cell in row.split("&")] for row in rows]
    if not cells or len({len(row) for row in cells}) != 1:
        raise Unreadable("a matrix whose rows differ in length")
    number = exact({"": "1", "-": "-1"}.get(factor.strip(), factor))
    if number is None:
        raise Unreadable("a matrix with something before it")
    return Matrix(tuple(tuple(_multiplied(cell, number) for cell in row) for row in cells))


def _multiplied(cell: Node, factor: Number) -> Node:
    if factor.value == 1:
        return cell
    if isinstance(cell, Number):
        return Number(cell.value * factor.value)
    if isinstance(cell, Formula):
        return Formula(rf"\frac{{{factor.value.numerator}}}{{{factor.value.denominator}}} \cdot ({cell.text})")
    raise Unreadable("a matrix of something else than scalars")


_PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])[ ]*")


def _scalar(text: str, depth: int) -> Node:
    if depth <= 0:
        raise Unreadable("it nests too deeply")
    text = text.strip()
    if not text:
        raise Unreadable("there is no answer in it")
    signs = _PLUS_MINUS.findall(text)
    if len(signs) == 1:
        before, after = _PLUS_MINUS.split(text)
        plus = before + "+" + after if before.strip() else after
        return Group("", (_scalar(plus, depth - 1), _scalar(before + "-" + after, depth - 1)))
    in_base = based(_TEXT.sub(r"\1", text))
    if in_base is not None:
        return in_base
    number = exact(text)
    if number is not None:
        return number
    quantity = _quantity(text, depth)
    if quantity is not None:
        return quantity
    named = _named(_TEXT.sub(r"\1", text).strip())
    if named is not None:
        return named
    in_text = _TEXT.fullmatch(text)
    if in_text:
        return _scalar(in_text[1], depth - 1)
    return Formula(re.sub(r"[ ]+", " ", _TEXT.sub(r"\1", text)).strip())


# Behind a value: a percent sign, degrees, a unit in \text{}, or words; each may be raised to a power.
_MARK = re.compile(r"(.*?)[ ]*(?:\\?(%)|\^[ ]*\{?[ ]*(\\circ)[ ]*\}?[ ]*(?:\\text\{[ ]*\})?)", re.DOTALL)
_UNIT_TEXT = re.compile(
    r"(.*?)[ ]*((?:\\text\{[^{}]*\}[ ]*(?:\^[ ]*(?:[23]|\{[23]\})|/)?[ ]*)+(?:[A-Za-z]+)?)", re.DOTALL
)
_UNIT_WORDS = re.compile(
    r"(.*[0-9})\]])([ ]*)\(?([A-Za-z][A-Za-z .'-]*(?:/[ ]*[A-Za-z]+)?(?:\^\{?[23]\}?|[23])?)\)?", re.DOTALL
)
_TRIGONOMETRY = re.compile(r"sin|cos|tan|cot|sec|csc")
_CURRENCY = re.compile(r"(-?)[ ]*\\text\{(dollar|euro|sterling|yen|rupee|won)s?\}[ ]*(-?)(.*)", re.DOTALL)


def _quantity(text: str, depth: int) -> Node | None:
    currency = _CURRENCY.fullmatch(text)
    if currency and currency[4]:
        value = _scalar(currency[1] + currency[3] + currency[4], depth - 1)
        return value if isinstance(value, Quantity) else _with_unit(value, currency[2], text)
    mark = _MARK.fullmatch(text)
    if mark and mark[1] and not (mark[3] and _TRIGONOMETRY.search(mark[1])):
        return _with_unit(_scalar(mark[1], depth - 1), "percent" if mark[2] else "degree", text)
    match = _UNIT_TEXT.fullmatch(text)
    if match and match[1] and _ends_a_value(match[1]):
        return _counted(match[1], _TEXT.sub(r" \1 ", match[2]), text, depth)
    match = _UNIT_WORDS.fullmatch(text)
    if match:
        name = match[3].strip()
        first = re.split(r"[ ./^0-9]", name)[0]
        alone = bool(match[2]) and (len(first) > 1 or first in units.LETTERS)
        if (alone or (len(first) > 1 and units.known(first))) and first.lower() not in _MATH_WORDS:
            return _counted(match[1], name, text, depth)
    return None


def _counted(value: str, name: str, text: str, depth: int) -> Node | None:
    name = " ".join(name.replace("{", "").replace("}", "").split())
    first, _, rest = name.partition(" ")
    if first.lower() in units.MULTIPLIERS and exact(value) is not None:
        number = exact(value)
        assert number is not None
        scaled = Number(number.value * units.MULTIPLIERS[first.lower()], number.digits)
        return scaled if not rest else _with_unit(scaled, rest, text)
    base = re.fullmatch(r"(?:\(?base|in base)[ ]*([0-9a-z]+)\)?", name)
    if base:
        return based(f"{value}_{{{base[1]}}}")
    return _with_unit(_scalar(value, depth - 1), name, text)


def _with_unit(value: Node, name: str, text: str) -> Quantity | None:
    """None if ``name`` is no unit, or the value has one already or is a sentence."""
    unit = units.unit(name)
    if unit is None or isinstance(value, Quantity) or (isinstance(value, Formula) and _WORD.search(value.text)):
        return None
    return Quantity(value, unit, re.sub(r"\s", "", _TEXT.sub(r"\1", text)))


def _ends_a_value(text: str) -> bool:
    return not text.rstrip().endswith(("+", "-", "*", "/", "^", "_", "="))
