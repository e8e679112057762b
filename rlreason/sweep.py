"""python -m rlreason.sweep SWEEP [--metric NAME]

A sweep beyond its jobs: one that crashes doesn't end it, one that is finished isn't run again, and at the end there is
one table, which this entry point makes again. In the sweep's folder:

```
sweep.md, sweep.json, sweep.png   the table; the same with every seed's value; curves by steps, tokens and hours
<job>/job.json                    what the job was asked for: number, seed, overrides
<job>/failed.json                 why it failed, with the traceback, until it is run again
<job>/lock                        held by the process that is at it, whose number it holds
```

What the table says and how it is worked out is in ``rlreason.analysis.sweeps``. Left out: jobs on several machines
that have no batch system in common; and going on after the system has killed the process of Hydra's own launcher or
of joblib's, in which jobs share a fate: start the sweep again.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from rlreason.analysis.sweeps import Sweep, markdown, not_finished, read_sweep, results
from rlreason.config import ConfigError, register, resolved
from rlreason.files import as_json, write_atomic
from rlreason.resume import check_begun
from rlreason.signals import SIGNALS

_IS_MAIN = int(os.environ.get("RANK", "0")) == 0  # of several processes, one keeps the books


def run_job(
    run: Callable[[], float | None], cfg: DictConfig, folder: Path, *, number: int, overrides: Sequence[str]
) -> float | None:
    """Run one job of a sweep in ``folder``; what ``run`` returns, or None if it failed.

    A job that is finished there is not run again: its result is read. One that another process is at is left to it. One
    that raises an exception leaves ``failed.json`` behind, and the sweep goes on; only the wish to stop ends it.
    """
    with _locked(folder) as holder:
        if holder:
            print(f"{folder} is left to process {holder}, which is at it.")
            return None
        try:
            _write(folder / "job.json", {"number": number, "seed": cfg.seed, "overrides": list(overrides)})
            if (summary := _summary(cfg, folder)) is not None:
                print(f"{folder} is finished.")
                return _accuracy(summary)
            if _IS_MAIN:
                (folder / "failed.json").unlink(missing_ok=True)
            return run()
        except Exception as error:
            kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
            _write(folder / "failed.json", {"error": f"{kind}{error}", "traceback": traceback.format_exc()})
            print(f"error: {folder} failed; the sweep goes on. {kind}{error}", file=sys.stderr)
            return None
        except SystemExit:
            print("The sweep ends here; the same command takes it up again.")
            raise


class SweepCallback(Callback):
    """What Hydra calls around a sweep (``hydra.callbacks`` in ``conf/train.yaml``)."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Settle the folder, and have a signal between two jobs end the sweep as it would have ended a job."""
        # It hangs on the command line, and a launcher's processes have another one.
        folder = str(Path(config.hydra.sweep.dir).absolute())
        with read_write(config), open_dict(config):
            config.hydra.sweep.dir = folder
            escaped = folder.replace("'", "\\'")
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{escaped}'")
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, _end)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """The table. Raises SystemExit (1) if a job isn't finished."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if _IS_MAIN and len(not_finished(report(Path(config.hydra.sweep.dir)).jobs)):
            raise SystemExit(1)

    def __reduce__(self) -> tuple[Callable[[], SweepCallback], tuple[()]]:
        return _arrived, ()


def _arrived() -> SweepCallback:
    """A launcher's process has this object before anything else of ours, and needs our resolvers to find its folder."""
    register()
    return SweepCallback()


def report(folder: Path, metric: str | None = None) -> Sweep:
    """Write the table and the curves of the sweep in ``folder``; print the table. Raises what ``read_sweep`` does."""
    sweep = read_sweep(folder, metric)
    text = markdown(sweep)
    write_atomic(folder / "sweep.json", as_json(results(sweep), indent=1).encode())
    try:
        from rlreason.analysis.sweep_figure import draw
    except ImportError:
        hint = f"No curves: pip install matplotlib, then python -m rlreason.sweep {folder}"
    else:
        write_atomic(folder / "sweep.png", draw(sweep))
        hint = ""
    write_atomic(folder / "sweep.md", (text + ("" if hint else "\n![curves](sweep.png)\n")).encode())
    print(f"\n{text}\n{hint or folder / 'sweep.md'}")
    return sweep


def _summary(cfg: DictConfig, folder: Path) -> Any:
    """``summary.json`` of the job, if it got to its last step. ConfigError if another configuration's is there."""
    if not (folder / "summary.json").is_file():
        return None
    check_begun(resolved(cfg), folder)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary if summary["steps"] >= cfg.max_steps else None


def _accuracy(summary: Any) -> float | None:
    """What ``train`` returns."""
    return next((value for name, value in summary["after"].items() if name.endswith("/accuracy")), None)


@contextmanager
def _locked(folder: Path) -> Iterator[str]:
    """Hold the folder; yields who else does, or an empty string. A lock that a fork doesn't inherit: what a killed job
    leaves running holds nothing."""
    if not _IS_MAIN:
        yield ""
        return
    with (folder / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            yield file.read() or "unknown"
            return
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield ""


def _write(path: Path, content: Any) -> None:
    if _IS_MAIN:
        write_atomic(path, as_json(content, indent=1).encode())


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rlreason.sweep", description="Makes a sweep's table again.")
    parser.add_argument("sweep", type=Path, help="the folder of a sweep, under multirun/")
    parser.add_argument("--metric", help="another metric than the accuracy, such as mean_length or entropy")
    arguments = parser.parse_args()
    try:
        report(arguments.sweep, arguments.metric)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
