"""Settings and fixtures that every test shares.

The environment is set before torch and wandb are imported, so that subprocesses of tests inherit it. One thread: the
models are tiny, and threads that wait for each other on a busy machine cost most of the time. No wandb; no fork
warnings from the tokenizers. The hub is not switched off here: tests that need it out of reach say so themselves.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["WANDB_MODE"] = "disabled"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder that holds real data sets (``gsm8k/train.jsonl`` and so on): $RLREASON_DATA, or ``../shared/data``.

    Skips the test where neither is there; fails it where $RLREASON_DATA names a folder that does not exist.
    """
    named = os.environ.get("RLREASON_DATA")
    if named:
        folder = Path(named)
        if not folder.is_dir():
            pytest.fail(f"RLREASON_DATA is {named!r}, which is not a folder")
        return folder
    folder = REPO.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real data sets here: set RLREASON_DATA to a folder that holds gsm8k/train.jsonl and test.jsonl")
    return folder
