"""python -m rlreason.arena models=[<a>,<b>,...] env=<name> judge=<name>

Models play off pairwise: each answers the same prompts once, every pair meets on every prompt, and a judge says who was
better, asked in both orders. Ratings are Bradley-Terry's with intervals over prompts (``analysis/ratings.py``).

Answers and verdicts are written as they are made, so a job that is started again in its folder makes none twice. Left
out: several processes, and choosing which pairs to play. Judging is cheap beside answering here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import rich
from accelerate import Accelerator
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress

from rlreason import checkpoint
from rlreason.analysis.load import read_traces
from rlreason.analysis.ratings import ANCHORS, Floats, standings
from rlreason.arena_report import Board, Pair, Player, markdown, plot, table
from rlreason.assembly import asked_size, check_prompts
from rlreason.clock import Clock
from rlreason.config import CONF, ConfigError, build, continued, guarded, naming, resolved, start
from rlreason.console import Quiet
from rlreason.files import write_atomic
from rlreason.judges import Answer, Judge
from rlreason.manifest import manifest
from rlreason.policy import Policy
from rlreason.record import Record
from rlreason.remembered import Ledger
from rlreason.resume import check_begun
from rlreason.rollout import roll_out
from rlreason.sampler import derived_seed
from rlreason.signals import StopSignal
from rlreason.traces import SplitName, write_traces
from rlreason.tracking import NoTracker
from rlreason.types import Engine, Env, Message, Sampling


@dataclass(frozen=True)
class Answered:
    """What a model answered, by prompt number; prompts that could not be graded are missing."""

    answers: Mapping[int, Answer]
    mean_length: float


def paths_of(models: Any) -> dict[str, str]:
    """Where each model's weights are, by its name on the leaderboard.

    A model is a name of ``conf/model``, a hub id, a run folder (its newest checkpoint) or a model folder. Raises
    ConfigError for fewer than two, for one that is named twice, for a folder that is not there, and for a run folder
    without a checkpoint.
    """
    if not isinstance(models, list | dict):
        raise ConfigError(f"models is {models!r}; give a list, such as models=[smollm2_135m,runs/sft/<time>]")
    if isinstance(models, list) and len({*map(str, models)}) < len(models):
        raise ConfigError(f"models names one twice: {', '.join(map(str, models))}")
    if len(models) < 2:
        raise ConfigError(f"models has {len(models)} entries; it takes two to play")
    named = models if isinstance(models, dict) else {str(model): model for model in models}
    with naming("models"):
        return {str(name): checkpoint.weights_of(str(model)) for name, model in named.items()}


def answer(
    folder: Path,
    load: Callable[[], Policy],
    build_engine: Callable[[Policy], Engine],
    env: Env,
    sampling: Sampling,
    *,
    split: SplitName,
    size: int,
    chunk: int,
    seed: int,
    unless_stopped: Callable[[], None],
    on_completion: Callable[[], None],
) -> None:
    """Have a model answer the first ``size`` problems of a split, ``chunk`` at a time, each chunk a file of traces in
    ``folder``; those that are there are not answered again, and without any to answer the model isn't loaded.

    The facts about the model go into ``model.json`` beside them. ``unless_stopped`` is called before each chunk.
    """
    files = {
        folder / "traces" / f"eval-{split}-{first // chunk:06d}.parquet": range(first, min(first + chunk, size))
        for first in range(0, size, chunk)
    }
    missing = {file: numbers for file, numbers in files.items() if not file.is_file()}
    for numbers in (numbers for file, numbers in files.items() if file not in missing):
        for _ in numbers:
            on_completion()
    if not missing:
        return
    policy = load()
    check_prompts(env, split, policy, sampling)
    engine = build_engine(policy)
    (folder / "traces").mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "model.json", json.dumps(policy.info, default=str, indent=1).encode())
    problems = env.split(split)
    for file, numbers in missing.items():
        unless_stopped()
        rollouts = roll_out(
            engine, env, policy, [problems[i] for i in numbers], sampling,
            samples=1, groups=numbers, seed=derived_seed(seed, "arena", split), clock=Clock(),
            on_completion=on_completion,
        )  # fmt: skip
        write_traces(file, rollouts, step=numbers.start // chunk, split=split, env=env.name)


def read_answers(folder: Path) -> Answered:
    """What ``answer`` left in a folder."""
    columns = ("group", "segment", "messages", "text", "reward", "status", "completion_tokens")
    frame = read_traces(folder, columns)
    lengths = frame.groupby("group")["completion_tokens"].sum()
    graded = frame[(frame["segment"] == 0) & (frame["status"] != "error") & frame["reward"].notna()]
    answers = {
        int(row.group): Answer(json.loads(row.messages), row.text, float(row.reward)) for row in graded.itertuples()
    }
    return Answered(answers, float(lengths.mean()))


def play(
    judge: Judge,
    players: Sequence[Mapping[int, Answer]],
    prompts: Mapping[int, list[Message]],
    ledger: Ledger,
    *,
    chunk: int,
    unless_stopped: Callable[[], None],
) -> tuple[Floats, Floats]:
    """Every pair of M players on each of P prompts, in both orders: outcomes and inconsistencies, each (P, M, M).

    ``outcomes[p, i, j]`` is what player i had against j: 1, 0.5 or 0. Where the judge's two verdicts don't agree, it is
    0.5, and ``inconsistencies[p, i, j]`` is 1, else 0. The diagonals are NaN. Verdicts are kept in ``ledger``, written
    for ``chunk`` prompts at a time. Raises ValueError for a verdict that is not 1, 0.5 or 0.
    """
    numbers, count = sorted(prompts), len(players)
    outcomes = np.full((len(numbers), count, count), np.nan)
    inconsistencies = outcomes.copy()
    for i in range(count):
        for j in range(i):
            for first in range(0, len(numbers), chunk):
                unless_stopped()
                asked = {
                    f"{number}/{a}/{b}": (number, a, b)
                    for number in numbers[first : first + chunk]
                    for a, b in ((i, j), (j, i))
                    if f"{number}/{a}/{b}" not in ledger.entries
                }
                ledger.add(
                    {
                        key: _verdict(judge, prompts[number], players[a][number], players[b][number])
                        for key, (number, a, b) in asked.items()
                    }
                )
            for place, number in enumerate(numbers):
                forth, back = ledger.entries[f"{number}/{i}/{j}"], ledger.entries[f"{number}/{j}/{i}"]
                agreed = forth == 1 - back
                outcomes[place, i, j] = forth if agreed else 0.5
                inconsistencies[place, i, j] = inconsistencies[place, j, i] = not agreed
                outcomes[place, j, i] = 1 - outcomes[place, i, j]
    return outcomes, inconsistencies


def _verdict(judge: Judge, prompt: list[Message], a: Answer, b: Answer) -> float:
    verdict = judge.compare(prompt, a, b)
    if verdict not in (0, 0.5, 1):
        raise ValueError(f"{judge} said {verdict!r}; a verdict must be 1 (the first is better), 0.5 or 0")
    return float(verdict)


def run(cfg: DictConfig, out: Path) -> None:
    """Play as ``cfg`` says. Into ``out`` go config, manifest, ``players/<number>/`` with a model's answers as traces,
    ``verdicts.jsonl``, ``arena.json``, ``leaderboard.md``, ``leaderboard.png`` and ``summary.json``.

    Raises ConfigError for whatever the user can mend, and SystemExit (128 + signal) after a SIGINT or SIGTERM.
    """
    if Accelerator().num_processes > 1:
        raise ConfigError("the arena runs in one process; start it without accelerate launch")
    config = resolved(cfg)
    config["models"] = paths_of(config["models"])
    check_begun(config, out)
    _check_order(config["models"], out)
    _check(config)
    sampling: Sampling = build(cfg, "sampling")
    judge: Judge = build(cfg, "judge")
    env: Env = build(cfg, "env")
    size = asked_size(cfg, env)
    root = Path(__file__).resolve().parent.parent
    origin = manifest(seed=cfg.seed, model=config["models"], env=env.manifest(), root=root)
    record = Record(out, config=config, manifest=origin, env=env.name, console=Quiet(), tracker=NoTracker())
    try:
        with StopSignal() as stop, Progress(console=Console(stderr=True)) as bar:

            def unless_stopped() -> None:
                if stop.number:
                    print(f"Stopped; the same command with resume={out} goes on.", flush=True)
                    raise SystemExit(128 + stop.number)

            found = [
                _answers_of(cfg, out / "players" / f"{place:02d}", name, path, env, sampling, size, bar, unless_stopped)
                for place, (name, path) in enumerate(config["models"].items())
            ]
            common = set.intersection(*(set(answered.answers) for answered in found))
            if not common:
                raise ConfigError("there is no prompt on which every model's answer could be graded")
            prompts = {number: env.split(cfg.split)[number].prompt for number in common}
            with naming("judge"):
                outcomes, inconsistencies = play(
                    judge, [answered.answers for answered in found], prompts,
                    Ledger(out / "verdicts.jsonl", "game", "verdict"),
                    chunk=cfg.chunk, unless_stopped=unless_stopped,
                )  # fmt: skip
        board = leaderboard(
            config["models"], found, outcomes, inconsistencies, numbers=sorted(common), left_out=size - len(common),
            title=f"{env.name}, {cfg.split}, judged by {type(judge).__name__}",
            anchor=cfg.anchor, prior_draws=cfg.prior_draws, resamples=cfg.resamples, confidence=cfg.confidence,
            seed=cfg.seed,
        )  # fmt: skip
        _write(out, board)
        record.finish({f"rating/{player.name}": player.standing.rating for player in board.players})
    finally:
        record.close()
    rich.print(table(board))
    print(f"written to {out}")


def _answers_of(
    cfg: DictConfig,
    folder: Path,
    name: str,
    path: str,
    env: Env,
    sampling: Sampling,
    size: int,
    bar: Progress,
    unless_stopped: Callable[[], None],
) -> Answered:
    def load() -> Policy:
        own = cfg.copy()
        own.model.path = path
        policy: Policy = build(own, "model")(device=Accelerator().device)
        return policy

    task = bar.add_task(name, total=size)
    with naming(f"models, {name}"):
        answer(
            folder, load, build(cfg, "engine"), env, sampling,
            split=cfg.split, size=size, chunk=cfg.chunk, seed=cfg.seed,
            unless_stopped=unless_stopped, on_completion=partial(bar.advance, task),
        )  # fmt: skip
    return read_answers(folder)


def leaderboard(
    paths: Mapping[str, str],
    found: Sequence[Answered],
    outcomes: Floats,
    inconsistencies: Floats,
    *,
    numbers: Sequence[int],
    left_out: int,
    title: str,
    anchor: str,
    prior_draws: float,
    resamples: int,
    confidence: float,
    seed: int,
) -> Board:
    """What ``play`` came to, on the prompts ``numbers``."""
    ratings = standings(
        outcomes, anchor=anchor, prior_draws=prior_draws, resamples=resamples, confidence=confidence, seed=seed
    )
    players = [
        Player(
            name,
            paths[name],
            standing,
            reward=float(np.mean([answered.answers[number].reward for number in numbers])),
            mean_length=answered.mean_length,
        )
        for name, standing, answered in zip(paths, ratings, found, strict=True)
    ]
    names = list(paths)
    pairs = [
        Pair(
            names[i],
            names[j],
            wins=int((outcomes[:, i, j] == 1).sum()),
            ties=int((outcomes[:, i, j] == 0.5).sum()),
            losses=int((outcomes[:, i, j] == 0).sum()),
            inconsistent=int(inconsistencies[:, i, j].sum()),
        )
        for i in range(len(names))
        for j in range(i + 1, len(names))
    ]
    ranked = sorted(players, key=lambda player: -player.standing.rating)
    return Board(title, ranked, pairs, len(numbers), left_out, confidence)


def _check_order(models: Mapping[str, str], out: Path) -> None:
    """Answers and verdicts lie in ``out`` under the places of the models, so a place must stay a model's."""
    if (out / "config.yaml").is_file():
        before = [str(name) for name in OmegaConf.load(out / "config.yaml").models]
        if before != list(models):
            raise ConfigError(f"{out} was started with the models in this order: {', '.join(before)}; keep to it")


def _check(config: Mapping[str, Any]) -> None:
    for key in ("limit", "chunk", "resamples"):
        if config[key] is not None and config[key] < 1:
            raise ConfigError(f"{key} is {config[key]}; it must be at least 1")
    if config["anchor"] not in ANCHORS:
        raise ConfigError(f"anchor is {config['anchor']!r}; choose {' or '.join(ANCHORS)}")
    if not config["prior_draws"] > 0:
        raise ConfigError(f"prior_draws is {config['prior_draws']}; it must be above 0: it keeps ratings finite")
    if not 0 < config["confidence"] < 1:
        raise ConfigError(f"confidence is {config['confidence']}; it must lie between 0 and 1, such as 0.95")


def _write(out: Path, board: Board) -> None:
    whole = {**asdict(board), "inconsistent": board.inconsistent}
    write_atomic(out / "arena.json", json.dumps(whole, indent=1, allow_nan=False).encode())
    write_atomic(out / "leaderboard.md", markdown(board).encode("utf-8", "replace"))
    try:
        plot(board, out / "leaderboard.png")
    except ImportError:
        print(f"no leaderboard.png: pip install matplotlib, and start this again with resume={out}")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="arena")
def main(cfg: DictConfig) -> None:
    """The entry point that Hydra calls."""
    hydra_config = HydraConfig.get()
    cfg = continued(cfg, hydra_config.overrides.task)
    guarded(lambda: run(cfg, Path(hydra_config.runtime.output_dir)))


if __name__ == "__main__":
    start(main)
