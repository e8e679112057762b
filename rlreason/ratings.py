"""python -m rlreason.ratings runs=[<run>,...]

How strong a policy has become over training: the checkpoints of runs play a game against fixed opponents, the anchors,
from both sides. The anchors play each other first, which places them on the scale (Bradley and Terry; the first one is
0); each checkpoint's rating is where its points are those to be expected against them (``analysis/ratings.py``). This
is AlphaGo's comparison of imitation with reinforcement (Silver et al. 2016,
https://doi.org/10.1038/nature16961, figure 4).

Games are written as they are played, so a job that is started again in its folder plays none twice. Left out: games of
checkpoints with each other, and several processes.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

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
from rlreason.analysis.ratings import ANCHORED, Floats, rated_against, standings
from rlreason.arena import answer
from rlreason.config import CONF, ConfigError, build, continued, guarded, naming, resolved, start
from rlreason.console import Quiet
from rlreason.files import write_atomic
from rlreason.manifest import manifest
from rlreason.policy import Policy
from rlreason.ratings_report import Rated, Ratings, plot, table
from rlreason.record import Record
from rlreason.resume import check_begun
from rlreason.sampler import derived_seed
from rlreason.signals import StopSignal
from rlreason.tracking import NoTracker
from rlreason.types import Env, Episode, Problem, Sampling

LIMITS = ("max_completion_length", "max_turns", "max_total_length")
"""Keys of ``sampling`` that are taken from the runs where they are null."""


class Game(Env, Protocol):
    """An environment of games, whose grades have the parts ``won`` and ``drawn``, against ``env.opponent``."""

    def play(
        self, problems: Sequence[Problem], seeds: Sequence[int], player: Any, *, max_turns: int | None = None
    ) -> list[Episode]:
        """Games of a scripted ``player``, of the same kind as an opponent, in the policy's seat."""
        ...


@dataclass(frozen=True)
class Entrant:
    """A checkpoint that is to be rated. ``number`` is its run's among the runs."""

    run: str
    number: int
    step: int
    path: str


def entrants_of(runs: Any, *, with_start: bool) -> list[Entrant]:
    """The checkpoints of each run, oldest first, and before them what the run started from, as step 0.

    Raises ConfigError for what is no list or mapping of run folders, and for a run without a checkpoint.
    """
    if not isinstance(runs, list | dict) or not runs:
        raise ConfigError(f"runs is {runs!r}; give a list of run folders, such as runs=[runs/tictactoe/<time>]")
    if isinstance(runs, list) and len({*map(str, runs)}) < len(runs):
        raise ConfigError(f"runs names one twice: {', '.join(map(str, runs))}")
    named = runs if isinstance(runs, dict) else {str(run): run for run in runs}
    found: list[Entrant] = []
    for number, (name, run) in enumerate(named.items()):
        folder = Path(str(run))
        if not (folder / "config.yaml").is_file():
            raise ConfigError(f"runs: {run} is no run folder: it has no config.yaml (looked in {Path.cwd()})")
        with naming("runs"):
            checkpoint.latest(folder)
        if with_start:
            path = OmegaConf.select(OmegaConf.load(folder / "config.yaml"), "model.path")
            with naming(f"runs: what {run} started from (start=false leaves it out)"):
                found.append(Entrant(str(name), number, 0, checkpoint.weights_of(str(path))))
        found += [Entrant(str(name), number, checkpoint.step_of(path), str(path)) for path in checkpoint.found(folder)]
    return found


def of_runs(cfg: DictConfig) -> DictConfig:
    """What is null in ``cfg`` taken from the runs, the first that says it: ``env`` (of one that imitates, its data's),
    so that they are asked as they were trained, and the limits in ``sampling``. Raises ConfigError where none does."""
    runs = cfg.runs.values() if OmegaConf.is_dict(cfg.runs) else cfg.runs
    trained = [OmegaConf.load(Path(str(run)) / "config.yaml") for run in runs]
    merged = cfg.copy()
    OmegaConf.set_struct(merged, False)
    if cfg.env is None:
        found = [env for c in trained for key in ("env", "data.env") if (env := OmegaConf.select(c, key)) is not None]
        if not found:
            raise ConfigError("env is null, and none of the runs has one; give env=games, as the runs were asked")
        merged.env = found[0]
    for key in LIMITS:
        known = [value for c in trained if (value := OmegaConf.select(c, f"sampling.{key}")) is not None]
        if cfg.sampling[key] is None and known:
            merged.sampling[key] = known[0]
    if merged.sampling.max_completion_length is None:
        raise ConfigError("sampling.max_completion_length is null, and none of the runs has one; give a number")
    return merged


def run(cfg: DictConfig, out: Path) -> None:
    """Rate as ``cfg`` says. Into ``out`` go config, manifest, ``games/<checkpoint>/<anchor>/`` with the games as
    traces, ``ratings.json``, ``ratings.png`` and ``summary.json``.

    Raises ConfigError for whatever the user can mend, and SystemExit (128 + signal) after a SIGINT or SIGTERM.
    """
    if Accelerator().num_processes > 1:
        raise ConfigError("ratings run in one process; start it without accelerate launch")
    entrants = entrants_of(resolved(cfg)["runs"], with_start=cfg.start)
    cfg = of_runs(cfg)
    config = resolved(cfg)
    check_begun(config, out)
    _check(config)
    sampling: Sampling = build(cfg, "sampling")
    envs = {name: _against(cfg, name) for name in config["anchors"]}
    first = next(iter(envs.values()))
    with naming("split"):
        first.split(cfg.split)
    root = Path(__file__).resolve().parent.parent
    facts = {f"{entrant.run}, step {entrant.step}": entrant.path for entrant in entrants}
    origin = manifest(seed=cfg.seed, model=facts, env=first.manifest(), root=root)
    record = Record(out, config=config, manifest=origin, env=first.name, console=Quiet(), tracker=NoTracker())
    try:
        with StopSignal() as stop, Progress(console=Console(stderr=True)) as bar:

            def unless_stopped() -> None:
                if stop.number:
                    print(f"Stopped; the same command with resume={out} goes on.", flush=True)
                    raise SystemExit(128 + stop.number)

            anchors = rated_anchors(cfg, envs, unless_stopped)
            rated = []
            for entrant in entrants:
                scores = _scores(cfg, out, entrant, envs, sampling, bar, unless_stopped)
                standing = rated_against(
                    scores, list(anchors.values()), prior_draws=cfg.prior_draws, resamples=cfg.resamples,
                    confidence=cfg.confidence, seed=cfg.seed,
                )  # fmt: skip
                means = dict(zip(anchors, scores.mean(0).tolist(), strict=True))
                rated.append(Rated(entrant.run, entrant.step, entrant.path, standing, means))
        ratings = Ratings(f"{first.name}, {cfg.split}", anchors, rated, cfg.games, cfg.confidence)
        _write(out, ratings)
        record.finish({f"rating/{r.run}/{r.step}": r.standing.rating for r in rated})
    finally:
        record.close()
    rich.print(table(ratings))
    print(f"written to {out}")


def rated_anchors(cfg: DictConfig, envs: Mapping[str, Game], unless_stopped: Callable[[], None]) -> dict[str, float]:
    """Each anchor's rating, the first one's 0, from ``anchor_games`` of each two."""
    names = list(envs)
    outcomes = np.full((cfg.anchor_games, len(names), len(names)), np.nan)
    for i, name in enumerate(names):
        player = build(cfg.anchors, name)
        for j in range(i):
            unless_stopped()
            env = envs[names[j]]
            problems = [env.split(cfg.split)[number] for number in range(cfg.anchor_games)]
            seeds = [derived_seed(cfg.seed, "anchors", i, j, number) for number in range(cfg.anchor_games)]
            grades = env.grade(env.play(problems, seeds, player))
            outcomes[:, i, j] = [score_of(grade.parts) for grade in grades]
            outcomes[:, j, i] = 1 - outcomes[:, i, j]
    found = standings(outcomes, anchor="first", prior_draws=cfg.prior_draws, resamples=1)
    return {name: standing.rating - ANCHORED for name, standing in zip(names, found, strict=True)}


def score_of(parts: Mapping[str, float]) -> float:
    """1 for a win, 0.5 for a draw, 0 for a loss. Raises ConfigError for a grade that doesn't say."""
    if not {"won", "drawn"} <= parts.keys():
        raise ConfigError(f"env: its grades have no parts won and drawn, but {', '.join(parts) or 'none'}")
    return parts["won"] + parts["drawn"] / 2


def _scores(
    cfg: DictConfig,
    out: Path,
    entrant: Entrant,
    envs: Mapping[str, Game],
    sampling: Sampling,
    bar: Progress,
    unless_stopped: Callable[[], None],
) -> Floats:
    """(games, anchors): what a checkpoint had against each."""

    @functools.cache
    def load() -> Policy:
        own = cfg.copy()
        own.model.path = entrant.path
        policy: Policy = build(own, "model")(device=Accelerator().device)
        return policy

    task = bar.add_task(f"{entrant.run}, step {entrant.step}", total=cfg.games * len(envs))
    columns = []
    for name, env in envs.items():
        folder = out / "games" / f"{entrant.number:02d}-step-{entrant.step:06d}" / name
        with naming(f"runs, {entrant.path}"):
            answer(
                folder, load, build(cfg, "engine"), env, sampling,
                split=cfg.split, size=cfg.games, chunk=cfg.chunk, seed=cfg.seed,
                unless_stopped=unless_stopped, on_completion=partial(bar.advance, task),
            )  # fmt: skip
        frame = read_traces(folder, ("group", "segment", "parts"))
        frame = frame[frame["segment"] == 0].sort_values("group")
        columns.append([score_of(json.loads(parts)) for parts in frame["parts"]])
    return np.array(columns).T


def _against(cfg: DictConfig, anchor: str) -> Game:
    own = cfg.copy()
    OmegaConf.set_struct(own, False)
    OmegaConf.update(own, "env.opponent", cfg.anchors[anchor], merge=False)
    with naming(f"anchors.{anchor}"):
        env: Game = build(own, "env")
    if not hasattr(env, "play"):
        raise ConfigError(f"env: {env.name} is no environment of games: nobody else can play in it")
    return env


def _check(config: Mapping[str, Any]) -> None:
    for key in ("anchor_games", "games", "chunk", "resamples"):
        if config[key] < 1:
            raise ConfigError(f"{key} is {config[key]}; it must be at least 1")
    if not isinstance(config["anchors"], dict) or len(config["anchors"]) < 2:
        raise ConfigError("anchors has fewer than two entries; they have to be placed by playing each other")
    if not config["prior_draws"] > 0:
        raise ConfigError(f"prior_draws is {config['prior_draws']}; it must be above 0: it keeps ratings finite")
    if not 0 < config["confidence"] < 1:
        raise ConfigError(f"confidence is {config['confidence']}; it must lie between 0 and 1, such as 0.95")


def _write(out: Path, ratings: Ratings) -> None:
    write_atomic(out / "ratings.json", json.dumps(asdict(ratings), indent=1, allow_nan=False).encode())
    try:
        plot(ratings, out / "ratings.png")
    except ImportError:
        print(f"no ratings.png: pip install matplotlib, and start this again with resume={out}")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="ratings")
def main(cfg: DictConfig) -> None:
    """The entry point that Hydra calls."""
    hydra_config = HydraConfig.get()
    cfg = continued(cfg, hydra_config.overrides.task)
    guarded(lambda: run(cfg, Path(hydra_config.runtime.output_dir)))


if __name__ == "__main__":
    start(main)
