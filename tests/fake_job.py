"""A job for the tests of the pipeline: ``fake_job.py <job> <override>... hydra.run.dir=<folder>`` in the place of
``python -m rlreason.<job> ...``. It leaves what the real one would, in no time, and does as ``control.json`` in the
folder above ``run`` says: by folder, ``fail`` (an exit code), ``wait`` (for a signal), ``nothing`` (no summary),
``steps`` (of the checkpoints) or ``values`` (an evaluation's accuracy, reward and length).

Every start is a line of ``calls.jsonl`` there.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any


def leave(signals: list[int]) -> Any:
    def handler(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        print(f"told to stop: {len(signals)}", flush=True)

    return handler


def main() -> None:
    job, *overrides, run_dir = sys.argv[1:]
    folder = Path(run_dir.removeprefix("hydra.run.dir=").strip("'"))
    base = next(parent for parent in folder.parents if (parent / "control.json").is_file())
    name = str(folder.relative_to(base / "run"))
    control = json.loads((base / "control.json").read_text()).get(name, {})
    with (base / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps({"job": job, "name": name, "overrides": overrides}) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").touch()
    print(f"{job} at work")
    print("grüße \x1b[1m", file=sys.stderr)
    if control.get("wait"):
        signals: list[int] = []
        signal.signal(signal.SIGINT, leave(signals))
        signal.signal(signal.SIGTERM, leave(signals))
        (folder / "session").write_text(str(os.getsid(0)))
        held = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.exists()]
        (folder / "held").write_text("\n".join(held))
        (folder / "waiting").touch()
        while not signals:
            time.sleep(0.01)
        time.sleep(0.2)  # a second one would come now
        (folder / "signals.json").write_text(json.dumps(signals))
        raise SystemExit(128 + signals[0])
    if control.get("fail"):
        print("\n".join(f"line {number}" for number in range(40)))
        raise SystemExit(control["fail"])
    summary: dict[str, Any] = {"steps": 2}
    if job == "evaluate":
        values = control.get("values", {"reward": 0.5})
        summary = {f"eval/task/{key}": {"mean": v, "low": v / 2, "high": 2 * v, "n": 10} for key, v in values.items()}
        summary["split"] = "validation"
    elif job == "sample":
        (folder / "sft.jsonl").write_text(f"{overrides}\n")
    else:
        for step in control.get("steps", (1, 2)):
            checkpoint = folder / "checkpoints" / f"step-{step:06d}"
            checkpoint.mkdir(parents=True, exist_ok=True)
            (checkpoint / "config.json").touch()
            weights = hashlib.sha256(f"{name} {step}".encode()).hexdigest()
            (checkpoint / "model.safetensors").write_text(weights)
    if not control.get("nothing"):
        (folder / "summary.json").write_text(json.dumps(summary))


if __name__ == "__main__":
    main()
