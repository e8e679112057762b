"""Training on examples: gradients by Hugging Face alone, batches, evaluation, and jobs that stop and go on.

The jobs are those of all three entry points, on data sets that are made up here. Run by torchrun, this file is the
worker of its own test of two processes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers import plain, plain_logp, random_ids, tiny
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from safetensors.torch import load_file
from test_learner import relative_error
from test_processes import launch
from test_resume import SHORT, Crash, contents, crash_at, forget_moments
from test_train import metrics_of, timeless, tiny_config

from rlreason import checkpoint, dpo, models, reward_model, sft, train
from rlreason.config import CONF, ConfigError, model_paths, register
from rlreason.examples import Example, batches
from rlreason.files import as_json
from rlreason.masters import AdamW
from rlreason.models import load
from rlreason.policy import Policy
from rlreason.preferences import DPO, BradleyTerry
from rlreason.record import Record
from rlreason.resume import check_same_data
from rlreason.scorer import RewardModel
from rlreason.sft import NextToken, prepare
from rlreason.signals import StopSignal
from rlreason.supervised import SupervisedLearner, means
from rlreason.types import Comparison, DataSet, Demonstration, Message, Segment

# Data sets


def talk(*texts: str) -> list[Message]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@dataclass(frozen=True)
class Made:
    """``sizes`` examples of its splits, each a function of the split and its number."""

    example: Callable[[str, int], Any]
    sizes: Mapping[str, int]
    name: str = "made"

    def split(self, name: str) -> Sequence[Any]:
        return [self.example(name, i) for i in range(self.sizes[name])]

    def manifest(self) -> dict[str, Any]:
        return {"name": self.name}


def echo(split: str, number: int) -> Demonstration:
    """One turn or two, of 1 to 7 letters each."""
    letters = "abcdefg"[: 1 + number % 7]
    again = ("More!", letters.upper()) if number % 3 == 0 else ()
    return Demonstration(talk(f"Say {number} of {split}!", letters, *again), f"{split}:{number}")


def liking_capitals(split: str, number: int) -> Comparison:
    """The answer in capitals is the better one; so after a first turn too, and whatever its length."""
    prompt = talk("Hi", "hello", f"Say {number} of {split}!") if number % 3 == 0 else talk(f"Say {number} of {split}!")
    words = ("yes" * (1 + number % 3), "no" * (1 + number % 2))
    chosen, rejected = (talk("", words[0].upper())[1:], talk("", words[1])[1:])
    category = ("short", "long")[number % 3 == 0]
    return Comparison(prompt, chosen, rejected, margin=0.5, category=category, source=f"{split}:{number}")


def made(example: str, *, train: int, validation: int, more: str = "") -> str:
    """The override of ``data`` that makes it ``Made`` of the function ``example``, named by its module; ``more`` is
    for the function."""
    function = f"{{_target_: {example}, _partial_: true{more and ', ' + more}}}"
    return (
        f"{{_target_: test_supervised.Made, example: {function}, sizes: {{train: {train}, validation: {validation}}}}}"
    )


SMALL = (
    "model=tiny", "logger.mode=disabled", "console.quiet=true", "console.trace_every=0", "batch_size=4",
    "optim.learning_rate=3e-3", "optim.warmup_steps=2", "max_steps=6", "save_every=3", "eval_every=2",
)  # fmt: skip
DATA = {"sft": "echo", "dpo": "liking_capitals", "reward_model": "liking_capitals"}
RUN: dict[str, Callable[[DictConfig, Path], float | None]] = {
    "sft": sft.run, "dpo": dpo.run, "reward_model": reward_model.run,
}  # fmt: skip


def config(job: str, *overrides: str, data: str | None = None) -> DictConfig:
    """What ``python -m rlreason.<job>`` would make of ``SMALL`` and the overrides, on one of the data sets here."""
    register()
    data = data or made(f"test_supervised.{DATA[job]}", train=18, validation=7)
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return compose(job, overrides=model_paths([f"data={data}", *SMALL, *overrides]))


# Examples and their gradients


def example(*rows: tuple[list[int], list[int], list[bool]], margin: float = 0.0) -> Example:
    return Example(tuple(Segment(p, c, [0.0] * len(c), m) for p, c, m in rows), "here", "?", margin)


def demonstrations() -> list[Example]:
    """Of one turn; of two with another's tokens between them; one of two rows, whose prompts differ; and short ones."""
    between = [True] * 3 + [False] * 4 + [True] * 2
    return [
        example((random_ids(9, 0), random_ids(5, 1), [True] * 5)),
        example((random_ids(4, 2), random_ids(9, 3), between)),
        example((random_ids(6, 4), random_ids(3, 5), [True] * 3), (random_ids(17, 6), random_ids(4, 7), [True] * 4)),
        example((random_ids(1, 8), random_ids(1, 9), [True])),
        example((random_ids(2, 10), random_ids(30, 11), [True] * 30)),
    ]


def settings(**changes: Any) -> AdamW:
    return replace(AdamW(learning_rate=1e-3, max_grad_norm=float("inf")), **changes)


def next_token(policy: Policy, *, micro_batch_tokens: int = 100_000, **changes: Any) -> SupervisedLearner:
    return SupervisedLearner(
        policy, NextToken(policy), settings(**changes), Accelerator(), max_steps=100,
        micro_batch_tokens=micro_batch_tokens,
    )  # fmt: skip


def gradient_of(learner: SupervisedLearner, examples: Sequence[Example]) -> tuple[list[torch.Tensor], dict[str, float]]:
    """The gradient that the step takes, and its metrics; the weights stay."""
    taken: list[torch.Tensor] = []

    def take(*_: Any) -> None:
        taken.extend(torch.zeros_like(m) if m.grad is None else m.grad.clone() for m in learner.masters)

    learner._trained.optimizer.step = take  # type: ignore[method-assign,assignment]
    metrics = learner.update(examples)
    return taken, metrics


def cross_entropy(model: Any, examples: Sequence[Example]) -> torch.Tensor:
    """transformers' own loss: each row by itself with labels, -100 where nothing is learned; a mean over all tokens."""
    total, count = torch.zeros(()), 0
    for segment in (s for e in examples for s in e.segments):
        ids = torch.tensor([segment.prompt_ids + segment.completion_ids])
        own = torch.tensor([[False] * len(segment.prompt_ids) + segment.mask])
        loss = model(input_ids=ids, labels=torch.where(own, ids, -100), use_cache=False).loss
        total, count = total + loss * own.sum(), count + int(own.sum())
    return total / count


@pytest.mark.parametrize("micro_batch_tokens", [1, 64, 100_000])
def test_the_gradient_of_sft_is_transformers_cross_entropy(micro_batch_tokens: int) -> None:
    policy = tiny()
    reference = plain(policy.model)
    loss = cross_entropy(reference, demonstrations())
    loss.backward()
    expected = [p.grad for p in reference.parameters()]
    found, metrics = gradient_of(next_token(policy, micro_batch_tokens=micro_batch_tokens), demonstrations())
    assert relative_error(found, expected) < 1e-5
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)
    norm = torch.cat([g.flatten().double() for g in expected]).norm()
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-5)


def test_micro_batches_hold_what_they_may() -> None:
    # widths 14, 13, 21 (two rows), 2 and 32: with 64 tokens 32 alone (32 + 2 rows of 32 are 96); then 2 x 21 and
    # another row of 21, 63; then 2 rows of 13
    learner = next_token(tiny(), micro_batch_tokens=64)
    assert learner._cuts(demonstrations(), range(5)) == [[4], [2, 0], [1, 3]]
    assert learner._cuts(demonstrations(), [0, 3]) == [[0, 3]]
    assert next_token(tiny(), micro_batch_tokens=1)._cuts(demonstrations(), [0, 1]) == [[0], [1]]
    assert learner._cuts(demonstrations(), []) == []


def test_one_batch_can_be_learned_by_heart() -> None:
    policy = tiny()
    learner = next_token(policy, learning_rate=3e-3)
    losses = [learner.update(demonstrations())["loss"] for _ in range(60)]
    assert losses[0] > 3
    assert losses[-1] < 0.02
    with torch.no_grad():
        for segment in (s for e in demonstrations() for s in e.segments):
            logp = plain_logp(plain(policy.model), segment.prompt_ids, segment.completion_ids, 1.0)
            assert logp[torch.tensor(segment.mask)].min() > -0.3


def test_evaluation_is_of_each_example_in_order_whatever_the_cut() -> None:
    policy = tiny()
    found = next_token(policy, micro_batch_tokens=64).evaluate(demonstrations())
    reference = plain(policy.model)
    for one, result in zip(demonstrations(), found, strict=True):
        count = sum(sum(s.mask) for s in one.segments)
        assert result["count"] == count
        assert result["loss"] == pytest.approx(cross_entropy(reference, [one]).item() * count, rel=1e-5)
    assert means(found)["loss"] == pytest.approx(cross_entropy(reference, demonstrations()).item(), rel=1e-5)


def test_means_weigh_by_count() -> None:
    assert means([{"count": 1, "loss": 2.0}, {"count": 3, "loss": 4.0}]) == {"loss": 1.5}


@dataclass
class InfiniteFrom:
    """``NextToken`` whose loss is infinite from update ``first`` on."""

    policy: Policy
    first: int
    updates: int = 0

    def count(self, example: Example) -> int:
        return NextToken(self.policy).count(example)

    def __call__(self, batch: Any, examples: Sequence[Example]) -> Any:
        losses, metrics = NextToken(self.policy)(batch, examples)
        self.updates += torch.is_grad_enabled()
        return (losses * float("inf") if self.updates >= self.first else losses), metrics


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    policy = tiny()
    learner = next_token(policy)
    learner.objective = InfiniteFrom(policy, 2)
    learner.update(demonstrations())
    before = [master.clone() for master in learner.masters]
    with pytest.raises(ConfigError, match="the gradient of step 2 is not finite"):
        learner.update(demonstrations())
    assert all(torch.equal(one, other) for one, other in zip(before, learner.masters, strict=True))


# Two processes

PAIRS = [  # one that shares its prompt, one that doesn't
    example((random_ids(5, 20), random_ids(3, 21), [True] * 3), (random_ids(5, 20), random_ids(6, 22), [True] * 6)),
    example((random_ids(7, 23), random_ids(2, 24), [True] * 2), (random_ids(3, 25), random_ids(9, 26), [True] * 9)),
]


def scored(pair: Example, margin: float) -> Example:
    """The pair with its mask on one token more, as ``RewardModel.rows`` has it."""
    rows = [(s.prompt_ids, [*s.completion_ids, 5], [False] * len(s.completion_ids) + [True]) for s in pair.segments]
    return example(*rows, margin=margin)


def taken(kind: str, rank: int, world: int) -> tuple[list[torch.Tensor], dict[str, float]]:
    """The gradient that the process takes, of its share of a batch. Of the pairs, the second process has none."""
    policy = load("tiny", dtype="float32")
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(8)
    torch.manual_seed(0)
    model: Any = policy
    objective: Any = NextToken(policy)
    examples = demonstrations()[rank::world]
    if kind == "dpo":
        policy.add_reference()
        assert policy.reference is not None
        with torch.no_grad():
            for parameter in policy.reference.parameters():
                parameter.mul_(1.1)
        objective, examples = DPO(policy, beta=0.1), PAIRS if rank == 0 else []
    if kind == "reward model":
        model = RewardModel(policy)
        objective, examples = BradleyTerry(model, True, 0.1), [scored(p, 0.5) for p in PAIRS] if rank == 0 else []
    learner = SupervisedLearner(
        model, objective, settings(), Accelerator(cpu=True), max_steps=10, micro_batch_tokens=64
    )  # fmt: skip
    return gradient_of(learner, examples)


KINDS = ("sft", "dpo", "reward model")


def diverged(rank: int) -> str:
    """What a process says whose gradient is finite, when the second process' is not."""
    policy = load("tiny", dtype="float32")
    learner = SupervisedLearner(
        policy, InfiniteFrom(policy, 1 if rank == 1 else 2), settings(), Accelerator(cpu=True), max_steps=10,
        micro_batch_tokens=64,
    )  # fmt: skip
    try:
        learner.update(demonstrations()[rank::2])
    except ConfigError as error:
        return str(error)
    return "nothing"


def worker(out: Path) -> None:
    rank = Accelerator(cpu=True).process_index
    found: dict[str, Any] = {kind: taken(kind, rank, 2) for kind in KINDS}
    torch.save(found | {"diverged": diverged(rank)}, out / f"rank-{rank}.pt")


def test_two_processes_take_the_step_of_one(tmp_path: Path) -> None:
    launch(tmp_path, str(Path(__file__).resolve()), str(tmp_path))
    both = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=False) for rank in range(2)]
    for kind in KINDS:
        gradient, metrics = taken(kind, 0, 1)
        for found, said in (rank[kind] for rank in both):
            assert relative_error(found, gradient) < 1e-5
            assert said == pytest.approx(metrics, rel=1e-5)
    assert all(rank["diverged"].startswith("training has diverged: the gradient of step 1") for rank in both)


# Batches


def of_lengths(*lengths: int) -> list[Example]:
    return [example(([4] * (n - 1), [5], [True])) for n in lengths]


def test_an_epoch_has_every_example_of_its_whole_batches_once() -> None:
    examples = of_lengths(*range(2, 102))  # 100 examples, 14 batches of 7, in one window and a bit
    for epoch in range(3):
        order = batches(examples, 7, seed=0, epoch=epoch)
        assert [len(batch) for batch in order] == [7] * 14
        assert len({i for batch in order for i in batch}) == 98
    assert batches(of_lengths(2, 3, 4), 7, seed=0, epoch=0) == [[0, 1, 2]]  # fewer than a batch are one batch


def test_what_an_epoch_leaves_out_is_of_any_length() -> None:
    examples = of_lengths(*range(2, 12))  # 10 in batches of 4: 2 are left out, not always the longest
    seen = [sorted(i for batch in batches(examples, 4, seed=0, epoch=e) for i in batch) for e in range(40)]
    left_out = {i for own in seen for i in set(range(10)) - set(own)}
    assert left_out == set(range(10))


def test_batches_are_a_function_of_seed_and_epoch() -> None:
    examples = of_lengths(*range(2, 102))
    drawn = {(seed, epoch): batches(examples, 7, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)}
    assert len({str(order) for order in drawn.values()}) == 4
    torch.manual_seed(1)
    for (seed, epoch), order in drawn.items():
        assert batches(examples, 7, seed=seed, epoch=epoch) == order


def test_examples_of_a_batch_are_of_similar_length() -> None:
    chance = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 1000, (640,), generator=chance).tolist()
    order = batches(of_lengths(*lengths), 4, seed=0, epoch=0)
    waste = sum(4 * max(lengths[i] for i in batch) for batch in order) / sum(lengths) - 1
    assert waste < 0.06  # padding; by chance it would be 0.6 (the largest of four is expected at 4/5, twice 2/5)
    first = [lengths[batch[0]] for batch in order[:16]]
    assert first != sorted(first)  # batches aren't in order of their length


# Jobs


def test_a_job_trains_on_these_batches_epoch_by_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    update = SupervisedLearner.update

    def noted(self: SupervisedLearner, examples: Sequence[Example]) -> dict[str, float]:
        seen.append([one.source for one in examples])
        return update(self, examples)

    monkeypatch.setattr(SupervisedLearner, "update", noted)
    sft.run(config("sft", "max_steps=null", "num_epochs=2.5", "seed=3", "eval_every=100"), tmp_path)
    policy = tiny()
    examples = [prepare(policy, echo("train", number)) for number in range(18)]
    epochs = [batches(examples, 4, seed=3, epoch=epoch) for epoch in range(3)]
    expected = [[f"train:{i}" for i in batch] for epoch in epochs for batch in epoch]
    assert seen == expected[:10]  # two epochs and a half of four whole batches


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A job of each kind, six steps in one go."""
    folder = tmp_path_factory.mktemp("whole")
    for job, run in RUN.items():
        run(config(job), folder / job)
    return {job: folder / job for job in RUN}


def weights(out: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / f"step-{step:06d}" / "model.safetensors")


def assert_same(ours: Path, theirs: Path) -> None:
    """Metrics, line by line, weights, bit by bit, and the summary."""
    assert [line["step"] for line in timeless(ours)] == list(range(7))
    assert timeless(ours) == timeless(theirs)
    one, other = weights(ours, 6), weights(theirs, 6)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    said, meant = (json.loads((folder / "summary.json").read_text()) for folder in (ours, theirs))
    assert said | {"training_seconds": 0} == meant | {"training_seconds": 0}


@pytest.mark.parametrize("job", RUN)
def test_a_job_that_is_interrupted_goes_on_as_if_nothing_had_happened(
    job: str, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record.step

    def interrupt(self: Record, number: int, *arguments: Any) -> None:
        record(self, number, *arguments)
        if number == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Record, "step", interrupt)
        with pytest.raises(SystemExit) as left:
            RUN[job](config(job), out)
    assert left.value.code == 128 + signal.SIGTERM
    assert checkpoint.step_of(checkpoint.latest(out)) == 4  # of no step that it would have saved after
    assert not (out / "summary.json").exists()
    RUN[job](config(job), out)  # the same command: the folder says that it has begun
    assert_same(out, whole[job])


@pytest.mark.parametrize("job", RUN)
def test_a_job_that_crashes_goes_on_from_its_last_checkpoint(
    job: str, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        crash_at(patch, 6)
        with pytest.raises(Crash):
            RUN[job](config(job), out)
    assert [checkpoint.step_of(f) for f in checkpoint.found(out)] == [3]
    RUN[job](config(job, f"resume={out}"), out)
    assert_same(out, whole[job])


def test_losing_adams_moments_would_show(
    whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the equalities above."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        crash_at(patch, 6)
        with pytest.raises(Crash):
            sft.run(config("sft"), out)
    forget_moments(out / "checkpoints" / "step-000003" / "training_state")
    sft.run(config("sft"), out)
    assert timeless(out)[:4] == timeless(whole["sft"])[:4]
    assert timeless(out)[4:] != timeless(whole["sft"])[4:]


@pytest.mark.parametrize("job", ["sft", "reward_model"])
def test_bfloat16_resumes_exactly_too(job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its float32 masters are in the checkpoint."""
    RUN[job](config(job, "model.dtype=bfloat16"), tmp_path / "whole")
    with monkeypatch.context() as patch:
        crash_at(patch, 5)
        with pytest.raises(Crash):
            RUN[job](config(job, "model.dtype=bfloat16"), tmp_path / "ours")
    RUN[job](config(job, "model.dtype=bfloat16"), tmp_path / "ours")
    assert_same(tmp_path / "ours", tmp_path / "whole")
    assert any((w != w.bfloat16()).any() for w in weights(tmp_path / "ours", 6).values())


@pytest.mark.parametrize("job", RUN)
def test_a_finished_job_that_is_started_again_changes_nothing(job: str, whole: dict[str, Path]) -> None:
    out = whole[job]
    before = contents(out)
    again = RUN[job](config(job), out)
    assert contents(out) | {"manifest.json": ""} == before | {"manifest.json": ""}
    after = json.loads((out / "summary.json").read_text())["after"]
    assert again == after["eval/made/accuracy" if job == "reward_model" else "eval/made/loss"]


def test_another_configuration_is_refused_with_its_keys(whole: dict[str, Path]) -> None:
    before = contents(whole["sft"])
    with pytest.raises(ConfigError) as refused:
        sft.run(config("sft", "optim.learning_rate=1e-4", "batch_size=2", f"resume={whole['sft']}"), whole["sft"])
    lines = str(refused.value).splitlines()
    assert lines[1:3] == ["  batch_size: 4 then, 2 now", "  optim.learning_rate: 0.003 then, 0.0001 now"]
    assert contents(whole["sft"]) == before


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("max_steps=0",), "max_steps is 0; it must be at least 1"),
        (("max_steps=null", "num_epochs=0"), "num_epochs is 0.0; it must be above 0"),
        (("micro_batch_tokens=0",), "micro_batch_tokens is 0"),
        (("batch_size=0",), "batch_size is 0"),
        (("optim.learning_rate=0",), "optim.learning_rate is 0"),
        (("max_length=5",), "data: made has no training example of at most max_length=5 tokens"),
        (("data.sizes.train=0",), "data: made has no training example"),
    ],
)
def test_a_mistake_is_told_before_any_work(overrides: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        sft.run(config("sft", *overrides), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_run_that_diverges_ends_and_keeps_what_was_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft, "NextToken", lambda policy: InfiniteFrom(policy, 4))
    out = tmp_path / "run"
    more = ("save_every=1", "keep_checkpoints=1", "eval_every=9", "micro_batch_tokens=100000")
    with pytest.raises(ConfigError, match=r"the gradient of step 4 is not finite.*[Ll]ower the learning rate"):
        sft.run(config("sft", *more), out)
    assert [checkpoint.step_of(folder) for folder in checkpoint.found(out)] == [3]
    assert all(torch.isfinite(weight).all() for weight in weights(out, 3).values())
    assert [line["step"] for line in metrics_of(out)] == [0, 1, 2, 3]
    assert not (out / "summary.json").exists()


@pytest.mark.parametrize("begun", ["with a checkpoint", "without one"])
def test_other_data_are_refused_on_resuming(begun: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path is the same, what lies there is not."""
    rows = [{"prompt": f"Say {number}!", "completion": "abc"} for number in range(30)]
    file = tmp_path / "chat.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    cfg = config("sft", f"data.source.train={file}", data="chat")
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        crash_at(patch, 5 if begun == "with a checkpoint" else 2)
        with pytest.raises(Crash):
            sft.run(cfg, out)
    before = contents(out)
    whole = file.read_text()
    file.write_text(whole.replace("abc", "xyz"))
    with pytest.raises(
        ConfigError, match=rf"other data; .*: sha256\.{file}\. Put the old data back, or start a new run"
    ):
        sft.run(cfg, out)
    assert contents(out) == before
    file.write_text(whole)
    sft.run(cfg, out)
    assert (out / "summary.json").is_file()


def test_other_problems_are_refused_on_resuming_too(tmp_path: Path) -> None:
    """In reinforcement learning, where the environment has the data."""
    train.run(tiny_config(*SHORT, "max_steps=1"), tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["env"]["name"] = "other problems"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"started with other data; what differs in its manifest: name\."):
        train.run(tiny_config(*SHORT, "max_steps=2"), tmp_path)


def test_manifests_are_compared_by_what_both_have(tmp_path: Path) -> None:
    def written(env: dict[str, Any]) -> None:
        (tmp_path / "manifest.json").write_text(as_json({"env": env}))

    now = {
        "sizes": {"train": 3}, "weight": 0.1 + 0.2, "share": float("nan"), "operations": ("+", "-"),
        "rule": "<Rule object at 0x7f00>", "sandbox": {"workers": 2}, "new": 1,
    }  # fmt: skip
    check_same_data(now, tmp_path)  # there is no manifest yet
    written({key: value for key, value in now.items() if key != "new"} | {"dropped": 1})
    check_same_data(now, tmp_path)
    check_same_data(now | {"rule": "<Rule object at 0x7fff>", "sandbox": {"workers": 8}}, tmp_path)
    with pytest.raises(ConfigError, match=r"manifest: operations, sizes\.test, sizes\.train\. Put"):
        check_same_data(now | {"sizes": {"train": 4, "test": 1}, "operations": ["+"]}, tmp_path)
    written({"sha256": {f"file-{n:02d}": "a" for n in range(12)}})
    with pytest.raises(ConfigError, match=r"sha256\.file-09 and 2 more\."):
        check_same_data({"sha256": {f"file-{n:02d}": "b" for n in range(12)}}, tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ConfigError, match="is not a manifest"):
        check_same_data(now, tmp_path)


def half_a_row(split: str, number: int) -> Any:
    return number


def test_what_is_neither_kind_of_example_is_refused(tmp_path: Path) -> None:
    data = made("test_supervised.half_a_row", train=3, validation=1)
    with pytest.raises(ConfigError, match=r"data: this job learns from demonstrations .*; made holds int"):
        sft.run(config("sft", data=data), tmp_path / "run")


def test_a_signal_in_the_middle_of_a_print_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler's own is refused then; what matters is that the run is saved."""

    def reentrant(*_: Any, **__: Any) -> None:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stdout>'>")

    with StopSignal() as stop:
        monkeypatch.setattr("builtins.print", reentrant)
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.undo()
        assert stop.number == signal.SIGTERM


def unanswered_once(split: str, number: int) -> Demonstration:
    return Demonstration(talk("Say!"), f"here:{number}") if number == 2 else echo(split, number)


def test_an_example_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    data = made("test_supervised.unanswered_once", train=5, validation=1)
    with pytest.raises(ConfigError, match=r"data: here:2: the conversation has no assistant's turn"):
        sft.run(config("sft", data=data), tmp_path)


def test_a_data_set_is_what_is_made_up_here() -> None:
    data: DataSet[Demonstration] = Made(echo, {"train": 3})
    assert [one.source for one in data.split("train")] == ["train:0", "train:1", "train:2"]


def test_the_last_lines_say_what_was_done(whole: dict[str, Path]) -> None:
    lines = metrics_of(whole["sft"])
    evaluated = [line["step"] for line in lines if "eval/made/loss" in line]
    assert evaluated == [0, 2, 4, 6]
    assert lines[6]["epoch"] == 6 / (18 // 4)
    tokens = [sft_tokens(number) for number in range(18)]
    # one epoch is four batches of four, so that two examples are left out
    assert sum(sorted(tokens)[:16]) <= lines[4]["num_tokens"] <= sum(sorted(tokens)[2:])
    assert [line["learning_rate"] for line in lines[1:3]] == [1.5e-3, 3e-3]


def sft_tokens(number: int) -> int:
    return prepare(tiny(), echo("train", number)).tokens


def test_longer_examples_are_left_out_and_counted(tmp_path: Path) -> None:
    tokens = [sft_tokens(number) for number in range(18)]
    longest = sorted(tokens)[12]
    sft.run(config("sft", f"max_length={longest}", "max_steps=1", "eval_limit=3"), tmp_path)
    made = json.loads((tmp_path / "manifest.json").read_text())["env"]
    kept = sum(n <= longest for n in tokens)
    assert (made["examples"], made["too_long"]) == (kept, 18 - kept)
    assert 12 < kept < 18


def longer_held_out(split: str, number: int) -> Demonstration:
    """Held-out texts of ten letters, twenty, thirty and so on; others of one."""
    letters = "a" * (10 * (number + 1) if split == "validation" else 1)
    return Demonstration(talk("Say!", letters), f"{split}:{number}")


def test_longer_held_out_examples_are_counted_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = made("test_supervised.longer_held_out", train=8, validation=5)
    policy = tiny()
    width = prepare(policy, longer_held_out("validation", 1)).width
    more = ("max_steps=1", "console.quiet=false")
    sft.run(config("sft", *more, f"max_length={width}", data=data), tmp_path / "run")
    described = json.loads((tmp_path / "run" / "manifest.json").read_text())["env"]
    assert (described["examples"], described["too_long"], described["too_long_validation"]) == (8, 0, 3)
    assert f"8 examples to train on, 2 to validate; 0 and 3 longer than {width} tokens" in capsys.readouterr().out
    width = prepare(policy, longer_held_out("train", 0)).width
    with pytest.raises(ConfigError, match=rf"all 5 validation examples of made are longer than max_length={width}"):
        sft.run(config("sft", *more, f"max_length={width}", data=data), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def refused(split: str, number: int) -> Demonstration:
    system: Message = {"role": "system", "content": "S"}
    return Demonstration([system, *talk("Say!", "yes")], f"{split}:{number}")


def test_a_row_that_the_template_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    monkeypatch.setattr(models, "CHATML_TEMPLATE", refuses + models.CHATML_TEMPLATE)
    data = made("test_supervised.refused", train=3, validation=1)
    with pytest.raises(ConfigError, match=r"data: train:0: the model's chat template refuses .*: no system role"):
        sft.run(config("sft", data=data), tmp_path / "run")


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
