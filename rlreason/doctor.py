"""python -m rlreason.doctor +experiment=<name> key=value ...

Looks at a training configuration before hours are spent on it, and says in one table what passes, what warns, what
fails, and what to do. Takes the command line of ``rlreason.train`` as it is. The exit status is 1 if a check failed.

A small sample is drawn and a few updates are made in memory; nothing is written to ``runs/``. ``docs/doctor.md`` says
what each check means. Left out: several processes and sweeps (a single process looks at one configuration), and the
engine's speed at full batches.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import hydra
from accelerate import Accelerator
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from rlreason import checkpoint
from rlreason.assembly import Parts, assemble, checked, make_learner, resumed_from
from rlreason.checks import Examination, Finding, data, machine, rollouts, sample, text, update
from rlreason.config import CONF, build, continued, start
from rlreason.learner import Learner
from rlreason.resume import check_same_data

LOOKED_AT = 16
"""Prompts that are rendered."""

STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


def examine(cfg: DictConfig, folder: Path, on_check: Callable[[str], None] = lambda name: None) -> list[Finding]:
    """Every check of the run that ``cfg`` would start in ``folder``, in order."""
    exam = Examination(on_check)
    accelerator = Accelerator()
    exam.look("run folder", lambda: machine.run_folder(folder, resuming=cfg.resume is not None))
    exam.look("logger", lambda: machine.logger(build(cfg, "logger")))
    parts = exam.obtain("configuration", lambda: _assembled(cfg, accelerator))
    if parts is not None:
        _inputs(exam, parts, cfg, folder)
        _model(exam, parts, cfg, accelerator)
    return exam.findings


def _inputs(exam: Examination, parts: Parts, cfg: DictConfig, folder: Path) -> None:
    """Everything that generates no token."""
    env, policy = parts.env, parts.policy
    problems = data.spread(env.split("train"), LOOKED_AT)
    exam.look("disk", lambda: machine.disk(parts, cfg, folder))
    exam.look("weights", lambda: machine.weights(policy))
    exam.look("template", lambda: text.template(policy, problems))
    exam.look("begin token", lambda: text.begin_token(policy, problems))
    exam.look("opened thought", lambda: text.opened_thought(policy, problems))
    exam.look("end tokens", lambda: text.end_tokens(policy, problems))
    exam.look("context", lambda: data.context(env, policy, parts.sampling))
    exam.look("gold answers", lambda: data.gold(env))
    exam.look("environment", lambda: data.environment(env), unless_failed=["gold answers"])
    exam.look("splits", lambda: data.splits(env))


def _model(exam: Examination, parts: Parts, cfg: DictConfig, accelerator: Accelerator) -> None:
    """A sample of rollouts, and updates on a part of it."""
    policy, sampling, seed = parts.policy, parts.sampling, int(cfg.seed)
    learner = exam.obtain("learner", lambda: _learner(parts, cfg, accelerator), needs=["weights"])
    if learner is None:
        return
    exam.look("determinism", lambda: rollouts.determinism(parts, seed), needs=["context"])
    drawn = exam.obtain(
        "rollouts", lambda: _drawn(parts, learner, seed), needs=["context"], unless_failed=["gold answers"]
    )
    if drawn is None:
        return
    exam.look("masks", lambda: rollouts.masks(drawn, policy))
    exam.look("end in loss", lambda: rollouts.end_in_loss(drawn, policy, sampling))
    exam.look("truncation", lambda: rollouts.truncation(drawn, sampling), needs=["end tokens"])
    exam.look("log-probs", lambda: rollouts.log_probs(drawn, policy, learner, sampling), needs=["masks"])
    exam.look("sampler", lambda: rollouts.sampler(drawn), needs=["log-probs"])
    exam.look("entropy", lambda: rollouts.entropy(drawn, policy))
    exam.look("reward signal", lambda: rollouts.signal(drawn, parts))
    trained = exam.obtain("update", lambda: _trained(parts, learner, drawn), needs=["masks"])
    if trained is None:
        return
    exam.look("ratio", lambda: update.ratio(trained, policy))
    exam.look("gradient", lambda: update.gradient(trained, parts.algo))
    exam.look("overfit", lambda: update.overfit(trained, policy), needs=["gradient"])
    exam.look("sync", lambda: update.sync(parts, learner, drawn, trained), needs=["log-probs", "overfit"])
    exam.look("memory", lambda: machine.memory(parts, drawn, cfg))
    exam.look("time", lambda: machine.duration(parts, drawn, trained, cfg))


def _assembled(cfg: DictConfig, accelerator: Accelerator) -> tuple[Parts, str]:
    resumed_from(cfg, checked(cfg), cfg.max_steps)
    parts = assemble(cfg, accelerator)
    if cfg.resume is not None:
        check_same_data(parts.env.manifest(), Path(cfg.resume))
    return parts, f"{parts.policy.info['architecture']}, {parts.env.name}, on {parts.policy.device}"


def _learner(parts: Parts, cfg: DictConfig, accelerator: Accelerator) -> tuple[Learner, str]:
    """A learner that is sure to move the weights, and those of the checkpoint if the run is to be resumed."""
    probing = replace(parts, algo=update.probing(parts.algo, parts.policy))
    learner = make_learner(cfg, probing, accelerator)
    saved = checkpoint.found(Path(cfg.resume)) if cfg.resume is not None else []
    if not saved:
        return learner, f"{type(learner).__name__}, probing at a learning rate of {probing.algo.learning_rate:.2g}"
    checkpoint.load(saved[-1], learner, accelerator)
    parts.engine.sync(parts.policy)
    return learner, f"weights of {saved[-1]}"


def _drawn(parts: Parts, learner: Learner, seed: int) -> tuple[sample.Sample, str]:
    drawn = sample.take(parts, learner, seed)
    return drawn, f"{len(drawn.rollouts)} completions in {sum(drawn.seconds.values()):.1f} s"


def _trained(parts: Parts, learner: Learner, drawn: sample.Sample) -> tuple[update.Trained, str]:
    trained = update.train(parts.policy, learner, drawn)
    return trained, f"{trained.updates} on {trained.tokens} tokens, {trained.seconds:.1f} s each"


def show(findings: Sequence[Finding], console: Console) -> None:
    """A table on a terminal; plain lines elsewhere."""
    counts = {status: sum(f.status == status for f in findings) for status in STYLES}
    total = f"{counts['pass']} pass, {counts['warn']} warn, {counts['fail']} fail, {counts['skip']} skipped"
    if not console.is_terminal:
        for finding in findings:
            print(f"{finding.status}  {finding.check:<14}  {finding.figure}")
            if finding.advice:
                print(f"{'':<22}-> {finding.advice}")
        print(total)
        return
    table = Table(title="rlreason doctor", caption=total)
    for heading in ("", "check", "measured", "what to do"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("", "check"))
    for finding in findings:
        style = STYLES[finding.status]
        status = f"[{style}]{finding.status}[/{style}]"
        table.add_row(status, finding.check, finding.figure, finding.advice)
    console.print(table)


def training_folder(cfg: DictConfig, overrides: Sequence[str]) -> Path:
    """Where ``rlreason.train`` would put the run. The last ``hydra.run.dir`` of ``overrides`` is the doctor's own."""
    asked = [override.partition("=")[2] for override in overrides if override.startswith("hydra.run.dir=")]
    if len(asked) > 1:
        return Path(asked[-2])
    if cfg.resume:
        return Path(cfg.resume)
    node = OmegaConf.create({"name": cfg.name, "dir": "${run_dir:${name},null}"})
    return Path(node.dir)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(cfg: DictConfig) -> None:
    """The entry point that Hydra calls."""
    overrides = HydraConfig.get().overrides
    folder = training_folder(cfg, overrides.hydra)
    with Console(stderr=True).status("looking at the configuration") as status:
        findings = examine(continued(cfg, overrides.task), folder, lambda name: status.update(f"looking at: {name}"))
    show(findings, Console())
    if any(finding.status == "fail" for finding in findings):
        raise SystemExit(1)


if __name__ == "__main__":
    if {"-m", "--multirun"} & set(sys.argv):
        raise SystemExit("error: the doctor looks at one configuration: leave -m away and give one value for each key")
    with tempfile.TemporaryDirectory(prefix="rlreason-doctor-") as scratch:
        sys.argv.append(f"hydra.run.dir={scratch}")  # Hydra makes a folder for every job; not in runs/
        start(main)
