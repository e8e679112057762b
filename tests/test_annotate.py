"""Reference log-probabilities filled into traces afterwards."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from helpers import plain_logp, tiny_folder
from test_traces import CONFIG
from test_train import CAPITALS, tiny_config
from transformers import AutoModelForCausalLM

from rlreason import annotate as module
from rlreason.analysis.load import read_traces
from rlreason.annotate import annotate, main
from rlreason.config import ConfigError
from rlreason.train import run


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a reference: two training steps and two evaluations."""
    out = tmp_path_factory.mktemp("annotate") / "run"
    run(tiny_config(*CAPITALS, *CONFIG), out)
    return out


@pytest.fixture
def done(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "run"))


def agrees(frame: pd.DataFrame, reference: Path | str) -> bool:
    """Whether every row's ``ref_logp`` is the reference's, by Hugging Face alone."""
    model = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32).eval()
    for row in frame.itertuples():
        with torch.no_grad():
            expected = plain_logp(model, row.prompt_ids.tolist(), row.completion_ids.tolist(), 0.7).numpy()
        if len(row.ref_logp) != len(expected) or np.abs(row.ref_logp - expected).max() > 2e-4:
            return False
    return True


def test_what_the_starting_model_thought(done: Path) -> None:
    before = read_traces(done)
    assert before["ref_logp"].isna().all()
    assert annotate(done) == (4, 0)
    after = read_traces(done)
    assert agrees(after, tiny_folder())
    pd.testing.assert_frame_equal(after.drop(columns="ref_logp"), before.drop(columns="ref_logp"))
    assert pq.read_schema(done / "traces" / "step-000001.parquet").metadata[b"rlreason.schema"] == b"3"
    assert annotate(done) == (0, 4)  # nothing is done twice


def test_another_reference_and_some_steps(done: Path) -> None:
    assert annotate(done, steps=[1]) == (1, 0)
    checkpoint = done / "checkpoints" / "step-000002"
    assert annotate(done, model=str(checkpoint), steps=[1, 2]) == (2, 1)  # step 1 has one
    frame = read_traces(done)
    assert agrees(frame[frame["step"] == 1], tiny_folder())
    assert agrees(frame[frame["step"] == 2], checkpoint)
    assert annotate(done, model=str(done), steps=[1], again=True) == (1, 0)  # of a run folder the newest checkpoint
    frame = read_traces(done)
    assert agrees(frame[frame["step"] == 1], checkpoint)
    assert frame[frame["step"] == 0]["ref_logp"].isna().all()


def test_an_interruption_keeps_what_is_done(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = module.logprobs, []

    def interrupted(*arguments: object) -> list[list[float]]:
        asked.append(arguments)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(module, "logprobs", interrupted)
        with pytest.raises(KeyboardInterrupt):
            annotate(done)
    assert annotate(done) == (2, 2)
    assert agrees(read_traces(done), tiny_folder())


def test_traces_of_the_first_version_become_those_of_this_one(done: Path) -> None:
    file = done / "traces" / "step-000001.parquet"
    later = ["grade_seconds", "generate_seconds", "policy_logp", "ref_logp", "entropy", "token_advantage"]
    old = pq.read_table(file).drop_columns(later).replace_schema_metadata({"rlreason.schema": "1"})
    pq.write_table(old, file)
    annotate(done, steps=[1])
    frame = read_traces(file)
    assert agrees(frame, tiny_folder())
    assert frame["entropy"].isna().all()


def test_mistakes_are_told(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="is no run folder"):
        annotate(tmp_path)
    with pytest.raises(ConfigError, match=r"has no traces of step 7; it has \[0, 1, 2\]"):
        annotate(done, steps=[1, 7])
    with pytest.raises(ConfigError, match=r"model: there is no folder \./nowhere"):
        annotate(done, model="./nowhere")
    monkeypatch.setattr(sys, "argv", ["annotate", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="none is no run folder"):
        main()


def test_the_command(done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["annotate", str(done), "--steps", "1,2"])
    main()
    assert "ref_logp written into 3 files of traces, 0 had it" in capsys.readouterr().out
