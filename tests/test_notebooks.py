"""Every notebook runs from top to bottom on small runs and shows plots, also where little was recorded; its figures are
those of the analysis; it defines nothing and stores no outputs.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nbformat
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from test_sweep import lines_of, write_job

from rlreason import train
from rlreason.analysis.behaviours import behaviour_frame
from rlreason.analysis.compare import compare
from rlreason.analysis.health import early_warnings, health
from rlreason.analysis.lengths import by_step
from rlreason.analysis.load import read_metrics, read_traces
from rlreason.analysis.surprise import moves
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


def execute(name: str, folders: Mapping[str, Path], tmp_path: Path) -> Any:
    """The notebook with its outputs, errors among them. ``folders`` are the variables that name what it reads."""
    path = REPO / "notebooks" / name
    spec = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "this"}
    (tmp_path / "kernels" / "this").mkdir(parents=True)
    (tmp_path / "kernels" / "this" / "kernel.json").write_text(json.dumps(spec | {"language": "python"}))
    environment = os.environ | {
        **{variable: str(folder) for variable, folder in folders.items()},
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


def make_run(folder: Path, *overrides: str) -> Path:
    """Four steps of the tiny model, with evaluations."""
    common = ["+experiment=arithmetic", "model=tiny", "max_steps=4", "eval_every=2", "logger.mode=disabled"]
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[*common, "console.quiet=true", *overrides])
    train.run(cfg, folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has a reference model, and with it ``ref_logp``."""
    return make_run(tmp_path_factory.mktemp("other"), "seed=2", "algo.beta=0.05")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """grpo 0.2, 0.4, 0.6 and rloo 0.3, 0.6, 0.9: differences of mean 0.2 and standard deviation 0.1."""
    folder = tmp_path_factory.mktemp("sweep")
    for number, (algo, seed, accuracy) in enumerate(
        [("grpo", 1, 0.2), ("grpo", 2, 0.4), ("grpo", 3, 0.6), ("rloo", 1, 0.3), ("rloo", 2, 0.6), ("rloo", 3, 0.9)]
    ):
        write_job(folder, number, seed, f"algo={algo}", lines=lines_of(accuracy))
    return folder


@pytest.fixture(scope="module")
def bare(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As little as a run can have recorded: traces of schema version 1 without verdicts, and a line of metrics."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "traces").mkdir()
    later = ("policy_logp", "ref_logp", "entropy", "token_advantage", "grade_seconds", "generate_seconds")
    for file in (run / "traces").iterdir():
        table = pq.read_table(file).drop_columns(list(later))
        table = table.drop_columns(["correct"]).append_column("correct", pa.nulls(len(table), pa.bool_()))
        pq.write_table(table.replace_schema_metadata({"rlreason.schema": "1"}), folder / "traces" / file.name)
    (folder / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1, "reward": 0.5}\n', encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def executed(run: Path, other: Path, sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A notebook by its name, executed once: on ``other`` and ``sweep``, with ``run`` before."""
    folders = {"RLREASON_RUN": other, "RLREASON_BEFORE": run, "RLREASON_SWEEP": sweep}

    @functools.cache
    def of(name: str) -> Any:
        notebook = execute(name, folders, tmp_path_factory.mktemp("executed"))
        assert errors(notebook) == []
        return notebook

    return of


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} == {
        "first_look",
        "reasoning_traces",
        "rl_against_sft",
        "sweep_statistics",
        "training_dynamics",
    }


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
def test_executes(path: Path, executed: Callable[[str], Any]) -> None:
    notebook = executed(path.name)
    assert len(images(notebook)) == sum("plt.show()" in cell.source for cell in code_cells(notebook)) > 0


@pytest.mark.parametrize("name", ["reasoning_traces.ipynb", "rl_against_sft.ipynb", "training_dynamics.ipynb"])
def test_bears_what_was_not_recorded(name: str, bare: Path, tmp_path: Path) -> None:
    notebook = execute(name, {"RLREASON_RUN": bare}, tmp_path)
    assert errors(notebook) == []
    assert images(notebook)


def test_reasoning_traces(other: Path, executed: Callable[[str], Any]) -> None:
    text = printed(executed("reasoning_traces.ipynb"))
    traces = read_traces(other)
    traces = traces[traces["split"] == "train"]
    mean = by_step(traces)["mean"]
    assert f"mean length {mean.iloc[0]:.1f} tokens at first, {mean.iloc[-1]:.1f} at last" in text
    counts = behaviour_frame(traces)
    for name in counts:
        assert f"{name}: in {(counts[name] > 0).mean():.1%} of rollouts, {counts[name].sum()} times" in text
    (top,) = moves(traces, 1).itertuples()
    assert f"----- step {top.step}, problem {top.problem}, reward {top.reward:.3g}: {top.sum:.3f} nats -----" in text
    assert "rlreason.annotate" not in text


def test_reasoning_traces_without_a_reference(run: Path, tmp_path: Path) -> None:
    notebook = execute("reasoning_traces.ipynb", {"RLREASON_RUN": run}, tmp_path)
    assert errors(notebook) == []
    text = printed(notebook)
    assert f"python -m rlreason.annotate {run}\n" in text
    traces = read_traces(run)
    right = traces[(traces["split"] == "train") & traces["correct"].fillna(False)]
    lowest = min(sum(logp) / len(logp) for logp in right["sampler_logp"])
    assert f": {lowest:.3f} nats -----" in text.partition("by the sampler")[2].splitlines()[1]


def test_training_dynamics(other: Path, executed: Callable[[str], Any]) -> None:
    text = printed(executed("training_dynamics.ipynb"))
    traces = read_traces(other)
    found = health(read_metrics(other), traces[traces["split"] == "train"])
    own = found["ess/token"].dropna()
    assert len(own) > 1
    assert f"ess/token: {own.iloc[0]:.4f} at first, {own.iloc[-1]:.4f} at last" in text
    assert f"{len(early_warnings(found))} warnings, " in text


def test_rl_against_sft(run: Path, other: Path, executed: Callable[[str], Any]) -> None:
    text = printed(executed("rl_against_sft.ipynb"))
    before, after = (read_traces(folder / "traces" / "eval-validation-000004.parquet") for folder in (run, other))
    found = compare(before, after)
    assert f"before {found.before.mean:.4f}, after {found.after.mean:.4f}\n" in text
    change = found.difference
    assert f"difference {change.mean:+.4f} ({change.low:+.4f} to {change.high:+.4f})" in text
    assert f"won {found.won}, lost {found.lost}, the same {found.tied}; {found.unpaired} are" in text


def test_rl_against_its_own_beginning(run: Path, tmp_path: Path) -> None:
    notebook = execute("rl_against_sft.ipynb", {"RLREASON_RUN": run}, tmp_path)
    assert errors(notebook) == []
    assert f"before: {run}, validation after step 0\nafter:  {run}, validation after step 4\n" in printed(notebook)


def test_sweep_statistics(executed: Callable[[str], Any]) -> None:
    """Half-widths are t s / √n with s = 0.1: of 3 seeds 4.303 × 0.1 / √3 = 0.248, of 4 3.182 × 0.1 / 2 = 0.159, and
    0.2 lies between. With t(0.8) added, of 4 seeds (3.182 + 0.978) × 0.05 = 0.208, of 5 (2.776 + 0.941) × 0.0447 =
    0.166."""
    text = printed(executed("sweep_statistics.ipynb"))
    assert "| algo=rloo | 0.6 (0 to 1) | 0.2 (-0.0484 to 0.448) | 1: 0.3, 2: 0.6, 3: 0.9 |" in text
    assert "algo=grpo: 0.4000 over 3 seeds, standard deviation 0.2000" in text
    assert "algo=rloo: difference +0.2000, standard deviation 0.1000 over 3 seeds" in text
    assert "4 seeds to exclude 0 on average, 5 for a power of 0.8" in text


def test_sweep_statistics_of_one_seed(tmp_path: Path) -> None:
    write_job(tmp_path / "sweep", 0, 1, lines=lines_of(0.5))
    write_job(tmp_path / "sweep", 1, 2, state="failed")
    notebook = execute("sweep_statistics.ipynb", {"RLREASON_SWEEP": tmp_path / "sweep"}, tmp_path)
    assert errors(notebook) == []
    assert "nothing is known of the spread" in printed(notebook)


def test_first_look_shows_the_right_traces(run: Path, tmp_path: Path) -> None:
    notebook = execute("first_look.ipynb", {"RLREASON_RUN": run}, tmp_path)
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


def test_first_look_bears_missing_metrics(bare: Path, tmp_path: Path) -> None:
    notebook = execute("first_look.ipynb", {"RLREASON_RUN": bare}, tmp_path)
    assert errors(notebook) == []
    assert f"{bare}: 1 training steps" in printed(notebook)
    assert len(images(notebook)) == 2
