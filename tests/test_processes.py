"""Two processes compute what one does. Run by torchrun, this file is the worker of its own first test."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from test_train import CAPITALS, TINY, metrics_of, texts_of, tiny_config

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


def update(overrides: tuple[str, ...], groups: tuple[int, ...]) -> dict[str, object]:
    """One training step on this process's groups: the gradient of each optimiser step, the change of the weights, and
    the metrics."""
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
        policy.add_value_head()
    learner = Learner(policy, algo, accelerator, max_steps=1, micro_batch_tokens=64, temperature=1.0)
    before = [master.detach().clone() for master in learner.masters]
    gradients: list[list[torch.Tensor]] = []
    learner.optimizer.register_step_pre_hook(
        lambda *_: gradients.append([torch.zeros_like(m) if m.grad is None else m.grad.clone() for m in learner.masters])
    )
    batch = learner.annotate(collate(rollouts(groups)))
    if not groups:  # an empty batch has no width
        batch = replace(batch)
    metrics = learner.update(algo.estimator(batch, learner.sum))
    moved = [master.detach() - old for master, old in zip(learner.masters, before, strict=True)]
    return {"gradients": gradients, "moved": moved, "metrics": metrics}


def worker(out: Path) -> None:
    rank = Accelerator(cpu=True).process_index
    found = {
        (algorithm, share): update(overrides, groups[rank])
        for algorithm, overrides in ALGORITHMS.items()
        for share, groups in SHARES.items()
    }
    torch.save(found, out / f"rank-{rank}.pt")


def launch(folder: Path, *arguments: str) -> None:
    """torchrun with two processes on CPU, in ``folder``."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *arguments],
        cwd=folder,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "tests")]),
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], dict[str, object]]]:
    out = tmp_path_factory.mktemp("update")
    launch(out, str(Path(__file__).resolve()), str(out))
    return [torch.load(out / f"rank-{rank}.pt", weights_only=False) for rank in range(2)]


def relative(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    ours_, theirs_ = (torch.cat([t.flatten().double() for t in tensors]) for tensors in (ours, theirs))
    assert theirs_.norm() > 0
    return float((ours_ - theirs_).norm() / theirs_.norm())


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_two_processes_update_like_one(found, algorithm: str, share: str) -> None:
    alone = update(ALGORITHMS[algorithm], tuple(range(GROUPS)))
    for rank in range(2):
        both = found[rank][algorithm, share]
        assert len(both["gradients"]) == len(alone["gradients"])
        for ours, theirs in zip(both["gradients"], alone["gradients"], strict=True):
            print(relative(ours, theirs), max(relative([a],[b]) for a,b in zip(ours,theirs) if b.norm()>0))
        print('moved', relative(both["moved"], alone["moved"]))
        print({k:(v,both["metrics"].get(k)) for k,v in alone["metrics"].items() if both["metrics"].get(k)!=v}, both["metrics"].keys()^alone["metrics"].keys())


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
