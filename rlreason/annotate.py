"""python -m rlreason.annotate RUN [--model MODEL] [--steps 1,2,30] [--again]

Fills in ``ref_logp`` of a run's traces: what a reference model thinks of every token that the policy wrote. The
reference is the model that the run started from, unless ``--model`` names another (a name of ``conf/model``, a run
folder, a model folder or a model of the hub), with the same tokenizer. It goes file by file, so that it can be
interrupted and started again; a file that has a ``ref_logp`` is left alone, unless ``--again`` is given.

This is what the analysis of surprise (``rlreason.analysis.surprise``, "move 37") reads, without a training that had to
carry a reference. Left out: log-probabilities of the policy itself, whose checkpoints are gone for most steps; the
traces have those of training, and the sampler's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress

from rlreason import checkpoint
from rlreason.analysis.load import trace_files
from rlreason.batch import micro_batches, stack
from rlreason.config import ConfigError, build, naming
from rlreason.files import write_atomic
from rlreason.policy import Policy, take_rows
from rlreason.traces import READABLE, SCHEMA
from rlreason.types import Segment

MICRO_BATCH_TOKENS = 4096


def annotate(
    run: Path, *, model: str | None = None, steps: Sequence[int] | None = None, again: bool = False
) -> tuple[int, int]:
    """Fill in the traces of run folder ``run``, of all steps or those in ``steps``; returns how many files were written
    and how many needed nothing.

    Raises ConfigError for a folder that is no run, for steps it has no traces of, and for a model with another
    vocabulary.
    """
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"{run} is no run folder: it has no config.yaml (looked in {Path.cwd()})")
    cfg = OmegaConf.load(run / "config.yaml")
    assert isinstance(cfg, DictConfig)
    with naming("traces"):
        files = trace_files(run)
    there = {int(file.stem.rpartition("-")[2]) for file in files}
    if missing := sorted(set(steps or ()) - there):
        raise ConfigError(f"{run} has no traces of step {', '.join(map(str, missing))}; it has {sorted(there)}")
    if model is not None:
        with naming("model"):
            cfg.model = OmegaConf.merge(cfg.model, {"path": checkpoint.weights_of(model), "revision": None})
    with naming("model"):
        policy: Policy = build(cfg, "model")(device=Accelerator().device)
    written = 0
    wanted = [file for file in files if steps is None or int(file.stem.rpartition("-")[2]) in steps]
    with Progress(console=Console(stderr=True)) as bar:
        for file in bar.track(wanted, description=run.name):
            written += fill(file, policy, float(cfg.sampling.temperature) or 1.0, again=again)
    return written, len(wanted) - written


@torch.no_grad()
def fill(file: Path, reference: Policy, temperature: float, *, again: bool) -> bool:
    """Write ``ref_logp`` of one file's rows, at ``temperature``; False if it was there. Raises ConfigError if the
    file's tokens are not the model's."""
    table = pq.read_table(file)
    version = (table.schema.metadata or {}).get(b"rlreason.schema", b"none").decode()
    if version not in READABLE:
        raise ConfigError(f"{file}: schema version {version} of the traces, but this writes {SCHEMA.metadata}")
    if not again and "ref_logp" in table.column_names and table["ref_logp"].null_count == 0:
        return False
    columns = ("prompt_ids", "completion_ids", "sampler_logp", "mask")
    rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
    segments = [Segment(*row) for row in rows]
    largest = max((max(s.prompt_ids + s.completion_ids) for s in segments), default=0)
    if largest >= (size := reference.model.get_input_embeddings().weight.shape[0]):
        raise ConfigError(f"{file} has the token {largest}, but the reference knows {size}: it has another tokenizer")
    found = logprobs(reference, segments, table["group"].to_pylist(), temperature)
    filled: dict[str, Any] = {name: table[name] for name in table.column_names}
    filled |= {"ref_logp": pa.array(found, SCHEMA.field("ref_logp").type)}
    for field in SCHEMA:  # those that a file of an older version lacks
        filled.setdefault(field.name, pa.nulls(len(table), field.type))
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table([filled[field.name] for field in SCHEMA], schema=SCHEMA), buffer, compression="zstd")
    write_atomic(file, buffer.getvalue().to_pybytes())
    return True


def logprobs(
    policy: Policy, segments: Sequence[Segment], groups: Sequence[int], temperature: float
) -> list[list[float]]:
    """log p of each segment's ``completion_ids``, nats; 0 where its mask is False. Segments of equal ``groups`` are run
    side by side, and share their prompt where it is the same."""
    batch = stack(segments, groups, device=policy.device)
    everything = torch.arange(len(segments), device=policy.device)
    found: list[list[float]] = [[] for _ in segments]
    for rows in micro_batches(batch, everything, MICRO_BATCH_TOKENS, shared_prompts=policy.shares_prompts):
        logp = policy.forward(take_rows(batch, rows), temperature).logp.cpu()
        for row, values in zip(rows.tolist(), logp, strict=True):
            begin = len(segments[row].prompt_ids)
            found[row] = values[begin : begin + len(segments[row].completion_ids)].tolist()
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder with traces/")
    parser.add_argument("--model", help="the reference (default: what the run started from)")
    parser.add_argument(
        "--steps", type=lambda text: [int(step) for step in text.split(",")], help="such as 1,2,30 (default: all)"
    )
    parser.add_argument("--again", action="store_true", help="also where there is a ref_logp already")
    asked = parser.parse_args()
    try:
        written, left = annotate(asked.run, model=asked.model, steps=asked.steps, again=asked.again)
    except ConfigError as error:
        sys.exit(str(error))
    print(f"{asked.run}: ref_logp written into {written} files of traces, {left} had it")


if __name__ == "__main__":
    main()
