"""Learning from comparisons: the losses of reward models and of direct preference optimisation.

The functions take numbers of pairs and know nothing of models; ``BradleyTerry`` and ``DPO`` put them on rows of tokens.
Left out: losses for unpaired judgements (KTO), and the many relatives of DPO that differ by a margin or a link.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from rlreason.chat import demonstrated
from rlreason.examples import Example, unit_of
from rlreason.policy import Policy
from rlreason.scorer import RewardModel
from rlreason.supervised import Losses
from rlreason.types import Batch, Comparison


def bradley_terry(
    chosen: torch.Tensor, rejected: torch.Tensor, margin: torch.Tensor | float = 0.0, centring: float = 0.0
) -> torch.Tensor:
    """-log sigmoid(chosen - rejected - margin) + centring (chosen + rejected)^2 of each pair, all (N,).

    The first term is Bradley and Terry's model (1952) as Ouyang et al. 2022 use it (InstructGPT, equation 1), with the
    margin of Llama 2 (Touvron et al. 2023, equation 2). The second keeps the scores around 0, which the first alone
    leaves free (Eisenstein et al. 2023, "Helping or herding?", section 2; TRL's ``center_rewards_coefficient``).
    """
    return -logsigmoid(chosen - rejected - margin) + centring * (chosen + rejected).square()


def dpo(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    ref_chosen: torch.Tensor,
    ref_rejected: torch.Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """-log sigmoid(beta d) of each pair (N,), d = (log pi - log pi_ref)(chosen) - (log pi - log pi_ref)(rejected),
    with the log-probabilities of whole completions, in nats (Rafailov et al. 2023, arXiv:2305.18290, equation 7).

    ``label_smoothing`` is the share of labels taken to be wrong: (1 - s) of the loss plus s of that of the swapped
    pair (Mitchell 2023, "A note on DPO with noisy preferences", equation 3).
    """
    difference = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    return -(1 - label_smoothing) * logsigmoid(difference) - label_smoothing * logsigmoid(-difference)


@dataclass(frozen=True)
class BradleyTerry:
    """``bradley_terry`` on a reward model's scores; an example's rows are the chosen and the rejected conversation.

    Metrics, a number a pair: ``accuracy`` (the chosen one scores higher; half for equal scores), ``margin`` (chosen -
    rejected), ``score_chosen`` and ``score_rejected``. Raises ValueError for a centring that would push the scores away
    from 0.
    """

    model: RewardModel
    use_margin: bool = False
    centring: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.centring) and self.centring >= 0):
            raise ValueError(
                f"centring (center_rewards_coefficient) is {self.centring}; it must be 0 (none) or more (0.01 is usual)"
            )

    def count(self, example: Example) -> int:
        return 1

    def __call__(self, batch: Batch, examples: Sequence[Example]) -> Losses:
        chosen, rejected = self.model.scores(batch).view(-1, 2).unbind(1)
        margin = torch.tensor([example.margin * self.use_margin for example in examples], device=chosen.device)
        difference = (chosen - rejected).detach()
        return bradley_terry(chosen, rejected, margin, self.centring), {
            "accuracy": (torch.sign(difference) + 1) / 2,
            "margin": difference,
            "score_chosen": chosen.detach(),
            "score_rejected": rejected.detach(),
        }


@dataclass(frozen=True)
class DPO:
    """``dpo`` against ``policy``'s reference; an example's rows are the chosen and the rejected completion.

    Metrics under TRL's names: ``rewards/chosen`` and ``rewards/rejected``, beta (log pi - log pi_ref) of the
    completions; ``rewards/margins``, their difference; ``accuracy``, the share of pairs where it is above 0, half for
    pairs where it is 0 (as all are at the start);    ``logps/chosen`` and ``logps/rejected``.
    """

    policy: Policy
    beta: float
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; it must be above 0 (0.1 is usual)")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must be at least 0 and below 0.5")

    def count(self, example: Example) -> int:
        return 1

    def __call__(self, batch: Batch, examples: Sequence[Example]) -> Losses:
        everything = [torch.arange(len(batch.tokens), device=batch.tokens.device)]
        batch = self.policy.annotate(batch, 1.0, frozenset({"ref_logp"}), everything)
        assert batch.ref_logp is not None
        logp = self.policy.forward(batch, 1.0).logp.sum(1).view(-1, 2)
        reference = batch.ref_logp.sum(1).view(-1, 2)
        loss = dpo(*logp.unbind(1), *reference.unbind(1), beta=self.beta, label_smoothing=self.label_smoothing)
        chosen, rejected = (self.beta * (logp - reference)).detach().unbind(1)
        return loss, {
            "accuracy": (torch.sign(chosen - rejected) + 1) / 2,
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "logps/chosen": logp[:, 0].detach(),
            "logps/rejected": logp[:, 1].detach(),
        }


def completions(policy: Policy, item: Comparison) -> Example:
    """A comparison as two rows with the mask on the compared turns, each one's prompt the same. Raises ValueError if a
    side has no assistant's turn, or the template doesn't let its turns share a row."""
    rows = []
    for turns in (item.chosen, item.rejected):
        row = demonstrated(policy.tokenizer, policy.end_ids, [*item.prompt, *turns], start=len(item.prompt))
        if len(row) > 1:
            raise ValueError("this template rewrites earlier turns, so that the compared turns can't be one completion")
        rows += row
    return Example(tuple(rows), item.source, unit_of(item.prompt), item.margin, item.category)


def conversations(model: RewardModel, item: Comparison) -> Example:
    """A comparison as the two rows that a reward model scores; see ``RewardModel.rows``."""
    rows = model.rows([[*item.prompt, *item.chosen], [*item.prompt, *item.rejected]])
    return Example(tuple(rows), item.source, unit_of(item.prompt), item.margin, item.category)
