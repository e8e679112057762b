"""The trace store: what training found of each token, files of every age, reading while a run goes on, SQL."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import make_rollout, plain_logp, tiny_folder
from test_train import CAPITALS, tiny_config
from transformers import AutoModelForCausalLM

from rlreason import traces
from rlreason.analysis.load import read_metrics, read_traces
from rlreason.traces import SCHEMA, TokenNotes, Trained, write_traces
from rlreason.train import run

NOTED = ("policy_logp", "ref_logp", "entropy", "token_advantage")
CONFIG = (
    "max_steps=2", "eval_every=2", "save_every=1", "keep_checkpoints=9", "sampling.temperature=0.7",
    "model={_target_: rlreason.models.load, _partial_: true, path: "
    f"{tiny_folder()}, dtype: float32}}",
)  # fmt: skip


def wave(count: int, shift: float) -> np.ndarray:
    return np.sin(np.arange(count) + shift).astype(np.float32)


def test_notes_on_tokens_round_trip(tmp_path: Path) -> None:
    """Each at its segment; null for what was not noted, for rollouts that were not trained on, and in evaluations."""
    rollouts = [make_rollout(0, [4, 5], [6, 7, 8]), make_rollout(0, [4, 5], [9]), make_rollout(1, [4], [5, 6])]
    some = TokenNotes(policy_logp=wave(3, 0), token_advantage=wave(3, 1))
    every = TokenNotes(wave(1, 2), wave(1, 3), wave(1, 4), wave(1, 5))
    trained = [Trained(0.5, (some,)), Trained(-0.5, (every,)), Trained(float("nan"))]
    write_traces(tmp_path / "step-000001.parquet", rollouts, step=1, split="train", env="e", trained=trained)
    frame = read_traces(tmp_path / "step-000001.parquet")
    for row, notes in enumerate((some, every, TokenNotes())):
        for name in NOTED:
            kept, given = frame[name].iloc[row], getattr(notes, name)
            assert kept is None if given is None else (kept == given).all(), (row, name)
    assert frame["advantage"].tolist()[:2] == [0.5, -0.5]
    assert np.isnan(frame["advantage"].iloc[2])
    write_traces(tmp_path / "eval.parquet", rollouts, step=1, split="validation", env="e")
    assert read_traces(tmp_path / "eval.parquet", [*NOTED, "advantage"]).isna().all(axis=None)


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps with a KL in the loss, so that every row enters the network and there is a reference."""
    out = tmp_path_factory.mktemp("traces") / "run"
    run(tiny_config(*CAPITALS, *CONFIG, "algo.beta=0.1"), out)
    return out


def test_a_run_notes_what_the_policy_thought_of_each_token(trained_run: Path) -> None:
    """log p before the update, under the reference, and the entropy: by Hugging Face from the checkpoints."""
    start = AutoModelForCausalLM.from_pretrained(tiny_folder()).eval()
    frame = read_traces(trained_run)
    for step, before in ((1, start), (2, trained_run / "checkpoints" / "step-000001")):
        model = AutoModelForCausalLM.from_pretrained(before).eval() if isinstance(before, Path) else before
        rows = frame[(frame["step"] == step) & (frame["split"] == "train")]
        assert len(rows) == 16
        for row in rows.itertuples():
            prompt, completion = row.prompt_ids.tolist(), row.completion_ids.tolist()
            with torch.no_grad():
                own = plain_logp(model, prompt, completion, 0.7)
                reference = plain_logp(start, prompt, completion, 0.7)
                logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / 0.7
            entropy = torch.distributions.Categorical(logits=logits).entropy()
            for name, expected in (("policy_logp", own), ("ref_logp", reference), ("entropy", entropy)):
                np.testing.assert_allclose(getattr(row, name), expected.numpy(), atol=2e-4, err_msg=name)
            np.testing.assert_allclose(row.token_advantage, row.advantage, rtol=1e-5)
    moved = np.concatenate((frame["policy_logp"] - frame["ref_logp"])[frame["step"] == 2].dropna().tolist())
    assert np.abs(moved).max() > 1e-3  # the update showed, and in the policy's alone


def test_rows_that_no_update_needed_have_no_log_probabilities(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(tiny_config(*CAPITALS, *CONFIG, "algo.beta=0"), out)
    rows = read_traces(out).query("split == 'train'")
    needed = rows["advantage"] != 0
    assert needed.any()
    assert not needed.all()
    for name in ("policy_logp", "entropy"):
        assert (rows[name].notna() == needed).all()
    assert rows["ref_logp"].isna().all()
    assert [len(found) for found in rows["token_advantage"]] == rows["completion_tokens"].tolist()


def test_several_updates_of_a_batch_note_the_policy_before_the_first(tmp_path: Path) -> None:
    """Later passes see another policy; what the sampler drew from is what is kept."""
    out = tmp_path / "run"
    run(tiny_config(*CAPITALS, *CONFIG, "algo.num_iterations=3", "algo.num_mini_batches=2", "max_steps=1"), out)
    rows = read_traces(out).query("split == 'train' and advantage != 0")
    for row in rows.itertuples():
        np.testing.assert_allclose(row.policy_logp, row.sampler_logp, atol=2e-4)


def test_the_clock_is_in_the_traces(trained_run: Path) -> None:
    frame, lines = read_traces(trained_run), read_metrics(trained_run)
    for step in (1, 2):
        rows = frame[(frame["step"] == step) & (frame["split"] == "train")]
        spent = lines.set_index("step").loc[step]
        longest = sum(spent[f"timing/{phase}"] for phase in ("draw", "generate", "grade"))  # from when it is asked for
        assert 0 < rows["generate_seconds"].min() < rows["generate_seconds"].max() <= longest
        assert rows["grade_seconds"].nunique() == 1
        assert 0 < rows["grade_seconds"].iloc[0] <= spent["timing/grade"]


def test_sql_reads_the_traces_as_they_lie(trained_run: Path) -> None:
    frame = read_traces(trained_run).query("split == 'train'")
    found = duckdb.sql(f"""
        SELECT step, avg(reward) AS reward, avg(list_avg(entropy)) AS entropy
        FROM '{trained_run}/traces/step-*.parquet' GROUP BY step ORDER BY step
    """).df()
    expected = frame.assign(entropy=frame["entropy"].map(np.mean)).groupby("step")[["reward", "entropy"]].mean()
    pd.testing.assert_frame_equal(found.set_index("step"), expected, check_dtype=False, atol=1e-6, rtol=0)


def test_the_last_file_may_be_damaged_and_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "traces"
    folder.mkdir()
    for step in (1, 2, 3):
        write_traces(
            folder / f"step-00000{step}.parquet", [make_rollout(0, [4], [5])], step=step, split="train", env="e"
        )
    whole = (folder / "step-000003.parquet").read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:-1] + b"\0"):
        (folder / "step-000003.parquet").write_bytes(damaged)
        assert read_traces(tmp_path)["step"].tolist() == [1, 2]
        assert "step-000003.parquet is damaged and left out" in capsys.readouterr().err
    (folder / "step-000002.parquet").write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"step-000002\.parquet is damaged .* move it away"):
        read_traces(tmp_path)
    with pytest.raises(ValueError, match=r"step-000003\.parquet is damaged"):
        read_traces(folder / "step-000003.parquet")


@pytest.mark.parametrize(
    ("version", "later"),
    [("1", ("tools", "turn_rewards", "grade_seconds", "generate_seconds", *NOTED)), ("2", ("tools", "turn_rewards"))],
)
def test_files_of_earlier_versions_are_read(version: str, later: tuple[str, ...], tmp_path: Path) -> None:
    write_traces(tmp_path / "new.parquet", [make_rollout(0, [4], [5, 6])], step=1, split="train", env="e")
    table = pq.read_table(tmp_path / "new.parquet")
    old = table.drop_columns(list(later)).replace_schema_metadata({"rlreason.schema": version})
    pq.write_table(old, tmp_path / "old.parquet")
    new, frame = read_traces(tmp_path / "new.parquet"), read_traces(tmp_path / "old.parquet")
    assert list(frame.columns) == SCHEMA.names
    assert frame[list(later)].isna().all(axis=None)
    pd.testing.assert_frame_equal(frame.drop(columns=list(later)), new.drop(columns=list(later)))
    assert read_traces(tmp_path / "old.parquet", ["tools", "step"]).columns.tolist() == ["tools", "step"]


def test_every_column_is_documented() -> None:
    def kind(name: str) -> pa.DataType:
        inner = re.fullmatch(r"list<(\w+)>", name)
        return pa.list_(kind(inner[1])) if inner else pa.type_for_alias(name)

    listed = re.findall(r"^(\w+) +(list<\w+>|\w+)", (traces.__doc__ or "").split("= =")[2], flags=re.MULTILINE)
    assert {name: kind(of) for name, of in listed} == {field.name: field.type for field in SCHEMA}
    assert len(listed) == len(SCHEMA)
