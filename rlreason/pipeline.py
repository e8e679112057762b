"""python -m rlreason.pipeline +recipe=<name>

Runs the stages of a recipe one after the other, each as the command that a user would type, in ``<out>/<stage>``;
chooses a checkpoint of each; and evaluates them all on the same problems at the end. What a recipe is says
``rlreason/recipe.py``.

```
<stage>/                               the run folder of the stage, with log.txt, its output
<stage>/evaluations/step-000123/       of a checkpoint, on the recipe's validation
final/<evaluation>/<stage>/            of the chosen checkpoints; `start` is the starting model
lineage.json                           what came from what (rlreason/lineage.py)
summary.json, summary.md, stages.png   all stages on the same evaluations
```

Started again in its folder (``resume=<folder>``) a pipeline goes on: what has its ``summary.json`` is done, and what
was under way goes on by itself. A stage that is done must be what the recipe still says; the others may be changed.

Left out: a shared budget of time.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import rich
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rlreason import checkpoint, recipe
from rlreason.analysis.stages import Found, markdown, plot, read_evaluation, tables
from rlreason.child import Runner, show
from rlreason.config import CONF, ConfigError, continued, guarded, resolved, start
from rlreason.files import write_atomic
from rlreason.lineage import Lineage, begin, digest, end
from rlreason.recipe import FINAL, POLICY_JOBS, START, Recipe, Stage


class StageFailed(ConfigError):
    """A job ended badly; the message says where to look."""


@dataclass
class Pipeline:
    """A recipe at work in folder ``out``. ``made`` has by stage and product (``checkpoint``, ``file``, ``run``) a
    path."""

    recipe: Recipe
    out: Path
    runner: Runner
    lineage: Lineage
    made: dict[str, dict[str, str]] = field(default_factory=dict)

    def stage(self, stage: Stage) -> None:
        """Run a stage, or take what it has left; choose its checkpoint; enter both into the lineage."""
        folder = self.out / stage.name
        inputs = {
            f"{{{name}.{product}}}": Path(self.made[name][product]) for name, product in recipe.needed(stage.overrides)
        }
        actual = recipe.filled(stage.overrides, self.made)
        entry = self.job("stages", stage.name, stage.job, actual, as_written=stage.overrides, inputs=inputs)
        own = {"run": str(folder)}
        if stage.job == "sample":
            own["file"] = str(folder / "sft.jsonl")
            output = Path(own["file"])
        else:
            output = self.choose(stage, entry)
            own["checkpoint"] = str(output)
        self.made[stage.name] = own
        entry["output"] = {"path": str(output), "sha256": digest(output)}
        entry["metrics"] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        self.lineage.save()

    def choose(self, stage: Stage, entry: dict[str, Any]) -> Path:
        """The checkpoint to hand on. ``best`` has the highest accuracy on the recipe's validation, then the highest
        reward, then the most steps."""
        kept = checkpoint.found(self.out / stage.name)
        if not kept:
            raise StageFailed(f"stage {stage.name} has ended and left no checkpoint in {self.out / stage.name}")
        if stage.select == "latest" or len(kept) == 1:
            entry["selection"] = {"how": stage.select, "chosen": kept[-1].name, "of": [folder.name for folder in kept]}
            return kept[-1]
        values = {
            folder.name: self.evaluate(f"{stage.name}/evaluations/{folder.name}", str(folder), self.recipe.validation)
            for folder in kept
        }
        best = max(kept, key=lambda folder: (*_merit(values[folder.name]), checkpoint.step_of(folder)))
        entry["selection"] = {"how": "best", "chosen": best.name, "values": values}
        return best

    def final(self) -> dict[str, dict[str, Found]]:
        """By evaluation and stage: the starting model, and the chosen checkpoint of each stage that makes a policy."""
        models = {START: self.recipe.base_model} | {
            stage.name: self.made[stage.name]["checkpoint"] for stage in self.recipe.stages if stage.job in POLICY_JOBS
        }
        return {
            name: {who: self.evaluate(f"{FINAL}/{name}/{who}", model, overrides) for who, model in models.items()}
            for name, overrides in self.recipe.final.items()
        }

    def evaluate(self, name: str, model: str, overrides: Sequence[str]) -> Found:
        """What ``rlreason.evaluate`` finds of a model, in folder ``name``."""
        actual = [f"model={model}", *overrides]
        if Path(model).is_dir():  # known by its weights, wherever it lies
            self.job("evaluations", name, "evaluate", actual, as_written=overrides, inputs={"model": Path(model)})
        else:
            self.job("evaluations", name, "evaluate", actual, as_written=actual, inputs={})
        return read_evaluation(json.loads((self.out / name / "summary.json").read_text(encoding="utf-8")))

    def job(
        self,
        kind: str,
        name: str,
        job: str,
        overrides: Sequence[str],
        *,
        as_written: Sequence[str],
        inputs: Mapping[str, Path],
    ) -> dict[str, Any]:
        """Run a job in folder ``name`` unless it is done there; its entry in the lineage.

        Raises StageFailed with the last lines of its output if it ended badly, and SystemExit after a signal.
        """
        folder = self.out / name
        done = (folder / "summary.json").is_file()
        entry = self.lineage.entry(kind, name, job=job, overrides=as_written, inputs=inputs, done=done)
        if done:
            show(f"=== {name}: done before\n")
            return entry
        self._leave_after_signal(name)
        command, log = recipe.command(job, overrides, folder), folder / "log.txt"
        show(f"=== {name}: {shlex.join(command)}\n")
        begin(entry, command, log)
        self.lineage.save()
        ended = self.runner.run(command, log)
        end(entry, ended.code)
        self.lineage.save()
        if ended.code or not (folder / "summary.json").is_file():
            self._leave_after_signal(name)
            raise StageFailed(_failure(name, ended.code, ended.tail, command, log, self.out))
        return entry

    def _leave_after_signal(self, name: str) -> None:
        if self.runner.signal:
            show(f"Stopped at {name}; the same command with resume={self.out} goes on.\n")
            raise SystemExit(128 + self.runner.signal)


def run(cfg: DictConfig, out: Path) -> float | None:
    """Run the recipe of ``cfg`` in folder ``out``, or what is left of it; returns the accuracy of the last policy on
    the first of the final evaluations, if there is one.

    Raises ConfigError for whatever the user can mend, all of it before the first stage runs but for what only a stage
    itself can find out; SystemExit (128 + signal) after a SIGINT or SIGTERM, which the job under way was told.
    """
    if cfg.resume is not None and not (Path(cfg.resume) / "config.yaml").is_file():
        raise ConfigError(f"resume={cfg.resume} is no run folder: it has no config.yaml (looked in {Path.cwd()})")
    config = resolved(cfg)
    plan = recipe.read(config)
    show("checking the configuration of every stage\n")
    recipe.check(plan, out)
    out.mkdir(parents=True, exist_ok=True)
    with Runner(out / "lock") as runner:
        # Not kept from the first start, as other jobs do: stages that have not run yet may have been changed.
        write_atomic(out / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)).encode())
        show(f"run folder: {out}\n")
        pipeline = Pipeline(plan, out, runner, Lineage(out / "lineage.json"))
        for stage in plan.stages:
            pipeline.stage(stage)
        results = pipeline.final()
    write_atomic(out / "summary.md", markdown(results).encode())
    if results:
        try:
            plot(results, out / "stages.png")
        except ImportError:
            show("no stages.png: pip install matplotlib, and start this again in the same folder\n")
    chosen = {name: made["checkpoint"] for name, made in pipeline.made.items() if "checkpoint" in made}
    write_atomic(out / "summary.json", json.dumps({"chosen": chosen, "final": results}, indent=2).encode())
    for table in tables(results):
        rich.print(table)
    show(f"written to {out}\n")
    first = next(iter(results.values()), {})
    last = list(first.values())[-1] if first else {}
    return float(last["accuracy"]["mean"]) if "accuracy" in last else None


def _merit(found: Found) -> tuple[float, float]:
    return found["accuracy"]["mean"] if "accuracy" in found else 0.0, found["reward"]["mean"]


def _failure(name: str, code: int, tail: Sequence[str], command: Sequence[str], log: Path, out: Path) -> str:
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    if code == 0:
        how = "ended without a summary.json"
    if code == -9:
        how += " (often the machine's memory was full)"
    return "\n".join(
        [
            f"{name} {how}. Its last lines:",
            *(f"    {line}" for line in tail),
            f"command: {shlex.join(command)}",
            f"log: {log}",
            f"What is done is kept: the same command with resume={out} goes on from here.",
        ]
    )


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="pipeline")
def main(cfg: DictConfig) -> float | None:
    """The entry point that Hydra calls; the float is what a sweeper optimises."""
    hydra_config = HydraConfig.get()
    cfg = continued(cfg, hydra_config.overrides.task)
    return guarded(lambda: run(cfg, Path(hydra_config.runtime.output_dir)))


if __name__ == "__main__":
    start(main)
