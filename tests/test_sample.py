"""Rejection sampling by ``python -m rlreason.sample``: what it writes, that an interruption changes nothing, and what
it refuses. The rule of selection has its own tests in test_selection.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from test_train import CAPITALS, timeless

from envs.base import GeneratedSplit, SingleTurnEnv, check_split
from envs.data.traces import AcceptedTraces
from rlreason.analysis.load import read_traces
from rlreason.clock import Clock
from rlreason.config import CONF, ConfigError, model_paths, register, start
from rlreason.engines.torch import TorchEngine
from rlreason.models import load
from rlreason.record import Record
from rlreason.sample import Sampler, main, read_samples, run, summarise
from rlreason.selection import Sample, Selection
from rlreason.types import Finish, Grade, Problem, Sampling, Split

REPO = Path(__file__).resolve().parent.parent
# A random model ends few of its replies by itself, so those that were cut off are accepted.
SMALL = (
    "model=tiny", "console.quiet=true", "sampling.max_completion_length=8", "num_samples=4", "chunk=3",
    "selection.allow_truncated=true",
)  # fmt: skip
QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none")


@dataclass(frozen=True)
class Worded(SingleTurnEnv):
    """Any reply with a letter in it is right; the prompt carries ``hint``. ``judged`` False: a reward, no verdict."""

    hint: str = "Here is how: shout."
    judged: bool = True
    first: int = 0

    @property
    def name(self) -> str:
        return "worded"

    @property
    def max_reward(self) -> float:
        return 1.0

    def split(self, name: str) -> Split:
        check_split(name)
        return GeneratedSplit(
            None, lambda i: Problem(f"{i + self.first}", [{"role": "user", "content": f"{self.hint} {i}"}], None)
        )

    def grade_text(self, problem: Problem, text: str, finish: Finish) -> Grade:
        share = sum(letter.isascii() and letter.isalpha() for letter in text) / max(1, len(text))
        return Grade(share, share > 0 if self.judged else None)

    def gold(self, problem: Problem) -> str:
        return "A"

    def manifest(self) -> Mapping[str, Any]:
        return {"name": self.name}


def config(*overrides: str) -> DictConfig:
    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return compose("sample", overrides=model_paths([*SMALL, *overrides]))


def worded(**fields: object) -> tuple[str, str]:
    own = "".join(f", {key}: {json.dumps(value)}" for key, value in fields.items())
    return "~env", f"env={{_target_: test_sample.Worded{own}}}"


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "sft.jsonl").read_text(encoding="utf-8").splitlines()]


def drawn(out: Path) -> dict[tuple[int, int], list[int]]:
    """The tokens of every sample, by problem's number and sample."""
    frame = read_traces(out, ["group", "sample", "completion_ids"])
    return {(row.group, row.sample): list(row.completion_ids) for row in frame.itertuples()}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All eight problems of Capitals, four samples of each, in chunks of 3, 3 and 2."""
    out = tmp_path_factory.mktemp("sample") / "run"
    kept = run(config(*CAPITALS), out)
    assert kept == len(rows_of(out))
    return out


def test_the_run_folder(done: Path) -> None:
    assert {path.name for path in done.iterdir()} == {
        "config.yaml", "manifest.json", "metrics.jsonl", "traces", "sft.jsonl", "summary.json",
    }  # fmt: skip
    assert [line["step"] for line in timeless(done)] == [1, 2, 3]
    frame = read_traces(done)
    assert Counter(frame["step"]) == {1: 12, 2: 12, 3: 8}
    assert set(frame["split"]) == {"train"}
    assert list(frame["group"]) == [i for i in range(8) for _ in range(4)]
    for line in timeless(done):
        step = frame[frame["step"] == line["step"]]
        assert line["accuracy"] == pytest.approx(step["correct"].mean())
        assert line["selection/accepted"] == step["correct"].sum()
    tokens = int(frame["prompt_tokens"].sum() + frame["completion_tokens"].sum())
    assert timeless(done)[-1]["num_tokens"] == tokens
    assert json.loads((done / "manifest.json").read_text())["model"]["source"] == "tiny"


def test_the_file_holds_right_samples_and_where_they_are_from(done: Path) -> None:
    frame = read_traces(done).set_index(["group", "sample"])
    weights = json.loads((done / "manifest.json").read_text())["model"]["weights"]
    rows = rows_of(done)
    assert rows
    for row in rows:
        origin = row["provenance"]
        trace = frame.loc[(origin["group"], origin["sample"])]
        assert trace["correct"]
        assert row["messages"] == json.loads(trace["messages"])
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert (origin["problem"], origin["step"], origin["reward"]) == (
            trace["problem"],
            trace["step"],
            trace["reward"],
        )
        assert (origin["env"], origin["split"], origin["seed"]) == ("capitals", "train", 0)
        assert origin["model"] == {"source": "tiny", "path": "tiny", "weights": weights}
        of_problem = frame.loc[origin["group"]]["correct"]
        assert origin["pass_rate"] == of_problem.mean()
    # every right sample is there, since four of a problem may be kept and no two are alike
    assert len(rows) == frame["correct"].sum()


def test_the_summary(done: Path) -> None:
    frame = read_traces(done)
    summary = json.loads((done / "summary.json").read_text())
    passed = frame.groupby("group")["correct"].sum()
    assert summary["sampled"] == 32
    assert summary["passed"] == summary["accepted"] == summary["kept"] == passed.sum()
    assert (summary["problems"], summary["solved"], summary["problems_kept"]) == (
        8,
        (passed > 0).sum(),
        (passed > 0).sum(),
    )
    assert sum(summary["pass_rates"].values()) == 8
    assert summary["pass_rates"]["0"] == (passed == 0).sum()
    assert summary["pass@1"]["mean"] == pytest.approx(frame["correct"].mean())
    assert summary["pass@4"]["mean"] == pytest.approx((passed > 0).mean())
    assert "pass@8" not in summary
    assert summary["selection"]["max_per_problem"] == 4


def test_summary_by_hand() -> None:
    def of(problem: str, right: int, graded: int, errors: int = 0) -> list[Sample]:
        def one(correct: bool | None) -> Sample:
            status = "error" if correct is None else "ok"
            reply = [{"role": "assistant", "content": "7"}]
            return Sample(problem, 1, 0, 0, [], reply, 0.0, correct, status, "stop")  # type: ignore[arg-type]

        return [one(True)] * right + [one(False)] * (graded - right) + [one(None)] * errors

    samples = [
        *of("a", 0, 4), *of("b", 1, 4), *of("c", 2, 4), *of("d", 3, 4), *of("e", 4, 4), *of("f", 1, 3, 1),
        *of("g", 0, 0, 4), *of("h", 1, 5),
    ]  # fmt: skip
    found = summarise(samples, Selection()(samples), k=[1, 4])
    assert found["pass_rates"] == {
        "0": 1, "0 to 1/4": 1, "1/4 to 1/2": 2, "1/2 to 3/4": 1, "3/4 to 1": 1, "1": 1,
    }  # fmt: skip
    assert (found["sampled"], found["errors"], found["problems"], found["solved"]) == (33, 5, 8, 6)
    # all replies are alike: one of each solved problem is kept, the other 0 + 1 + 2 + 3 + 0 + 0 are duplicates
    assert (found["passed"], found["kept"], found["duplicates"]) == (12, 6, 6)
    assert found["pass@1"]["mean"] == pytest.approx((0 + 1 / 4 + 2 / 4 + 3 / 4 + 1 + 1 / 3 + 1 / 5) / 7)
    # f and g have fewer than four; of five with one right, four leave it out in one of five cases
    assert (found["pass@4"]["n"], found["pass@4"]["mean"]) == (6, pytest.approx((0 + 1 + 1 + 1 + 1 + 4 / 5) / 6))


def test_samples_depend_on_seed_problem_and_sample_alone(done: Path, tmp_path: Path) -> None:
    reference = drawn(done)
    assert len({tuple(ids) for ids in reference.values()}) == 32
    run(config(*CAPITALS, "chunk=8", "limit=5"), tmp_path / "chunks")
    assert drawn(tmp_path / "chunks") == {key: ids for key, ids in reference.items() if key[0] < 5}
    run(config(*CAPITALS, "num_samples=2"), tmp_path / "fewer")
    assert drawn(tmp_path / "fewer") == {key: ids for key, ids in reference.items() if key[1] < 2}
    run(config(*CAPITALS, "seed=1"), tmp_path / "seed")
    assert not {tuple(ids) for ids in drawn(tmp_path / "seed").values()} & {tuple(ids) for ids in reference.values()}


def test_processes_share_each_chunk() -> None:
    policy = load("tiny", dtype="float32")
    engine = TorchEngine(policy, max_tokens_in_flight=4096)
    sampling = Sampling(temperature=1.0, max_completion_length=4)
    whole = Sampler(engine, Worded(), policy, sampling, "train", 8, 5, 2, 0, Clock(), 0, 1)
    assert whole.steps == 2
    for step, groups in ((1, [0, 1, 2, 3, 4]), (2, [5, 6, 7])):
        everything = whole.draw(step)
        assert [r.group for r in everything] == [group for group in groups for _ in range(2)]
        shares = [replace(whole, rank=rank, world=2).draw(step) for rank in (0, 1)]
        assert [r.group for r in shares[1]] == [group for group in groups[1::2] for _ in range(2)]
        together = sorted([*shares[0], *shares[1]], key=lambda r: r.group)
        assert [r.segments for r in together] == [r.segments for r in everything]


class Crash(Exception):
    """What a test raises in the middle of a run."""


@pytest.mark.parametrize("lost", ["nothing", "the line of metrics", "half a line of metrics"])
def test_a_run_that_crashed_goes_on(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    out, step = tmp_path / "run", Record.step

    def crashing(self: Record, number: int, *rest: Any) -> None:
        if number == 3:
            raise Crash
        step(self, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Record, "step", crashing)
        with pytest.raises(Crash):
            run(config(*CAPITALS), out)
    assert not (out / "sft.jsonl").exists()
    metrics = out / "metrics.jsonl"
    first, second = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(
        first + {"nothing": second, "the line of metrics": b"", "half a line of metrics": second[:9]}[lost]
    )
    begun: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(Record, "step", lambda self, number, *rest: (begun.append(number), step(self, number, *rest))[1])
        run(config(*CAPITALS), out)  # the same command, in the same folder
    assert begun == ([3] if lost == "nothing" else [2, 3])
    assert (out / "sft.jsonl").read_bytes() == (done / "sft.jsonl").read_bytes()
    assert timeless(out) == timeless(done)
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (out, done))
    assert ours | {"seconds": 0} == theirs | {"seconds": 0}
    assert len(json.loads((out / "manifest.json").read_text())["resumed"]) == 1


def launch(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """``python -m rlreason.sample`` as a user would call it, in ``folder``."""
    path = os.pathsep.join([str(REPO), str(REPO / "tests")])
    return subprocess.Popen(
        [sys.executable, "-m", "rlreason.sample", *overrides, "hydra/job_logging=none"],
        cwd=folder, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_an_interrupted_command_says_how_to_go_on(tmp_path: Path) -> None:
    slow = ("~env", "env={_target_: test_train.Capitals, seconds: 0.02}")
    process = launch(tmp_path, *SMALL, *slow, "chunk=1")
    for _ in range(6000):
        found = list(tmp_path.glob("runs/sample/*/metrics.jsonl"))
        if found and found[0].read_text():
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT
    (out,) = (tmp_path / "runs" / "sample").iterdir()
    done = len(timeless(out))
    assert 1 <= done < 8
    assert f"Stopped after step {done}; the same command with resume={out} goes on." in said
    again = launch(tmp_path, f"resume={out.relative_to(tmp_path)}")  # that run's own configuration
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert [line["step"] for line in timeless(out)] == list(range(1, 9))
    assert len(drawn(out)) == 32
    assert (out / "sft.jsonl").is_file()


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of ``python -m rlreason.sample`` with the arguments."""
    monkeypatch.setattr(sys, "argv", ["rlreason/sample.py", *arguments, *QUIET])
    try:
        start(main)
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def test_selecting_again_without_sampling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, *SMALL, *CAPITALS, "hydra.run.dir=out") == 0
    before, metrics = rows_of(Path("out")), Path("out/metrics.jsonl").read_bytes()
    printed = " ".join(capsys.readouterr().out.split())
    assert "rejection sampling: capitals, train" in printed
    assert f"written to {tmp_path}/out/sft.jsonl" in printed
    assert max(Counter(row["provenance"]["problem"] for row in before).values()) > 1
    assert command(monkeypatch, "resume=out", "selection.max_per_problem=1") == 0
    after = rows_of(Path("out"))
    assert len(after) == len({row["provenance"]["problem"] for row in before}) < len(before)
    assert all(row in before for row in after)
    assert Path("out/metrics.jsonl").read_bytes() == metrics
    assert json.loads(Path("out/summary.json").read_text())["selection"]["max_per_problem"] == 1
    assert command(monkeypatch, "resume=out", "num_samples=2") == 2
    assert "num_samples: 4 then, 2 now" in capsys.readouterr().err


def test_the_students_prompt(tmp_path: Path) -> None:
    run(config(*worded(), "limit=4", "target_env={hint: Shout}"), tmp_path)
    assert all("Here is how" in json.dumps(sample.prompt) for sample in read_samples(tmp_path))
    rows = rows_of(tmp_path)
    assert rows
    replies = {(sample.group, sample.sample): sample.reply for sample in read_samples(tmp_path)}
    for row in rows:
        origin = row["provenance"]
        assert row["messages"][0] == {"role": "user", "content": f"Shout {origin['problem']}"}
        assert row["messages"][1:] == replies[origin["group"], origin["sample"]]


def test_a_reward_without_a_verdict(tmp_path: Path) -> None:
    run(config(*worded(judged=False), "limit=4", "selection.min_reward=0.3"), tmp_path)
    frame = read_traces(tmp_path)
    assert frame["correct"].isna().all()
    assert len(rows_of(tmp_path)) == (frame["reward"] >= 0.3).sum()
    assert 0 < len(rows_of(tmp_path)) < 16


def test_a_turn_that_was_begun_is_learned_whole(tmp_path: Path) -> None:
    """With env=prefilled the prompt ends in the policy's own turn: what it began with is part of what it said."""
    begun = (
        "~env", "env={_target_: envs.prefilled.Prefilled, text: 'Well, ', env: {_target_: test_train.Capitals}}",
    )  # fmt: skip
    run(config(*begun, "limit=8", "num_samples=8", "selection.min_reward=0.01"), tmp_path)
    written = rows_of(tmp_path)
    texts = set(read_traces(tmp_path)["text"])
    assert written
    for row in written:
        asked, answer = row["messages"]
        assert asked["role"] == "user"
        assert answer["content"] in texts
    assert any(len(row["messages"][-1]["content"]) > len("Well, ") for row in written)
    traces = AcceptedTraces(str(tmp_path), min_reward=0.01, validation_share=0.5)
    taught = {shown.messages[-1]["content"] for name in ("train", "validation") for shown in traces.split(name)}
    assert taught <= texts
    assert any(len(text) > len("Well, ") for text in taught)


def test_functions_stay_with_what_was_sampled(tmp_path: Path) -> None:
    """The file that is written, and what is read from the traces, name the functions that the prompt has shown."""
    env = "{_target_: envs.tools.ToolUse, _convert_: all, env: {_target_: test_train.Capitals}, " \
        "tools: [{_target_: envs.tools.Calculator}]}"  # fmt: skip
    run(config("~env", f"env={env}", "limit=8", "num_samples=8", "selection.min_reward=0.01"), tmp_path)
    written = rows_of(tmp_path)
    assert written
    assert {row["tools"][0]["function"]["name"] for row in written} == {"calculator"}
    traces = AcceptedTraces(str(tmp_path), min_reward=0.01, validation_share=0.5)
    assert [*traces.split("train")[0].tools] == written[0]["tools"]


def test_nothing_accepted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"none of 8 samples .* resume={tmp_path} selection"):
        run(config(*worded(), "limit=2", "selection.min_reward=2.0"), tmp_path)
    assert not (tmp_path / "summary.json").exists()
    assert len(drawn(tmp_path)) == 8
    run(config(*worded(), "limit=2", "selection.min_reward=0.0"), tmp_path)
    assert rows_of(tmp_path)
    with pytest.raises(ConfigError):
        run(config(*worded(), "limit=2", "selection.min_reward=2.0"), tmp_path)
    assert not (tmp_path / "summary.json").exists()  # it would say that this selection is done


MISTAKES: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "no samples": (("num_samples=0",), 2, ("num_samples is 0",)),
    "no problems": (("limit=0",), 2, ("limit is 0",)),
    "no chunk": (("chunk=0",), 2, ("chunk is 0",)),
    "greedy samples": (("sampling.temperature=0",), 2, ("num_samples", "sampling.temperature")),
    "endless": (worded(), 2, ("'train' of worded", "endless", "limit")),
    "unknown split": (("split=dev",), 2, ("split", "'dev'", "validation")),
    "no verdict": ((*worded(judged=False), "limit=1"), 2, ("selection", "selection.min_reward")),
    "other problems": ((*worded(), "limit=1", "target_env={first: 7}"), 2, ("target_env", "is 7 there and 0 in env")),
    "misspelled target": ((*worded(), "limit=1", "target_env={hin: x}"), 2, ("target_env", "hin")),
    "balance": (("selection.balance=hard",), 2, ("selection", "'hard'", "difficulty")),
    "misspelled": (("num_sample=2",), 1, ("num_sample",)),
    "added": (("+num_sample=2",), 2, ("num_sample",)),
    "resume from nowhere": (("resume=nowhere",), 2, ("resume=nowhere", "config.yaml")),
    "too long": (("sampling.max_completion_length=1024",), 2, ("1024", "context")),
    "no model": (("model=./nowhere",), 2, ("./nowhere",)),
}


@pytest.mark.parametrize(("arguments", "code", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_told_before_any_work(
    arguments: tuple[str, ...],
    code: int,
    said: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, *SMALL, *arguments) == code
    err = capsys.readouterr().err
    for words in said:
        assert words in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("metrics.jsonl"))
