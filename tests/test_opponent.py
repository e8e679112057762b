"""Frozen past selves: which weights play and what they draw is the seed's doing, whoever else is asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers import device, tiny_folder

from rlreason import models
from rlreason.engines import generate
from rlreason.engines.torch import TorchEngine
from rlreason.opponent import PastSelves
from rlreason.sampler import derived_seed
from rlreason.types import Message, Request, Sampling

LONG = 600  # tokens, in which the tiny model happens to end


def ask(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


TALKS = [ask("a"), [*ask("b"), {"role": "assistant", "content": "c"}, *ask("d")], ask("e"), ask("a")]
SEEDS = [1, 2, 3, 4]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with two checkpoints: the tiny model, and another draw of it."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text("{}")
    shutil.copytree(tiny_folder(), tmp_path / "checkpoints" / "step-000010")
    (tmp_path / "checkpoints" / "step-000020").mkdir()
    models.build_tiny(tmp_path / "checkpoints" / "step-000020", seed=5)
    return tmp_path


def test_texts_are_the_checkpoints_own(run: Path) -> None:
    selves = PastSelves(run=str(run), max_completion_length=LONG, dtype="float32")
    pool = selves.pool()
    assert [Path(path).name for path in pool] == ["step-000010", "step-000020"]
    texts = selves(TALKS, SEEDS)
    chosen = [pool[derived_seed(seed, "self") % 2] for seed in SEEDS]
    assert set(chosen) == set(pool)
    for talk, seed, path, text in zip(TALKS, SEEDS, chosen, texts, strict=True):
        policy = models.load(path, dtype="float32", device=device())
        turn = sum(message["role"] == "assistant" for message in talk)
        (written,) = generate(
            TorchEngine(policy, max_tokens_in_flight=20_000),
            [
                Request(
                    policy.render(talk).ids,
                    Sampling(max_completion_length=LONG),
                    derived_seed(seed, "self", turn),
                )
            ],
        )
        assert text == (policy.decode(written.ids) if written.finish == "stop" else "")
    assert len({text for text in texts if text}) > 1
    again = PastSelves(run=str(run), max_completion_length=LONG, dtype="float32", loaded=1)
    assert again(TALKS[::-1], SEEDS[::-1]) == texts[::-1]
    assert len(again._engines) == 1
    assert [again([talk], [seed])[0] for talk, seed in zip(TALKS, SEEDS, strict=True)] == texts


def test_the_pool_grows_with_its_run(run: Path) -> None:
    later = run / "checkpoints" / "step-000030"
    selves = PastSelves(paths=["tiny"], run=str(run), newest=2)
    assert selves.pool()[0] == "tiny"
    assert [Path(path).name for path in selves.pool()[1:]] == ["step-000010", "step-000020"]
    shutil.copytree(run / "checkpoints" / "step-000020", later)
    assert [Path(path).name for path in selves.pool()[1:]] == ["step-000020", "step-000030"]
    assert [Path(path).name for path in PastSelves(paths=[str(run)]).pool()] == ["step-000030"]


def test_what_was_cut_off_or_does_not_fit_is_empty(run: Path) -> None:
    selves = PastSelves(paths=["tiny"], max_completion_length=1, dtype="float32")
    assert set(selves(TALKS, SEEDS)) == {""}
    assert selves([ask("a" * 1100), ask("a")], [1, 2]) == ["", ""]  # the tiny model holds 1024 tokens


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nobody to play against"):
        PastSelves()
    with pytest.raises(ValueError, match=r"paths is 'tiny'; it must be a list, such as \[tiny\]"):
        PastSelves(paths="tiny")
    with pytest.raises(ValueError, match="newest is 0"):
        PastSelves(paths=["tiny"], newest=0)
    with pytest.raises(ValueError, match="temperature is -1"):
        PastSelves(paths=["tiny"], temperature=-1)
    with pytest.raises(FileNotFoundError, match=r"run=.*nowhere is no folder"):
        PastSelves(run=str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        PastSelves(paths=[str(tmp_path / "nowhere")])
    with pytest.raises(ValueError, match="holds no checkpoint yet; name in paths who plays until it does"):
        PastSelves(run=str(tmp_path))
    assert PastSelves(paths=["tiny"], run=str(tmp_path)).pool() == ["tiny"]
