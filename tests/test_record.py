"""The run folder, its readers, the console, wandb and the manifest."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf

from rlreason.analysis.load import read_metrics, read_traces
from rlreason.console import Console, ConsoleConfig
from rlreason.manifest import manifest
from rlreason.record import Record
from rlreason.traces import SCHEMA, Trained
from rlreason.tracking import NoTracker, Tracker, Wandb
from rlreason.types import Grade, Problem, Rollout, Segment

CONFIG = {"name": "test", "seed": 3, "learning_rate": 1e-5, "text": "1e-5", "stop": ["</answer>", "é"]}


def rollout(group: int = 0, text: str = "It is 7.", grade: Grade | None = None, **problem: Any) -> Rollout:
    fields = {"id": "p0", "prompt": [{"role": "user", "content": "3 + 4?"}], "answer": 7, **problem}
    return Rollout(
        problem=Problem(**fields),
        group=group,
        segments=[Segment([1, 2], [3, 4, 5], [-0.5, -0.25, -1.0], [True, True, True])],
        messages=[*fields["prompt"], {"role": "assistant", "content": text}],
        text=text,
        finish="stop",
        grade=grade or Grade(1.5, True, parts={"accuracy": 1.0, "format": 0.5}, answer="7"),
    )


class Listener:
    """A console and tracker that notes what it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, dict[str, Any]]] = []
        self.closed: list[bool | None] = []

    def step(self, step: int, metrics: Mapping[str, float | None], rollouts: Sequence[Rollout]) -> None:
        self.steps.append((step, dict(metrics)))

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        self.steps.append((step, dict(metrics)))

    def say(self, text: str) -> None:
        raise AssertionError("Record has nothing to say")

    def close(self, failed: bool | None = None) -> None:
        self.closed.append(failed)


def open_record(out: Path, console: Console | None = None, tracker: Tracker | None = None, **kwargs: Any) -> Record:
    options: dict[str, Any] = {"config": CONFIG, "manifest": {"seed": 3, "started": "now"}, "env": "arithmetic"}
    return Record(
        out, **(options | kwargs), console=console or ConsoleConfig(quiet=True).open(9), tracker=tracker or NoTracker()
    )


def lines(out: Path) -> list[str]:
    return (out / "metrics.jsonl").read_text().splitlines()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- metrics.jsonl


def test_a_line_of_metrics_round_trips(tmp_path: Path) -> None:
    told, tracked = Listener(), Listener()
    record = open_record(tmp_path, told, tracked)
    metrics = {"reward": 0.1, "num_tokens": 12, "kl": math.nan, "grad": -math.inf, "loss": torch.tensor(0.5)}
    record.step(1, metrics, [rollout()])
    record.step(2, {"reward": np.float32(0.25), "num_tokens": np.int64(30), "late": None}, [rollout()])
    assert lines(tmp_path) == [
        '{"step": 1, "reward": 0.1, "num_tokens": 12, "kl": null, "grad": null, "loss": 0.5}',
        '{"step": 2, "reward": 0.25, "num_tokens": 30, "late": null}',
    ]
    assert told.steps == tracked.steps
    assert told.steps[0] == (1, {"reward": 0.1, "num_tokens": 12, "kl": None, "grad": None, "loss": 0.5})

    frame = read_metrics(tmp_path)
    assert frame["step"].tolist() == [1, 2]
    assert frame["reward"].tolist() == [0.1, 0.25]
    assert frame["kl"].isna().all()
    assert frame["loss"].isna().tolist() == [False, True]
    assert str(frame["late"].dtype) == "float64"


def test_steps_must_rise_and_step_is_no_metric(tmp_path: Path) -> None:
    record = open_record(tmp_path)
    record.step(4, {"reward": 0.0}, [])
    with pytest.raises(ValueError, match="already goes up to step 4, so step 4 can't follow"):
        record.step(4, {"reward": 0.0}, [])
    with pytest.raises(ValueError, match="'step'"):
        record.step(5, {"step": 5}, [])
    assert lines(tmp_path) == ['{"step": 4, "reward": 0.0}']
    with pytest.raises(ValueError, match="step 3 can't follow"):
        open_record(tmp_path).step(3, {"reward": 0.0}, [])


def test_a_line_of_metrics_implies_its_traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = open_record(tmp_path)
    monkeypatch.setattr(pq, "write_table", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        record.step(1, {"reward": 0.0}, [rollout()])
    assert not (tmp_path / "metrics.jsonl").exists()
    assert names(tmp_path / "traces") == []


def test_a_torn_last_line_is_left_out_and_cut_off(tmp_path: Path) -> None:
    record = open_record(tmp_path)
    record.step(1, {"reward": 0.5}, [])
    for torn in ('{"step": 2, "rew', '{"step": 2, "reward": 0.25}', "\0\0\0\0\n"):
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write(torn)
        assert read_metrics(tmp_path)["step"].tolist() == [1]
        open_record(tmp_path)
        assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "reward": 0.5}\n'


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2 is not a line of metrics"):
        read_metrics(tmp_path)
    with pytest.raises(FileNotFoundError, match="give a run folder"):
        read_metrics(tmp_path / "nowhere")


def test_metrics_of_a_run_killed_in_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"st')
    frame = read_metrics(tmp_path)
    assert list(frame.columns) == ["step"]
    assert len(frame) == 0


# --- resume


def test_truncate_goes_back_to_a_step(tmp_path: Path) -> None:
    record = open_record(tmp_path)
    for step in range(1, 5):
        record.step(step, {"reward": step / 8}, [rollout()])
        record.evaluation(step, [rollout()], "validation")
    record.evaluation(0, [rollout()], "validation")
    record.finish({"reward": 0.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "rew')
    (tmp_path / "traces" / "step-000005.parquet.tmp").write_bytes(b"half")
    (tmp_path / "metrics.jsonl.tmp").write_bytes(b"half")
    (tmp_path / "checkpoints.tmp").mkdir()  # not the record's
    before = lines(tmp_path)[:2]

    resumed = open_record(tmp_path)
    resumed.truncate(2)
    assert lines(tmp_path) == before
    assert names(tmp_path / "traces") == [
        "eval-validation-000000.parquet",
        "eval-validation-000001.parquet",
        "eval-validation-000002.parquet",
        "step-000001.parquet",
        "step-000002.parquet",
    ]
    assert names(tmp_path) == ["checkpoints.tmp", "config.yaml", "manifest.json", "metrics.jsonl", "traces"]
    resumed.step(3, {"reward": 0.375}, [rollout()])
    assert [json.loads(line) for line in lines(tmp_path)][2] == {"step": 3, "reward": 0.375}


def test_truncate_to_the_start(tmp_path: Path) -> None:
    record = open_record(tmp_path)
    record.truncate(0)  # nothing there yet
    record.step(1, {"reward": 0.0}, [rollout()])
    record.truncate(0)
    assert lines(tmp_path) == []
    assert names(tmp_path / "traces") == []
    record.step(1, {"reward": 1.0}, [])
    assert lines(tmp_path) == ['{"step": 1, "reward": 1.0}']


def test_truncate_killed_half_way_keeps_metrics_and_traces_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = open_record(tmp_path)
    for step in (1, 2, 3):
        record.step(step, {"reward": 0.0}, [rollout()])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            record.truncate(1)
    recorded = [json.loads(line)["step"] for line in lines(tmp_path)]
    assert recorded == [1]
    assert names(tmp_path / "traces") == [f"step-00000{step}.parquet" for step in (1, 2, 3)]
    record.truncate(1)
    assert names(tmp_path / "traces") == ["step-000001.parquet"]


def test_config_stays_and_the_manifest_gains_each_resume(tmp_path: Path) -> None:
    first = {"git": {"commit": "a", "dirty": False}, "seed": 3, "started": "t1", "machine": {"cores": 2}}
    open_record(tmp_path, manifest=first)
    loaded = OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"))
    assert loaded == CONFIG
    assert json.loads((tmp_path / "manifest.json").read_text()) == first

    for commit, started in (("b", "t2"), ("c", "t3")):
        second = first | {"git": {"commit": commit, "dirty": True}, "started": started}
        open_record(tmp_path, manifest=second, config={"name": "other"})
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml")) == CONFIG
    assert json.loads((tmp_path / "manifest.json").read_text()) == first | {
        "resumed": [
            {"git": {"commit": "b", "dirty": True}, "started": "t2", "machine": {"cores": 2}},
            {"git": {"commit": "c", "dirty": True}, "started": "t3", "machine": {"cores": 2}},
        ]
    }


def test_a_crash_before_the_move_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = open_record(tmp_path)
    for step in (1, 2):
        record.step(step, {"reward": 0.0}, [rollout()])
    record.evaluation(2, [rollout(text="first")], "test")
    record.finish({"reward": 1.0})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}

    def crash(source: Path, target: Path) -> None:
        raise KeyboardInterrupt(f"killed before {target} was in place")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        for action in (
            lambda: record.truncate(1),
            lambda: record.finish({"reward": 0.0}),
            lambda: record.evaluation(2, [rollout(text="second")], "test"),
            lambda: open_record(tmp_path),
        ):
            with pytest.raises(KeyboardInterrupt):
                action()
    assert {path: path.read_bytes() for path in files} == before
    assert read_traces(tmp_path / "traces" / "eval-test-000002.parquet")["text"].tolist() == ["first"]
    open_record(tmp_path).truncate(2)
    assert list(tmp_path.rglob("*.tmp")) == []


# --- the end


def test_finish_writes_the_summary_and_closes_once_as_a_success(tmp_path: Path) -> None:
    console, tracker = Listener(), Listener()
    record = open_record(tmp_path, console, tracker)
    record.finish({"accuracy": 0.5, "low": math.nan, "folder": Path("a"), "shares": (Fraction(1, 3), np.float64(0.25))})
    record.close()
    assert json.loads((tmp_path / "summary.json").read_text()) == {
        "accuracy": 0.5,
        "low": None,
        "folder": "a",
        "shares": ["1/3", 0.25],
    }
    assert set(tracker.closed) == {False}
    assert len(console.closed) >= 1


def test_close_after_a_crash_tells_the_tracker_and_leaves_no_summary(tmp_path: Path) -> None:
    console, tracker = Listener(), Listener()
    open_record(tmp_path, console, tracker).close()
    assert tracker.closed == [True]
    assert console.closed == [None]
    assert not (tmp_path / "summary.json").exists()


# --- traces


def test_a_rollout_round_trips_through_parquet(tmp_path: Path) -> None:
    full = rollout(
        group=4,
        text="<think>3 + 4 … 七\n[red]</think>7 🙂",
        meta={"terms": [3, 4], "exact": Fraction(7, 1), "bad": math.nan},
        id="übung-1",
    )
    bare = rollout(group=4, text="", grade=Grade(math.nan, None, "error"), answer=None)
    other = rollout(group=5, text="\ud800 no", grade=Grade(0.0, False, "unparseable"))
    record = open_record(tmp_path)
    record.step(123, {"reward": 0.75}, [full, other, bare], trained=[Trained(0.5), Trained(math.nan), Trained(-0.5)])

    path = tmp_path / "traces" / "step-000123.parquet"
    assert pq.read_schema(path).metadata[b"rlreason.schema"] == b"3"
    frame = read_traces(path)
    assert list(frame.columns) == SCHEMA.names
    row = frame.iloc[0].to_dict()
    assert {k: row[k] for k in ("step", "split", "env", "problem", "group", "sample", "segment", "text")} == {
        "step": 123,
        "split": "train",
        "env": "arithmetic",
        "problem": "übung-1",
        "group": 4,
        "sample": 0,
        "segment": 0,
        "text": "<think>3 + 4 … 七\n[red]</think>7 🙂",
    }
    assert {k: row[k] for k in ("finish", "reward", "correct", "status", "answer", "gold", "advantage")} == {
        "finish": "stop",
        "reward": 1.5,
        "correct": True,
        "status": "ok",
        "answer": "7",
        "gold": "7",
        "advantage": 0.5,
    }
    assert json.loads(row["prompt"]) == full.problem.prompt
    assert json.loads(row["messages"]) == full.messages
    assert json.loads(row["parts"]) == {"accuracy": 1.0, "format": 0.5}
    assert json.loads(row["meta"]) == {"terms": [3, 4], "exact": "7", "bad": None}
    assert (row["prompt_tokens"], row["completion_tokens"]) == (2, 3)
    assert row["prompt_ids"].tolist() == [1, 2]
    assert row["completion_ids"].tolist() == [3, 4, 5]
    assert row["sampler_logp"].tolist() == [-0.5, -0.25, -1.0]
    assert row["mask"].tolist() == [True, True, True]

    assert frame["sample"].tolist() == [0, 0, 1]  # the index within the group
    nulls = frame.iloc[2]
    assert pd.isna(nulls[["reward", "correct", "answer", "gold"]]).all()
    assert (nulls["status"], nulls["text"], nulls["advantage"]) == ("error", "", -0.5)
    assert pd.isna(frame["advantage"].iloc[1])
    assert frame["text"].iloc[1] == "? no"
    assert frame["correct"].mean() == 0.5  # the row without a verdict doesn't count


def test_each_segment_is_a_row(tmp_path: Path) -> None:
    base = rollout()
    two = Rollout(
        problem=base.problem,
        group=0,
        segments=[
            Segment([1], [2, 9, 3], [-0.5, 0.0, -0.125], [True, False, True]),
            Segment([1, 4], [5], [-2.0], [True]),
        ],
        messages=base.messages,
        text=base.text,
        finish="length",
        grade=base.grade,
    )
    open_record(tmp_path).step(1, {}, [two, base], [Trained(0.25), Trained(-0.25)])
    frame = read_traces(tmp_path, ["sample", "segment", "advantage", "prompt_tokens", "completion_tokens", "mask"])
    assert frame.drop(columns="mask").values.tolist() == [
        [0, 0, 0.25, 1, 3],
        [0, 1, 0.25, 2, 1],
        [1, 0, -0.25, 2, 3],
    ]
    assert frame["mask"].iloc[0].tolist() == [True, False, True]


def test_traces_of_a_folder_come_in_order_of_steps(tmp_path: Path) -> None:
    record = open_record(tmp_path)
    record.evaluation(0, [rollout()], "validation")
    for step in (1, 2, 10):
        record.step(step, {}, [rollout()], [Trained(0.5)])
    record.evaluation(2, [rollout()], "validation")
    record.evaluation(10, [rollout()], "test")
    (tmp_path / "traces" / "step-000011.parquet.tmp").write_bytes(b"half")
    frame = read_traces(tmp_path, columns=["step", "split", "advantage"])
    assert list(zip(frame["step"], frame["split"], strict=True)) == [
        (0, "validation"),
        (1, "train"),
        (2, "train"),
        (2, "validation"),
        (10, "train"),
        (10, "test"),
    ]
    assert frame["advantage"].isna().tolist() == [True, False, False, True, False, True]


def test_traces_refuse_wrong_lengths_and_lost_rollouts(tmp_path: Path) -> None:
    record = open_record(tmp_path)
    with pytest.raises(ValueError, match="step 1: 2 rollouts but notes on 1"):
        record.step(1, {}, [rollout(), rollout()], [Trained(0.0)])
    base = rollout()
    empty = Rollout(base.problem, 0, [], base.messages, base.text, base.finish, base.grade)
    with pytest.raises(ValueError, match=r"rollout 1 \(problem p0\) has no segment"):
        record.step(1, {}, [base, empty])
    assert names(tmp_path / "traces") == []
    assert not (tmp_path / "metrics.jsonl").exists()


def test_readers_refuse_other_schemas_and_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no traces"):
        read_traces(tmp_path)
    path = tmp_path / "old.parquet"
    pq.write_table(pa.table({"text": ["a"]}).replace_schema_metadata({"rlreason.schema": "0"}), path)
    with pytest.raises(ValueError, match=r"old\.parquet: schema version 0"):
        read_traces(path)
    open_record(tmp_path).step(1, {}, [rollout()])
    with pytest.raises(ValueError, match="have no column rewards"):
        read_traces(tmp_path, columns=["text", "rewards"])


# --- the console

METRICS = {
    "reward": 0.625,
    "rewards/accuracy/mean": 0.5,
    "rewards/format/mean": 0.125,
    "completions/mean_length": 41.5,
    "completions/clipped_ratio": 0.25,
    "entropy": 1.75,
    "kl": None,
    "step_time": 20.0,
    "num_tokens": 5000,
}


def test_plain_console_shows_the_numbers_aligned_and_nothing_else() -> None:
    file = io.StringIO()
    console = ConsoleConfig(trace_every=0).open(100, file=file, width=120)
    console.step(1, METRICS, [])
    console.step(2, METRICS | {"reward": 0.75, "num_tokens": 9000}, [])
    console.close()
    head, one, two = file.getvalue().splitlines()
    squeezed = [" ".join(line.split()[:-1]) for line in (head, one, two)]
    assert squeezed == [
        "step reward accuracy format length clipped entropy kl s/step tokens/s",
        "1/100 0.625 0.500 0.125 41.500 0.250 1.750 - 20.000 250.0",
        "2/100 0.750 0.500 0.125 41.500 0.250 1.750 - 20.000 200.0",
    ]
    assert head.split()[-1] == "left"
    assert [m.end() for m in re.finditer(r"\S+", head)] == [m.end() for m in re.finditer(r"\S+", one)]
    assert re.fullmatch(r"\d+:\d\d:\d\d", one.split()[-1])
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", file.getvalue()) is None


def test_environment_variables_bring_no_escape_codes_to_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    console = ConsoleConfig(trace_every=1).open(9, file=file)
    console.step(1, METRICS | {"eval/arithmetic/accuracy": 0.375}, [rollout()])
    console.close()
    assert "0.375" in file.getvalue()
    assert "\x1b" not in file.getvalue()


def test_a_narrow_console_drops_columns_rather_than_wrapping() -> None:
    file = io.StringIO()
    console = ConsoleConfig().open(100, file=file, width=38)
    console.step(1, METRICS, [])
    head, line = file.getvalue().splitlines()
    assert head.split() == ["step", "reward", "length", "s/step"]
    assert line.split() == ["1/100", "0.625", "41.500", "20.000"]


def test_every_line_is_written_at_once() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(io.BufferedWriter(raw, buffer_size=1 << 16), encoding="utf-8")
    console = ConsoleConfig().open(9, file=file)
    console.say("ready")
    assert raw.getvalue() == b"ready\n"


def test_the_header_comes_again() -> None:
    file = io.StringIO()
    console = ConsoleConfig().open(99, file=file)
    for step in range(1, 42):
        console.step(step, METRICS, [])
    shown = file.getvalue().splitlines()
    assert [i for i, line in enumerate(shown) if "reward" in line] == [0, 21, 42]


def test_evaluations_stand_out_and_bring_no_empty_line() -> None:
    file = io.StringIO()
    ConsoleConfig().open(9, file=file).step(0, {"eval/gsm8k/accuracy": 0.015, "eval/gsm8k/mean_length": 81.25}, [])
    assert file.getvalue() == "eval after step 0: gsm8k/accuracy 0.015, gsm8k/mean_length 81.250\n"


def test_a_trace_is_printed_literally() -> None:
    file = io.StringIO()
    text = "[red]no markup[/red] [/] :smile: \x1b[31mno colour\x07 七"
    console = ConsoleConfig(trace_every=5).open(9, file=file, width=200)
    console.step(1, METRICS, [rollout(text=text)])
    shown = file.getvalue()
    assert "[red]no markup[/red] [/] :smile: \\x1b[31mno colour\\x07 七\n" in shown
    assert "[user] 3 + 4?\n" in shown
    assert "reward 1.500 (accuracy 1.000, format 0.500); correct; answer 7, gold 7; 3 tokens, stop\n" in shown


def test_a_trace_every_few_steps() -> None:
    file = io.StringIO()
    console = ConsoleConfig(trace_every=5).open(20, file=file)
    for step in range(3, 14):
        console.step(step, METRICS, [rollout()])
    assert re.findall(r"a trace of step (\d+)", file.getvalue()) == ["3", "5", "10"]
    never = io.StringIO()
    ConsoleConfig(trace_every=0).open(20, file=never).step(10, METRICS, [rollout()])
    assert "trace" not in never.getvalue()
    with pytest.raises(ValueError, match="trace_every"):
        ConsoleConfig(trace_every=-1)


def test_choosing_a_trace_moves_no_random_state() -> None:
    before = random.getstate()
    ConsoleConfig().open(9, file=io.StringIO()).step(1, METRICS, [rollout(), rollout()])
    assert random.getstate() == before


def test_a_long_trace_is_cut_in_the_middle() -> None:
    file = io.StringIO()
    long = "a" * 1200 + "b" * 1000 + "c" * 1200
    ConsoleConfig().open(9, file=file, width=10_000).step(1, METRICS, [rollout(text=long)])
    shown = file.getvalue().splitlines()
    assert shown[shown.index("--- the policy") + 1] == "a" * 1200 + " ... [1000 characters cut] ... " + "c" * 1200


def test_an_ascii_output_gets_escapes_instead_of_an_error() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    ConsoleConfig().open(9, file=file).say("七 é")
    assert raw.getvalue() == b"\\u4e03 \\xe9\n"


def test_a_closed_pipe_does_not_stop_a_run() -> None:
    class Pipe(io.StringIO):
        attempts = 0

        def write(self, text: str) -> int:
            self.attempts += 1
            raise BrokenPipeError

    pipe = Pipe()
    console = ConsoleConfig().open(9, file=pipe)
    for step in (1, 2, 3):
        console.step(step, METRICS, [rollout()])
    console.close()
    assert pipe.attempts == 1


def test_a_terminal_gets_a_bar_that_is_taken_down() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    file = Terminal()
    console = ConsoleConfig().open(8, start=2, file=file, width=100)
    console.step(3, METRICS, [])
    console.close()
    console.close()
    shown = file.getvalue()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert "2/8" in plain
    assert "3/8" in plain
    assert re.search(r"\d:\d\d:\d\d left", plain)
    assert "0.625" in plain
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor is hidden, and comes back


# --- wandb


def test_an_unknown_wandb_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"logger\.mode is 'on-line'; it must be one of offline, online, disabled"):
        Wandb(mode="on-line")
    with pytest.raises(ValueError, match=r"logger\.tags"):
        Wandb(tags="baseline")


def test_the_config_file_names_every_field() -> None:
    conf = OmegaConf.load(Path(__file__).parents[1] / "conf" / "logger" / "wandb.yaml")
    fields = {k: v for k, v in OmegaConf.to_container(conf).items() if not k.startswith("_")}
    assert conf["_target_"] == "rlreason.tracking.Wandb"
    assert fields | {"tags": ()} == vars(Wandb())


def test_disabled_never_imports_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would raise
    tracker = Wandb(mode="disabled").open(tmp_path, {})
    tracker.log(1, {"reward": 0.0})
    tracker.close()
    assert caplog.records == []
    assert names(tmp_path) == []
    Wandb(mode="offline").open(tmp_path, {})
    assert "wandb failed to start (ModuleNotFoundError" in caplog.text


def written(out: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(out.glob("wandb/offline-run-*/*.wandb"))]


def test_wandb_offline_writes_a_run_and_continues_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, capfd: Any
) -> None:
    import wandb

    for variable in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{variable}_DIR", str(tmp_path / "elsewhere"))
    config = Wandb(project="a-project", tags=["one"])
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    try:
        for out, step, value in ((one, 1, 0.8125), (two, 1, 0.4375), (one, 2, 0.1875)):
            tracker = config.open(out, {"learning_rate": 0.0625})
            tracker.log(step, {"reward": value, "kl": None})
            tracker.close()
            tracker.close()
        assert wandb.run is None
    finally:
        wandb.teardown()  # waits until the files are whole
    # Below a warning wandb may say what it likes, which is heard where another test has had TRL import it.
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert capfd.readouterr() == ("", "")
    ids = [(out / "wandb_id.txt").read_text().strip() for out in (one, two)]
    assert ids[0] != ids[1]
    first, again = written(one)
    (other,) = written(two)
    assert (b"0.8125" in first, b"0.1875" in first, b"0.4375" in first) == (True, False, False)
    assert (b"0.8125" in again, b"0.1875" in again) == (False, True)
    assert b"0.4375" in other
    for content, run_id in ((first, ids[0]), (again, ids[0]), (other, ids[1])):
        assert run_id.encode() in content
        assert b"a-project" in content
        assert b"0.0625" in content


class FakeRun:
    def __init__(self, log: Exception | None = None, finish: Exception | None = None) -> None:
        self.errors = {"log": log, "finish": finish}
        self.calls: list[Any] = []

    def log(self, data: dict[str, float], *, step: int, commit: bool) -> None:
        self.calls.append((step, data))
        if error := self.errors["log"]:
            raise error

    def finish(self, exit_code: int) -> None:
        self.calls.append(exit_code)
        if error := self.errors["finish"]:
            raise error


def test_wandb_that_cannot_start_does_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def init(**_: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("wandb.init", init)
    tracker = Wandb().open(tmp_path, {})
    record = open_record(tmp_path, tracker=tracker)
    record.step(1, {"reward": 0.5}, [])
    record.finish({})
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert "start (ConnectionError: no network)" in warning.getMessage()
    assert lines(tmp_path) == ['{"step": 1, "reward": 0.5}']


def test_wandb_that_fails_later_warns_once_and_is_still_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    run = FakeRun(log=RuntimeError("queue full"), finish=OSError("gone"))
    monkeypatch.setattr("wandb.init", lambda **_: run)
    record = open_record(tmp_path, tracker=Wandb().open(tmp_path, {}))
    for step in (1, 2, 3):
        record.step(step, {"reward": 0.5}, [])
    record.close()
    assert run.calls == [(1, {"reward": 0.5}), 1]  # one attempt, then finished as failed
    (warning,) = caplog.records
    assert "log (RuntimeError: queue full)" in warning.getMessage()
    assert len(lines(tmp_path)) == 3


def test_wandb_that_cannot_finish_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    run = FakeRun(finish=OSError("gone"))
    monkeypatch.setattr("wandb.init", lambda **_: run)
    tracker = Wandb().open(tmp_path, {})
    tracker.log(1, {"reward": 0.5, "kl": None})
    tracker.close()
    assert run.calls == [(1, {"reward": 0.5}), 0]
    assert ["finish (OSError: gone)" in entry.getMessage() for entry in caplog.records] == [True]


def test_wandb_gets_the_stored_id_and_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr("wandb.init", lambda **options: seen.append(options) or FakeRun())
    out = tmp_path / "gsm8k" / "20250101"
    out.mkdir(parents=True)
    Wandb(tags=["a"]).open(out, {"x": 1})
    (out / "wandb_id.txt").write_text("stored\n")
    Wandb(name="mine").open(out, {"x": 1})
    assert [options["name"] for options in seen] == ["gsm8k/20250101", "mine"]
    assert re.fullmatch(r"[0-9a-f]{12}", seen[0]["id"])
    assert seen[1]["id"] == "stored"
    assert {(str(options["dir"]), options["mode"], options["resume"]) for options in seen} == {
        (str(out), "offline", "allow")
    }


def test_online_without_a_key_warns_instead_of_asking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("wandb.login", lambda *, prompt, verify: asked.append(prompt))
    monkeypatch.setattr("wandb.init", lambda **_: pytest.fail("must not start"))
    Wandb(mode="online").open(tmp_path, {}).log(1, {})
    assert asked == [False]
    assert "run `wandb login` once, or set WANDB_API_KEY" in caplog.text


# --- the manifest


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_manifest_names_the_commit_and_whether_it_is_dirty(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("1")
    (tmp_path / ".gitignore").write_text(".venv/\n")
    (tmp_path / ".venv" / "site-packages").mkdir(parents=True)
    git(tmp_path, "init", "--quiet")
    empty = manifest(seed=1, model={}, env={}, root=tmp_path)
    assert empty["git"] == {"commit": None, "dirty": None}
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert manifest(seed=1, model={}, env={}, root=tmp_path)["git"] == {"commit": commit, "dirty": False}
    # Installed below the checkout, but no part of it.
    installed = manifest(seed=1, model={}, env={}, root=tmp_path / ".venv" / "site-packages")
    assert installed["git"] == {"commit": None, "dirty": None}
    (tmp_path / "code.py").write_text("2")
    assert manifest(seed=1, model={}, env={}, root=tmp_path)["git"] == {"commit": commit, "dirty": True}


def test_the_manifest_does_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = manifest(seed=1, model={}, env={}, root=tmp_path / "missing")
    assert outside["git"] == {"commit": None, "dirty": None}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert manifest(seed=1, model={}, env={}, root=Path(__file__).parent)["git"] == {"commit": None, "dirty": None}


def test_the_manifest_holds_what_the_run_was_made_of() -> None:
    content = manifest(seed=7, model={"source": "embedded"}, env={"source": "generated"}, root=None)
    assert content["seed"] == 7
    assert content["model"] == {"source": "embedded"}
    assert content["env"] == {"source": "generated"}
    assert content["sandbox"] is None
    assert content["packages"]["numpy"] == np.__version__
    assert content["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert content["python"] == ".".join(map(str, sys.version_info[:3]))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", content["started"])
    assert content["machine"]["torch_threads"] == torch.get_num_threads()
    assert 1 <= content["machine"]["cores"] <= (os.cpu_count() or 1)
    assert len(content["machine"]["gpus"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert json.loads(json.dumps(content)) == content
