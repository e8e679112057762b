"""Readers of the run folder: metrics and traces as data frames. They never write.

Left out: caching, and lazy reading of many files. Ask for the columns you need; token ids are most of the bytes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rlreason.record import metric_lines
from rlreason.traces import READABLE, SCHEMA


def read_metrics(run: str | Path) -> pd.DataFrame:
    """``metrics.jsonl`` of a run folder: one row a step, ``step`` int64 and every other column float64.

    null and absent metrics are NaN. A torn last line (the run was killed while writing) is left out. Raises
    FileNotFoundError without the file, and ValueError, naming the line, if any other line is broken.
    """
    path = Path(run) / "metrics.jsonl"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a run folder, one that holds metrics.jsonl")
    frame = pd.DataFrame([json.loads(line) for line in metric_lines(path)])
    if "step" not in frame:
        return pd.DataFrame({"step": pd.Series(dtype="int64")})
    return frame.astype({name: "int64" if name == "step" else "float64" for name in frame})


def read_traces(path: str | Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Traces of one Parquet file, or of every file of a run folder, with the columns that ``rlreason.traces`` lists;
    those that an older version of the schema lacks are null.

    Rows are in order of step, training before evaluation. ``columns`` None reads all of them. ``correct`` is a
    nullable boolean, whose mean leaves out what has no verdict. The last file of a folder is left out, with a word on
    stderr, if it is damaged. Raises FileNotFoundError if there are no traces, and ValueError if a file has another
    schema version, or if one before the last is damaged.
    """
    path = Path(path)
    files = [path] if path.is_file() else trace_files(path)
    wanted = SCHEMA.names if columns is None else list(columns)
    if missing := [name for name in wanted if name not in SCHEMA.names]:
        raise ValueError(f"traces have no column {', '.join(missing)}; they have {', '.join(SCHEMA.names)}")
    tables = []
    for file in files:
        try:
            tables.append(_read(file, wanted))
        except (pa.ArrowException, OSError) as error:
            if file != files[-1] or len(files) == 1:
                raise ValueError(f"{file} is damaged ({error}); move it away to read the others") from error
            print(f"{file} is damaged and left out: {error}", file=sys.stderr)
    table = pa.concat_tables(tables)
    nullable: dict[Any, Any] = {pa.bool_(): pd.BooleanDtype()}
    return table.to_pandas(types_mapper=nullable.get)


def trace_files(run: Path) -> list[Path]:
    """The files of a run folder's traces, in order of step, training before evaluation. Raises FileNotFoundError if
    there are none."""
    files = sorted((run / "traces").glob("*.parquet"), key=_order)
    if not files:
        raise FileNotFoundError(f"no traces in {run}; give a .parquet file or a run folder that has traces/")
    return files


def _order(file: Path) -> tuple[int, bool, str]:
    return int(file.stem.rpartition("-")[2]), not file.stem.startswith("step-"), file.name


def _read(file: Path, columns: list[str]) -> Any:
    with pq.ParquetFile(file) as parquet:
        version = (parquet.schema_arrow.metadata or {}).get(b"rlreason.schema", b"none").decode()
        if version not in READABLE:
            raise ValueError(
                f"{file}: schema version {version}, but this rlreason reads versions {', '.join(READABLE)}; "
                "read it with the version named in the run's manifest.json"
            )
        there = set(parquet.schema_arrow.names)
        table = parquet.read(columns=[name for name in columns if name in there])
    for name in columns:
        if name not in there:
            table = table.append_column(name, pa.nulls(len(table), SCHEMA.field(name).type))
    return table.select(columns).replace_schema_metadata(None)
