"""python -m rlreason.probe run=<run folder>

Is an answer drawn from its thought? The thoughts in a run's last evaluation are cut short, damaged or taken away, and
the same model is asked for its answer again: the tags that stood between thought and answer are put behind what is
left, and the answer is decoded greedily and graded. Prints accuracy and the share of answers that moved, by change
(``rlreason/changes.py``) and by budget of thought in tokens; writes ``probe.json``, and ``answers.jsonl`` with every
answer.

Thoughts without an answer (cut off, say) are not probed by changes, since there is nothing to move, but do count in the
budgets: what would the model have said? Left out: thoughts of several turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
import rich
from accelerate import Accelerator
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from rlreason import checkpoint
from rlreason.analysis.faithfulness import Effect, area_over_curve, effects
from rlreason.analysis.load import read_traces, trace_files
from rlreason.analysis.thought import split_thought
from rlreason.changes import changes
from rlreason.chat import encode
from rlreason.clock import Clock
from rlreason.config import CONF, ConfigError, build, continued, guarded, naming, resolved, start
from rlreason.console import Quiet
from rlreason.files import as_json, write_atomic
from rlreason.manifest import manifest
from rlreason.policy import Policy
from rlreason.record import Record
from rlreason.remembered import Ledger
from rlreason.resume import check_begun
from rlreason.rollout import roll_out
from rlreason.signals import StopSignal
from rlreason.tracking import NoTracker
from rlreason.types import Engine, Env, Episode, Grade, Message, Problem, Sampling, Split

BUDGET = "{} tokens"


@dataclass(frozen=True)
class Thought:
    """A completion to be probed: its problem, what stands before the thought, the thought, what stands between it and
    the answer, and the answer that was given."""

    problem: Problem
    before: str
    text: str
    between: str
    answer: str | None
    correct: bool


@dataclass(frozen=True)
class Begun:
    """``env``, for problems whose last message is the policy's turn, begun: it is graded by what was asked."""

    env: Env
    name: str = "begun"

    def split(self, name: str) -> Split:
        return self.env.split(name)

    def start(self, problem: Problem, seed: int) -> Any:
        return self.env.start(_asked(problem), seed)

    def replies(self, states: Sequence[Any], conversations: Sequence[list[Message]]) -> list[list[Message] | None]:
        return [None] * len(states)

    def grade(self, episodes: Sequence[Episode]) -> list[Grade]:
        return self.env.grade([replace(episode, problem=_asked(episode.problem)) for episode in episodes])

    def validate(self) -> None:
        self.env.validate()

    def manifest(self) -> Mapping[str, Any]:
        return self.env.manifest()


def _asked(problem: Problem) -> Problem:
    return replace(problem, prompt=problem.prompt[:-1])


def thoughts_of(frame: pd.DataFrame, env: Env, split: str) -> list[Thought]:
    """The thoughts of an evaluation's traces, one a problem. Raises ValueError for problems that the environment does
    not have under their numbers."""
    found = []
    problems = env.split(split)
    for row in frame.itertuples():
        problem = problems[int(row.group)]
        if problem.id != row.problem:
            raise ValueError(f"problem {row.group} of {env.name} is {problem.id}, but {row.problem} in the traces")
        parts = split_thought(row.text)
        between = row.text[parts.end : parts.answer_start] if parts.answer_start is not None else ""
        before = row.text[: parts.start]
        found.append(Thought(problem, before, parts.thought, between, row.answer, bool(row.correct)))
    return found


def begun(thought: Thought, left: str, between: str) -> Problem:
    """The problem with the policy's turn begun, up to where the answer is due."""
    turn: Message = {"role": "assistant", "content": thought.before + left + between}
    return replace(thought.problem, prompt=[*thought.problem.prompt, turn])


def run(cfg: DictConfig, out: Path) -> None:
    """Probe as ``cfg`` says. Answers are kept in ``answers.jsonl``: a job that is started again in its folder goes on.

    Raises ConfigError for whatever the user can mend, and SystemExit (128 + signal) after a SIGINT or SIGTERM.
    """
    config = resolved(cfg)
    check_begun(config, out)
    _check(config)
    source = Path(cfg.run)
    if not (source / "config.yaml").is_file():
        raise ConfigError(f"run={source} is no run folder: it has no config.yaml (looked in {Path.cwd()})")
    trained: Any = OmegaConf.load(source / "config.yaml")
    env: Env = build(trained, "env")
    with naming("checkpoint"):
        weights = checkpoint.weights_of(cfg.checkpoint) if cfg.checkpoint else _weights(source, trained)
        trained.model = OmegaConf.merge(trained.model, {"path": weights, "revision": None})
        policy: Policy = build(trained, "model")(device=Accelerator().device)
    engine: Engine = build(cfg, "engine")(policy)
    with naming("run"):
        files = [file for file in trace_files(source) if file.name.startswith(f"eval-{cfg.split}-")]
        if not files:
            raise ValueError(f"{source} has no traces of an evaluation on {cfg.split}")
        frame = read_traces(files[-1])
        frame = frame[(frame["segment"] == 0) & (frame["sample"] == 0) & (frame["status"] != "error")]
        thoughts = thoughts_of(frame.head(cfg.limit), env, cfg.split)
    asked = _questions(thoughts, policy, config)
    root = Path(__file__).resolve().parent.parent
    origin = manifest(seed=cfg.seed, model=policy.info, env=env.manifest(), root=root)
    record = Record(out, config=config, manifest=origin, env=env.name, console=Quiet(), tracker=NoTracker())
    try:
        ledger = Ledger(out / "answers.jsonl", "question", "answer")
        sampling = Sampling(temperature=0.0, max_completion_length=cfg.max_answer_length)
        with StopSignal() as stop, Progress(console=Console(stderr=True)) as bar:
            for name, questions in bar.track(asked.items(), description="changes"):
                if stop.number:
                    print(f"Stopped; the same command with resume={out} goes on.", flush=True)
                    raise SystemExit(128 + stop.number)
                new = {key: problem for key, problem in questions.items() if key not in ledger.entries}
                graded = roll_out(
                    engine, Begun(env), policy, list(new.values()), sampling, samples=1, groups=range(len(new)),
                    seed=cfg.seed, clock=Clock(),
                )  # fmt: skip
                given = [
                    {"change": name, "text": r.text, "answer": r.grade.answer, "correct": bool(r.grade.correct)}
                    for r in graded
                ]
                ledger.add(dict(zip(new, given, strict=True)))
        rows = _rows(asked, thoughts, ledger)
        found = effects(rows, confidence=cfg.confidence)
        area = area_over_curve(rows, config["parts"]) if rows["change"].eq("unchanged").any() else None
        write_atomic(out / "probe.json", as_json([asdict(effect) for effect in found], indent=1).encode())
        record.finish({"thoughts": len(thoughts), "split": cfg.split, "checkpoint": weights, "area_over_curve": area})
    finally:
        record.close()
    rich.print(_table(found, f"{env.name}, {cfg.split}, {len(thoughts)} thoughts"))
    if area is not None:
        print(f"area over the curve of early answers: {area:.3f} (0: no answer depends on its thought)")
    print(f"written to {out}")


def _check(config: Mapping[str, Any]) -> None:
    for key in ("limit", "max_answer_length"):
        if config[key] < 1:
            raise ConfigError(f"{key} is {config[key]}; it must be at least 1")
    for key, lowest, highest in (("parts", 0, 1), ("budgets", -1, float("inf"))):
        values = config[key]
        if not isinstance(values, list) or not all(lowest < value < highest for value in values):
            raise ConfigError(f"{key} is {values!r}; it must be a list of numbers between {lowest} and {highest}")
    if not 0 < config["confidence"] < 1:
        raise ConfigError(f"confidence is {config['confidence']}; it must lie between 0 and 1, such as 0.95")


def _weights(source: Path, trained: Any) -> str:
    return str(checkpoint.latest(source)) if checkpoint.found(source) else str(trained.model.path)


def _questions(thoughts: Sequence[Thought], policy: Policy, config: Mapping[str, Any]) -> dict[str, dict[str, Problem]]:
    """By change, and by its name and the problem's, what the policy is asked."""
    whole = [thought for thought in thoughts if thought.between and thought.text]
    asked: dict[str, dict[str, Problem]] = {}
    for change in changes([thought.text for thought in whole], config["parts"]):
        made = ((thought, change(thought.text, config["seed"], thought.problem.id)) for thought in whole)
        asked[change.name] = {
            f"{change.name}/{thought.problem.id}": begun(thought, left, thought.between)
            for thought, left in made
            if left is not None
        }
    if whole:
        usual = max((thought.between for thought in whole), key=[thought.between for thought in whole].count)
        for budget in config["budgets"]:
            name = BUDGET.format(budget)
            asked[name] = {
                f"{name}/{thought.problem.id}": begun(
                    thought, _shortened(thought, budget, policy), thought.between or usual
                )
                for thought in thoughts
            }
    return asked


def _shortened(thought: Thought, budget: int, policy: Policy) -> str:
    """The thought's first ``budget`` tokens, or all of it."""
    return policy.decode(encode(policy.tokenizer, thought.text)[:budget])


def _rows(asked: Mapping[str, Mapping[str, Problem]], thoughts: Sequence[Thought], ledger: Ledger) -> pd.DataFrame:
    before = {thought.problem.id: thought for thought in thoughts}
    return pd.DataFrame(
        [
            {
                **ledger.entries[key],
                "problem": problem.id,
                "answer_before": before[problem.id].answer,
                "correct_before": before[problem.id].correct,
            }
            for questions in asked.values()
            for key, problem in questions.items()
        ],
        columns=["change", "text", "answer", "correct", "problem", "answer_before", "correct_before"],
    )


def _table(found: Sequence[Effect], title: str) -> Table:
    table = Table(title=title)
    for heading in ("thought", "right, %", "change, points", "answers that moved, %", "problems"):
        table.add_column(heading, justify="left" if heading == "thought" else "right")
    for effect in found:
        cells = [
            f"{100 * e.mean:.1f} ({100 * e.low:.1f} to {100 * e.high:.1f})"
            for e in (effect.accuracy, effect.difference, effect.moved)
        ]
        table.add_row(effect.name, *cells, str(effect.accuracy.n))
    return table


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="probe")
def main(cfg: DictConfig) -> None:
    """The entry point that Hydra calls."""
    hydra_config = HydraConfig.get()
    cfg = continued(cfg, hydra_config.overrides.task)

    def job() -> None:
        run(cfg, Path(hydra_config.runtime.output_dir))

    guarded(job)


if __name__ == "__main__":
    start(main)
