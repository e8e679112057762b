"""Answers: what is extracted, what it says, what equals what; labelled cases; the scorecard."""

from __future__ import annotations

import ast
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest
import sympy

from envs.verify import Extraction, Item, Verdict, check_gold
from envs.verify.__main__ import main, read_rows
from envs.verify.expression import parse
from envs.verify.extract import MARKS
from envs.verify.formula import Unsupported, read
from envs.verify.judge import judge
from envs.verify.nodes import Number, Quantity, Unreadable
from envs.verify.symbolic import by_grammar, prepared
from envs.verify.tidy import MAX_LENGTH, tidy
from envs.verify.units import Unit, unit

REPO = Path(__file__).resolve().parent.parent
CASES = REPO / "tests" / "data" / "math_cases.jsonl"


# Labelled cases


def test_the_labelled_cases(capsys: pytest.CaptureFixture[str]) -> None:
    """Written from the specification by somebody who had not seen the verifier, and rows that once were wrong."""
    assert main(["score", str(CASES), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = read_rows(CASES)
    assert result["n"] == len(rows) >= 400
    assert sum(not row.expected for row in rows) >= 200
    assert len({row.id for row in rows}) == len(rows)
    assert result["false_positives"] == []
    assert result["accuracy"] >= 0.99, result["false_negatives"]
    assert result["errors"] == 0


# Extraction


@pytest.mark.parametrize(
    ("marks", "answer"),
    [(MARKS, "5"), (("boxed",), "1"), (("hash",), "2"), (("tag",), "3"), (("phrase",), "4"), (("number",), "5")],
)
def test_each_mark_can_be_chosen_and_the_last_one_wins(marks: Sequence[str], answer: str) -> None:
    text = "\\boxed{1}\n#### 2\n<answer>3</answer>\nThe answer is 4.\n#### 5"
    if marks == ("hash",):
        text = text.replace("\n#### 5", "")
    assert Extraction(marks)(text) == answer  # type: ignore[arg-type]


def test_unknown_marks_are_refused() -> None:
    with pytest.raises(ValueError, match="boxed, hash, tag, phrase, number"):
        Extraction(("box",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="extraction marks"):
        Extraction(())


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 30_000,
        "\\boxed{}" * 25_000,
        "the answer is " * 15_000,
        "the answer of " * 15_000,
        "#### " * 40_000,
        "<answer>" * 25_000,
        "<answer>1</answer>" * 11_000,
        "1 " * 100_000,
        "1," * 100_000,
        "1/" * 100_000,
        "- " * 100_000,
        " " * 200_000,
        "\n" * 200_000,
        "$" * 200_000,
        "not " * 50_000 + "\\boxed{5}",
        "The answer is $" + "a" * 200_000,
        "The answer is " + "he " * 60_000 + "5",
        "answer is \\[" * 15_000,
        "he " * 60_000 + "5",
        "<think>" * 28_000,
        "</think>" * 25_000,
        "}" * 200_000,
    ],
    ids=lambda text: repr(text[:15]),
)
def test_extraction_takes_linear_time(text: str) -> None:
    """Twice the text in hardly more than twice the time; far less than the seconds that a quadratic step would take."""
    start = time.process_time()
    Extraction()(text)
    assert time.process_time() - start < 1.5


# What it says


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-1,234.5", Fraction(-2469, 2)),
        (r"1\,234\,567", Fraction(1234567)),
        ("1\u2009234", Fraction(1234)),
        (r"10,\!000", Fraction(10000)),
        ("1{,}234", Fraction(1234)),
        (r"\dfrac12", Fraction(1, 2)),
        ("1½", Fraction(3, 2)),
        (r"3\frac{1}{5}", Fraction(16, 5)),
        ("-2 1/2", Fraction(-5, 2)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        ("0.(142857)", Fraction(1, 7)),
        ("0.1666...", Fraction(1, 6)),
        (r"6.02\times 10^{23}", Fraction(602 * 10**21)),
        ("1e-5", Fraction(1, 10**5)),
        ("2^{100}", Fraction(2**100)),
        ("1010_2", Fraction(10)),
        (r"\text{FF}_{16}", Fraction(255)),
        ("0x1F", Fraction(31)),
        ("٤٢", Fraction(42)),
        ("４２", Fraction(42)),
        ("twelve", Fraction(12)),
        ("5 million", Fraction(5 * 10**6)),
        (r"\boxed{\left(5\right)}", Fraction(5)),
        ("+7", Fraction(7)),
    ],
)
def test_numbers(text: str, value: Fraction) -> None:
    node = parse(text)
    assert isinstance(node, Number)
    assert node.value == value


@pytest.mark.parametrize("text", ["1,23", "12,34", "1 2", "5/0", "1.2.3", "1_000", "--", "8_8", "1e99999", "9" * 5000])
def test_what_only_looks_like_a_number(text: str) -> None:
    assert not isinstance(parse(text), Number)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "{}",
        r"\frac{1}{",
        "5}",
        "not 5",
        "3, or maybe 4",
        r"\phantom{5}",
        r"5\phantom{7}",
        "about 5",
        "your answer",
        r"\ldots",
        "(1, 2",
        "1 <",
        "9" * (MAX_LENGTH + 1),
        "(" * 1000 + "1" + ")" * 1000,
    ],
)
def test_what_is_no_answer(text: str) -> None:
    with pytest.raises(Unreadable):
        parse(text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("km", Unit("m", Fraction(1000))),
        ("kilometres", Unit("m", Fraction(1000))),
        ("square feet", Unit("m^2", Fraction(3048, 10000) ** 2)),
        ("cm^2", Unit("m^2", Fraction(1, 10**4))),
        ("cubic inches", Unit("m^3", Fraction(254, 10000) ** 3)),
        ("miles per hour", Unit("m/s", Fraction(1609344, 1000) / 3600)),
        ("mph", Unit("m/s", Fraction(1609344, 1000) / 3600)),
        ("cents", Unit("dollar", Fraction(1, 100))),
        ("apples", Unit("apple", Fraction(1))),
        ("red apples", Unit("red apple", Fraction(1))),
        ("or so", None),
        ("x", None),
        ("squared", None),
        ("", None),
    ],
)
def test_units(name: str, expected: Unit | None) -> None:
    assert unit(name) == expected


def test_tidy_keeps_what_it_does_not_know() -> None:
    assert tidy(r"$\left( \dfrac{3}{4},\; \mathrm{cm} \right)$.") == r"( \frac{3}{4}, \text{cm} )"
    assert tidy("𝜋²≤−√3") == r"\pi ^{2}\le -\sqrt{3}"
    node = parse(r"\$1,000")
    assert isinstance(node, Quantity)
    assert node.unit.dimension == "dollar"


# Equality


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        ("5 km", ["5", "5km", "5000 m", r"5\text{ kilometers}"], ["5 m", "5000", "5 km^2", "5 miles"]),
        (r"50\%", ["50%", "50", "0.5", r"\frac12"], ["5", "0.05", "500%"]),
        ("50", ["50", "50.0"], [r"50\%"]),
        ("0.5", ["50%", "1/2"], ["5%"]),
        ("(1, 2)", ["(1,2)", "1, 2", "(x, y) = (1, 2)"], ["(2, 1)", "[1, 2]", "{1, 2}", "(1, 2, 3)"]),
        ("1, 2", ["2, 1", r"\{1, 2\}", "x = 1 or x = 2", "1 and 2"], ["(2, 1)", "1", "1, 2, 3", "1, 1, 2"]),
        ("[0, 1)", [r"\left[0, 1\right)", "0 \\le x < 1"], ["[0, 1]", "(0, 1)", "(0, 1]"]),
        (r"(-\infty, 3) \cup (3, \infty)", ["x \\ne 3", r"\mathbb{R} \setminus \{3\}"], [r"\mathbb{R}", "x \\ne 4"]),
        ("x = 5", ["5", "x=5", "5 = x"], ["y = 5", "x = -5", "x > 5"]),
        ("5", ["x = 5", "2 + 3 = 5", "x = 2 + 3 = 5"], ["x + 2 = 7", "2x = 5", "1 = 5", "x = 4 = 5", "5 = 4"]),
        ("y = 2x + 1", ["2x + 1", "2x - y + 1 = 0", "y - 1 = 2x"], ["y = 2x", "2x - y = 1", "x = 2y + 1"]),
        ("x > 3", ["3 < x", r"(3, \infty)", "-x < -3"], ["x < 3", r"x \ge 3", "y > 3", r"[3, \infty)"]),
        (r"2\sqrt{3}", [r"\sqrt{12}", r"\frac{6}{\sqrt3}", "3.464102"], ["3.46", "3.464103", r"\sqrt{13}"]),
        (r"\frac{1}{3}", [r"0.\overline{3}", "0.333333", "0.333..."], ["0.33333", "0.333334", "0.3"]),
        ("0.25", ["1/4", ".25"], ["0.250001", "0.2499999"]),
        ("10^{-30}", ["1e-30"], ["0", "2e-30", "1e-31"]),
        ("10^{30} + 1", ["1000000000000000000000000000001"], ["10^{30}", "1e30"]),
        ("262537412640768744", [], [r"e^{\pi\sqrt{163}}"]),
        ("x^2 - 1", ["(x-1)(x+1)", "-1 + x^2"], ["x^2 + 1", "(x-1)^2", "y^2 - 1"]),
        ("|x|", [r"\sqrt{x^2}"], ["x"]),
        ("|xy|", [r"|x||y|"], ["xy", "x|y|"]),
        (r"2\frac{1}{2}\pi", [r"\frac{5\pi}{2}"], [r"\pi"]),
        ("2(7)x", ["14x"], ["9x"]),
        (r"3 + 4i", ["4i + 3"], ["3 - 4i", "3 + 4j", "5"]),
        (
            r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
            [r"\begin{bmatrix}1&2\\3&\frac{8}{2}\end{bmatrix}"],
            [r"\begin{pmatrix}1&3\\2&4\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}", "1, 2, 3, 4"],
        ),
        ("A", ["(A)", r"\text{A}", r"\textbf{(A)}"], ["B", "a", "AB"]),
        ("yes", ["Yes", r"\text{yes}."], ["no", "sey"]),
        ("2 : 3", ["4:6", "2/3"], ["3:2", "2:3:1", "0:0"]),
        (r"30^\circ", ["30", "30 degrees", r"\frac{\pi}{6} \text{ radians}"], [r"\frac{\pi}{6}", "30 radians"]),
    ],
)
def test_equality(gold: str, right: list[str], wrong: list[str]) -> None:
    check_gold(gold)
    assert [answer for answer in [gold, *right] if not judge(gold, answer).correct] == []
    assert [answer for answer in wrong if judge(gold, answer).correct] == []


def test_verdicts_carry_one_spelling_for_each_answer() -> None:
    spellings = {judge("7", answer).answer for answer in ("1/2", r"\frac{2}{4}", "0.5", "x = 0.50", "0.5 cm")}
    assert spellings == {"1/2"}
    assert judge("7", r"\dfrac{ \pi }{2}").answer == judge("7", r"\frac{\pi}{2}").answer


def test_what_is_written_as_the_right_answer_is_right_even_if_it_reads_like_a_denial() -> None:
    assert judge(r"\text{not enough information}", r"\text{not enough information}").correct
    assert not judge("5", "not 5").correct


def test_an_unreadable_right_answer_never_pays() -> None:
    for gold in ("", r"\frac{1}{", "{}"):
        with pytest.raises(ValueError, match="can't be read"):
            judge(gold, gold)
        with pytest.raises(ValueError, match="can't be read"):
            check_gold(gold)


# Two parsers


def _random_formula(draw: random.Random, depth: int) -> str:
    if depth == 0:
        return draw.choice(["2", "7", "12", "x", "y", r"\pi", "e", "0.5", r"\alpha"])
    a, b = (_random_formula(draw, depth - 1) for _ in range(2))
    forms = [
        rf"\frac{{{a}}}{{{b}}}", rf"{a} + {b}", rf"{a} - {b}", rf"({a})({b})", rf"\sqrt{{{a}}}", rf"({a})^{{{b}}}",
        rf"\sin({a})", rf"\cos^{{2}}({a})", rf"\ln({a})", rf"\sqrt[3]{{({a})^2}}", rf"2({a})", rf"({a}) \cdot {b}",
        rf"({a})/({b})", rf"-({a})", rf"3x \cdot ({a})", rf"{{{a}}}^2", rf"\log_{{2}}({a})", rf"\left({a}\right)",
    ]  # fmt: skip
    return draw.choice(forms)


def test_the_fast_parser_agrees_with_the_library_on_random_formulas() -> None:
    """Both read; their values at a point are the same. The library's grammar is the reference, but for odd roots of
    negative numbers, which are real here."""
    draw = random.Random(0)
    point = {"x": sympy.Rational(7, 5), "y": sympy.Rational(3, 11), "alpha": sympy.Rational(5, 9)}
    compared = 0
    for _ in range(300):
        text = prepared(tidy(_random_formula(draw, draw.choice([1, 2, 3]))))
        try:
            fast = read(text)
        except Unsupported:
            continue
        slow = by_grammar(text)
        values = [
            sympy.N(side.subs({symbol: point[symbol.name] for symbol in side.free_symbols}).doit(), 20)
            for side in (fast, slow)
        ]
        if any(value.has(sympy.nan, sympy.zoo, sympy.oo) for value in values):
            continue
        assert abs(values[0] - values[1]) <= 1e-12 * max(1, abs(values[0])), (text, fast, slow)
        compared += 1
    assert compared > 200


@pytest.mark.parametrize(
    "text", ["1/2x", "a/b/c", "f(x)", r"\sin xy", "x_1", r"\log 5", "2^3^4", "3 4", r"\sin^{-1} x", ""]
)
def test_the_fast_parser_leaves_what_is_ambiguous_to_the_library(text: str) -> None:
    with pytest.raises(Unsupported):
        read(text)


def test_model_text_is_never_evaluated() -> None:
    """No ``eval``, ``exec``, ``sympify`` or ``parse_expr`` in the verifier, and nothing that executes model text."""
    forbidden = {"eval", "exec", "compile", "sympify", "S", "parse_expr", "parse_latex", "__import__"}
    for path in (REPO / "envs" / "verify").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", None) or getattr(node.func, "attr", "")
                assert name not in forbidden or ast.unparse(node.func) == "re.compile", f"{path.name}:{node.lineno}"
    for text in ("__import__('os').system('touch /tmp/rlreason-evaluated')", "().__class__", "exec('1')"):
        assert not judge("5", text).correct
    assert not Path("/tmp/rlreason-evaluated").exists()


# Scorecard

ROWS = [
    {"id": "a", "gold": "1/2", "completion": "So it is \\boxed{0.5}.", "expected": True},
    {"id": "b", "gold": 5, "prediction": "5.0", "expected": True},
    {"id": "c", "gold": "5", "prediction": "6", "expected": True},
    {"id": "d", "gold": "5", "prediction": "5", "expected": False},
    {"id": "e", "gold": "5", "completion": "Then 2 + 3 = 5", "finish": "length", "expected": False},
    {"id": "f", "gold": "5", "prediction": r"\prod_{n=1}^{1000000} n", "expected": False},
]


def write(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_scorecard(tmp_path: Path) -> None:
    """As a user calls it: one JSON object on standard output."""
    command = [sys.executable, "-m", "envs.verify", "score", str(write(tmp_path / "rows.jsonl", ROWS))]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=REPO, check=True)
    result = json.loads(done.stdout)
    assert result["n"] == 6
    assert result["accuracy"] == pytest.approx(4 / 6)
    assert (result["false_positives"], result["false_negatives"]) == (["d"], ["c"])
    assert (result["timeouts"], result["errors"]) == (1, 0)
    assert min(result["per_second"], result["p50_ms"], result["p99_ms"]) > 0
    assert result["p99_ms"] >= 900  # the row that takes its whole second is among them


def test_scorecard_for_people_lists_each_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(write(tmp_path / "rows.jsonl", ROWS))]) == 0
    out = capsys.readouterr().out
    assert "6 rows: accuracy 0.6667, 1 false positives, 1 false negatives, 1 timeouts" in out
    assert "false positive d: gold '5', answer '5'" in out
    assert "false negative c: gold '5', answer '6'" in out


class YesMan:
    """A verifier that is always content."""

    def check(self, items: Sequence[Item]) -> list[Verdict]:
        return [Verdict(True, "ok")] * len(items)


def test_another_verifier_can_be_put_under_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path / "rows.jsonl", ROWS))
    assert main(["score", path, "--json", "--verifier", f"{__name__}.YesMan"]) == 0
    assert json.loads(capsys.readouterr().out)["false_positives"] == ["d", "e", "f"]
    for name, what in (
        ("nowhere.YesMan", "nowhere"),
        (f"{__name__}.MARKS", "not callable"),
        ("json.JSONDecoder", "no method"),
    ):
        assert main(["score", path, "--verifier", name]) == 2
        assert what in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("{", "rows.jsonl:2: this is not JSON"),
        ([], "rows.jsonl:2: this is not a JSON object"),
        ({"gold": "1", "expected": True}, "rows.jsonl:2: it needs either"),
        ({"gold": "1", "prediction": "1", "completion": "1", "expected": True}, "rows.jsonl:2: it needs either"),
        ({"gold": "1", "prediction": 1, "expected": True}, "rows.jsonl:2: 'gold' and the answer must be strings"),
        ({"gold": "1", "prediction": "1", "expected": "yes"}, "rows.jsonl:2: 'gold' and the answer must be strings"),
        ({"gold": "", "prediction": "1", "expected": True}, "rows.jsonl:2: the right answer '' can't be read"),
    ],
)
def test_bad_rows_are_named_before_anything_is_checked(
    tmp_path: Path, row: object, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(write(tmp_path / "rows.jsonl", [ROWS[0], row]))]) == 2
    assert what in capsys.readouterr().err


def test_no_file_and_no_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(tmp_path / "none.jsonl")]) == 2
    assert "there is no file" in capsys.readouterr().err
    assert main(["score", str(write(tmp_path / "empty.jsonl", []))]) == 2
    assert "there are no rows" in capsys.readouterr().err
