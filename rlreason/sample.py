"""python -m rlreason.sample model=<...> env=<...> num_samples=8

Rejection sampling: a policy answers the problems of a split several times, the environment grades, and what deserves
imitation is written as ``sft.jsonl``, a line ``{"messages": [...], "provenance": {...}}`` for each sample. With a
stronger ``model`` than the one to be trained it is distillation.

A chunk of problems is a step of the run folder, with its traces and its line of metrics; a job that is started again
in its folder goes on after the last whole chunk. The selection is made at the end, from the traces
(``rlreason/selection.py``), and can be made again by other rules: ``resume=<folder> selection.balance=difficulty``.

Left out: a critic's or a majority's vote in the place of a verifier.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hydra
import rich
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from rlreason.analysis.load import read_metrics, read_traces
from rlreason.assembly import asked_size, check_prompts
from rlreason.clock import Clock
from rlreason.config import CONF, ConfigError, build, continued, guarded, naming, resolved, start
from rlreason.console import ConsoleConfig
from rlreason.files import write_atomic
from rlreason.manifest import manifest
from rlreason.metrics import rollout_metrics
from rlreason.policy import Policy
from rlreason.record import Record
from rlreason.resume import check_begun
from rlreason.rollout import roll_out
from rlreason.sampler import derived_seed
from rlreason.selection import Kept, Sample, Selected, Selection
from rlreason.signals import StopSignal, leave
from rlreason.stats import estimate, pass_at_k
from rlreason.tracking import NoTracker
from rlreason.types import Engine, Env, Episode, Message, Rollout, Sampling

PASS_RATES = ("0", "0 to 1/4", "1/4 to 1/2", "1/2 to 3/4", "3/4 to 1", "1")
"""Bins of the histogram in ``summary.json``; inner ones hold their lower bound, 0 and 1 have bins of their own."""

_MODEL = ("source", "path", "revision", "weights", "gguf_sha256")  # what says which weights wrote a sample


@dataclass(frozen=True)
class Sampler:
    """Draws chunk by chunk: the samples of a problem depend on the seed and on its number in the split alone. ``rank``
    of ``world`` processes takes its share of every chunk."""

    engine: Engine
    env: Env
    policy: Policy
    sampling: Sampling
    split: str
    size: int
    chunk: int
    num_samples: int
    seed: int
    clock: Clock
    rank: int
    world: int

    @property
    def steps(self) -> int:
        return -(-self.size // self.chunk)

    def draw(self, step: int) -> list[Rollout]:
        """The graded rollouts of chunk ``step`` (from 1), of all processes; groups are problems' numbers."""
        problems = self.env.split(self.split)
        own = range((step - 1) * self.chunk, min(step * self.chunk, self.size))[self.rank :: self.world]
        drawn = roll_out(
            self.engine, self.env, self.policy, [problems[i] for i in own], self.sampling,
            samples=self.num_samples, groups=own, seed=derived_seed(self.seed, "sample", self.split), clock=self.clock,
        )  # fmt: skip
        return sorted(gather_object(drawn), key=lambda rollout: rollout.group)


def run(cfg: DictConfig, out: Path) -> float | None:
    """Sample and select as ``cfg`` says, in run folder ``out``; returns how many samples were kept.

    Raises ConfigError for whatever the user can mend, and SystemExit (128 + signal) after a SIGINT or SIGTERM, with
    the chunk that was under way recorded.
    """
    accelerator = Accelerator()
    (out,) = broadcast_object_list([out])
    config = resolved(cfg)
    for key in ("chunk", "num_samples", "limit"):
        if config[key] is not None and config[key] < 1:
            raise ConfigError(f"{key} is {config[key]}; it must be at least 1")
    check_begun(config, out)
    sampling: Sampling = build(cfg, "sampling")
    if cfg.num_samples > 1 and sampling.temperature == 0:
        raise ConfigError("num_samples > 1 needs sampling.temperature above 0: greedy samples are all the same")
    selection: Selection = build(cfg, "selection")
    console: ConsoleConfig = build(cfg, "console")
    env: Env = build(cfg, "env")
    size = asked_size(cfg, env)
    posed = _posed(cfg, env, size)
    _check_verdict(env, cfg.split, selection)
    with naming("model"):
        policy: Policy = build(cfg, "model")(device=accelerator.device)
    with naming("engine"):
        engine: Engine = build(cfg, "engine")(policy)
    check_prompts(env, cfg.split, policy, sampling)
    sampler = Sampler(
        engine, env, policy, sampling, cfg.split, size, cfg.chunk, cfg.num_samples, cfg.seed, Clock(accelerator.device),
        accelerator.process_index, accelerator.num_processes,
    )  # fmt: skip
    done, num_tokens = _so_far(out)
    record: Record | None = None
    with StopSignal() as stop:
        try:
            if accelerator.is_main_process:
                screen = console.open(sampler.steps, start=done)
                screen.say(f"run folder: {out}" + (f", after step {done}" if done else ""))
                origin = manifest(
                    seed=cfg.seed, model=policy.info, env=env.manifest(), root=Path(__file__).resolve().parent.parent
                )
                record = Record(out, config=config, manifest=origin, env=env.name, console=screen, tracker=NoTracker())
                record.truncate(done)
            for step in range(done + 1, sampler.steps + 1):
                began = time.perf_counter()
                rollouts = sampler.draw(step)
                if record:
                    tokens = sum(len(s.prompt_ids) + len(s.completion_ids) for r in rollouts for s in r.segments)
                    num_tokens += tokens
                    seconds = time.perf_counter() - began
                    metrics = rollout_metrics(rollouts) | _selection_metrics(selection, rollouts, step)
                    metrics |= sampler.clock.take() | {"step_time": seconds, "num_tokens": num_tokens}
                    metrics["perf/step_tokens_per_second"] = tokens / seconds
                    record.step(step, metrics, rollouts)
                signal = max(gather_object([stop.number]))
                if signal and step < sampler.steps:
                    leave(signal, step, out, speak=record is not None)
            return _finish(record, cfg, sampler, selection, posed) if record else None
        finally:
            if record:
                record.close()


def _finish(
    record: Record, cfg: DictConfig, sampler: Sampler, selection: Selection, posed: Mapping[int, list[Message]]
) -> float:
    """Select from the traces; write ``sft.jsonl`` and then ``summary.json``, which says that all is done."""
    out = record.out
    samples = read_samples(out)
    selected = selection(samples)
    if not selected.kept:
        raise ConfigError(
            f"none of {len(samples)} samples was accepted ({selected.truncated} would have been, but for the length "
            f"limit that cut them off). They are kept: select again with resume={out} selection.<key>=<value>, or "
            "sample more, longer, or from a stronger model"
        )
    about = {
        "model": {key: sampler.policy.info[key] for key in _MODEL if key in sampler.policy.info},
        "env": sampler.env.name,
        "split": sampler.split,
        "seed": sampler.seed,
        "temperature": sampler.sampling.temperature,
    }
    rows = [_row(kept, posed.get(kept.sample.group, kept.sample.prompt), about) for kept in selected.kept]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_atomic(out / "sft.jsonl", "".join(lines).encode("utf-8", "replace"))
    recorded = read_metrics(out)
    summary = summarise(samples, selected, k=list(cfg.k)) | {
        "env": sampler.env.name,
        "split": sampler.split,
        "num_tokens": float(recorded["num_tokens"].iloc[-1]),
        "seconds": float(recorded["step_time"].sum()),
        "selection": asdict(selection),
    }
    record.finish(summary)
    rich.print(_table(summary))
    print(f"written to {out / 'sft.jsonl'}")
    return float(len(selected.kept))


def read_samples(run: Path) -> list[Sample]:
    """What selection reads of the traces of a run of this module, in their order."""
    columns = (
        "problem", "step", "group", "sample", "segment", "prompt", "messages", "reward", "correct", "status", "finish",
        "tools",
    )  # fmt: skip
    frame = read_traces(run, columns)
    samples = []
    for row in frame[frame["segment"] == 0].astype(object).where(frame.notna(), None).to_dict("records"):
        prompt: list[Message] = json.loads(row.pop("prompt"))
        messages: list[Message] = json.loads(row.pop("messages"))
        tools = tuple(json.loads(row.pop("tools") or "[]"))
        del row["segment"]
        prompt, reply = parted(prompt, messages)
        samples.append(Sample(**row, prompt=prompt, reply=reply, tools=tools))
    return samples


def parted(prompt: list[Message], messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """What posed a problem, and what was said to it. A turn that ``prompt`` begins for the policy is the policy's."""
    posed = prompt[:-1] if prompt[-1]["role"] == "assistant" else prompt
    return posed, messages[len(posed) :]


def summarise(samples: Sequence[Sample], selected: Selected, *, k: Sequence[int]) -> dict[str, Any]:
    """The counts of a selection, how hard its problems were, and pass@k over them, each with its 95 % interval.

    ``solved`` are the problems with a sample that passed. Problems with fewer than k graded samples are left out of
    pass@k.
    """
    rates = [passed / graded for graded, passed in selected.passes.values()]
    histogram = dict.fromkeys(PASS_RATES, 0)
    for rate in rates:
        histogram[PASS_RATES[0 if rate == 0 else 5 if rate == 1 else 1 + int(4 * rate)]] += 1
    found: dict[str, Any] = {
        "sampled": len(samples),
        "errors": sum(sample.status == "error" for sample in samples),
        "passed": sum(passed for _, passed in selected.passes.values()),
        "truncated": selected.truncated,
        "accepted": selected.accepted,
        "duplicates": selected.duplicates,
        "kept": len(selected.kept),
        "problems": len({sample.problem for sample in samples}),
        "solved": sum(rate > 0 for rate in rates),
        "problems_kept": len({kept.sample.problem for kept in selected.kept}),
        "pass_rates": histogram,
    }
    for n in sorted(k):
        values = [pass_at_k(graded, passed, n) for graded, passed in selected.passes.values() if graded >= n]
        if values:
            found[f"pass@{n}"] = asdict(estimate(values))
    return found


def _check_verdict(env: Env, split: str, selection: Selection) -> None:
    """Refuse a selection that can't be made before the first token, by the grade of an empty answer."""
    problem = env.split(split)[0]
    messages: list[Message] = [*problem.prompt, {"role": "assistant", "content": ""}]
    (grade,) = env.grade([Episode(problem, env.start(problem, 0), messages, "", "stop")])
    if grade.status != "error":
        with naming("selection"):
            selection.passes(Sample(problem.id, 0, 0, 0, [], [], grade.reward, grade.correct, grade.status, "stop"))


def _posed(cfg: DictConfig, env: Env, size: int) -> dict[int, list[Message]]:
    """The prompts of the student's environment by problem number; empty if it is the teacher's own."""
    if cfg.target_env is None:
        return {}
    target_cfg = cfg.env.copy()
    OmegaConf.set_struct(target_cfg, False)  # a misspelled key is refused by the class
    target: Env = build({"target_env": OmegaConf.merge(target_cfg, cfg.target_env)}, "target_env")
    theirs, ours = target.split(cfg.split), env.split(cfg.split)
    posed: dict[int, list[Message]] = {}
    for number in range(size):
        problem = theirs[number]
        if problem.id != ours[number].id:
            raise ConfigError(
                f"target_env: problem {number} of {cfg.split} is {problem.id} there and {ours[number].id} in env: "
                "change only how problems are posed, not which they are"
            )
        posed[number] = problem.prompt
    return posed


def _so_far(out: Path) -> tuple[int, float]:
    """The last recorded step and the tokens up to it."""
    if not (out / "metrics.jsonl").is_file():
        return 0, 0.0
    lines = read_metrics(out)
    return (int(lines["step"].iloc[-1]), float(lines["num_tokens"].iloc[-1])) if len(lines) else (0, 0.0)


def _selection_metrics(selection: Selection, rollouts: Sequence[Rollout], step: int) -> dict[str, float]:
    """What the selection would make of a chunk by itself."""
    samples = [
        Sample(
            r.problem.id, step, r.group, place, *parted(r.problem.prompt, r.messages), r.grade.reward, r.grade.correct,
            r.grade.status, r.finish, r.problem.tools,
        )
        for place, r in enumerate(rollouts)
    ]  # fmt: skip
    selected = selection(samples)
    return {"selection/accepted": selected.accepted, "selection/kept": len(selected.kept)}


def _row(kept: Kept, prompt: list[Message], about: dict[str, Any]) -> dict[str, Any]:
    sample = kept.sample
    own = {key: getattr(sample, key) for key in ("problem", "step", "group", "sample", "reward", "correct")}
    return {
        "messages": [*prompt, *sample.reply],
        **({"tools": list(sample.tools)} if sample.tools else {}),
        "provenance": {**about, **own, "pass_rate": kept.pass_rate},
    }


def _table(summary: dict[str, Any]) -> Table:
    table = Table(title=f"rejection sampling: {summary['env']}, {summary['split']}")
    table.add_column("what")
    table.add_column("count", justify="right")
    for key in ("sampled", "passed", "truncated", "duplicates", "kept", "problems", "solved"):
        table.add_row(key, str(summary[key]))
    for key, value in summary.items():
        if key.startswith("pass@"):
            table.add_row(key, f"{value['mean']:.4g} ({value['low']:.4g} to {value['high']:.4g})")
    return table


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="sample")
def main(cfg: DictConfig) -> float | None:
    """The entry point that Hydra calls."""
    hydra_config = HydraConfig.get()
    cfg = continued(cfg, hydra_config.overrides.task)
    return guarded(lambda: run(cfg, Path(hydra_config.runtime.output_dir)))


if __name__ == "__main__":
    start(main)
