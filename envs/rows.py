"""Rows of problems from local files and from the Hugging Face hub, for the environments that read data sets.

Left out: streaming; the data sets here fit into memory many times.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from envs.base import ListSplit
from envs.jsonl import json_lines
from rlreason.types import Problem, Split

HUB_SECONDS = 5.0
"""How long the hub may take to answer before it counts as unreachable, in seconds."""


def local_rows(
    folder: Path, files: Mapping[str, str], *, env: str, example: str, what_to_do: str
) -> tuple[dict[str, list[tuple[str, Any]]], dict[str, str]]:
    """By split, the (where, row) pairs of its file in ``folder``; and the SHA-256 of each file by its name.

    Raises FileNotFoundError, with ``what_to_do``, for a missing file, ValueError for a line that is no JSON.
    """
    rows, hashes = {}, {}
    for split, file in files.items():
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{env}: there is no file {folder / file}. {what_to_do}")
        content = (folder / file).read_bytes()
        hashes[file] = hashlib.sha256(content).hexdigest()
        rows[split] = list(json_lines(folder / file, content, example))
    return rows, hashes


def hold_out(train: list[Problem], test: list[Problem], count: int, *, env: str, seed: int) -> dict[str, Split]:
    """The three splits, ``count`` problems of train held out for validation: the same ones for equal data and seed.

    Raises ValueError if train has no more than that, or test none.
    """
    if count >= len(train):
        raise ValueError(
            f"{env}: num_validation is {count}, but train has only {len(train)} problems to hold them out of; lower "
            "env.num_validation"
        )
    if not test:
        raise ValueError(f"{env}: the test data have no rows")
    held_out = random.Random(f"{env}/validation/{seed}").sample(range(len(train)), count)
    chosen = set(held_out)
    return {
        "train": ListSplit([problem for place, problem in enumerate(train) if place not in chosen]),
        "validation": ListSplit([train[place] for place in held_out]),
        "test": ListSplit(test),
    }


def hub_tables(
    dataset: str,
    config: str,
    revision: str | None,
    *,
    env: str,
    splits: Collection[str],
    columns: Collection[str],
    what_to_do: str,
) -> tuple[Mapping[str, Any], str]:
    """The tables of ``splits`` and the commit that they are of; from the cache if the hub does not answer.

    Raises ConnectionError, with ``what_to_do``, if neither is to be had, and ValueError if the hub has no such data;
    ``env`` is whose message it is.
    """
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    problem: Exception | None = None
    commit = revision
    if not offline:
        try:
            commit = _hub_commit(dataset, revision, env)
        except ConnectionError as error:
            problem, offline = error, True

    import datasets

    try:
        with _datasets_offline(offline):
            tables = datasets.load_dataset(dataset, config, revision=commit)
    except ValueError as error:  # no such config
        raise ValueError(f"{env}: can't load {dataset!r} (config {config!r}) from the hub: {error}") from error
    except Exception as error:
        raise _unreachable(dataset, env, what_to_do) from (problem or error)
    if not all(split in tables and {*columns} <= {*tables[split].column_names} for split in splits):
        needed = f" with {' and '.join(columns)}" if columns else ""
        raise ValueError(f"{env}: {dataset!r} (config {config!r}) lacks {' and '.join(splits)}{needed}")
    # The cache keeps each commit in a folder of its own; asked for another commit, offline it hands out the latest.
    loaded = Path(tables[next(iter(splits))].cache_files[0]["filename"]).parent.name
    if revision is not None and loaded != commit:
        raise _unreachable(dataset, env, what_to_do) from RuntimeError(
            f"the cache holds commit {loaded}, not revision {revision}"
        )
    return tables, loaded


def _hub_commit(dataset: str, revision: str | None, env: str) -> str | None:
    """The commit that ``revision`` names, asked of the hub once.

    ``load_dataset`` itself retries an unreachable hub for 23 seconds and more. The request runs in a thread because its
    time limit does not cover name resolution, which can hang for half a minute on a machine without a network.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    answer: list[str | None] = []
    errors: list[Exception] = []

    def ask() -> None:
        try:
            api = HfApi(endpoint=constants.ENDPOINT)
            answer.append(api.dataset_info(dataset, revision=revision, timeout=HUB_SECONDS).sha)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    if answer:
        return answer[0]
    cause = errors[0] if errors else TimeoutError(f"the hub did not answer within {HUB_SECONDS} s")
    if isinstance(cause, RepositoryNotFoundError | RevisionNotFoundError):
        raise ValueError(f"{env}: the hub has no data set {dataset!r} at revision {revision!r}: {cause}") from cause
    raise ConnectionError(f"{constants.ENDPOINT}: {type(cause).__name__}: {cause}") from cause


@contextmanager
def _datasets_offline(offline: bool) -> Iterator[None]:
    """Let ``datasets`` go straight to its cache; it reads this setting from the environment only once."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _unreachable(dataset: str, env: str, what_to_do: str) -> ConnectionError:
    return ConnectionError(
        f"{env}: {dataset!r} can't be had from the Hugging Face hub, and no usable copy is in its cache. {what_to_do}"
    )
