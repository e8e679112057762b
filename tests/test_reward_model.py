"""Reward models end to end: what is learned and what cannot be, the report, and the statistics of pairs by hand."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from test_scorer import untied_folder
from test_supervised import Made, config, made, talk
from test_train import metrics_of

from rlreason import reward_model
from rlreason.config import ConfigError
from rlreason.examples import Example
from rlreason.pair_stats import calibration, length_bias, report_table
from rlreason.scorer import FACTS, load_scorer
from rlreason.stats import estimate
from rlreason.supervised import SupervisedLearner
from rlreason.types import Comparison


def exclaiming(split: str, number: int, *, by_chance: bool = False) -> Comparison:
    """Of two answers, the one that ends in "!" is the better one. ``by_chance``: the label is a coin's.

    The longer answer is the chosen one in 3 of 4 pairs, in the validation split too."""
    chance = random.Random(f"{split}{number}")
    word = "".join(chance.choice("abcdefgh") for _ in range(4))
    good, bad = f"{word}{'a' * (2 if number % 4 else 0)}!", f"{word}{'a' * (0 if number % 4 else 2)}."
    if by_chance and chance.random() < 0.5:
        good, bad = bad, good
    chosen, rejected = (talk("", text)[1:] for text in (good, bad))
    return Comparison(talk(f"{word}?"), chosen, rejected, category=("odd", "even")[number % 2 == 0], source=f"{number}")


LEARNS = ("max_steps=40", "batch_size=8", "save_every=40", "eval_every=40", "optim.learning_rate=3e-3")


RULE = made("test_reward_model.exclaiming", train=64, validation=40)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rule") / "run"
    accuracy = reward_model.run(config("reward_model", *LEARNS, data=RULE), out)
    assert accuracy == metrics_of(out)[-1]["eval/made/accuracy"]
    return out


def test_a_rule_is_learned(learned: Path) -> None:
    found = json.loads((learned / "summary.json").read_text())
    assert found["before"]["eval/made/accuracy"] < 0.8
    assert found["accuracy"]["all"]["mean"] > 0.9
    assert found["after"]["eval/made/accuracy"] == found["accuracy"]["all"]["mean"]


def test_the_summary_has_the_report(learned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads((learned / "summary.json").read_text())
    assert found["accuracy"].keys() == {"all", "even", "odd"}
    assert found["accuracy"]["all"]["n"] == 40
    assert found["accuracy"]["even"]["n"] == found["accuracy"]["odd"]["n"] == 20
    for value in found["accuracy"].values():
        assert value["low"] <= value["mean"] <= value["high"]
    assert sum(b["pairs"] for b in found["calibration"]["bins"]) == 40
    bias = found["length_bias"]
    # 10 of 40 have the shorter one chosen: 2 tokens shorter, as the other 30 are longer
    assert (bias["pairs"], bias["chosen_longer"], bias["rule_accuracy"]) == (40, 0.75, 0.75)
    assert bias["correlation"] is None  # every difference is of 2 tokens
    after = found["after"]
    assert found["calibration"]["log_loss"] == pytest.approx(after["eval/made/loss"] - centring_of(learned), abs=1e-6)
    accuracies = [after[f"eval/made/{category}/accuracy"] for category in ("even", "odd")]
    assert accuracies == [found["accuracy"][category]["mean"] for category in ("even", "odd")]


def scores_of(out: Path) -> list[float]:
    """Raw scores of the held-out texts, chosen and rejected in turn, by the scorer."""
    (member,) = (scorer := load_scorer([str(out)], dtype="float32")).members
    pairs = Made(exclaiming, {"validation": 40}).split("validation")
    texts = [[*pair.prompt, *side] for pair in pairs for side in (pair.chosen, pair.rejected)]
    return [score * member.std + member.mean for (score,) in scorer(texts)]


def centring_of(out: Path) -> float:
    """The mean of 0.01 (chosen + rejected)^2, which the loss has besides."""
    scores = np.array(scores_of(out)).reshape(-1, 2)
    return float((0.01 * scores.sum(1) ** 2).mean())


def test_scores_are_normalised_on_the_held_out_pairs(learned: Path) -> None:
    facts = json.loads((learned / "checkpoints" / "step-000040" / FACTS).read_text())
    scores = np.array(scores_of(learned))
    assert facts["mean"] == pytest.approx(scores.mean(), abs=1e-4)
    assert facts["std"] == pytest.approx(scores.std(), rel=1e-4)
    last = metrics_of(learned)[-1]
    assert last["eval/made/score_chosen"] == pytest.approx(scores[::2].mean(), abs=1e-4)
    assert last["eval/made/score_rejected"] == pytest.approx(scores[1::2].mean(), abs=1e-4)


def test_labels_of_chance_are_not_learned(tmp_path: Path) -> None:
    """Or something besides the texts gives the label away."""
    chance = made("test_reward_model.exclaiming", train=64, validation=40, more="by_chance: true")
    reward_model.run(config("reward_model", *LEARNS, data=chance), tmp_path / "run")
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["accuracy"]["all"]["mean"]
    assert abs(found - 0.5) < 4 * math.sqrt(0.25 / 40)


def test_an_untied_base_is_trained_too(tmp_path: Path) -> None:
    base = untied_folder(tmp_path)
    small = ("max_steps=4", "save_every=2", "eval_every=4", "model.dtype=bfloat16", "optim.weight_decay=0.1")
    out = tmp_path / "run"
    reward_model.run(config("reward_model", f"model={base}", *small, data=RULE), out)
    before, after = (load_file(f / "model.safetensors") for f in (base, out / "checkpoints" / "step-000004"))
    assert after.keys() - before.keys() == {"score.weight"}
    assert before.keys() - after.keys() == {"lm_head.weight"}
    assert all(not torch.equal(after[name], before[name]) for name in before.keys() & after.keys())
    assert load_scorer([str(out)])([talk("?", "!")])
    reward_model.run(config("reward_model", f"model={base}", *small, data=RULE), out)  # it can be taken up again


def test_scores_need_held_out_pairs(tmp_path: Path) -> None:
    data = made("test_reward_model.exclaiming", train=8, validation=0)
    with pytest.raises(ConfigError, match="data: made has no validation pair"):
        reward_model.run(config("reward_model", data=data), tmp_path / "run")
    assert not list(tmp_path.rglob("step-*"))


def test_a_margin_that_no_pair_has_is_refused(tmp_path: Path) -> None:
    data = made("test_reward_model.exclaiming", train=8, validation=2)
    with pytest.raises(ConfigError, match=r"no pair of made has a margin.*use_margin=false"):
        reward_model.run(config("reward_model", "use_margin=true", data=data), tmp_path / "run")
    assert not list(tmp_path.rglob("step-*"))
    few = ("max_steps=1", "use_margin=true")
    reward_model.run(config("reward_model", *few), tmp_path / "with")  # liking_capitals has margins


def alike(split: str, number: int) -> Comparison:
    """Four pairs a prompt."""
    pair = exclaiming(split, number)
    return replace(pair, prompt=talk(f"{split} {number // 4}?"), category="all")


def test_intervals_are_over_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four pairs of one prompt are not four independent ones."""
    right = [float(number // 4 % 3 > 0) for number in range(24)]  # all four of a prompt alike; 4 of 6 prompts

    def evaluate(self: SupervisedLearner, examples: Sequence[Example]) -> list[dict[str, float]]:
        each = {"count": 1.0, "loss": 0.5, "margin": 0.1, "score_chosen": 0.1, "score_rejected": 0.0}
        return [each | {"accuracy": value} for value in right]

    monkeypatch.setattr(SupervisedLearner, "evaluate", evaluate)
    data = made("test_reward_model.alike", train=16, validation=24)
    reward_model.run(config("reward_model", "max_steps=1", data=data), tmp_path / "run")
    expected = estimate(right[::4])
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["accuracy"]["all"]
    assert found == vars(expected) | {"n": 24, "prompts": 6}
    last = metrics_of(tmp_path / "run")[-1]
    assert (last["eval/made/accuracy_low"], last["eval/made/accuracy_high"]) == (expected.low, expected.high)
    assert expected.low < estimate(right).low  # of 24 pairs, had they been independent


def test_seeds_make_different_members(tmp_path: Path) -> None:
    small = ("max_steps=2", "save_every=2", "eval_every=2")
    for seed in (1, 2):
        reward_model.run(config("reward_model", *small, f"seed={seed}", data=RULE), tmp_path / f"{seed}")
    scorer = load_scorer([str(tmp_path / "1"), str(tmp_path / "2")], dtype="float32")
    ((one, other),) = scorer([talk("?", "!")])
    assert one != other


# Statistics of pairs


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_calibration_by_hand() -> None:
    # confidence 0.62, 0.62, 0.62 (two right), 0.97 (right), 0.97 (wrong): bins 0.60-0.65 and 0.95-1
    margin = np.array([logit(0.62), logit(0.62), -logit(0.62), logit(0.97), -logit(0.97)])
    found = calibration(margin)
    assert found["bins"] == [
        {"confidence": pytest.approx(0.62), "accuracy": pytest.approx(2 / 3), "pairs": 3},
        {"confidence": pytest.approx(0.97), "accuracy": 0.5, "pairs": 2},
    ]
    assert found["ece"] == pytest.approx((3 * (2 / 3 - 0.62) + 2 * 0.47) / 5)
    assert found["brier"] == pytest.approx((2 * 0.38**2 + 0.62**2 + 0.03**2 + 0.97**2) / 5)
    logs = 2 * math.log(0.62) + math.log(0.38) + math.log(0.97) + math.log(0.03)
    assert found["log_loss"] == pytest.approx(-logs / 5)


def test_calibration_at_the_ends() -> None:
    undecided = calibration(np.zeros(3))  # half right at confidence one half: perfectly calibrated
    assert undecided["bins"] == [{"confidence": 0.5, "accuracy": 0.5, "pairs": 3}]
    assert (undecided["ece"], undecided["brier"]) == (0.0, 0.25)
    sure = calibration(np.array([1000.0, -1000.0]))
    assert sure["bins"] == [{"confidence": 1.0, "accuracy": 0.5, "pairs": 2}]
    assert (sure["ece"], sure["brier"], sure["log_loss"]) == (0.5, 0.5, 500.0)


def test_length_bias_by_hand() -> None:
    # Five pairs; the chosen one longer by 3, 1, -2, 0, -4 tokens; margins 2, -1, -1, 5, 0.
    found = length_bias(np.array([2.0, -1.0, -1.0, 5.0, 0.0]), np.array([3, 1, -2, 0, -4]))
    assert found["pairs"] == 4  # of different length
    assert found["chosen_longer"] == found["rule_accuracy"] == 0.5
    # for the longer text: 2, -1, 1, and undecided: (1 + 0 + 1 + 1/2) / 4
    assert found["judge_prefers_longer"] == 0.625
    assert found["accuracy_chosen_longer"] == 0.5
    assert found["accuracy_chosen_shorter"] == 0.25  # wrong, and half right
    assert found["correlation"] == pytest.approx(np.corrcoef([2, -1, 1, 0], [3, 1, 2, 4])[0, 1])


def test_length_bias_without_what_it_looks_at() -> None:
    assert length_bias(np.array([1.0, 2.0]), np.array([0, 0])) == {"pairs": 0}
    found = length_bias(np.array([1.0, -2.0, 0.5]), np.array([-1, -1, -1]))
    assert found["accuracy_chosen_longer"] is None
    assert found["accuracy_chosen_shorter"] == pytest.approx(2 / 3)
    assert found["correlation"] is None  # equal differences
    assert (found["chosen_longer"], found["rule_accuracy"]) == (0.0, 1.0)  # the shorter is better, always


def test_the_report_shows_what_there_is() -> None:
    found = {
        "accuracy": {"all": {"mean": 0.75, "low": 0.6, "high": 0.9, "n": 8}},
        "calibration": {"ece": 0.125},
        "length_bias": length_bias(np.array([1.0, -2.0]), np.array([3, 2])),
    }
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(report_table(found, "made"))
    text = console.export_text()
    assert "0.750 (0.600 to 0.900), 8 pairs" in text
    assert "0.125" in text
    assert "judge_prefers_longer" in text
