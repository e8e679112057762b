"""A recipe: stages, each a command of this package, that hand their results on. Read and checked here; run by
``rlreason/pipeline.py``.

Overrides are written as on the command line. What an earlier stage made stands in braces:

- ``{sft.checkpoint}``: the checkpoint folder chosen of stage ``sft`` (``train``, ``sft``, ``dpo``, ``reward_model``);
- ``{rft.file}``: the ``sft.jsonl`` of stage ``rft`` (``sample``);
- ``{rm.run}``: the run folder of stage ``rm``, whatever its job.

An entry of a list of overrides may itself be a list (``- ${vars.gsm8k}``), so that stages can share some.

Left out: stages side by side, and conditions. A recipe is a list; what needs more is a program.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlreason.config import CONF, ConfigError, build, model_paths, resolved

POLICY_JOBS = ("train", "sft", "dpo")
JOBS = (*POLICY_JOBS, "reward_model", "sample")
SELECT = ("best", "latest")
START = "start"
"""The starting model among the stages."""
FINAL = "final"
"""The folder of the final evaluations."""

_NAME = re.compile(r"[A-Za-z]\w*")
_PLACEHOLDER = re.compile(r"(?<!\$)\{(\w+)\.(\w+)\}")  # not ${...}, which is OmegaConf's
_OURS = ("hydra.run.dir", "resume")
_CHECKED = ("env", "data", "algo", "optim", "sampling", "selection")  # built ahead, where nothing in them is made later


@dataclass(frozen=True)
class Stage:
    """``select`` says which kept checkpoint is handed on: ``best`` on the recipe's validation, or ``latest``."""

    name: str
    job: str
    overrides: tuple[str, ...]
    select: str = "latest"

    @property
    def products(self) -> tuple[str, ...]:
        return ("run", "file") if self.job == "sample" else ("run", "checkpoint")


@dataclass(frozen=True)
class Recipe:
    """``base_model`` is what the first stage starts from. ``validation`` are the overrides of the evaluation that
    chooses checkpoints, ``final`` those of the evaluations at the end, by name."""

    base_model: str
    stages: tuple[Stage, ...]
    validation: tuple[str, ...]
    final: Mapping[str, tuple[str, ...]]


def read(config: Mapping[str, Any]) -> Recipe:
    """The recipe of a resolved ``conf/pipeline.yaml``. Raises ConfigError, naming the stage, for an unknown key, job,
    placeholder or choice, and for a stage that needs what is not made before it."""
    if not config["stages"]:
        raise ConfigError("there are no stages: name a recipe, such as +recipe=r1")
    if not isinstance(config["stages"], Mapping):
        raise ConfigError(f"stages has a stage under each name; it is {config['stages']!r}")
    validation = _overrides("validation", config["validation"])
    if not isinstance(config["final"], Mapping):
        raise ConfigError(
            f"final has evaluations by name, such as {{test: [split=test]}}, or {{}}: it is {config['final']!r}"
        )
    final = {name: _overrides(f"final.{name}", given) for name, given in config["final"].items()}
    stages: list[Stage] = []
    for name, given in config["stages"].items():
        stage = _stage(str(name), given)
        _check_placeholders(f"stages.{name}", stage.overrides, stages)
        if stage.select == "best" and not validation:
            raise ConfigError(f"stages.{name}.select is best, but there is no validation to choose by")
        stages.append(stage)
    for where, overrides in {"validation": validation, **{f"final.{k}": v for k, v in final.items()}}.items():
        _check_placeholders(where, overrides, [])
        if any(_key(override) in ("model", "run") for override in overrides):
            raise ConfigError(f"{where} names a model: it is given the checkpoints of the stages")
    for name in final:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"final.{name}: a name, which is a folder's, has letters, digits and _ only")
    return Recipe(config["base_model"], tuple(stages), validation, final)


def filled(overrides: Sequence[str], made: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The overrides with what each stage made, ``made[stage][product]``, in the place of the placeholders."""
    return [_PLACEHOLDER.sub(lambda found: made[found[1]][found[2]], override) for override in overrides]


def needed(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """The (stage, product) pairs that the overrides mention, each once."""
    return list(dict.fromkeys((found[1], found[2]) for o in overrides for found in _PLACEHOLDER.finditer(o)))


def command(job: str, overrides: Sequence[str], folder: Path) -> list[str]:
    """What a user would type to run a job in ``folder``."""
    plain = re.fullmatch(r"[\w./-]+", str(folder))  # else Hydra would take it apart
    run_dir = str(folder) if plain else f"'{folder}'"
    return [sys.executable, "-m", f"rlreason.{job}", *overrides, f"hydra.run.dir={run_dir}"]


def check(recipe: Recipe, out: Path) -> None:
    """Compose the configuration of every stage and evaluation, and build what in them doesn't wait for an earlier
    stage (environments, data, algorithms), so that a mistake in the last one is told before the first one runs.
    Raises ConfigError."""
    if not re.fullmatch(r"[\w./ -]+", str(out)):
        raise ConfigError(
            f"{out}: Hydra takes such a path apart in overrides; use letters, digits and . _ - in its name"
        )
    made = {
        stage.name: {product: str(out / stage.name / product) for product in stage.products} for stage in recipe.stages
    }
    later = [path for products in made.values() for path in products.values()]
    for where, job, overrides in _commands(recipe):
        try:
            cfg = _composed(job, filled(overrides, made))
            resolved(cfg)
            for key in _CHECKED:
                if cfg.get(key) is not None and not any(
                    path in str(OmegaConf.to_container(cfg[key])) for path in later
                ):
                    build(cfg, key)
        except (HydraException, OmegaConfBaseException, ConfigError) as error:
            raise ConfigError(f"{where} ({job}): {error}") from error


def _commands(recipe: Recipe) -> Iterator[tuple[str, str, Sequence[str]]]:
    for stage in recipe.stages:
        yield f"stages.{stage.name}", stage.job, stage.overrides
    for where, overrides in {"validation": recipe.validation, **recipe.final}.items():
        yield where, "evaluate", [f"model={recipe.base_model}", *overrides]


def _composed(job: str, overrides: Sequence[str]) -> DictConfig:
    with ExitStack() as stack:
        if not GlobalHydra.instance().is_initialized():  # it is, below hydra.main, with the same folder
            stack.enter_context(initialize_config_dir(str(CONF), version_base="1.3"))
        return compose(job, overrides=model_paths(list(overrides)))


def _stage(name: str, given: Any) -> Stage:
    where = f"stages.{name}"
    if not _NAME.fullmatch(name) or name in (START, FINAL):
        raise ConfigError(f"{where}: a stage's name, which is a folder's, has letters, digits and _ only, and is not "
                          f"{START} or {FINAL}")  # fmt: skip
    allowed = [field.name for field in fields(Stage) if field.name != "name"]
    if not isinstance(given, Mapping) or not {"job"} <= given.keys() <= {*allowed}:
        raise ConfigError(f"{where} has the keys {', '.join(allowed)}, of which job must be there; given: {given}")
    job, select = given["job"], given.get("select", "latest")
    if job not in JOBS:
        raise ConfigError(f"{where}.job is {job!r}; the jobs are {', '.join(JOBS)}")
    if select not in SELECT:
        raise ConfigError(f"{where}.select is {select!r}; choose {' or '.join(SELECT)}")
    if select == "best" and job not in POLICY_JOBS:
        raise ConfigError(f"{where}.select is best, but a {job} makes no policy to evaluate: leave it out")
    return Stage(name, job, _overrides(where, given.get("overrides", [])), select)


def _overrides(where: str, given: Any) -> tuple[str, ...]:
    """The overrides of a list, one level of lists within it flattened."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ConfigError(f"{where}: overrides are a list, such as [env=gsm8k, seed=1]; given: {given!r}")
    flat = [o for entry in given for o in (entry if isinstance(entry, list) else [entry])]
    for override in flat:
        if not isinstance(override, str):
            raise ConfigError(f"{where}: {override!r} is no override; put it in quotes")
        if _key(override) in _OURS:
            raise ConfigError(f"{where}: {override}: the pipeline itself says where a job runs")
    return tuple(flat)


def _check_placeholders(where: str, overrides: Sequence[str], before: Sequence[Stage]) -> None:
    made = {stage.name: stage.products for stage in before}
    for name, product in needed(overrides):
        if product not in made.get(name, ()):
            known = ", ".join(f"{{{stage}.{p}}}" for stage, products in made.items() for p in products)
            raise ConfigError(
                f"{where} asks for {{{name}.{product}}}, which no stage before it makes; there is {known or 'nothing'}"
            )


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]
