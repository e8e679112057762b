"""Units of measure as they stand behind a number: which are the same, and which are a multiple of which.

A unit is a dimension and a factor: kilometres are (``m``, 1000), square centimetres (``m^2``, 1/10000). A word that
is no unit here (``apples``) is a dimension of its own, in the singular, so it equals itself only.

Left out: temperature scales (an offset, not a factor), compound units beyond one quotient, and rates of exchange.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple


class Unit(NamedTuple):
    """What a number counts: ``factor`` of ``dimension``."""

    dimension: str
    factor: Fraction


PERCENT = Unit("%", Fraction(1))

_INCH = Fraction(254, 10000)
_POUND = Fraction(45359237, 100000000)


def _table() -> dict[str, Unit]:
    metric: dict[str, Fraction | int] = {"": 1, "kilo": 1000, "centi": Fraction(1, 100), "milli": Fraction(1, 1000)}
    metric["micro"] = Fraction(1, 10**6)
    short = {"": "", "kilo": "k", "centi": "c", "milli": "m", "micro": "u"}
    units: dict[str, Unit] = {}

    def add(dimension: str, factor: Fraction | int, *names: str) -> None:
        for name in names:
            units[name] = Unit(dimension, Fraction(factor))

    for prefix, factor in metric.items():
        add("m", factor, f"{prefix}meter", f"{prefix}metre", f"{short[prefix]}m")
        add("g", factor, f"{prefix}gram", f"{short[prefix]}g")
        add("L", factor, f"{prefix}liter", f"{prefix}litre", f"{short[prefix]}L", f"{short[prefix]}l")
    add("m", Fraction(1, 10), "decimeter", "decimetre", "dm")
    add("m", _INCH, "inch", "inche", "in")
    add("m", 12 * _INCH, "foot", "feet", "ft")
    add("m", 36 * _INCH, "yard", "yd")
    add("m", 63360 * _INCH, "mile", "mi")
    add("g", 1000 * _POUND, "pound", "lb")
    add("g", 1000 * _POUND / 16, "ounce", "oz")
    add("g", 10**6, "tonne")
    add("s", 1, "second", "sec", "s")
    add("s", 60, "minute", "min")
    add("s", 3600, "hour", "hr", "h")
    add("s", 86400, "day")
    add("s", 7 * 86400, "week", "wk")
    add("year", 1, "year", "yr")
    add("year", Fraction(1, 12), "month", "mo")
    add("dollar", 1, "dollar", "usd", "buck")
    add("dollar", Fraction(1, 100), "cent")
    add("euro", 1, "euro", "eur")
    for currency in ("sterling", "yen", "rupee", "won"):
        add(currency, 1, currency)
    add("degree", 1, "degree", "deg")
    add("celsius", 1, "celsius", "degree celsius", "degrees celsius")
    add("fahrenheit", 1, "fahrenheit", "degree fahrenheit", "degrees fahrenheit")
    add("radian", 1, "radian", "rad")
    add("m/s", 1, "mps")
    add("m/s", Fraction(1000, 3600), "kph", "kmh", "kmph")
    add("m/s", 63360 * _INCH / 3600, "mph")
    add("unit", 1, "unit")
    units["%"] = units["percent"] = units["pct"] = units["percentage"] = PERCENT
    return units


_UNITS = _table()

LETTERS = frozenset(name for name in _UNITS if len(name) == 1)
"""Units of a single letter: behind a number they may as well be variables."""

_POWER = re.compile(r"(.*?)[ ]*(?:\^\{?([23])\}?|([23])|[ ](squared|cubed))$")
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}

# Behind a number these do not name what is counted: they change, doubt or deny it.
_NOT_UNITS = re.compile(
    r"""(?:or|and|nor|not|no|but|if|when|where|unless|otherwise|alternatively|versus|vs|except|excluded|excluding|without|
    maybe|perhaps|possibly|probably|about|approximately|approx|around|roughly|nearly|almost|wrong|incorrect|false|invalid|
    untrue|mistaken?|errors?|too|small|large|high|low|most|least|fewer|less|than|to|for|by|is|are|was|equals?|base|
    plus|minus|over|divided|multiplied|added?|subtract(?:ed)?|choose|mod(?:ulo)?|remainder|point|root|sqrt|squared|cubed|
    factorial|repeating|recurring|negative|positive|infinit[ey]|infinity|pi|sin|cos|tan|log|ln|exp|[xyzn]|
    one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|[a-z]+teen|twenty|thirty|forty|fifty|sixty|seventy|
    eighty|ninety|hundreds?|thousands?|[mbtrz]+illions?|dozens?|scores?|lakhs?|crores?|bn|mn|
    half|halves|thirds?|quarters?|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|[a-z]+(?:teenths?|tieths?)|
    hundredths?|thousandths?|millionths?)""",
    re.VERBOSE,
)

MULTIPLIERS = {
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}


def known(word: str) -> bool:
    """Whether ``word`` is a unit of the table, in the singular or plural."""
    return _lookup(word) is not None


def unit(text: str) -> Unit | None:
    """The unit that ``text`` names: ``km``, ``square feet``, ``cm^2``, ``miles per hour``, ``apples``.

    None if it names none: words that change a number (``million``) or doubt it (``or so``), more than five words,
    symbols.
    """
    text = " ".join(text.replace("\\", " ").split()).strip("(). ")
    over, per, under = text.partition("/")
    if not per:
        over, per, under = text.partition(" per ")
    if per:
        top, bottom = unit(over), unit(under)
        if top is None or bottom is None:
            return None
        return Unit(f"{top.dimension}/{bottom.dimension}", top.factor / bottom.factor)
    power = _POWER.fullmatch(text)
    if power and known(power[1]):
        return _raised(power[1], int(power[2] or power[3] or {"squared": 2, "cubed": 3}[power[4]]))
    first, _, rest = text.partition(" ")
    if first.lower().rstrip(".") in _POWERS and known(rest):
        return _raised(rest, _POWERS[first.lower().rstrip(".")])
    found = _lookup(text)
    if found is not None:
        return found
    words = re.findall(r"[A-Za-z][A-Za-z'-]*", text.lower())
    if not words or len(words) > 5 or " ".join(words) != text.lower() or words[0] == "of":
        return None
    if any(_NOT_UNITS.fullmatch(word) or (len(word) == 1 and word != "a") for word in words):
        return None
    if "times" in words[:-1]:
        return None
    return Unit(" ".join(_singular(word) for word in words), Fraction(1))


def _lookup(word: str) -> Unit | None:
    for spelling in (word, word.lower() if len(word) > 2 else word):
        for candidate in (spelling, _singular(spelling)):
            if candidate in _UNITS:
                return _UNITS[candidate]
    return None


def _raised(word: str, power: int) -> Unit:
    base = _lookup(word)
    assert base is not None
    return Unit(f"{base.dimension}^{power}", base.factor**power)


def _singular(word: str) -> str:
    if len(word) > 3 and word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith("ss") else word
