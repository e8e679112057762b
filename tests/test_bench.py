"""The benchmark of experiments/throughput: what it computes from timings, how its sides take turns, and what our side
reports. What the others' sides report can only be tested where TRL and vLLM are installed: `make bench` does."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
from collections.abc import Mapping
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from experiments.throughput import bench, ours, results, work
from experiments.throughput.cases import CASES, Case, Comparison, Side, peak_memory, seconds, share
from experiments.throughput.results import Entry, Pair
from experiments.throughput.roofline import Need, Peaks, Shape, decode_work, update_flops
from experiments.throughput.side import Link, Order, Run, Unavailable

MADE: dict[str, Any] = {
    "git": {"commit": "0123456789abcdef", "dirty": True},
    "packages": {"torch": "2.13.0", "vllm": None},
    "machine": {"cpu": "A CPU", "cores": 2, "memory_gib": 8.0, "gpus": []},
    "started": "2026-01-02T03:04:05+00:00",
}


def an_entry(case: str, *pairs: Pair, target: float | None = 2.0) -> Entry:
    return results.entry(case, "TRL", target, "s", pairs, "a remark", {"ours": [Run(1.0, 10, {"rows": 2})]}, MADE)


# What is made of the timings


def test_ratios_are_of_pairs() -> None:
    # 6/2 = 3, 20/4 = 5, 8/8 = 1: median 3, though the medians of the sides are 4 and 8
    found = an_entry("a", Pair(2.0, 6.0), Pair(4.0, 20.0), Pair(8.0, 8.0))
    assert (found.ratio_median, found.ratio_min, found.ratio_max) == (3.0, 1.0, 5.0)
    assert (found.ours, found.theirs) == ([2.0, 4.0, 8.0], [6.0, 20.0, 8.0])
    with pytest.raises(ValueError, match="a: nothing was measured"):
        an_entry("a")


def test_seconds_pairs_neighbours_and_reuses_the_last_of_the_shorter_side() -> None:
    runs = {"we": [Run(1.0, 0), Run(2.0, 0), Run(4.0, 0)], "they": [Run(10.0, 0), Run(12.0, 0)]}
    assert seconds("we", "they")(runs) == [Pair(1.0, 10.0), Pair(2.0, 12.0), Pair(4.0, 12.0)]


def test_peak_memory_is_in_gib() -> None:
    runs = {"we": [Run(1.0, 0, {"peak_bytes": 2**30})], "they": [Run(1.0, 0, {"peak_bytes": 3 * 2**29})]}
    assert [pair.ratio for pair in peak_memory("we", "they")(runs)] == [1.5]


def test_share_takes_the_cells_asked_for() -> None:
    def cell(kind: str, rows: int, took: float) -> dict[str, Any]:
        return {"kind": kind, "rows": rows, "seconds": took, "bound_max": 1.0, "bound_sum": 2.0}

    cells = [cell("decode", 16, 8.0), cell("decode", 64, 2.0), cell("update", 64, 4.0)]
    runs = {"ours": [Run(14.0, 0, {"cells": cells})]}
    assert [pair.ratio for pair in share("decode", "bound_max", 64)(runs)] == [0.5]
    assert [pair.ratio for pair in share("decode", "bound_sum")(runs)] == [0.25, 1.0]
    assert [pair.ratio for pair in share("update", "bound_max")(runs)] == [0.25]


def test_a_rerun_replaces_its_case_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results.merge(path, [an_entry("b", Pair(1.0, 2.0)), an_entry("a", Pair(1.0, 3.0))], ["a", "b"])
    results.merge(path, [an_entry("b", Pair(1.0, 7.0))], ["a", "b"])
    written = json.loads(path.read_text(), parse_constant=pytest.fail)["cases"]
    assert [(one["case"], one["ratio_median"]) for one in written] == [("a", 3.0), ("b", 7.0)]
    assert set(written[0]) == {field.name for field in fields(Entry)}
    assert {"case", "against", "ratio_median", "ratio_min", "ratio_max", "target", "ours", "theirs"} <= set(written[0])
    assert written[0]["runs"] == {"ours": [{"seconds": 1.0, "tokens": 10, "details": {"rows": 2}}]}
    assert results.read(path) == [an_entry("a", Pair(1.0, 3.0)), an_entry("b", Pair(1.0, 7.0))]


def test_readme_gets_the_table_and_keeps_the_rest(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"above\n{results.BEGIN}\nold\n{results.END}\nbelow\n")
    entries = [an_entry("a", Pair(2.0, 8.125), Pair(2.0, 8.0)), an_entry("b", Pair(400.0, 20.0), target=None)]
    results.write_readme(readme, entries)
    lines = readme.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("above", "below")
    assert "old" not in lines
    # medians 2 and 8.0625; ratios 4.0625 and 4, median 4.03; 20 / 400 = 0.05
    assert "| a | TRL | 2.00 s | 8.06 s | 4.03 | 4.00 to 4.06 | 2.00 | 2 | a remark |" in lines
    assert "| b | TRL | 400 s | 20.0 s | 0.0500 | 0.0500 to 0.0500 |  | 1 | a remark |" in lines
    assert "a, b: 2026-01-02, 2 cores of A CPU, 8.0 GiB, 0123456789 with changes; torch 2.13.0.  " in lines
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="must have the lines"):
        results.write_readme(readme, entries)


def test_the_readme_of_the_benchmark_has_the_markers() -> None:
    text = (bench.HERE / "README.md").read_text(encoding="utf-8")
    assert text.count(results.BEGIN) == text.count(results.END) == 1


# The roofline


def test_decode_work_by_hand() -> None:
    # 10 weights in the body, 4 in the head; attention 3; 5 numbers of cache a token. One prompt of 2 tokens, 2 samples
    # of 3 tokens.
    need = decode_work(Shape(body=10, head=4, attention=3, cache=5), [2], 2, 3)
    assert list(need.steps) == [
        # both prompt tokens through the body, the last through the head, 1 + 2 pairs to attend to; 14 weights read
        (2 * (10 * 2 + 4) + 4 * 3 * 3, 2 * 14),
        # two rows' first tokens, each attending to 3 tokens; 2 prompt tokens once and 2 tokens of the rows are read
        (2 * 14 * 2 + 4 * 3 * 6, 2 * (14 + 5 * 4)),
        (2 * 14 * 2 + 4 * 3 * 8, 2 * (14 + 5 * 6)),
    ]


def test_update_flops_by_hand() -> None:
    # Prompts of 2 and 3 tokens, 2 samples each of 4 tokens: the body runs 5 + 4 x 3 tokens, the head 2 + 4 x 3.
    assert update_flops(Shape(body=10, head=4, attention=3, cache=5), [2, 3], 2, 4) == 6 * (10 * 17 + 4 * 14)


def test_bounds_by_hand() -> None:
    # at 10 FLOP/s and 5 byte/s: (20, 5) needs 2 s and 1 s, (10, 15) needs 1 s and 3 s
    need, peaks = Need([(20.0, 5.0), (10.0, 15.0)]), Peaks(flops=10.0, bytes=5.0)
    assert need.longest(peaks) == 2 + 3
    assert need.total(peaks) == 3 + 4


# The sides, and how they take turns


def a_case(*sides: Side, repeats: int = 2, minutes: float = 10.0, fresh: bool = False) -> Case:
    line = Comparison("toy", "b", None, "s", ("a", "b"), seconds("a", "b"))
    return Case("toy", sides, (line,), repeats=repeats, minutes=minutes, fresh=fresh)


def test_sides_take_turns_in_processes_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "log"
    a, b = ({"file": str(file), "name": name} for name in "ab")
    case = a_case(
        Side("a", "bench_sides:echo", a),
        Side("b", "bench_sides:echo", b, repeats=1),
        Side("a2", "bench_sides:echo", a, variant="other"),
    )
    runs = bench.measure(case, None, tmp_path, lambda line: None)
    done = [json.loads(line) for line in file.read_text().splitlines()]
    assert [entry[:3] for entry in done] == [
        ["a", 0, ""], ["b", 0, ""], ["a", 0, "other"], ["a", 1, ""], ["a", 1, "other"]
    ]  # fmt: skip
    assert all(before[4] <= after[3] for before, after in pairwise(done)), "two worked at a time"
    assert done[0][5] == done[2][5] == done[3][5], "a side's variant has the same process"
    assert len({os.getpid(), done[0][5], done[1][5]}) == 3
    assert {name: [run.seconds for run in found] for name, found in runs.items()} == {
        "a": [1.0, 2.0], "b": [1.0], "a2": [1.0, 2.0]
    }  # fmt: skip
    first = runs["a"][0]
    assert (first.tokens, first.details["name"]) == (7, "a")
    assert first.details["peak_bytes"] >= first.details["loaded_bytes"] > 2**20
    assert first.details["matmul_gflops"] > 0


def test_no_repeat_begins_that_would_take_too_long(tmp_path: Path) -> None:
    case = a_case(Side("a", "bench_sides:echo", {"file": str(tmp_path / "log"), "name": "a"}), repeats=3, minutes=0.0)
    said: list[str] = []
    assert len(bench.measure(case, None, tmp_path, said.append)["a"]) == 1
    assert said[-1] == "1 of 3 repeats: a further one would exceed 0 minutes"


def test_a_side_that_cannot_run_or_dies(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="it is not installed"):
        bench.measure(a_case(Side("a", "bench_sides:absent", {})), None, tmp_path, lambda line: None)
    with pytest.raises(RuntimeError, match=r"(?s)died with exit code 1 .*out of luck"):
        bench.measure(a_case(Side("a", "bench_sides:broken", {})), None, tmp_path, lambda line: None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["case=nothing"], "there is no case nothing; the cases are step_short, "),
        (["repeat=3"], "there is no argument repeat: give"),
        (["repeats=0"], "repeats is 0; it must be"),
        (["repeats=few"], "repeats is 'few'; it must be"),
    ],
)
def test_arguments_that_make_no_sense(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bench.parse(arguments, CASES)


def test_arguments(tmp_path: Path) -> None:
    given = bench.parse(["case=learner,scaling", "repeats=4", f"out={tmp_path}"], CASES)
    assert ([case.name for case in given.cases], given.repeats, given.out) == (["learner", "scaling"], 4, tmp_path)
    default = [case.name for case in bench.parse([f"out={tmp_path}"], CASES).cases]
    assert default[:2] == ["step_short", "step_gsm8k"]
    assert not {"time_to_accuracy", "scaling"} & set(default)
    assert sum(case.minutes for case in CASES if case.default) <= 45


def test_every_case_names_sides_that_exist() -> None:
    for case in CASES:
        names = {side.name for side in case.sides}
        for side in case.sides:
            module, _, function = side.worker.partition(":")
            assert callable(getattr(importlib.import_module(module), function)), side.worker
        for line in case.comparisons:
            assert names.issuperset(line.sides), line.case


# The work


def orders_to(side: Any, settings: Mapping[str, Any], orders: list[Order]) -> list[Run]:
    """What a side reports, run in this process."""
    driver, worker = multiprocessing.Pipe()
    for order in orders:
        driver.send(order)
    driver.send(None)
    side(Link(worker), settings)
    assert driver.recv() is None  # ready
    return [driver.recv() for _ in orders]


def test_our_step_reports_what_it_did() -> None:
    tiny = ("model=tiny", "sampling.max_completion_length=6", "algo.num_prompts=2")
    settings = {"work": "short", "warm_up": True, "overrides": tiny}
    plain, all_rows = orders_to(ours.steps, settings, [Order(3), Order(3, ours.ALL_ROWS)])
    assert plain.details["rows"] == all_rows.details["rows"] == 16
    # Bytes at random seldom spell the sum: no group of these has both right and wrong answers, so nothing is to learn.
    assert plain.details["reward"] == 0
    assert plain.details["frac_rows_skipped"] == 1
    assert all_rows.details["frac_rows_skipped"] == 0
    assert plain.tokens == all_rows.tokens  # same problems, same seeds, the same weights but for 1e-9
    assert 16 <= plain.tokens <= 16 * 6
    assert plain.seconds == pytest.approx(sum(plain.details["phases"].values()))
    assert set(plain.details["phases"]) == {"generate", "update", "sync"}


def test_fixed_completions_are_the_same_for_both_sides_and_leave_no_row_out() -> None:
    prompts = [[1, 2, 3], [4, 5]]
    fixed = work.fixed_completions(prompts, 8, 48, 1000)
    assert fixed == work.fixed_completions(prompts, 8, 48, 1000)
    assert [one.group for one in fixed] == [0] * 8 + [1] * 8
    for group in (fixed[:8], fixed[8:]):
        assert sum(one.reward for one in group) == 4
    lengths = [len(one.ids) for one in fixed]
    assert max(lengths) == 48
    assert 1 <= min(lengths) < 48
    rollout = work.as_rollouts(fixed)[9]
    assert (rollout.group, rollout.segments[0].prompt_ids, rollout.grade.reward) == (1, [4, 5], 1.0)
    assert rollout.segments[0].completion_ids == fixed[9].ids
