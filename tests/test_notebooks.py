"""Every notebook runs from top to bottom on a small run and shows a plot; it defines nothing and stores no outputs."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hydra import compose, initialize_config_dir

from rlreason import train
from rlreason.analysis.load import read_metrics, read_traces
from rlreason.config import CONF, register

REPO = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


# In a process of its own: what the messaging library leaves open, it warns about, and here warnings are errors. The
# kernel is this interpreter, whatever kernels are installed.
EXECUTE = """
import sys
import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

source, result, folder, kernels = sys.argv[1:]
manager = AsyncKernelManager(kernel_name="this", kernel_spec_manager=KernelSpecManager(kernel_dirs=[kernels]))
notebook = nbformat.read(source, as_version=4)
resources = {"metadata": {"path": folder}}
NotebookClient(notebook, km=manager, timeout=120, allow_errors=True, resources=resources).execute()
nbformat.write(notebook, result)
"""


def execute(path: Path, run: Path, tmp_path: Path) -> Any:
    """The notebook with its outputs, errors among them."""
    spec = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "this"}
    (tmp_path / "kernels" / "this").mkdir(parents=True)
    (tmp_path / "kernels" / "this" / "kernel.json").write_text(json.dumps(spec | {"language": "python"}))
    environment = os.environ | {
        "RLREASON_RUN": str(run),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "PYTHONPATH": os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "PYTHONWARNINGS": "default",  # a library's warning must not stop a reader's notebook
    }
    environment.pop("MPLBACKEND", None)  # the kernel chooses the one that shows plots in the notebook
    result = tmp_path / "executed.ipynb"
    command = [sys.executable, "-c", EXECUTE, str(path), str(result), str(path.parent), str(tmp_path / "kernels")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return read(result)


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def errors(notebook: Any) -> list[str]:
    return ["\n".join(output.traceback) for output in outputs(notebook) if output.output_type == "error"]


def printed(notebook: Any) -> str:
    return "".join(output.text for output in outputs(notebook) if output.get("name") == "stdout")


def images(notebook: Any) -> list[str]:
    return [output.data["image/png"] for output in outputs(notebook) if "image/png" in output.get("data", {})]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps of the tiny model, with evaluations."""
    folder = tmp_path_factory.mktemp("run")
    overrides = ["+experiment=arithmetic", "model=tiny", "max_steps=4", "eval_every=2", "logger.mode=disabled"]
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[*overrides, "console.quiet=true"])
    train.run(cfg, folder)
    return folder


def test_there_are_notebooks() -> None:
    assert "first_look.ipynb" in [path.name for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_stored_without_outputs(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert code_cells(notebook)
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_defines_nothing(path: Path) -> None:
    for cell in code_cells(read(path)):
        found = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, DEFINITIONS)]
        assert not found, f"line {found[0].lineno} of the cell:\n{cell.source}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_executes(path: Path, run: Path, tmp_path: Path) -> None:
    notebook = execute(path, run, tmp_path)
    assert errors(notebook) == []
    assert images(notebook)


def test_first_look_shows_the_right_traces(run: Path, tmp_path: Path) -> None:
    notebook = execute(REPO / "notebooks" / "first_look.ipynb", run, tmp_path)
    assert errors(notebook) == []
    text = printed(notebook)
    assert f"{run}: 4 training steps" in text
    assert len(images(notebook)) == 2
    best, worst, surprising = (
        text.partition(f"===== {title} =====")[2] for title in ("BEST", "WORST", "MOST SURPRISING")
    )
    traces = read_traces(run)
    traces = traces[traces["split"] == "train"]
    assert f"reward {traces['reward'].max():.3g}," in best.splitlines()[1]
    assert worst.splitlines()[1].startswith(f"step {traces['step'][traces['reward'] == 0].max()}, reward 0,")
    correct = traces[traces["correct"]]
    assert len(correct) > 3, "with this seed, the random model should have hit some answers"
    lowest = min(sum(logp) / len(logp) for logp in correct["sampler_logp"])
    assert f"mean log-probability {lowest:.2f}" in surprising.splitlines()[2]
    assert read_metrics(run)["reward"].max() > 0


def test_first_look_bears_missing_metrics(run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "traces").symlink_to(run / "traces")
    (bare / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1, "reward": 0.5}\n', encoding="utf-8")
    notebook = execute(REPO / "notebooks" / "first_look.ipynb", bare, tmp_path)
    assert errors(notebook) == []
    assert f"{bare}: 1 training steps" in printed(notebook)
    assert len(images(notebook)) == 2
