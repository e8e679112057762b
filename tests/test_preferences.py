"""The losses of comparisons: by hand, by Hugging Face alone, and against TRL's RewardTrainer and DPOTrainer.

Some of the pairs have earlier turns of the assistant's in their prompt, and some compare several turns at once. TRL
computes on the same model by transformers' eager attention; ``AGREEMENT`` is for rounding in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import Dataset
from helpers import plain, plain_logp, tiny, tiny_folder
from test_supervised import gradient_of, settings, talk
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlreason.examples import Example
from rlreason.models import CHATML_TEMPLATE
from rlreason.policy import Policy
from rlreason.preferences import DPO, BradleyTerry, bradley_terry, completions, conversations, dpo
from rlreason.scorer import RewardModel
from rlreason.supervised import SupervisedLearner
from rlreason.types import Comparison, Segment

pytestmark = [  # see test_trl
    pytest.mark.filterwarnings("ignore:TRL currently supports vLLM versions:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
]

AGREEMENT = 1e-5


@pytest.fixture(scope="module", autouse=True)
def trl_leaves_the_device_alone() -> Iterator[None]:
    """As in test_trl."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def says(*texts: str) -> list[Any]:
    """Turns of assistant and user, the assistant first."""
    return talk("", *texts)[1:]


PAIRS = [
    Comparison(talk("Hi!"), says("Hello there."), says("No."), margin=0.5),
    Comparison(talk("Hi!", "Hello.", "Why so short?"), says("Be brief."), says("I am tired today, sorry."), margin=1.5),
    Comparison(talk("1 + 1?", "2", "2 + 2?", "5", "Sure?"), says("It is 4."), says("Yes."), margin=0.0),
    # several turns on each side, another question in the second
    Comparison(talk("Hm?"), says("a", "b", "c"), says("a", "x", "yz"), margin=0.25),
    Comparison([{"role": "system", "content": "S"}, *talk("?")], says("same"), says("same!"), margin=3.0),
]


# By hand


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: torch.Tensor, expected: Sequence[float]) -> None:
    torch.testing.assert_close(found.double(), tensor(*expected), rtol=1e-9, atol=1e-12)


def test_bradley_terry_by_hand() -> None:
    chosen, rejected = tensor(2.0, 0.0, -1.0), tensor(1.0, 0.0, 2.0)
    # differences 1, 0 and -3
    close(bradley_terry(chosen, rejected), [-math.log(sigmoid(1)), math.log(2), -math.log(sigmoid(-3))])
    # less margins 0.5, 1 and 0: 0.5, -1 and -3
    expected = [-math.log(sigmoid(0.5)), -math.log(sigmoid(-1)), -math.log(sigmoid(-3))]
    close(bradley_terry(chosen, rejected, tensor(0.5, 1.0, 0.0)), expected)
    # sums 3, 0 and 1, squared 9, 0 and 1
    centred = [-math.log(sigmoid(1)) + 0.9, math.log(2), -math.log(sigmoid(-3)) + 0.1]
    close(bradley_terry(chosen, rejected, centring=0.1), centred)
    # moving all scores changes nothing but the centring
    close(bradley_terry(chosen + 5, rejected + 5), bradley_terry(chosen, rejected).tolist())
    assert torch.isfinite(bradley_terry(tensor(-1000.0), tensor(1000.0))).all()


def test_dpo_by_hand() -> None:
    # log-ratios to the reference: chosen 2 and -1, rejected -1 and 1; differences 3 and -2; times beta 0.5: 1.5, -1
    chosen, rejected = tensor(-8.0, -6.0), tensor(-4.0, -2.0)
    reference = {"ref_chosen": tensor(-10.0, -5.0), "ref_rejected": tensor(-3.0, -3.0)}
    close(dpo(chosen, rejected, **reference, beta=0.5), [-math.log(sigmoid(1.5)), -math.log(sigmoid(-1))])
    smoothed = dpo(chosen, rejected, **reference, beta=0.5, label_smoothing=0.1)
    close(
        smoothed,
        [
            -0.9 * math.log(sigmoid(1.5)) - 0.1 * math.log(sigmoid(-1.5)),
            -0.9 * math.log(sigmoid(-1)) - 0.1 * math.log(sigmoid(1)),
        ],
    )
    # at the reference it is log 2, whatever beta and smoothing
    close(dpo(chosen, rejected, chosen, rejected, beta=7.0, label_smoothing=0.3), [math.log(2)] * 2)


def test_dpo_gradient_by_hand() -> None:
    # Equation 7's gradient: -beta sigmoid(-beta d) on the chosen one, the opposite on the other; d = 3, beta = 0.5
    chosen, rejected = tensor(-8.0).requires_grad_(), tensor(-4.0).requires_grad_()
    dpo(chosen, rejected, tensor(-10.0), tensor(-3.0), beta=0.5).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    close(chosen.grad, [-0.5 * sigmoid(-1.5)])
    close(rejected.grad, [0.5 * sigmoid(-1.5)])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"beta": 0.0}, "beta is 0.0; it must be above 0"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"label_smoothing": 0.5}, "label_smoothing is 0.5"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
    ],
)
def test_numbers_that_cannot_train_are_refused(changes: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DPO(tiny(), **{"beta": 0.1, **changes})


@pytest.mark.parametrize("centring", [-0.1, float("nan"), float("inf")])
def test_a_centring_that_cannot_train_is_refused(centring: float) -> None:
    with pytest.raises(ValueError, match=r"\(center_rewards_coefficient\) is .*must be 0"):
        BradleyTerry(RewardModel(tiny()), centring=centring)


# On the model


def moved_reference(policy: Policy) -> Any:
    """A reference that is not the policy, so that every term of the loss is at work."""
    policy.add_reference()
    assert policy.reference is not None
    with torch.no_grad():
        for parameter in policy.reference.parameters():
            parameter.mul_(1.03)
    return policy.reference


def learner_of(model: Any, objective: Any, *, micro_batch_tokens: int = 100_000) -> SupervisedLearner:
    return SupervisedLearner(
        model, objective, settings(), Accelerator(), max_steps=10, micro_batch_tokens=micro_batch_tokens
    )


def summed_logp(model: Any, example: Example) -> list[float]:
    """Of the learned tokens of each row, by Hugging Face alone."""
    found = []
    for s in example.segments:
        logp = plain_logp(model, s.prompt_ids, s.completion_ids, 1.0)
        found.append(float((logp * torch.tensor(s.mask)).sum()))
    return found


def test_dpo_and_its_metrics_by_hugging_face_alone() -> None:
    policy = tiny()
    reference = moved_reference(policy)
    examples = [completions(policy, pair) for pair in PAIRS]
    found = learner_of(policy, DPO(policy, beta=0.1)).evaluate(examples)
    with torch.no_grad():
        for example, own in zip(examples, found, strict=True):
            now, then = summed_logp(plain(policy.model), example), summed_logp(plain(reference), example)
            rewards = [0.1 * (a - b) for a, b in zip(now, then, strict=True)]
            assert own["loss"] == pytest.approx(-math.log(sigmoid(rewards[0] - rewards[1])), abs=1e-5)
            assert [own["rewards/chosen"], own["rewards/rejected"]] == pytest.approx(rewards, abs=1e-5)
            assert own["rewards/margins"] == pytest.approx(rewards[0] - rewards[1], abs=1e-5)
            assert [own["logps/chosen"], own["logps/rejected"]] == pytest.approx(now, rel=1e-6)
            assert own["accuracy"] == (rewards[0] > rewards[1])
    assert len({own["accuracy"] for own in found}) == 2  # both kinds are among them


def test_dpo_starts_at_log_2() -> None:
    policy = tiny()
    policy.add_reference()
    found = learner_of(policy, DPO(policy, beta=0.1)).evaluate([completions(policy, pair) for pair in PAIRS])
    assert [own["loss"] for own in found] == pytest.approx([math.log(2)] * len(PAIRS), abs=1e-7)
    assert [own["accuracy"] for own in found] == [0.5] * len(PAIRS)  # neither is preferred yet


def test_equal_scores_are_half_right() -> None:
    model = RewardModel(tiny(), torch.zeros(1, 64))
    found = learner_of(model, BradleyTerry(model)).evaluate([conversations(model, pair) for pair in PAIRS])
    assert [own["accuracy"] for own in found] == [0.5] * len(PAIRS)
    assert [own["loss"] for own in found] == pytest.approx([math.log(2)] * len(PAIRS))


STRIPS = CHATML_TEMPLATE.replace(
    "message['content']",
    "(message['content'] if loop.last else message['content'].split('</think>')[-1])",
)


def test_compared_turns_that_cannot_share_a_row_are_refused() -> None:
    policy = tiny()
    policy.tokenizer.chat_template = STRIPS
    thoughts = says("<think>a</think>b", "c", "<think>d</think>e")
    with pytest.raises(ValueError, match="can't be one completion"):
        completions(policy, Comparison(talk("?"), thoughts, says("no")))
    with pytest.raises(ValueError, match="no assistant's turn"):
        completions(policy, Comparison(talk("?"), says("yes"), []))
    # A thought that was stripped from the prompt is no matter.
    prompt = talk("?", "<think>a</think>b", "!")
    assert len(completions(policy, Comparison(prompt, says("c"), says("d"))).segments) == 2


def test_the_two_rows_share_what_they_begin_with() -> None:
    policy = tiny()
    example = completions(policy, PAIRS[1])
    prompt = policy.render(PAIRS[1].prompt).ids
    assert [s.prompt_ids for s in example.segments] == [prompt, prompt]
    assert (example.margin, example.category) == (1.5, "all")
    chosen, rejected = conversations(RewardModel(policy), PAIRS[1]).segments
    assert chosen.prompt_ids == rejected.prompt_ids
    assert chosen.prompt_ids[: len(prompt)] == prompt
    assert chosen.completion_ids[0] != rejected.completion_ids[0]


# Against TRL


def rows_of(pairs: Sequence[Comparison], *, margin: bool = False) -> Dataset:
    rows: list[dict[str, Any]] = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    if margin:
        rows = [row | {"margin": pair.margin} for row, pair in zip(rows, pairs, strict=True)]
    return Dataset.from_list(rows)


COMMON: dict[str, Any] = {
    "report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "max_length": None,
}  # fmt: skip


def trl_loss(trainer: Any, model: Any) -> tuple[float, dict[str, torch.Tensor], dict[str, float]]:
    """TRL's loss on all its pairs in one batch, its gradients by name and its metrics."""
    batch = trainer.data_collator(list(trainer.train_dataset))
    model.train()
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients, {name: values[-1] for name, values in trainer._metrics["train"].items()}


def assert_gradients(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert theirs
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=AGREEMENT, atol=AGREEMENT, msg=name)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model's folder, on the tiny model."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("reward") / "model"
    folder.mkdir()
    model = RewardModel(tiny())
    model.save(str(folder), model.take_masters())
    return folder


@pytest.mark.parametrize("centring", [0.0, 0.3])
@pytest.mark.parametrize("margin", [False, True])
def test_the_reward_model_is_trls(margin: bool, centring: float, scored: Path, tmp_path: Path) -> None:
    from trl import RewardConfig, RewardTrainer

    theirs = AutoModelForSequenceClassification.from_pretrained(scored, attn_implementation="eager")
    trainer = RewardTrainer(
        model=theirs,
        args=RewardConfig(output_dir=str(tmp_path), center_rewards_coefficient=centring or None, **COMMON),
        train_dataset=rows_of(PAIRS, margin=margin),
        processing_class=AutoTokenizer.from_pretrained(scored),
    )
    ours = RewardModel(tiny(), theirs.score.weight.detach())
    examples = [conversations(ours, pair) for pair in PAIRS]
    for example, row in zip(examples, trainer.train_dataset, strict=True):
        ids = [s.prompt_ids + s.completion_ids[:-1] for s in example.segments]  # without the token after the last
        assert ids == [row["chosen_ids"], row["rejected_ids"]]

    loss, gradients, metrics = trl_loss(trainer, theirs)
    objective = BradleyTerry(ours, use_margin=margin, centring=centring)
    found, said = gradient_of(learner_of(ours, objective), examples)
    assert said["loss"] == pytest.approx(loss, rel=AGREEMENT)
    assert said["margin"] == pytest.approx(metrics["margin"], abs=AGREEMENT)
    assert said["accuracy"] == pytest.approx(metrics["accuracy"])
    names = [*(name for name, _ in ours._policy.model.named_parameters()), "score.weight"]
    assert_gradients(dict(zip(names, found, strict=True)), gradients)


def test_margin_and_centring_matter(scored: Path) -> None:
    """Or the cases above could agree for want of a difference."""
    model = RewardModel(tiny(), AutoModelForSequenceClassification.from_pretrained(scored).score.weight.detach())
    examples = [conversations(model, pair) for pair in PAIRS]
    losses = [
        gradient_of(learner_of(model, BradleyTerry(model, margin, centring)), examples)[1]["loss"]
        for margin in (False, True)
        for centring in (0.0, 0.3)
    ]
    assert min(abs(a - b) for i, a in enumerate(losses) for b in losses[:i]) > 1e-3


def trl_dpo(folder: Path, pairs: Sequence[Comparison], policy: Policy, **options: Any) -> tuple[Any, Any]:
    """A DPOTrainer on copies of the policy and its reference, and the copy that it trains."""
    from trl import DPOConfig, DPOTrainer

    copies = []
    for model in (policy.model, policy.reference):
        assert model is not None
        copy = AutoModelForCausalLM.from_pretrained(tiny_folder(), dtype=torch.float32, attn_implementation="eager")
        copy.load_state_dict(model.state_dict())
        copies.append(copy)
    args = DPOConfig(output_dir=str(folder), beta=0.3, **COMMON, **options)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
    trainer = DPOTrainer(
        model=copies[0], ref_model=copies[1], args=args, train_dataset=rows_of(pairs), processing_class=tokenizer
    )
    return trainer, copies[0]


SINGLE = [PAIRS[0], PAIRS[1], PAIRS[2], PAIRS[4]]
"""Pairs that compare one turn. Of several, TRL would learn the user's turns between them too."""


def with_line_break(example: Example) -> Example:
    """The rows with the template's line break after the end token, which TRL takes for part of the completion."""
    (newline,) = AutoTokenizer.from_pretrained(tiny_folder())("\n").input_ids
    rows = [
        Segment(s.prompt_ids, [*s.completion_ids, newline], [*s.sampler_logp, 0.0], [*s.mask, True])
        for s in example.segments
    ]
    return Example(tuple(rows), example.source, example.unit)


def test_dpo_is_trls(tmp_path: Path) -> None:
    """Ids are the same up to the end token, where ours end: a policy never writes the template's line break after it.
    With that added, loss, gradient and metrics are TRL's."""
    policy = tiny()
    moved_reference(policy)
    trainer, theirs = trl_dpo(tmp_path, SINGLE, policy)
    examples = [with_line_break(completions(policy, pair)) for pair in SINGLE]
    for example, row in zip(examples, trainer.train_dataset, strict=True):
        assert [s.prompt_ids for s in example.segments] == [row["prompt_ids"]] * 2
        assert [s.completion_ids for s in example.segments] == [row["chosen_ids"], row["rejected_ids"]]
        assert all(all(s.mask) for s in example.segments)
    loss, gradients, metrics = trl_loss(trainer, theirs)
    found, said = gradient_of(learner_of(policy, DPO(policy, beta=0.3)), examples)
    assert said["loss"] == pytest.approx(loss, rel=AGREEMENT)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"):
        assert said[name] == pytest.approx(metrics[name], rel=AGREEMENT, abs=AGREEMENT), name
    assert said["accuracy"] == pytest.approx(metrics["rewards/accuracies"])
    names = [name for name, _ in policy.model.named_parameters()]
    assert_gradients(dict(zip(names, found, strict=True)), gradients)


def test_label_smoothing_is_trls(tmp_path: Path) -> None:
    """TRL's plain DPO has no smoothing any more; its ``aot_unpaired`` has the same formula on sorted ratios, which is
    the same for a single pair."""
    policy = tiny()
    moved_reference(policy)
    for number, pair in enumerate(SINGLE):
        options = {"loss_type": ["aot_unpaired"], "label_smoothing": 0.2}
        trainer, theirs = trl_dpo(tmp_path / f"{number}", [pair], policy, **options)
        loss, gradients, _ = trl_loss(trainer, theirs)
        objective = DPO(policy, beta=0.3, label_smoothing=0.2)
        example = with_line_break(completions(policy, pair))
        found, said = gradient_of(learner_of(policy, objective), [example])
        assert said["loss"] == pytest.approx(loss, rel=AGREEMENT)
        names = [name for name, _ in policy.model.named_parameters()]
        assert_gradients(dict(zip(names, found, strict=True)), gradients)


def test_of_several_turns_trl_learns_the_users_too(tmp_path: Path) -> None:
    policy = tiny()
    policy.add_reference()
    trainer, _ = trl_dpo(tmp_path, PAIRS[3:4], policy)
    (row,) = trainer.train_dataset
    chosen = with_line_break(completions(policy, PAIRS[3])).segments[0]
    assert chosen.prompt_ids + chosen.completion_ids == row["prompt_ids"] + row["chosen_ids"]
    ours = [token for token, own in zip(chosen.completion_ids, chosen.mask, strict=True) if own]
    assert policy.tokenizer.decode(ours) == "a<|im_end|>c<|im_end|>\n"
    assert policy.tokenizer.decode(row["chosen_ids"]) == (
        "a<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\nc<|im_end|>\n"
    )
