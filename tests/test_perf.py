"""Where the time goes: phases that add up, FLOPs by hand, and the profile of a few steps."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ALGO, make_learner, make_rollout, plain, tiny
from test_train import CAPITALS, metrics_of, timeless, tiny_config
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from rlreason import perf
from rlreason.analysis.load import read_traces
from rlreason.batch import collate
from rlreason.config import ConfigError
from rlreason.perf import Cost, Peak, Work, cost_of, listed_peak, speeds, work_of
from rlreason.profiling import ON_CPU, Spent, spent, table
from rlreason.train import run
from rlreason.types import Rollout

# The tiny model: 260 tokens x 64, tied; two layers of q and o 64 x 64, k and v 64 x 32, three 64 x 128, two norms.
LAYER = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64
PARAMETERS = 260 * 64 + 2 * LAYER + 64
ATTENTION = 12 * 2 * 4 * 16  # 2 layers, 4 heads of width 16


# --- FLOPs


def test_cost_of_a_token_by_hand() -> None:
    assert PARAMETERS == 90_688
    assert cost_of(tiny().model) == Cost(forward=2 * 90_688, update=6 * 90_688, attention=1536)


def test_frozen_parameters_cost_no_gradient_of_their_own() -> None:
    model = tiny().model.requires_grad_(False)
    model.model.norm.requires_grad_(True)
    assert cost_of(model) == Cost(2 * PARAMETERS, 4 * (PARAMETERS - 64) + 6 * 64, ATTENTION)


def test_an_embedding_that_is_only_looked_up_costs_nothing() -> None:
    config = tiny().model.config
    config.tie_word_embeddings = False
    untied = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in untied.parameters()) == PARAMETERS + 260 * 64
    assert cost_of(untied) == Cost(2 * PARAMETERS, 6 * PARAMETERS, ATTENTION)


def test_cost_is_what_torch_counts() -> None:
    """To the last product; torch counts nothing else, so not the 5 x 64 weights of the norms."""
    model, length = plain(tiny().model), 40
    cost, ids = cost_of(model), torch.arange(4, 4 + length)[None]
    with FlopCounterMode(display=False) as forward:
        logits = model(input_ids=ids, use_cache=False).logits
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    products, pairs = length * (PARAMETERS - 5 * 64), length**2
    assert (cost.forward, cost.update) == (2 * PARAMETERS, 6 * PARAMETERS)
    assert forward.get_total_flops() == 2 * products + pairs * cost.attention // 3
    assert forward.get_total_flops() + backward.get_total_flops() == 6 * products + pairs * cost.attention


def some_rollouts() -> list[Rollout]:
    """Group 0: a prompt of 3 tokens, completions of 2 and 4, one token of the latter not the policy's. Group 1: an
    equal prompt, a completion of 1."""
    one, two = make_rollout(0, [5, 6, 7], [8, 2]), make_rollout(0, [5, 6, 7], [8, 9, 10, 2])
    two = replace(two, segments=[replace(two.segments[0], mask=[True, False, True, True])])
    return [one, two, make_rollout(1, [5, 6, 7], [2])]


def test_work_by_hand() -> None:
    rollouts = some_rollouts()
    trained = [(r.group, r.segments[0]) for r in rollouts[:2]]
    # Distinct tokens: group 0 has 3 + 2 + 4, group 1 has 3 + 1. Times their row's length: 3*3 + 2*5 + 4*7, 3*3 + 1*4.
    assert work_of(Cost(forward=10, update=30, attention=6), rollouts, trained, passes=2) == Work(
        drawn=5 + 7 + 4,
        generated=2 + 3 + 1,
        trained=2 * (5 + 7),
        generate_flops=10 * (9 + 4) + 2 * (47 + 13),
        update_flops=2 * (30 * 9 + 6 * 47),
    )


@pytest.mark.parametrize("skipping", [True, False])
def test_trained_rows_are_those_the_learner_runs(skipping: bool) -> None:
    rewards = {0: [0.0, 1.0, 0.0, 0.0], 1: [1.0] * 4}  # nothing to learn from group 1
    made = [make_rollout(g, [5, 6], [7, 8 + i, 2], reward) for g, rs in rewards.items() for i, reward in enumerate(rs)]
    made[2] = replace(made[2], grade=replace(made[2].grade, status="error"))
    algo = ALGO if skipping else replace(ALGO, terms=ALGO.terms | {"all": Everything()})
    learner = make_learner(tiny(), algo)
    batch = algo.estimator(learner.annotate(collate(made)), learner.sum)
    trained = algo.trains_on(batch).tolist()
    assert trained == [True, True, False, True] + [not skipping] * 4
    assert learner.update(batch)["frac_rows_skipped"] == pytest.approx(1 - sum(trained) / 8, abs=1e-12)


class Everything:
    """A term that every row has a say in."""

    coefficient = 1.0
    needs: frozenset[str] = frozenset()
    zero_without_advantage = False

    def __call__(self, outputs: Any, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return outputs.logp, {}


def test_speeds_of_two_processes_by_hand() -> None:
    work = [Work(100, 30, 80, 2e9, 3e9), Work(60, 10, 40, 1e9, 6e9)]
    seconds = {"step_time": 8.0, "timing/generate": 5.0, "timing/update": 2.0, "timing/grade": 1.0}
    assert speeds(work, seconds, peak_flops=9e9) == {
        "perf/step_tokens_per_second": 160 / 8,
        "perf/generate_tokens_per_second": 40 / 5,
        "perf/update_tokens_per_second": 120 / 2,
        "perf/mfu": 9e9 / (2 * 9e9),
        "perf/mfu_generate": pytest.approx(3e9 / (5 * 9e9), rel=1e-12),
    }


# --- the peak


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA A100-PCIE-40GB", 312), ("NVIDIA A10", 125), ("NVIDIA A10G", None),
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 NVL", 835), ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", None), ("NVIDIA L4", 121), ("NVIDIA L40S", 362), ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 4090", 165), ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("Tesla T4", None),
    ],
)  # fmt: skip
def test_peaks_by_name(name: str, tera: float | None) -> None:
    assert listed_peak(name) == (None if tera is None else tera * 1e12)


def test_the_peak_is_the_best_of_ever_larger_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of its own: a product of n x n takes 2 n^2 ns, so that its speed is n GFLOP/s. 256 (0.13 ms), 512,
    1024 and 2048 (8.4 ms) leave twice the time of the next; after one of 4096 (33.6 ms) none of 8192 would fit, and
    0.3 s are over after some more of the same."""
    now, sizes = [0.0], []

    def seconds(square: torch.Tensor) -> float:
        sizes.append(len(square))
        now[0] += 2e-9 * len(square) ** 2
        return 2e-9 * len(square) ** 2

    monkeypatch.setattr(perf, "_seconds", seconds)
    monkeypatch.setattr(perf.time, "perf_counter", lambda: now[0])
    state = torch.get_rng_state()
    found = perf._measured.__wrapped__(torch.device("cpu"), torch.bfloat16, 3)
    assert found == Peak(
        pytest.approx(4096e9, rel=1e-9), "measured: a bfloat16 product of 4096 x 4096 matrices, 3 threads"
    )
    assert sizes == [256, 256, 512, 1024, 2048] + [4096] * 8  # the first to warm up
    assert 0.25 < now[0] < 0.3
    assert torch.equal(torch.get_rng_state(), state)


# --- a run

RUN = (
    *CAPITALS, "algo.num_iterations=2", "algo.max_attempts=2", "sampling.max_completion_length=4", "eval_every=3",
    "save_every=2", "max_steps=4",
)  # fmt: skip
STEP = ("draw", "generate", "grade", "annotate", "update", "sync")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is profiled in steps 2 and 3."""
    out = tmp_path_factory.mktemp("perf") / "run"
    run(tiny_config(*RUN, "+profile=torch"), out)
    return out


def test_phases_of_a_step_add_up(done: Path) -> None:
    shares = [sum(line[f"timing/{phase}"] for phase in STEP) / line["step_time"] for line in metrics_of(done)[1:]]
    assert max(shares) < 1
    # A step takes some 20 ms here, of which 0.2 belong to no phase; one of the four may meet a busy machine.
    assert sorted(shares)[1] > 0.95


def test_what_comes_on_top_of_a_step_is_in_the_line_that_follows(done: Path) -> None:
    extra = [
        {name.removeprefix("timing/") for name in line if name.startswith("timing/")} - set(STEP)
        for line in metrics_of(done)
    ]
    # Evaluations are before the first step and after steps 3 and 4; checkpoints after 2 and, too late for a line, 4.
    assert extra == [{"evaluate"}, {"record"}, {"record"}, {"record", "evaluate", "checkpoint"}, {"record", "evaluate"}]


def test_perf_agrees_with_the_traces(done: Path) -> None:
    peak = json.loads((done / "manifest.json").read_text())["machine"]["peak_flops"]
    assert peak["source"].startswith("measured: a float32 product of ")
    assert peak["flops"] > 1e8
    for line in metrics_of(done)[1:]:
        rows = read_traces(done / "traces" / f"step-{line['step']:06d}.parquet")
        rows["tokens"] = rows["prompt_tokens"] + rows["completion_tokens"]
        trained = rows[rows["advantage"].fillna(0) != 0]
        assert len(trained) > 0

        def total(name: str, phase: str, line: dict[str, Any] = line) -> float:
            return line[f"perf/{name}"] * line[phase]

        assert total("step_tokens_per_second", "step_time") == pytest.approx(rows["tokens"].sum(), rel=1e-9)
        written = rows["completion_tokens"].sum()
        assert total("generate_tokens_per_second", "timing/generate") == pytest.approx(written, rel=1e-9)
        passes = 2  # num_iterations
        seen = passes * trained["tokens"].sum()
        assert total("update_tokens_per_second", "timing/update") == pytest.approx(seen, rel=1e-9)

        def flops(frame: Any, parameters: int, attention: int) -> int:
            prompts = frame.groupby("group")["prompt_tokens"].first()
            tokens = prompts.sum() + frame["completion_tokens"].sum()
            pairs = (prompts**2).sum() + (frame["completion_tokens"] * frame["tokens"]).sum()
            return parameters * tokens + attention * pairs

        update = passes * flops(trained, 6 * PARAMETERS, ATTENTION)
        assert total("mfu", "timing/update") * peak["flops"] == pytest.approx(update, rel=1e-9)
        generate = flops(rows, 2 * PARAMETERS, ATTENTION // 3)
        assert total("mfu_generate", "timing/generate") * peak["flops"] == pytest.approx(generate, rel=1e-9)
        assert 0 < line["perf/mfu"] < 1


# --- the profile


def events(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]


def test_the_profile_holds_the_asked_steps_and_their_phases(done: Path) -> None:
    assert sorted(path.name for path in (done / "profile").iterdir()) == [
        "step-000002.json.gz", "step-000002.txt", "step-000003.json.gz", "step-000003.txt",
    ]  # fmt: skip
    lines = metrics_of(done)
    for step in (2, 3):
        seen = events(done / "profile" / f"step-{step:06d}.json.gz")
        phases = [event for event in seen if event.get("cat") == "user_annotation" and event["name"] in STEP]
        assert {event["name"] for event in phases} == set(STEP)
        assert not {"evaluate", "record", "checkpoint"} & {event["name"] for event in seen}

        def inside(phase: str, phases: list[Any] = phases, seen: list[Any] = seen) -> set[str]:
            spans = [(e["ts"], e["ts"] + e["dur"]) for e in phases if e["name"] == phase]
            return {e["name"] for e in seen if any(a <= e["ts"] <= b for a, b in spans)}

        assert "aten::mm" in inside("generate")
        assert "aten::_fused_adamw_" not in inside("generate")
        assert {"aten::mm", "aten::_fused_adamw_", "MmBackward0"} <= inside("update")
        took = sum(event["dur"] for event in phases if event["name"] == "generate") / 1e6
        # a phase of some 15 ms: on a busy machine a process may wait for milliseconds between the two clocks' readings
        assert 0.5 * lines[step]["timing/generate"] < took <= lines[step]["timing/generate"]
        heading, columns, *rows = (done / "profile" / f"step-{step:06d}.txt").read_text().splitlines()
        assert heading.startswith("operators on the CPU, ")
        assert columns.split()[-1] == "name"
        assert len(rows) == 30
        own = [float(row.split()[0]) for row in rows]
        assert own == sorted(own, reverse=True)
        assert 0.5 * took * 1e3 < sum(own)  # milliseconds
        assert {"aten::mm", "generate"} <= {row.split()[-1] for row in rows}


def event(category: str, name: str, begin: float, took: float, thread: int = 1) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "pid": 7, "tid": thread, "ts": begin, "dur": took}


def test_what_an_operator_spends_by_itself_by_hand() -> None:
    seen = [
        event("cpu_op", "b", 1000, 3000),  # in the first a; holds a c of 1 ms and a b of 0.5 ms
        event("user_annotation", "a", 0, 10_000),
        event("cpu_op", "c", 1000, 1000),
        event("cpu_op", "b", 2000, 500),
        event("cpu_op", "c", 4000, 2000),  # begins when b ends: a's, not b's
        event("cpu_op", "c", 1500, 4000, thread=2),  # at the same time, in another thread
        event("kernel", "k", 0, 6000),
        {"ph": "M", "cat": "cpu_op", "name": "d"},
    ]
    assert spent(seen, ON_CPU) == {
        "a": Spent(own=10 - 3 - 2, total=10, calls=1),
        "b": Spent(own=(3 - 1 - 0.5) + 0.5, total=3 + 0.5, calls=2),
        "c": Spent(own=1 + 2 + 4, total=1 + 2 + 4, calls=3),
    }
    assert table(seen).splitlines() == [
        "operators on the CPU, 14.0 ms in all",
        "      own ms   share   with calls     calls  name",
        "       7.000   50.0%        7.000         3  c",
        "       5.000   35.7%       10.000         1  a",
        "       2.000   14.3%        3.500         2  b",
        "",
        "kernels on the GPU, 6.0 ms in all",
        "      own ms   share   with calls     calls  name",
        "       6.000  100.0%        6.000         1  k",
    ]


def test_what_operators_spend_is_what_torch_says(tmp_path: Path) -> None:
    layer, x = torch.nn.Linear(32, 32), torch.randn(16, 32)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(3):
            layer(x).softmax(-1).sum().backward()
    seen.export_chrome_trace(str(tmp_path / "trace.json"))
    found = spent(json.loads((tmp_path / "trace.json").read_text())["traceEvents"], ON_CPU)
    theirs = {entry.key: entry for entry in seen.key_averages()}
    for name in ("aten::linear", "aten::addmm", "aten::softmax", "aten::_softmax", "SumBackward0", "aten::mm"):
        assert found[name].calls == theirs[name].count
        # microseconds, in which the trace is written to the third place, and torch's to the nanosecond
        assert found[name].own * 1e3 == pytest.approx(theirs[name].self_cpu_time_total, abs=0.1)
        assert found[name].total * 1e3 == pytest.approx(theirs[name].cpu_time_total, abs=0.1)


def test_profiling_changes_nothing_else(done: Path, tmp_path: Path) -> None:
    run(tiny_config(*RUN), tmp_path)
    assert timeless(tmp_path) == timeless(done)
    assert not (tmp_path / "profile").exists()


def test_a_resumed_run_can_be_profiled(done: Path, tmp_path: Path) -> None:
    run(tiny_config(*RUN, "max_steps=2"), tmp_path)
    run(tiny_config(*RUN, f"resume={tmp_path}", "+profile=torch"), tmp_path)
    # the second step that the process takes, and the last
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == ["step-000004.json.gz", "step-000004.txt"]
    assert "profile: null" in (tmp_path / "config.yaml").read_text()  # the run is what it was
    assert timeless(tmp_path)[3:] == timeless(done)[3:]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("profile.start=5", "profile.start=5, but 4 step"),
        ("profile.count=0", "profile.count is 0"),
        ("profile.start=two", "profile.start is 'two'"),
    ],
)
def test_a_profile_that_can_not_be_is_refused(override: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        run(tiny_config(*RUN, "+profile=torch", override), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()
