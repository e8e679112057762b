from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from rlreason.analysis.behaviour_rules import RULES
from rlreason.analysis.behaviours import (
    Snippet,
    behaviour_frame,
    behaviours,
    main,
    measure,
    read_snippets,
)
from rlreason.analysis.cues import Reading, Rule, Span

LABELLED = Path(__file__).parent / "data" / "behaviours.jsonl"
NAMES = [rule.name for rule in RULES]


@pytest.fixture(scope="module")
def snippets() -> list[Snippet]:
    return read_snippets(LABELLED)


def test_the_labelled_snippets_are_enough_to_measure_on(snippets: list[Snippet]) -> None:
    assert len(snippets) >= 200
    assert len({snippet.id for snippet in snippets}) == len({snippet.text for snippet in snippets}) == len(snippets)
    for split in ("tune", "held-out"):
        labels = Counter(label for snippet in snippets if snippet.split == split for label in snippet.labels)
        assert set(labels) == set(NAMES)
        assert min(labels.values()) >= 15
    assert {snippet.split for snippet in snippets} == {"tune", "held-out"}


@pytest.mark.parametrize("split", ["all", "held-out"])
def test_precision_of_every_behaviour_is_at_least_0_9(snippets: list[Snippet], split: str) -> None:
    measured = measure([snippet for snippet in snippets if split in ("all", snippet.split)])
    assert [one.name for one in measured] == NAMES
    for one in measured:
        print(f"{one.name}: precision {one.precision:.3f}, recall {one.recall:.3f}")
        for snippet in one.wrong:
            print(f"  found, not labelled: {snippet.id} {snippet.text!r}")
        for snippet in one.missed:
            print(f"  labelled, not found: {snippet.id} {snippet.text!r}")
    assert all(one.precision >= 0.9 for one in measured), "found without a label: see the list above"
    assert all(one.recall >= 0.8 for one in measured), "labelled but missed: see the list above"


def test_measuring_counts_snippets_found_rightly_wrongly_and_missed() -> None:
    def snippet(id: str, text: str, *labels: str) -> Snippet:
        return Snippet(id, text, frozenset(labels), "tune")

    given = [
        snippet("right", "Let me check: 3 + 4 = 7. Let me check again.", "verification"),
        snippet("wrong", "Let me check the mail."),
        snippet("missed", "3 + 4 = 7, as it should be.", "verification"),
        snippet("nothing", "3 + 4 = 7"),
    ]
    one = next(one for one in measure(given) if one.name == "verification")
    assert [[s.id for s in part] for part in (one.right, one.wrong, one.missed)] == [["right"], ["wrong"], ["missed"]]
    assert (one.precision, one.recall) == (0.5, 0.5)


def test_spans_are_the_characters_that_show_the_behaviour() -> None:
    text = "19 - 7 = 10\nLet me check: 10 + 7 = 17, not 19. Wait, that is wrong.\n19 - 7 = 12"
    assert behaviours(text) == [Span("verification", 12, 24), Span("backtracking", 47, 66)]
    assert [text[span.start : span.end] for span in behaviours(text)] == ["Let me check", "Wait, that is wrong"]


def test_a_check_and_its_verdict_are_one_check_and_another_line_is_another() -> None:
    text = "Let me check: 12 + 7 = 19. Right.\nLet me check: 3 + 4 = 7. Right."
    assert [text[span.start : span.end] for span in behaviours(text)] == text.split("\n")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("First, I need to find the price.", ["sub_goal"]),
        ("Try 3: 27, too small. Try 4: 64.", ["enumeration", "enumeration"]),
        ("The answer is 12. The answer is 10. The answer is 10.", ["answer_switch"]),
        ("Aha! It is even.", ["aha"]),
        # The words at work in stories.
        ("She had to wait for the bus. Wait time: 5 minutes.", []),
        ("Please check the box and the check for $45.", []),
        ("No, 3 apples are left. Is 21 prime? No, that's 3 * 7.", []),
        ("Her first name has 5 letters. The first step is 3 feet high.", []),
        ("Each case holds 24 cans. In this case, he tries 3 keys.", []),
        ("Lisa realized that she noticed 3 mistakes.", []),
        ("", []),
    ],
)
def test_behaviours_and_the_same_words_in_stories(text: str, names: list[str]) -> None:
    assert [span.name for span in behaviours(text)] == names


def test_the_words_that_a_cue_needs_never_hide_a_match(snippets: list[Snippet]) -> None:
    for snippet in snippets:
        for text in (snippet.text, snippet.text.replace(" ", "\n"), snippet.text.replace("'", "’").upper()):
            reading = Reading.of(text)
            for cue in (cue for rule in RULES if isinstance(rule, Rule) for cue in rule.cues):
                assert cue.may_match(reading) or not cue.matches(reading), (cue.words, text)


def test_every_rule_says_what_counts_and_where_that_comes_from() -> None:
    for rule in RULES:
        assert len(rule.definition) > 40
        assert "20" in rule.source  # a year
        if isinstance(rule, Rule):
            assert len({cue.pattern for cue in rule.cues}) == len(rule.cues)


def test_spans_keep_to_the_text_where_lower_case_is_longer() -> None:
    text = "İİİ. Let’s check: 7."
    (span,) = behaviours(text)
    assert (span.name, text[span.start : span.end]) == ("verification", "Let’s check")


def test_the_frame_counts_per_row_on_the_index_of_the_traces() -> None:
    texts = ["Wait, no.\nWait, that is wrong.", "3 + 4 = 7", "Wait, no.\nWait, that is wrong.", "Let me check: 7."]
    frame = behaviour_frame(pd.DataFrame({"text": texts}, index=[7, 3, 9, 3]))
    assert list(frame.index) == [7, 3, 9, 3]
    assert list(frame.columns) == NAMES
    assert frame["backtracking"].tolist() == [2, 0, 2, 0]
    assert frame["verification"].tolist() == [0, 0, 0, 1]
    assert set(frame.dtypes) == {pd.Series([0]).dtype}
    assert behaviour_frame(pd.DataFrame({"text": []})).shape == (0, len(NAMES))


def test_word_problems_are_no_reasoning(shared_data: Path) -> None:
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    found = [
        (span.name, question[span.start : span.end])
        for question in (json.loads(line)["question"] for line in lines)
        for span in behaviours(question)
    ]
    assert len(lines) > 1000
    assert len(found) <= len(lines) / 1000, found


@pytest.mark.parametrize(
    "piece", ["wait ", "no, ", "? ", "(", "x = 1: ", "if x = 1 ", "suppose ", "to find ", "\n", "let me "]
)
def test_a_text_that_loops_takes_no_quadratic_time(piece: str) -> None:
    began = time.process_time()
    behaviours(piece * (50_000 // len(piece)))
    assert time.process_time() - began < 20  # a quadratic pass takes minutes


def test_the_command_prints_the_measure_and_every_miss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    path = tmp_path / "labelled.jsonl"
    rows = [
        {"id": "a", "text": "Let me check the mail.", "labels": [], "split": "held-out"},
        {"id": "b", "text": "Eureka!", "labels": ["aha"], "split": "tune"},
        {"id": "c", "text": "As it should be.", "labels": ["verification"], "split": "tune"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert main([str(path)]) == 0
    out = capsys.readouterr().out
    assert "verification: found, not labelled: a (held-out) 'Let me check the mail.'" in out
    assert "verification: labelled, not found: c (tune) 'As it should be.'" in out
    assert "1.000 (1/1; 0.207 to 1.000)" in out


def test_the_command_says_what_is_wrong_with_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "labelled.jsonl"
    path.write_text('{"id": "a", "text": "x", "labels": ["wisdom"], "split": "tune"}\n', encoding="utf-8")
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert f"{path}:1" in error
    assert "no behaviour is called wisdom" in error
    assert main([str(tmp_path / "absent.jsonl")]) == 2
    assert main([]) == 2
