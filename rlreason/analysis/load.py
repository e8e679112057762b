"""Readers of the run folder: metrics and traces as data frames. They never write.

Left out: caching, and lazy reading of many files. Ask for the columns you need; token ids are most of the bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rlreason.record import SCHEMA_VERSION, metric_lines


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
    """Traces of one Parquet file, or of every file of a run folder, with the columns that ``rlreason.record`` lists.

    Rows are in order of step, training before evaluation. ``columns`` None reads all of them. ``correct`` is a
    nullable boolean, whose mean leaves out what has no verdict. Raises FileNotFoundError if there are no traces,
    and ValueError if a file has another schema version.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted((path / "traces").glob("*.parquet"), key=_order)
    if not files:
        raise FileNotFoundError(f"no traces in {path}; give a .parquet file or a run folder that has traces/")
    wanted = None if columns is None else list(columns)
    table = pa.concat_tables([_read(file, wanted) for file in files])
    nullable: dict[Any, Any] = {pa.bool_(): pd.BooleanDtype()}
    return table.replace_schema_metadata(None).to_pandas(types_mapper=nullable.get)


def _order(file: Path) -> tuple[int, bool, str]:
    return int(file.stem.rpartition("-")[2]), not file.stem.startswith("step-"), file.name


def _read(file: Path, columns: list[str] | None) -> Any:
    with pq.ParquetFile(file) as parquet:
        version = (parquet.schema_arrow.metadata or {}).get(b"rlreason.schema", b"none").decode()
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"{file}: schema version {version}, but this rlreason reads version {SCHEMA_VERSION}; "
                "read it with the version named in the run's manifest.json"
            )
        names = parquet.schema_arrow.names
        if missing := [name for name in columns or [] if name not in names]:
            raise ValueError(f"{file} has no column {', '.join(missing)}; it has {', '.join(names)}")
        return parquet.read(columns=columns)
