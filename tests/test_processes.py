"""Two processes compute what one does. Run by torchrun, this file is the worker of its own first test."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from test_train import CAPITALS, TINY, metrics_of, texts_of, timeless, tiny_config

from rlreason.algo import Algo
from rlreason.analysis.load import read_traces
from rlreason.batch import collate
from rlreason.config import build
from rlreason.learner import Learner
from rlreason.models import load
from rlreason.train import run
from rlreason.types import Grade, Problem, Rollout, Segment

REPO = Path(__file__).resolve().parent.parent
GROUPS = 4

# Who has which groups: every second one as in training; all on the first process, so that the second has nothing to do.
SHARES = {"alternating": ((0, 2), (1, 3)), "all on one": ((0, 1, 2, 3), ())}
ALGORITHMS = {
    "grpo": ("algo=grpo", "algo.beta=0.05", "algo.terms.entropy.coefficient=0.01"),
    "skipping": ("algo=grpo", "algo.num_iterations=2", "algo.num_mini_batches=2"),
    "sequence mean": ("algo=grpo", "algo.aggregation._target_=rlreason.losses.SequenceMean"),
    "ppo": ("algo=ppo", "algo.num_prompts=4", "algo.num_generations=4"),
}


def rollouts(groups: tuple[int, ...]) -> list[Rollout]:
    """Four rollouts in each group, of various lengths; group 3 has equal rewards, and one rollout of group 2 ended in
    an error."""
    made = []
    for group in groups:
        draw = torch.Generator().manual_seed(group)
        prompt = torch.randint(4, 260, (5 + group,), generator=draw).tolist()
        for sample in range(4):
            length = int(torch.randint(1, 20, (), generator=draw))
            ids = torch.randint(4, 260, (length,), generator=draw).tolist()
            logp = (-5.56 + 0.1 * torch.randn(length, generator=draw)).tolist()
            reward = 0.5 if group == 3 else float(torch.rand((), generator=draw))
            status = "error" if (group, sample) == (2, 1) else "ok"
            made.append(
                Rollout(
                    problem=Problem(f"p{group}", [{"role": "user", "content": "?"}], None),
                    group=group,
                    segments=[Segment(prompt, ids, logp, [True] * length)],
                    messages=[],
                    text="",
                    finish="stop",
                    grade=Grade(reward, None, status=status),
                )
            )
    return made


@dataclass(frozen=True)
class Update:
    """One training step: the gradient of each optimiser step, the weights after it, and the metrics."""

    gradients: list[list[torch.Tensor]]
    weights: list[torch.Tensor]
    metrics: dict[str, float]


def update(overrides: tuple[str, ...], groups: tuple[int, ...]) -> Update:
    """Train a fresh policy on this process's groups."""
    cfg = tiny_config(*overrides, "algo.max_grad_norm=inf")
    algo: Algo = build(cfg, "algo")
    accelerator = Accelerator(cpu=True)
    policy = load("tiny", dtype="float32")
    if "ref_logp" in algo.term_needs:
        policy.add_reference()
        with torch.no_grad():
            for parameter in policy.reference.parameters():
                parameter.mul_(1.1)  # away from the policy, so that the KL term has a gradient
    if "value" in algo.term_needs:
        policy.add_critic()
    learner = Learner(policy, algo, accelerator, max_steps=1, micro_batch_tokens=64, temperature=1.0)
    before = [master.detach().clone() for master in learner.masters]
    gradients: list[list[torch.Tensor]] = []
    learner.optimizer.register_step_pre_hook(
        lambda *_: gradients.append(
            [torch.zeros_like(m) if m.grad is None else m.grad.clone() for m in learner.masters]
        )
    )
    batch = learner.annotate(collate(rollouts(groups)))
    metrics = learner.update(algo.estimator(batch, learner.sum))
    assert all(not torch.equal(master, old) for master, old in zip(learner.masters[:3], before[:3], strict=True))
    return Update(gradients, [master.detach() for master in learner.masters], metrics)


def worker(out: Path) -> None:
    rank = Accelerator(cpu=True).process_index
    found = {
        (algorithm, share): vars(update(overrides, groups[rank]))
        for algorithm, overrides in ALGORITHMS.items()
        for share, groups in SHARES.items()
    }
    torch.save(found, out / f"rank-{rank}.pt")


def launch(folder: Path, *arguments: str) -> None:
    """torchrun with two processes on CPU, in ``folder``."""
    own = {
        "PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "tests")]),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *arguments],
        cwd=folder, env=os.environ | own, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


Found = list[dict[tuple[str, str], Update]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each of the two processes computed."""
    out = tmp_path_factory.mktemp("update")
    launch(out, str(Path(__file__).resolve()), str(out))
    ranks = [torch.load(out / f"rank-{rank}.pt", weights_only=False) for rank in range(2)]
    return [{case: Update(**fields) for case, fields in rank.items()} for rank in ranks]


def relative_error(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """|ours - theirs| / |theirs|, over all tensors as one vector."""
    one, other = (torch.cat([tensor.flatten().double() for tensor in tensors]) for tensors in (ours, theirs))
    assert other.norm() > 0
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_two_processes_update_like_one(found: Found, algorithm: str, share: str) -> None:
    alone = update(ALGORITHMS[algorithm], tuple(range(GROUPS)))
    steps = {"grpo": 1, "skipping": 4, "sequence mean": 1, "ppo": 2}[algorithm]
    assert len(alone.gradients) == steps
    for both in (rank[algorithm, share] for rank in found):
        assert len(both.gradients) == steps
        for ours, theirs in zip(both.gradients, alone.gradients, strict=True):
            assert relative_error(ours, theirs) < 1e-5
        for one, other in zip(both.gradients[0], alone.gradients[0], strict=True):  # each tensor by itself
            assert relative_error([one], [other]) < 1e-5
        assert relative_error(both.weights, alone.weights) < 1e-5
        assert both.metrics == pytest.approx(alone.metrics, rel=1e-5, abs=1e-7)
    first, second = (rank[algorithm, share].weights for rank in found)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("sampler", ["uniform", "edge"])  # edge: step 2 draws by what both found in step 1
@pytest.mark.parametrize("prompts", [3, 1])  # 1: the second process never has anything to roll out or to evaluate
def test_two_processes_train_like_one(tmp_path: Path, prompts: int, sampler: str) -> None:
    overrides = (*CAPITALS, f"algo.num_prompts={prompts}", f"eval_limit={prompts}", f"sampler={sampler}", "max_steps=2")
    run(tiny_config(*overrides), tmp_path / "one")
    launch(tmp_path, "-m", "rlreason.train", *TINY, *overrides, "hydra/job_logging=none")
    (two,) = (tmp_path / "runs" / "train").iterdir()
    assert len(list(tmp_path.rglob("metrics.jsonl"))) == 2  # one each
    assert (two / "summary.json").is_file()
    assert sorted(path.name for path in (two / "checkpoints" / "step-000002" / "training_state").iterdir()) == [
        "learner.pt", "random-0.pt", "random-1.pt", *(["sampler.pt"] if sampler == "edge" else []),
    ]  # fmt: skip

    def problems(out: Path) -> list[tuple[object, ...]]:
        rows = read_traces(out, ["step", "split", "group", "sample", "problem"])
        return sorted(tuple(row) for row in rows.itertuples(index=False))

    assert problems(two) == problems(tmp_path / "one")
    drawn = [row for row in problems(two) if row[:2] == (1, "train")]
    assert [row[2:4] for row in drawn] == [(group, sample) for group in range(prompts) for sample in range(4)]
    ours, theirs = (sorted(row for row in texts_of(out) if row[0] <= 1) for out in (two, tmp_path / "one"))
    assert ours == theirs  # the same weights and seeds: the same tokens, whoever drew them
    for line in metrics_of(two)[1:]:  # speeds count the tokens of both
        written = read_traces(two / "traces" / f"step-{line['step']:06d}.parquet")["completion_tokens"].sum()
        speed, seconds = line["perf/generate_tokens_per_second"], line["timing/generate"]
        assert speed * seconds == pytest.approx(written, rel=1e-9)
    ours_lines, theirs_lines = timeless(two), timeless(tmp_path / "one")
    assert len(ours_lines) == len(theirs_lines) == 3
    for one, other in zip(ours_lines[:2], theirs_lines[:2], strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-7)


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
