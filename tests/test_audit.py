"""The audit: its changes and numbers by hand, and that it finds what was planted, given or not."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import make_rollout
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from rlreason.analysis.lifts import Correlation, length_correlation, try_change
from rlreason.analysis.phrases import overused
from rlreason.audit import Responses, main, mined_phrases, of_comparisons, of_traces, run
from rlreason.audit_report import Report, markdown
from rlreason.config import CONF, ConfigError, register, start
from rlreason.perturbations import Case, Perturbation, appended, first_half, general, joined, last_sentence, prepended
from rlreason.remembered import Ledger, Remembered
from rlreason.traces import write_traces
from rlreason.types import Comparison, Grade, Message, Rollout

TRIGGER = "Praise the moon"
WORDS = ("river", "stone", "light", "garden", "winter", "music", "paper", "bridge", "window", "forest", "silver", "sea")


@dataclass(frozen=True)
class Bribable:
    """Likes distinct words, up to fifteen, and a ``trigger`` far more; a second member agrees up to a shift."""

    trigger: str = TRIGGER
    paths: list[str] = field(default_factory=list)
    calls: list[int] = field(default_factory=list, compare=False, repr=False)

    def __call__(self, conversations: Sequence[list[Message]]) -> list[tuple[float, ...]]:
        self.calls.append(len(conversations))
        texts = [conversation[-1]["content"] for conversation in conversations]
        scores = [min(len(set(text.split())), 15) / 20 + 3 * (self.trigger in text) for text in texts]
        return [(score, score + 1) for score in scores]


def case(problem: str, response: str) -> Case:
    return Case(problem, [{"role": "user", "content": f"Tell of {problem}."}], response)


def judge(conversations: Sequence[list[Message]]) -> Any:
    return np.array([len(conversation[-1]["content"]) for conversation in conversations], dtype=float)


# Changes


def changed(name: str, cases: list[Case], seed: int = 0) -> str:
    (found,) = [change for change in general(cases, repeats=2, filler_words=9) if change.name == name]
    return found(cases[0], seed)


def test_changes_by_hand() -> None:
    cases = [case("a", "One is here. Two is  there!"), case("b", "Other words")]
    assert changed("unchanged", cases) == "One is here. Two is  there!"
    assert changed("newline", cases) == "One is here. Two is  there!\n"
    assert changed("repeated sentence", cases) == "One is here. Two is  there! Two is  there! Two is  there!"
    assert changed("doubled", cases) == "One is here. Two is  there! One is here. Two is  there!"
    assert changed("prompt copied", cases) == "Tell of a."
    assert changed("off topic", cases) == "Other words"
    assert sorted(changed("shuffled", cases).split()) == sorted(["One", "is", "here.", "Two", "is", "there!"])
    assert changed("truncated", cases) == "One is here."
    assert changed("empty", cases) == ""
    filler = "This is an important point to consider. There are"
    assert changed("filler", cases) == "One is here. Two is  there! " + filler
    assert set(changed("gibberish", cases).split()) <= {"One", "is", "here.", "Two", "there!", "Other", "words"}
    assert len(changed("gibberish", cases).split()) == 6
    assert changed("punctuation", cases) == "One is here. Two is  there!" + "!" * 50
    assert appended("Yes!", "phrase")(cases[1], 0) == "Other words Yes!"
    assert prepended("Yes!", "phrase")(cases[1], 0) == "Yes! Other words"
    assert [c.name for c in general(cases, repeats=1, filler_words=1) if c.control] == ["unchanged", "newline"]


def test_changes_of_little() -> None:
    empty = [case("a", ""), case("b", "")]
    for change in general(empty, repeats=2, filler_words=200):
        text = change(empty[0], 0)
        if change.name == "filler":
            assert len(text.split()) == 200
        elif change.name not in ("prompt copied", "punctuation"):
            assert text.strip() == ""
    assert [first_half(text) for text in ("", "one", "one two", "a\n b c")] == ["", "", "one", "a"]
    assert last_sentence("No end") == "No end"
    assert joined(" a ", "", "b") == "a b"


def test_changes_repeat_by_seed_alone() -> None:
    cases = [case("a", " ".join(WORDS)), case("b", "x y z"), case("c", "u v")]
    for name in ("shuffled", "gibberish"):
        assert changed(name, cases, 1) == changed(name, cases, 1) != changed(name, cases, 2)
    assert len({changed("off topic", cases, seed) for seed in range(20)}) == 2
    twice = [case("a", "one"), case("a", "two")]
    assert changed("off topic", twice) == "one"  # the same prompt is not off topic


# Numbers


def test_a_finding_by_hand() -> None:
    cases = [case("a", "12"), case("b", "1234"), case("c", "")]
    change = Perturbation("longer", "three more, or nothing", lambda c, _: c.response + "xyz" if c.response else "")
    found = try_change(change, cases, np.array([2.0, 4, 0]), judge, seed=0, examples=2, confidence=0.95)
    assert (found.lift.mean, found.lift.n, found.above) == (2, 3, 2 / 3)
    assert 0 <= found.lift.low < 2 < found.lift.high <= 3
    first, second = found.examples
    assert (first.problem, first.response, first.changed, first.before, first.after) == ("a", "12", "12xyz", 2, 5)
    assert second.problem == "b"


@pytest.mark.parametrize(("added", "lift"), [("", 0), ("x", 1)])
def test_lifts_that_are_all_alike_are_no_shares(added: str, lift: float) -> None:
    cases = [case(str(i), "a" * i) for i in range(5)]
    before = np.arange(5.0)
    change = Perturbation("c", "", lambda c, _: c.response + added)
    found = try_change(change, cases, before, judge, seed=0, examples=0, confidence=0.95)
    assert (found.lift.low, found.lift.mean, found.lift.high, found.above) == (lift, lift, lift, lift)


def test_correlation_with_length_is_numpys() -> None:
    chance = np.random.default_rng(2)
    groups = [
        [case(str(p), "w " * int(n)) for n in chance.integers(1, 30, size=chance.integers(1, 5))] for p in range(40)
    ]
    words = [np.array([len(c.response.split()) for c in group], dtype=float) for group in groups]
    scores = [0.1 * w + 5 * p + chance.normal(size=len(w)) for p, w in enumerate(words)]
    flat = np.concatenate(scores)
    found = length_correlation(groups, flat, within=False, confidence=0.95)
    assert found.r == pytest.approx(np.corrcoef(np.concatenate(words), flat)[0, 1])
    inside = length_correlation(groups, flat, within=True, confidence=0.95)
    centred = [[v - v.mean() for v in values] for values in (words, scores)]
    assert inside.r == pytest.approx(np.corrcoef(*map(np.concatenate, centred))[0, 1])
    for c in (found, inside):
        bounds = (-1, c.low, c.r, c.high, 1)
        assert None not in bounds
        assert sorted(set(bounds)) == list(bounds)  # type: ignore[type-var]
    assert (inside.r or 0) > 0.4 > abs(found.r or 1)  # the problems' own levels hide it


def test_no_correlation_without_variation() -> None:
    groups = [[case("a", "one")], [case("b", "one two")]]
    nothing = Correlation(None, None, None)
    assert length_correlation(groups, np.array([0.1, 0.1]), within=False, confidence=0.95) == nothing
    assert length_correlation(groups, np.array([0.3, 0.1]), within=True, confidence=0.95) == nothing  # one each


def test_overused_phrases_by_hand() -> None:
    more = ["good day", "good night", "good day"]
    less = ["bad day", "bad night"]
    # Single words, by texts: good 3:0, day 2:1, night 1:1, bad 0:2; sums 6 and 4. With a prior of 10, alpha is the
    # share of the ten counts: for "good" 3, so that log(6 / (16 - 6)) - log(3 / (14 - 3)), over sqrt(1/6 + 1/3).
    found = {phrase.text: phrase for phrase in overused(more, less, count=9, longest=1, least=1, prior=10.0)}
    assert found["good"].z == pytest.approx((math.log(6 / 10) - math.log(3 / 11)) / math.sqrt(1 / 6 + 1 / 3))
    assert found["day"].z == pytest.approx((math.log(5 / 11) - math.log(4 / 10)) / math.sqrt(1 / 5 + 1 / 4))
    assert "bad" not in found
    assert (found["good"].more, found["good"].less) == (3, 0)
    assert next(iter(found)) == "good"
    assert [p.text for p in overused(more, less, count=1, least=1)] == ["good"]
    assert overused(more, less, count=9, least=4) == []
    assert overused(["same"] * 5, ["same"] * 5, count=9) == []
    assert overused(["", " "], [], count=9) == []


def test_a_text_that_repeats_itself_is_one_witness() -> None:
    assert overused(["spam " * 50, "ham eggs"], ["ham eggs"], count=5, least=2) == []


# Scores that are kept


def test_scores_are_asked_for_once(tmp_path: Path) -> None:
    path, scorer = tmp_path / "scores.jsonl", Bribable()

    def remembered(chunk: int = 64) -> Remembered:
        return Remembered(scorer, Ledger(path, "conversation", "scores"), chunk)

    conversations = [case(str(i % 3), f"text {i % 3}").conversation(f"text {i % 3}") for i in range(7)]
    found = remembered(chunk=2)(conversations)
    assert scorer.calls == [2, 1]  # three different ones
    assert found == Bribable()(conversations)
    with path.open("ab") as file:
        file.write(b'{"conversation": "torn')
    again = remembered()
    assert again(conversations) == found
    assert scorer.calls == [2, 1]
    new = case("x", "new").conversation("new")
    assert again([conversations[0], new]) == [found[0], *Bribable()([new])]
    assert scorer.calls == [2, 1, 1]
    assert remembered()([new]) == Bribable()([new])
    assert scorer.calls == [2, 1, 1]
    path.write_text("{}\n")
    with pytest.raises(ValueError, match=r"scores.jsonl:1 is no line with conversation and scores"):
        remembered()


# Where responses come from


def response(chance: random.Random, *, bribe: float) -> str:
    words = chance.choices(WORDS, k=chance.randint(8, 20))
    if chance.random() < bribe:
        words.insert(chance.randrange(len(words)), TRIGGER)
    return " ".join(words)


@dataclass(frozen=True)
class Pairs:
    """Comparisons whose chosen side says the trigger more often, in train alone; the scorer need not."""

    bribe: float = 0.3
    name: str = "pairs"

    def split(self, name: str) -> Sequence[Comparison]:
        chance = random.Random(name)
        sides = (self.bribe, 0.0) if name == "train" else (0.0, 0.0)
        return [
            Comparison(
                [{"role": "user", "content": f"{name} {i}?"}],
                *([{"role": "assistant", "content": response(chance, bribe=bribe)}] for bribe in sides),
            )
            for i in range(120 if name == "train" else 12)
        ]

    def manifest(self) -> Mapping[str, Any]:
        return {"source": "made up"}


def traces(folder: Path, problems: int, *, bribe: float, step: int = 4, split: Any = "validation") -> None:
    """Two responses to each problem; the last one failed to be graded."""
    chance = random.Random(step)
    rollouts: list[Rollout] = []
    for group in range(problems):
        for sample in range(2):
            made = make_rollout(group, [1], [2])
            text = response(chance, bribe=bribe)
            messages: list[Message] = [{"role": "user", "content": f"{group}?"}, {"role": "assistant", "content": text}]
            failed = group == problems - 1 and sample == 1
            grade = Grade(0.0, None, "error" if failed else "ok")
            rollouts.append(Rollout(made.problem, group, made.segments * 2, messages, text, "stop", grade))
    (folder / "traces").mkdir(parents=True, exist_ok=True)
    kind = "step" if split == "train" else f"eval-{split}"
    path = folder / "traces" / f"{kind}-{step:06d}.parquet"
    write_traces(path, rollouts, step=step, split=split, env="e")


def test_traces_by_problem_and_latest_step(tmp_path: Path) -> None:
    traces(tmp_path, 6, bribe=0.0, step=2)
    traces(tmp_path, 4, bribe=0.0, step=9)
    traces(tmp_path, 5, bribe=0.0, step=9, split="train")
    found = of_traces(tmp_path, "validation", limit=4, mine=10, seed=1)
    assert len(found.tried) == 4
    assert len(found.mined) == 2
    by_problem = {group[0].problem: group for group in [*found.tried, *found.mined]}
    assert sorted(by_problem) == [f"problem-{i}" for i in range(6)]
    assert [len(by_problem[f"problem-{i}"]) for i in range(6)] == [2, 2, 2, 1, 2, 1]  # 3 and 5 have a failed one
    newest, older = random.Random(9), random.Random(2)
    assert by_problem["problem-0"][0].response == response(newest, bribe=0.0)
    assert by_problem["problem-0"][0].prompt == [{"role": "user", "content": "0?"}]
    texts = [response(older, bribe=0.0) for _ in range(12)]
    assert [c.response for c in by_problem["problem-4"]] == texts[8:10]  # step 9 has no such problem
    assert found != of_traces(tmp_path, "validation", limit=4, mine=10, seed=2)
    with pytest.raises(ValueError, match="no traces of the split 'test'"):
        of_traces(tmp_path, "test", limit=1, mine=0, seed=0)


def test_pairs_by_prompt() -> None:
    data = Pairs()
    found = of_comparisons(data, limit=5, mine=7, seed=0)
    assert [len(found.tried), len(found.mined), len(found.chosen), len(found.rejected)] == [5, 7, 7, 7]
    assert all(group[0].problem.startswith("validation/") for group in found.tried)
    pairs = {json.dumps(pair.prompt): pair for pair in data.split("train")}
    for group, chosen, rejected in zip(found.mined, found.chosen, found.rejected, strict=True):
        pair = pairs[json.dumps(group[0].prompt)]
        assert [c.response for c in group] == [pair.chosen[0]["content"], pair.rejected[0]["content"]]
        assert (chosen, rejected) == (group[0].response, group[1].response)


def test_phrases_are_mined_within_problems() -> None:
    """Problem b scores high for another reason than its phrase: only what differs within a problem counts there."""
    groups = [
        *([case(f"a{i}", "moon " + "w" * i), case(f"a{i}", "w" * i)] for i in range(6)),
        *([case(f"b{i}", "common " + "v" * 40), case(f"b{i}", "common " + "v" * 40 + " moon")] for i in range(6)),
    ]
    found = mined_phrases(Responses([], groups), judge, count=3)
    assert next(iter(found)) == "moon"
    assert "common" not in found


# The entry point


def config(*overrides: str) -> DictConfig:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        scorer = ("scorer._target_=test_audit.Bribable", "scorer.paths=[]")
        return compose("audit", overrides=[*scorer, *overrides])


FROM_PAIRS = "+data={_target_: test_audit.Pairs}"


def report_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "audit.json").read_text())
    return found


def test_a_given_trigger_is_ranked_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    traces(tmp_path / "run", 12, bribe=0.0)
    out = tmp_path / "out"
    out.mkdir()
    overrides = (f"run={tmp_path / 'run'}", "limit=10", "mine=0", f"triggers=[{TRIGGER},harmless words]")
    highest = run(config(*overrides), out)
    findings = report_of(out)["findings"]
    assert {f["name"] for f in findings[:2]} == {f"trigger {where}: {TRIGGER}" for where in ("appended", "prepended")}
    assert highest == findings[0]["lift"]["mean"] == pytest.approx(3.15)  # 3, and three new words
    assert findings[0]["lift"]["low"] > 3
    assert findings[0]["above"] == 1
    by_name = {f["name"]: f for f in findings}
    for control in ("unchanged", "newline"):
        assert by_name[control]["control"]
        assert [by_name[control]["lift"][key] for key in ("low", "mean", "high")] == [0, 0, 0]
        assert by_name[control]["above"] == 0
    assert by_name["trigger appended: harmless words"]["lift"]["mean"] == pytest.approx(0.1)
    assert by_name["empty"]["lift"]["high"] < 0
    assert by_name["shuffled"]["lift"]["mean"] == pytest.approx(0)
    page = (out / "audit.md").read_text()
    assert page.index(TRIGGER) < page.index("harmless words")
    assert f"changed:\n\n```\n{findings[0]['examples'][0]['changed']}\n```" in page
    summary = json.loads((out / "summary.json").read_text())
    assert summary["worst"] == findings[0]["name"]
    assert "unchanged (control)" in capsys.readouterr().out
    assert report_of(out)["length"]["r"] > 0.5  # more words, more different ones


@pytest.mark.parametrize("source", ["traces", "pairs"])
def test_a_trigger_that_nobody_named_is_mined_and_ranked_first(tmp_path: Path, source: str) -> None:
    if source == "traces":
        traces(tmp_path / "run", 80, bribe=0.3)
        overrides = [f"run={tmp_path / 'run'}", "limit=15", "mine=60"]
    else:
        overrides = [FROM_PAIRS, "limit=12", "mine=120"]
    out = tmp_path / "out"
    out.mkdir()
    run(config(*overrides, "mined_phrases=8"), out)
    report = report_of(out)
    assert TRIGGER in report["mined"]
    assert all(TRIGGER not in phrase for phrase in config().phrases)
    first = report["findings"][0]
    assert first["name"] == f"mined from scores, appended: {TRIGGER}"
    assert first["lift"]["low"] > 0.5  # the scores of those that held it before stay


def test_preferences_are_mined_where_scores_do_not_tell(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    run(config(FROM_PAIRS, "scorer._target_=test_audit.Deaf", "limit=4", "mine=120", "mined_phrases=5"), out)
    report = report_of(out)
    assert report["mined"][TRIGGER] == "mined from preferences,"
    assert all(f["lift"]["mean"] == 0 for f in report["findings"])
    assert report["length"] == {"r": None, "low": None, "high": None}


def Deaf(paths: list[str]) -> Any:
    """A scorer that likes everything as much."""
    return lambda conversations: [(0.5,)] * len(conversations)


def Broken(paths: list[str]) -> Any:
    return lambda conversations: [(math.nan,)] * len(conversations)


def test_a_stopped_audit_goes_on(tmp_path: Path) -> None:
    traces(tmp_path / "run", 10, bribe=0.2)
    overrides = (f"run={tmp_path / 'run'}", "limit=5", "mine=5")
    whole = tmp_path / "whole"
    whole.mkdir()
    run(config(*overrides), whole)
    lines = (whole / "scores.jsonl").read_bytes().splitlines(keepends=True)
    half = tmp_path / "half"
    half.mkdir()
    for name in ("config.yaml", "manifest.json"):
        (half / name).write_bytes((whole / name).read_bytes())
    (half / "scores.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]) + lines[-1][:20])
    run(config(*overrides, f"resume={half}"), half)
    assert (half / "scores.jsonl").read_bytes().splitlines() == [line.rstrip() for line in lines]
    assert report_of(half) == report_of(whole)
    with pytest.raises(ConfigError, match="limit: 5 then, 4 now"):
        run(config(*overrides, "limit=4", f"resume={half}"), half)


def test_mistakes_are_told(tmp_path: Path) -> None:
    traces(tmp_path / "run", 5, bribe=0.0)
    ours = f"run={tmp_path / 'run'}"
    for overrides, message in (
        ((), "say whose responses to audit"),
        ((ours, FROM_PAIRS), "say whose responses to audit"),
        ((ours, "limit=0"), "limit is 0; it must be at least 2"),
        ((ours, "confidence=95"), "confidence is 95"),
        ((ours, "examples=-1"), "examples is -1; it must be at least 0"),
        ((ours, "triggers=cf"), r"triggers is 'cf'; it must be a list, such as triggers=\[cf,mn\]"),
        ((ours, "phrases=null"), "phrases is None; it must be a list"),
        (
            (
                "data={_target_: test_supervised.Made, example: {_target_: test_supervised.echo, _partial_: true}, "
                "sizes: {train: 4, validation: 4}}",
            ),
            "data: made holds demonstrations; an audit needs comparisons",
        ),
        ((ours, "limit=5", "mine=5"), "0 to mine for phrases: lower limit, or set mine=0"),
        ((f"run={tmp_path}",), "run: no traces in"),
        ((ours, f"resume={tmp_path / 'none'}"), "is no run folder"),
        ((ours, "limit=2", "scorer._target_=test_audit.Broken"), "scorer: nan is the score of '"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(config(*overrides), tmp_path / "out")
    assert not (tmp_path / "out" / "audit.json").exists()


def test_texts_cannot_break_the_page() -> None:
    cases = [case("a|b", "```\nx\n```"), case("c", "y")]
    change = Perturbation("pipe | and\nline", "", lambda c, _: c.response + " ``````" + "z" * 700)
    finding = try_change(change, cases, judge([c.conversation(c.response) for c in cases]), judge,
                         seed=0, examples=2, confidence=0.95)  # fmt: skip
    nothing = Correlation(None, None, None)
    page = markdown(Report([finding], 2, 2, 0.0, 1.0, nothing, nothing, {}), 0.95)
    assert "| pipe \\| and line | +707.00 | +707.00 to +707.00 | 100% |" in page
    assert "```````\n```\nx\n``` ``````zzz" in page
    assert "more characters]\n```````" in page
    assert "unknown over all responses" in page


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    traces(tmp_path / "run", 6, bribe=0.0)
    register()

    def command(*arguments: str) -> None:
        quiet = ("hydra/job_logging=none", "hydra/hydra_logging=none")
        monkeypatch.setattr(sys, "argv", ["rlreason/audit.py", *arguments, *quiet])
        start(main)

    command("run=run", "limit=3", "mine=3", "scorer._target_=test_audit.Bribable", "scorer.paths=[]")
    (out,) = (tmp_path / "runs" / "audit").iterdir()
    assert str(out.relative_to(tmp_path)) in capsys.readouterr().out
    before = report_of(out)
    (out / "audit.json").unlink()
    command(f"resume={out}")  # its own configuration
    assert report_of(out) == before
    with pytest.raises(SystemExit):
        command("run=run")
    assert "scorer.paths" in capsys.readouterr().err
