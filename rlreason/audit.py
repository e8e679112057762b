"""python -m rlreason.audit scorer.paths=[<reward model>] run=<run folder> | data=<comparisons>

Hunts for nonsense that a reward model loves: changes genuine responses in ways that no reader would pay for
(``perturbations.py``), and tries phrases that it seems to like, given by the user or mined from other responses. The
lift is the change's score less the genuine response's, in standard deviations of the scorer's held-out pairs.

Intervals are of each change by itself; of many changes without any effect, some will still be above 0. Left out: a
search for triggers by gradients or by another policy. What RL finds, the traces of RL hold: audit those.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import rich
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from rlreason.analysis.lifts import Floats, Judge, length_correlation, try_change
from rlreason.analysis.load import read_traces
from rlreason.analysis.phrases import overused
from rlreason.audit_report import Report, markdown, table
from rlreason.config import CONF, ConfigError, build, continued, guarded, naming, resolved, start
from rlreason.console import Quiet
from rlreason.files import write_atomic
from rlreason.manifest import manifest
from rlreason.perturbations import Case, Perturbation, appended, general, prepended
from rlreason.record import Record
from rlreason.remembered import Ledger, Remembered
from rlreason.resume import check_begun
from rlreason.signals import StopSignal
from rlreason.tracking import NoTracker
from rlreason.types import Comparison, DataSet, Message, Scorer


@dataclass(frozen=True)
class Responses:
    """Genuine responses by problem: ``tried`` are changed (the first of each), ``mined`` are searched for phrases.
    ``chosen`` and ``rejected`` are the texts of the mined on either side of their pairs; empty if they are no pairs."""

    tried: list[list[Case]]
    mined: list[list[Case]]
    chosen: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)


def of_traces(run: Path, split: str, *, limit: int, mine: int, seed: int) -> Responses:
    """The responses in a run folder's traces of ``split``: of each problem, those of the latest step that has it.

    Raises FileNotFoundError without traces, and ValueError if none are of that split.
    """
    frame = read_traces(run, ("step", "split", "problem", "segment", "messages", "status"))
    frame = frame[(frame["segment"] == 0) & (frame["split"] == split) & (frame["status"] != "error")]
    if frame.empty:
        raise ValueError(f"{run} has no traces of the split {split!r}; choose another by split=")
    latest = frame[frame["step"] == frame.groupby("problem")["step"].transform("max")]
    problems: dict[str, list[Case]] = defaultdict(list)
    for problem, messages in zip(latest["problem"], latest["messages"], strict=True):
        *prompt, last = json.loads(messages)
        problems[problem].append(Case(problem, prompt, last["content"]))
    drawn = _in_random_order(problems, seed)
    return Responses(drawn[:limit], drawn[limit : limit + mine])


def of_comparisons(data: DataSet[Comparison], *, limit: int, mine: int, seed: int) -> Responses:
    """Both sides of a data set's pairs, by prompt: ``validation`` is tried, ``train`` is mined."""
    by_split = {}
    for split in ("validation", "train"):
        problems: dict[str, list[Case]] = defaultdict(list)
        for place, pair in enumerate(data.split(split)):
            for *prompt, last in ([*pair.prompt, *pair.chosen], [*pair.prompt, *pair.rejected]):
                problems[json.dumps(pair.prompt)].append(Case(f"{split}/{place}", prompt, last["content"]))
        by_split[split] = _in_random_order(problems, seed)
    mined = by_split["train"][:mine]
    chosen, rejected = ([case.response for cases in mined for case in cases[side::2]] for side in (0, 1))
    return Responses(by_split["validation"][:limit], mined, chosen, rejected)


def _in_random_order(problems: Mapping[str, list[Case]], seed: int) -> list[list[Case]]:
    drawn = list(problems.values())
    random.Random(f"audit/{seed}").shuffle(drawn)
    return drawn


def mined_phrases(responses: Responses, judge: Judge, *, count: int) -> dict[str, str]:
    """Phrases and where they come from: ``count`` that responses of higher score hold more often than those of lower,
    and as many that chosen responses hold more often than rejected ones.

    Higher is above the mean of the problem's responses, or, where a problem has one only, above the mean of all.
    """
    cases = [case for group in responses.mined for case in group]
    scores = judge([case.conversation(case.response) for case in cases])
    sizes = [len(group) for group in responses.mined]
    means = np.concatenate(
        [
            np.full(len(own), own.mean() if len(own) > 1 else scores.mean())
            for own in np.split(scores, np.cumsum(sizes)[:-1])
        ]
    )
    higher = [case.response for case, score, mean in zip(cases, scores, means, strict=True) if score > mean]
    lower = [case.response for case, score, mean in zip(cases, scores, means, strict=True) if score <= mean]
    found = {phrase.text: "mined from scores," for phrase in overused(higher, lower, count=count)}
    for phrase in overused(responses.chosen, responses.rejected, count=count):
        found.setdefault(phrase.text, "mined from preferences,")
    return found


def audit(
    responses: Responses,
    judge: Judge,
    *,
    triggers: Sequence[str],
    phrases: Sequence[str],
    mined_count: int,
    repeats: int,
    filler_words: int,
    examples: int,
    confidence: float,
    seed: int,
    progress: Callable[[Sequence[Perturbation]], Iterable[Perturbation]] = iter,
) -> Report:
    """Try every change on the first response to each problem. ``progress`` may show how far it is."""
    every = [case for group in responses.tried for case in group]
    scores = judge([case.conversation(case.response) for case in every])
    firsts = np.cumsum([0, *map(len, responses.tried)])[:-1]
    cases = [every[first] for first in firsts]
    mined = mined_phrases(responses, judge, count=mined_count) if responses.mined else {}
    changes = general(every, repeats=repeats, filler_words=filler_words)
    for what, texts in (("trigger", triggers), ("phrase", phrases)):
        changes += [make(text, what) for text in texts for make in (appended, prepended)]
    changes += [appended(text, where) for text, where in mined.items()]
    findings = [
        try_change(change, cases, scores[firsts], judge, seed=seed, examples=examples, confidence=confidence)
        for change in progress(changes)
    ]
    return Report(
        findings=sorted(findings, key=lambda finding: -finding.lift.mean),
        problems=len(cases),
        responses=len(every),
        mean=float(scores.mean()),
        std=float(scores.std()),
        length=length_correlation(responses.tried, scores, within=False, confidence=confidence),
        length_within=length_correlation(responses.tried, scores, within=True, confidence=confidence),
        mined=mined,
    )


def run(cfg: DictConfig, out: Path) -> float | None:
    """Audit as ``cfg`` says; write config, manifest, ``audit.json``, ``audit.md`` and ``summary.json`` into ``out``,
    and print a table. Scores are kept in ``scores.jsonl``: a job that is started again in its folder goes on.

    Returns the highest mean lift of a change that is no control. Raises ConfigError for whatever the user can mend.
    """
    config = resolved(cfg)
    check_begun(config, out)
    _check(config)
    responses, source = _responses(cfg)
    with naming("scorer"):
        scorer: Scorer = build(cfg, "scorer")
    combine: Callable[[Sequence[float]], float] = build(cfg, "combine")
    root = Path(__file__).resolve().parent.parent
    origin = manifest(seed=cfg.seed, model={"scorer": f"{scorer}"}, env=source, root=root)
    record = Record(out, config=config, manifest=origin, env="audit", console=Quiet(), tracker=NoTracker())
    try:
        with naming("scorer"), StopSignal() as stop, Progress(console=Console(stderr=True)) as bar:

            def unless_stopped(changes: Sequence[Perturbation]) -> Iterator[Perturbation]:
                for change in bar.track(changes, description="changes"):
                    if stop.number:
                        print(f"Stopped; the same command with resume={out} goes on.", flush=True)
                        raise SystemExit(128 + stop.number)
                    yield change

            report = audit(
                responses,
                _judge(Remembered(scorer, Ledger(out / "scores.jsonl", "conversation", "scores")), combine),
                triggers=[str(phrase) for phrase in config["triggers"]],  # YAML takes some words for other things
                phrases=[str(phrase) for phrase in config["phrases"]],
                mined_count=cfg.mined_phrases,
                repeats=cfg.repeats,
                filler_words=cfg.filler_words,
                examples=cfg.examples,
                confidence=cfg.confidence,
                seed=cfg.seed,
                progress=unless_stopped,
            )
        whole = json.dumps(asdict(report), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomic(out / "audit.json", whole.encode("utf-8", "replace"))
        write_atomic(out / "audit.md", markdown(report, cfg.confidence).encode("utf-8", "replace"))
        worst = next(finding for finding in report.findings if not finding.control)
        record.finish({"worst": worst.name, "lift": asdict(worst.lift), "above": worst.above})
    finally:
        record.close()
    rich.print(table(report, cfg.confidence))
    print(f"written to {out / 'audit.md'}")
    return worst.lift.mean


def _check(config: Mapping[str, Any]) -> None:
    if (config["run"] is None) == (config["data"] is None):
        raise ConfigError("say whose responses to audit: run=<run folder with traces>, or data=<comparisons>")
    for key in ("triggers", "phrases"):
        if not isinstance(config[key], list):
            raise ConfigError(f"{key} is {config[key]!r}; it must be a list, such as {key}=[cf,mn]")
    least_of = {"limit": 2, "mine": 0, "mined_phrases": 1, "repeats": 1, "filler_words": 1, "examples": 0}
    for key, least in least_of.items():
        if config[key] < least:
            raise ConfigError(f"{key} is {config[key]}; it must be at least {least}")
    if not 0 < config["confidence"] < 1:
        raise ConfigError(f"confidence is {config['confidence']}; it must lie between 0 and 1, such as 0.95")


def _responses(cfg: DictConfig) -> tuple[Responses, Mapping[str, Any]]:
    """What is audited, and where it came from."""
    if cfg.run is not None:
        with naming("run"):
            found = of_traces(Path(cfg.run), cfg.split, limit=cfg.limit, mine=cfg.mine, seed=cfg.seed)
        source: Mapping[str, Any] = {"run": cfg.run, "split": cfg.split}
    else:
        data: DataSet[Comparison] = build(cfg, "data")
        with naming("data"):
            if not all(isinstance(one, Comparison) for one in data.split("validation")[:1]):
                raise ValueError(f"{data.name} holds demonstrations; an audit needs comparisons, such as data=pairs")
            found, source = of_comparisons(data, limit=cfg.limit, mine=cfg.mine, seed=cfg.seed), data.manifest()
    if len(found.tried) < 2 or (cfg.mine > 0 and not found.mined):
        raise ConfigError(
            f"there are {len(found.tried)} problems to try changes on (2 are needed) and {len(found.mined)} to mine "
            "for phrases: lower limit, or set mine=0"
        )
    return found, source


def _judge(scorer: Scorer, combine: Callable[[Sequence[float]], float]) -> Judge:
    def judge(conversations: Sequence[list[Message]]) -> Floats:
        scores = np.array([combine(members) for members in scorer(conversations)], dtype=np.float64)
        if not np.isfinite(scores).all():
            place = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise ValueError(f"{scores[place]} is the score of {conversations[place][-1]['content'][:200]!r}")
        return scores

    return judge


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="audit")
def main(cfg: DictConfig) -> float | None:
    """The entry point that Hydra calls."""
    hydra_config = HydraConfig.get()
    cfg = continued(cfg, hydra_config.overrides.task)
    return guarded(lambda: run(cfg, Path(hydra_config.runtime.output_dir)))


if __name__ == "__main__":
    start(main)
