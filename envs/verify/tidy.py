"""One spelling for what is written in many: Unicode, LaTeX's synonyms and decorations, plain-text mathematics.

``tidy`` turns an answer as a model or a data set wrote it into the small dialect of LaTeX that ``expression`` reads.
It changes how something is written, never what it is worth; every step takes linear time.

Left out: understanding. Units, percent signs, lists and relations are still there afterwards.
"""

from __future__ import annotations

import re
import unicodedata

MAX_LENGTH = 20_000
"""Longest answer that is read, in characters; a longer one is nobody's final answer."""

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "0123456789+-()nix")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₓₐ", "0123456789+-()nxa")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ]+")
_SUBSCRIPT_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₓₐ]+")

_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\u2061\u2062\u2063\ufeff\u00ad\u200e\u200f"))

GREEK = dict(
    zip(
        "αβγδεζηθικλμνξρστυφχψωΓΔΘΛΞΠΣΦΨΩϵϕ",
        """alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi
        omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega epsilon phi""".split(),  # noqa: SIM905
        strict=True,
    )
)
"""Greek letters, but for π, and their names in LaTeX."""

FUNCTIONS = tuple(
    """arcsin arccos arctan sinh cosh tanh sin cos tan cot sec csc log ln exp max min gcd lcm det sqrt pi theta alpha
    beta gamma lambda omega phi infinity inf""".split()  # noqa: SIM905
)
"""What plain text writes without a backslash, longer names before those that they begin with."""

_CHARACTERS = {
    **dict.fromkeys("−–—‒﹣‐‑", "-"),
    **dict.fromkeys("×✕✖", r"\times "),
    **dict.fromkeys("·⋅∙•", r"\cdot "),
    **dict.fromkeys("∕⁄", "/"),
    **dict.fromkeys("“”„«»", '"'),
    **dict.fromkeys("‘’", "'"),
    "÷": "/",
    "±": r"\pm ",
    "∓": r"\mp ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "⩽": r"\le ",
    "≥": r"\ge ",
    "⩾": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "≅": r"\approx ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∉": r"\notin ",
    "∅": r"\emptyset ",
    "∖": r"\setminus ",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}",
    "π": r"\pi ",
    "𝜋": r"\pi ",
    "°": r"^\circ ",
    "º": r"^\circ ",
    "′": "'",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "→": r"\to ",
    "⇒": r"\Rightarrow ",
    "∠": r"\angle ",
    "△": r"\triangle ",
    "…": r"\ldots ",
    "¢": r"\text{ cents}",
    **{letter: rf"\{name} " for letter, name in GREEK.items()},
}
_CHARACTER = re.compile("[" + re.escape("".join(_CHARACTERS)) + "]")
_VULGAR = re.compile("[¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]")
_ROOT = re.compile(r"([√∛∜])[ ]*(?:\(([^()]*)\)|([0-9]+(?:\.[0-9]+)?|[A-Za-z]))?")
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}

_MARKUP = '*_` \t\n\r"\u201c\u201d'
_MINUS_WORD = re.compile(r"(?<![A-Za-z ])(?:negative|minus)[ ]+(?=[0-9\\])", re.IGNORECASE)
_ROW_SPACING = re.compile(r"\\\\[ ]*\[[^\[\]]*(?:pt|em|ex|mm|cm)\]")
_DELIMITERS = re.compile(r"(?<!\\)\\[()\[\]]|(?<!\\)\$")
_SPACES = re.compile(r"\\(?:quad|qquad|enspace|thinspace|medspace|thickspace|space|hfill|newline|,|;|:|!|>|[ ])|[~\s]+")
_DECORATION = re.compile(
    r"\\(?:left|right|bigl|bigr|Bigl|Bigr|biggl|biggr|Biggl|Biggr|bigm|Bigm|big|Big|bigg|Bigg|displaystyle|textstyle|"
    r"scriptstyle|limits|nolimits|mathstrut|strut|mleft|mright|middle)(?![A-Za-z])[ ]*\.?(?![0-9])"
)
_WRAPPERS = re.compile(
    r"\\(?:boxed|fbox|mathbf|mathit|mathnormal|boldsymbol|bm|textcolor\{[a-z]+\}|color\{[a-z]+\}|underline|ensuremath|"
    r"mathop|hbox|displaystyle)[ ]*(?=\{)"
)
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|normal|sf|tt)?|math(?:rm|sf|tt)|mbox|operatorname\*?|rm)(?![A-Za-z])[ ]*")
_SYNONYMS = {
    "dfrac": r"\frac",
    "tfrac": r"\frac",
    "cfrac": r"\frac",
    "dbinom": r"\binom",
    "tbinom": r"\binom",
    "leq": r"\le ",
    "leqslant": r"\le ",
    "le": r"\le ",
    "geq": r"\ge ",
    "geqslant": r"\ge ",
    "ge": r"\ge ",
    "lt": "<",
    "gt": ">",
    "neq": r"\ne ",
    "not=": r"\ne ",
    "ast": "*",
    "div": "/",
    "colon": ":",
    "lbrace": r"\{",
    "rbrace": r"\}",
    "lbrack": "[",
    "rbrack": "]",
    "lvert": "|",
    "rvert": "|",
    "vert": "|",
    "mid": "|",
    "varnothing": r"\emptyset ",
    "degree": r"^\circ ",
    "backslash": r"\setminus ",
    "smallsetminus": r"\setminus ",
    "land": r"\text{ and }",
    "lor": r"\text{ or }",
    "vee": r"\text{ or }",
    "wedge": r"\text{ and }",
    "bigcup": r"\cup ",
    "dots": r"\ldots ",
    "cdots": r"\ldots ",
    "dotsc": r"\ldots ",
    "dotso": r"\ldots ",
    "ldots": r"\ldots ",
    "simeq": r"\approx ",
    "cong": r"\approx ",
    "doteq": r"\approx ",
    "minus": "-",
    "R": r"\mathbb{R}",
    "Z": r"\mathbb{Z}",
    "imath": "i",
    "euro": "€",
    "pounds": "£",
    "textdollar": r"\text{dollar}",
    "textdegree": r"^\circ ",
    "percent": r"\%",
}
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_DROPPED = re.compile(
    r"\\(?:label|tag|hspace|vspace|kern)\*?\{[^{}]*\}|\\color\{[a-z]+\}|"
    r"\\(?:hline|nonumber|notag|centering|bf|it|sf|tt|em|tiny|small|normalsize|large|Large|LARGE|huge|Huge)(?![A-Za-z])"
)
_CURRENCY = {"\\$": r"\text{dollar}", "€": r"\text{euro}", "£": r"\text{sterling}"} | {
    "¥": r"\text{yen}",
    "₹": r"\text{rupee}",
    "₩": r"\text{won}",
}
_CURRENCY_SIGN = re.compile(r"\\\$|[€£¥₹₩]")
_CURRENCY_TEXT = re.compile(r"\\text[ ]*\{[ ]*(\\\$|[€£¥₹₩])[ ]*([^{}]*)\}")
_CHOOSE = re.compile(r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}")
_LONE_DOLLAR = re.compile(r"\$(?=[ ]*-?[ ]*[0-9.])")
_BROKEN_OFF = re.compile(r"(?<=[0-9])\.{2,}|(?<=[0-9])[ ]\.{3,}")
_FULL_STOP = " \n.,;:。"
_TEMPERATURE = re.compile(r"[ ]*\^[ ]*\{?[ ]*\\circ[ ]*\}?[ ]*(?:\\text\{[ ]*)?([CF])(?![A-Za-z])(?:[ ]*\})?")
_SCALES = {"C": r"\text{ celsius}", "F": r"\text{ fahrenheit}"}
_PLUS_INFINITY = re.compile(r"(?<![0-9A-Za-z)}\]])[ ]*\+[ ]*(?=\\infty)")
_DIGIT_COMMA = re.compile(r"(?<=[0-9])\{,\}(?=[0-9]{3}(?![0-9]))")
_BRACED_COMMA = re.compile(r"[ ]*\{[ ]*,[ ]*\}[ ]*")
_GROUP_SPACE = re.compile(r"(?<=[0-9])(?:\\[,;:! ]|~|[\u00a0\u2000-\u200a\u202f\u205f])+(?=[0-9]{3}(?![0-9]))")


def tidy(text: str) -> str:
    """``text`` in one spelling: ``⅓`` is ``\\frac{1}{3}``, ``\\dfrac12`` is ``\\frac{1}{2}``, ``$5$.`` is ``5``.

    Words stay in ``\\text{...}`` if they were in some command for text. White space is single blanks. Raises
    ValueError if ``text`` is longer than ``MAX_LENGTH``.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"an answer of {len(text)} characters; at most {MAX_LENGTH} are read")
    text = _GROUP_SPACE.sub("\u2009", text.replace("\\!", ""))
    text = _unicode(text.translate(_INVISIBLE))
    text = _MINUS_WORD.sub("-", text.strip(_MARKUP).replace("**", "^"), count=1)
    text = _CHOOSE.sub(r"\\binom{\1}{\2}", _CURRENCY_TEXT.sub(r"\1\2", text))
    text = _CURRENCY_SIGN.sub(lambda match: _CURRENCY[match[0]], text)
    if text.count("$") % 2:  # not a pair around mathematics
        text = _LONE_DOLLAR.sub(r"\\text{dollar}", text, count=1)
    text = _ROW_SPACING.sub("\n", text)
    text = _DELIMITERS.sub(" ", text)
    text = text.replace("\\\\", "\n")  # a matrix's line break, until spaces are done
    text = _SPACES.sub(lambda match: "\n" if "\n" in match[0] else " ", text)
    text = _DROPPED.sub(" ", text)
    text = _DECORATION.sub("", text)
    text = _WRAPPERS.sub("", text)
    text = _TEXT.sub(r"\\text", text)
    text = _COMMAND.sub(lambda match: _SYNONYMS.get(match[1], match[0]), text)
    text = _BROKEN_OFF.sub(r"\\ldots ", text)
    text = _BRACED_COMMA.sub(",", _DIGIT_COMMA.sub("", text))
    text = _PLUS_INFINITY.sub("", text)
    text = _TEMPERATURE.sub(lambda match: _SCALES[match[1]], text)
    text = re.sub(r"\\text(?!\{)", " ", text)
    text = text.strip(" \n").rstrip(_FULL_STOP)
    text = re.sub(r"[ ]{2,}", " ", text)
    return text.replace("\n", r"\\").strip()


def _unicode(text: str) -> str:
    if text.isascii():
        return text
    text = _GROUPED.sub(lambda match: re.sub(r"\s", "", match[0]), text)
    text = _ROOT.sub(_root, text)
    text = _SUPERSCRIPT_RUN.sub(lambda match: "^{" + match[0].translate(_SUPERSCRIPTS) + "}", text)
    text = _SUBSCRIPT_RUN.sub(lambda match: "_{" + match[0].translate(_SUBSCRIPTS) + "}", text)
    text = _VULGAR.sub(_vulgar, text)
    text = _CHARACTER.sub(lambda match: _CHARACTERS[match[0]], text)
    # Full-width and other compatibility forms, then digits of other scripts.
    text = unicodedata.normalize("NFKC", text)
    return "".join(str(unicodedata.digit(c)) if c.isdigit() and not c.isascii() else c for c in text)


_GROUPED = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:[\u00a0\u2000-\u200a\u202f\u205f][0-9]{3})+(?![0-9])")


def _root(match: re.Match[str]) -> str:
    inside = match[2] if match[2] is not None else match[3]
    return _ROOTS[match[1]] + ("" if inside is None else "{" + inside + "}")


def _vulgar(match: re.Match[str]) -> str:
    numerator, denominator = unicodedata.normalize("NFKC", match[0]).split("\u2044")
    return rf"\frac{{{numerator}}}{{{denominator}}}"
