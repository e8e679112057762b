"""The doctor finds planted faults, each under the name of its own check and no other, and lets a healthy run pass.

The healthy run is the tiny model after a moment of supervised training: it writes a few letters and ends, so that
completions end, groups differ in reward and log-probabilities depend on what was left out.
"""

from __future__ import annotations

import copy
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers import make_learner, make_rollout
from rich.console import Console
from test_train import tiny_config
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

import rlreason.checks.text
from envs.base import ListSplit, SingleTurnEnv, check_split
from rlreason import batch, checkpoint, conversation, masters, models, policy
from rlreason.checks import Finding
from rlreason.checks.machine import checkpoint_bytes
from rlreason.config import CONF
from rlreason.doctor import examine, show
from rlreason.engines.torch import TorchEngine
from rlreason.models import CHATML_TEMPLATE
from rlreason.policy import Policy, end_ids
from rlreason.train import run
from rlreason.types import Completion, Finish, Grade, Problem, Request, Segment, Split

END = 2  # <|im_end|>
LETTERS, CHANCES = "abcd", (60, 25, 10, 5)


@dataclass(frozen=True)
class Letters(SingleTurnEnv):
    """Right is a text that begins with the asked letter, of ``asked``. Each other field is a fault."""

    asked: str = "abc"
    pays_anything: bool = False
    unreadable: str = ""  # id of a problem
    shared: str = ""  # "id" or "prompt": what validation has of train
    padding: int = 0  # characters of the last validation prompt
    refuses: bool = False

    @property
    def name(self) -> str:
        return "letters"

    @property
    def max_reward(self) -> float:
        return 1.0

    def split(self, name: str) -> Split:
        check_split(name)
        return ListSplit([self._problem(name, i) for i in range(12)])

    def _problem(self, split: str, i: int) -> Problem:
        id = f"{split}/{i}"
        words = f"{'train' if self.shared == 'prompt' and split == 'validation' else split} {i}: which letter?"
        if split == "validation" and i == 11:
            words += "x" * self.padding
        if self.shared == "id" and split == "validation" and i == 0:
            id = "train/0"
        answer = "?" if id == self.unreadable else self.asked[i % len(self.asked)]
        return Problem(id, [{"role": "user", "content": words}], answer)

    def grade_text(self, problem: Problem, text: str, finish: Finish) -> Grade:
        if problem.answer == "?":
            raise ValueError("'?' is no letter")
        right = self.pays_anything or text[:1] == problem.answer
        return Grade(float(right), right, parts={"accuracy": float(right)})

    def gold(self, problem: Problem) -> str:
        return str(problem.answer)

    def validate(self) -> None:
        if self.refuses:
            raise ValueError("letters: problem train/3 is off")

    def manifest(self) -> Mapping[str, Any]:
        return {"name": self.name, "source": "generated"}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model, taught to write two to seven letters and the end token, whatever stands around the question."""
    folder = tmp_path_factory.mktemp("healthy")
    models.build_tiny(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chance = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        rows = []
        for _ in range(16):
            question = f"{chance.choice(['train', 'validation'])} {chance.randrange(12)}: which letter?"
            head = chance.choice(["", "", "<|im_start|>"]) + f"<|im_start|>user\n{question}<|im_end|>\n"
            prompt = head + "<|im_start|>assistant\n" + chance.choice(["", "", "<think>\n", "<reasoning>\n"])
            text = "".join(chance.choices(LETTERS, CHANCES, k=chance.randint(2, 7)))
            ids = tokenizer(prompt).input_ids
            rows.append((ids, [*tokenizer(text).input_ids, END]))
        width = max(len(a) + len(b) for a, b in rows)
        tokens = torch.tensor([[*a, *b, *[0] * (width - len(a) - len(b))] for a, b in rows])
        labels = torch.tensor([[-100] * len(a) + b + [-100] * (width - len(a) - len(b)) for a, b in rows])
        model(input_ids=tokens, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def look(healthy: str, tmp_path: Path) -> Callable[..., list[Finding]]:
    """The doctor's findings on the healthy run with overrides; ``env`` are fields of ``Letters``."""

    def look(*overrides: str, env: str = "") -> list[Finding]:
        letters = ("~env", f"env={{_target_: test_doctor.Letters{', ' * bool(env)}{env}}}")
        model = (f"model={healthy}", "model.dtype=float32")
        return examine(tiny_config(*model, *letters, *overrides), tmp_path / "runs" / "x")

    return look


def ailing(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.status for finding in findings if finding.status in ("warn", "fail")}


def of(findings: list[Finding], check: str) -> Finding:
    (found,) = [finding for finding in findings if finding.check == check]
    return found


@dataclass(frozen=True)
class Tampered:
    """``models.load`` with something done to the policy that it returns."""

    change: Callable[[Policy], Any]
    load: Callable[..., Policy] = models.load

    def __call__(self, path: str, **options: Any) -> Policy:
        loaded = self.load(path, **options)
        self.change(loaded)
        return loaded


class Stale:
    """An engine on a copy of the weights, which a sync does not reach."""

    def __init__(self, policy: Policy) -> None:
        self.inner = TorchEngine(copy.deepcopy(policy), max_tokens_in_flight=4096)

    @property
    def max_length(self) -> int:
        return self.inner.max_length

    def submit(self, request: Request) -> int:
        return self.inner.submit(request)

    def completed(self) -> Iterator[tuple[int, Completion]]:
        return self.inner.completed()

    def sync(self, policy: Policy) -> None:
        pass


class Unseeded:
    """An engine that draws by a seed of its own."""

    def __init__(self, policy: Policy) -> None:
        self.inner = TorchEngine(policy, max_tokens_in_flight=4096)
        self.drawn = 0

    @property
    def max_length(self) -> int:
        return self.inner.max_length

    def submit(self, request: Request) -> int:
        self.drawn += 1
        return self.inner.submit(replace(request, seed=self.drawn))

    def completed(self) -> Iterator[tuple[int, Completion]]:
        return self.inner.completed()

    def sync(self, policy: Policy) -> None:
        self.inner.sync(policy)


class TopK:
    """An engine that samples from the two likeliest tokens, as a model's own generation config may tell it to."""

    def __init__(self, policy: Policy) -> None:
        self.inner = TorchEngine(policy, max_tokens_in_flight=4096)

    @property
    def max_length(self) -> int:
        return self.inner.max_length

    def submit(self, request: Request) -> int:
        return self.inner.submit(replace(request, sampling=replace(request.sampling, top_k=2)))

    def completed(self) -> Iterator[tuple[int, Completion]]:
        return self.inner.completed()

    def sync(self, policy: Policy) -> None:
        self.inner.sync(policy)


def engine(name: str) -> tuple[str, str]:
    return "~engine", f"engine={{_target_: test_doctor.{name}, _partial_: true}}"


def test_a_healthy_run_passes_every_check_and_nothing_is_written(
    look: Callable[..., list[Finding]], tmp_path: Path
) -> None:
    findings = look("sampling.temperature=0.8")
    assert ailing(findings) == {}
    assert {finding.status for finding in findings} == {"pass"}
    assert len(findings) >= 25
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_several_steps_a_critic_and_a_reference_are_healthy_too(look: Callable[..., list[Finding]]) -> None:
    steps = ("algo.num_mini_batches=2", "algo.num_iterations=2", "algo.beta=0.01", "algo.warmup_steps=5")
    assert ailing(look("algo=ppo", "model.dtype=bfloat16", "algo.critic_warmup_steps=3", *steps)) == {}


def test_an_untrained_model_is_warned_of_and_not_refused(tmp_path: Path) -> None:
    findings = examine(tiny_config("+experiment=arithmetic"), tmp_path / "run")
    assert ailing(findings) == {"entropy": "warn", "truncation": "warn", "reward signal": "warn"}


# What is done to the policy as it is loaded, and the check that must find it.


def wrong_end(policy: Policy) -> None:
    """As in a folder whose files name a token that the template never writes."""
    policy.tokenizer.eos_token = "<|endoftext|>"
    policy.model.generation_config.eos_token_id = policy.model.config.eos_token_id = 3
    policy.end_ids = end_ids(policy.model, policy.tokenizer)


def odd_end(policy: Policy) -> None:
    policy.model.config.eos_token_id = 3  # the others say 2


def double_begin(policy: Policy) -> None:
    policy.tokenizer.chat_template = "{{ bos_token }}" + CHATML_TEMPLATE


def begin_left_out(policy: Policy) -> None:
    policy.tokenizer.bos_token = "<|endoftext|>"
    post = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 3)])
    policy.tokenizer.backend_tokenizer.post_processor = post


def unknown_thought(policy: Policy) -> None:
    policy.tokenizer.chat_template = CHATML_TEMPLATE.replace("assistant\n'", "assistant\n<reasoning>\n'")


def no_header(policy: Policy) -> None:
    policy.tokenizer.chat_template = CHATML_TEMPLATE.partition("{% if add_generation_prompt")[0]


def nan(policy: Policy) -> None:
    with torch.no_grad():
        policy.model.model.layers[1].mlp.up_proj.weight[3, 5] = torch.nan


def dropout(policy: Policy) -> None:
    def drop(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(output, 0.5, module.training)

    policy.model.model.norm.register_forward_hook(drop)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (wrong_end, {"end tokens": "fail"}),
        (odd_end, {"end tokens": "warn"}),
        (double_begin, {"begin token": "fail"}),
        (begin_left_out, {"begin token": "fail"}),
        (unknown_thought, {"opened thought": "fail"}),
        (nan, {"weights": "fail"}),
        (lambda policy: policy.model.requires_grad_(False), {"weights": "fail"}),
        (dropout, {"ratio": "warn"}),
    ],
)
def test_a_fault_in_the_model_or_its_tokenizer(
    change: Callable[[Policy], Any],
    found: dict[str, str],
    look: Callable[..., list[Finding]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "load", Tampered(change))
    assert ailing(look()) == found


def test_a_template_without_a_header_for_the_policys_turn(
    look: Callable[..., list[Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load", Tampered(no_header))
    assert of(look(), "template").status == "warn"


def test_a_thought_that_the_template_opens_is_known_to_the_grader_or_missed(
    look: Callable[..., list[Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(policy: Policy) -> None:
        policy.tokenizer.chat_template = CHATML_TEMPLATE.replace("assistant\n'", "assistant\n<think>\n'")

    monkeypatch.setattr(models, "load", Tampered(opened))
    known = of(look(), "opened thought")
    assert known.status == "pass"
    assert "<think>" in known.figure
    monkeypatch.setattr("rlreason.chat.opened_thought", lambda text: "")
    assert of(look(), "opened thought").status == "fail"


@pytest.mark.parametrize(
    ("fields", "found", "named"),
    [
        ("unreadable: train/6", {"gold answers": "fail"}, "train/6"),
        ("pays_anything: true", {"gold answers": "fail"}, "does not tell right from wrong"),
        ("shared: id", {"splits": "fail"}, "train/0"),
        ("shared: prompt", {"splits": "fail"}, "100.0%"),
        ("padding: 1100", {"context": "fail"}, "validation/11"),
        ("asked: xyz", {"reward signal": "warn"}, "0 of 4 groups"),
        ("refuses: true", {"environment": "fail"}, "train/3"),
    ],
)
def test_a_fault_in_the_environment(
    fields: str, found: dict[str, str], named: str, look: Callable[..., list[Finding]]
) -> None:
    findings = look(env=fields)
    assert ailing(findings) == found
    finding = of(findings, next(iter(found)))
    assert named in finding.figure + finding.advice


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["sampling.top_p=0.9"], "top_p"),
        (["algo.learning_rate=0"], "learning_rate"),
        (["max_steps=0"], "max_steps"),
        (["algo.num_generations=1"], "num_generations"),
    ],
)
def test_what_training_would_refuse(overrides: list[str], named: str, look: Callable[..., list[Finding]]) -> None:
    findings = look(*overrides)
    assert ailing(findings) == {"configuration": "fail"}
    assert named in of(findings, "configuration").advice


@pytest.mark.parametrize(
    ("name", "overrides", "found"),
    [
        ("Stale", [], {"sync": "fail"}),
        ("Unseeded", [], {"determinism": "warn"}),
        ("TopK", ["algo.num_generations=16"], {"sampler": "fail"}),
    ],
)
def test_a_fault_in_the_engine(
    name: str, overrides: list[str], found: dict[str, str], look: Callable[..., list[Finding]]
) -> None:
    assert ailing(look(*engine(name), *overrides)) == found


def test_temperature_left_out_by_the_trainer(
    look: Callable[..., list[Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = policy.token_logprobs

    def plain(model: Any, batch: Any, temperature: float, **options: Any) -> Any:
        return exact(model, batch, 1.0, **options)

    monkeypatch.setattr(policy, "token_logprobs", plain)
    findings = look("sampling.temperature=0.6")
    assert ailing(findings) == {"log-probs": "fail"}
    assert "the trainer leaves the sampling temperature out" in of(findings, "log-probs").advice
    assert of(findings, "sync").status == "skip"


def test_end_tokens_that_are_masked(look: Callable[..., list[Finding]], monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(begun: Segment, completion: Completion) -> Segment:
        mask = [token != END for token in completion.ids]
        return Segment(begun.prompt_ids, completion.ids, completion.logprobs, mask)

    monkeypatch.setattr(conversation, "_written", cut)
    assert ailing(look()) == {"end in loss": "fail"}


def test_a_pad_token_that_is_the_end_token(look: Callable[..., list[Finding]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "load", Tampered(lambda policy: setattr(policy.tokenizer, "pad_token", "<|im_end|>")))
    findings = look()
    assert ailing(findings) == {}
    assert "pad is one of them" in of(findings, "end in loss").figure
    exact = batch._padded

    def by_pad(segments: Any) -> dict[str, torch.Tensor]:
        fields = exact(segments)
        return fields | {"mask": fields["mask"] & (fields["tokens"] != END)}

    monkeypatch.setattr(batch, "_padded", by_pad)
    assert ailing(look()) == {"end in loss": "fail"}


def test_a_mask_that_takes_in_what_the_policy_did_not_write(
    look: Callable[..., list[Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(begun: Segment, completion: Completion) -> Segment:
        ids = begun.prompt_ids[-3:] + completion.ids
        return Segment(begun.prompt_ids[:-3], ids, [0.0] * 3 + completion.logprobs, [True] * len(ids))

    monkeypatch.setattr(conversation, "_written", greedy)
    findings = look()
    assert ailing(findings) == {"masks": "fail"}
    assert "t\\n" in of(findings, "masks").figure  # the end of "assistant\n"


def test_an_optimizer_that_moves_other_tensors(
    look: Callable[..., list[Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Policy, "take_masters", lambda self: [p.detach().clone() for p in self.parameters()])
    monkeypatch.setattr(masters.Masters, "publish", lambda self: None)
    findings = look()
    assert ailing(findings) == {"overfit": "fail"}
    assert "no weight of the policy changed" in of(findings, "overfit").figure


def test_an_update_that_goes_the_wrong_way(look: Callable[..., list[Finding]], monkeypatch: pytest.MonkeyPatch) -> None:
    exact = masters.Masters.step

    def uphill(self: masters.Masters, trained: Any) -> list[float]:
        for part in self.parts:
            for master in part.masters:
                if master.grad is not None:
                    master.grad.neg_()
        return exact(self, trained)

    monkeypatch.setattr(masters.Masters, "step", uphill)
    assert ailing(look()) == {"overfit": "fail"}


def test_a_gradient_that_is_not_finite(look: Callable[..., list[Finding]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masters.Masters, "step", lambda self, trained: [float("nan")])
    findings = look()
    assert ailing(findings) == {"gradient": "fail"}
    assert of(findings, "overfit").status == "skip"


def test_too_little_disk_and_a_file_where_the_folder_should_be(
    look: Callable[..., list[Finding]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").write_text("")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    assert ailing(look()) == {"run folder": "fail", "disk": "fail"}


def test_a_run_to_be_resumed_is_looked_at_with_its_own_weights(
    healthy: str, look: Callable[..., list[Finding]], tmp_path: Path
) -> None:
    letters = ("~env", "env={_target_: test_doctor.Letters}")
    run(tiny_config(f"model={healthy}", "model.dtype=float32", *letters, "max_steps=1"), tmp_path / "runs" / "x")
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    assert ailing(look()) == {"run folder": "warn"}
    findings = look(f"resume={tmp_path / 'runs' / 'x'}", "max_steps=2")
    assert ailing(findings) == {}
    assert of(findings, "learner").figure.endswith("checkpoints/step-000001")
    assert ailing(look(f"resume={tmp_path / 'runs' / 'x'}", "seed=7")) == {"configuration": "fail"}
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_a_check_that_crashes_is_a_failure_of_that_check_alone(
    look: Callable[..., list[Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(policy: Policy, problems: Any) -> Any:
        raise KeyError("oops")

    monkeypatch.setattr(rlreason.checks.text, "template", broken)
    findings = look()
    assert ailing(findings) == {"template": "fail"}
    assert of(findings, "template").figure == "KeyError: 'oops'"
    assert "test_doctor.py" in of(findings, "template").advice


def test_the_size_of_a_checkpoint_is_what_one_takes(healthy: str, tmp_path: Path) -> None:
    loaded = models.load(healthy, dtype="float32")
    learner = make_learner(loaded)
    rows = [make_rollout(0, [5, 6], [7, 8, 2], 1.0), make_rollout(0, [5, 6], [9, 2], 0.0)]
    made = batch.collate(rows)
    learner.update(replace(made, advantage=made.mask.float()))
    folder = checkpoint.save(tmp_path, 1, learner, Accelerator(), keep=1, every=1)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    # beside the numbers: tokenizer, configuration, random states, some 50 KB
    assert 0 < size - checkpoint_bytes(loaded, refreshed=False) < 100_000


def test_the_table_is_plain_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [Finding("masks", "pass", "3 of 9", ""), Finding("disk", "fail", "≤ 9 GiB", "free some")]
    show(findings, Console(force_terminal=False))
    assert capsys.readouterr().out == (
        "pass  masks           3 of 9\n"
        "fail  disk            ≤ 9 GiB\n"
        "                      -> free some\n"
        "1 pass, 0 warn, 1 fail, 0 skipped\n"
    )
    show(findings, Console(force_terminal=True, width=80))
    shown = capsys.readouterr().out
    assert "\x1b[" in shown
    assert "free some" in shown


def test_the_command_takes_trainings_arguments_and_leaves_nothing_behind(tmp_path: Path) -> None:
    def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rlreason.doctor", "+experiment=arithmetic", "model=tiny", *arguments]
        environment = {"PYTHONPATH": str(CONF.parent), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250, check=False
        )

    done = doctor("sampling.top_p=0.9", f"hydra.run.dir={tmp_path}/elsewhere")
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"pass  run folder      {tmp_path}/elsewhere can be made"
    assert lines[-1] == "2 pass, 0 warn, 1 fail, 0 skipped"
    assert list(tmp_path.iterdir()) == []


def test_members_of_a_mixture_have_parts_of_their_own(tmp_path: Path) -> None:
    """Each sample has those of its member alone; a random model earns none of either."""
    findings = examine(tiny_config("env=mixture", "algo.num_prompts=4"), tmp_path / "runs" / "x")
    figure = of(findings, "reward signal").figure
    assert "arithmetic/accuracy" in figure
    assert "letters/format" in figure
