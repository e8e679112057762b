"""Which gradient an estimator and a loss follow on average, on policies small enough to know it in closed form.

A completion is one or two tokens of a vocabulary of two, with a pair of logits for each place. So few completions are
possible that all groups of n can be listed: the expectation of the gradient is a finite sum, exact up to rounding, and
nothing hides in a standard error. Over groups that were sampled, not listed, the mean gradient must then agree with the
closed form within its standard error, which also shows how large a bias that would notice.

Each group is one optimiser step. Everything is float64 but an aggregation's weight, which is exact in float32 where
its count is a power of two; hence the two tolerances.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from rlreason.advantages import GAE, RLOO, Estimator, GroupRelative, MaxRL, ReinforcePlusPlus, Rewarded
from rlreason.batch import live_tokens
from rlreason.losses import (
    Aggregation,
    ClippedImportance,
    ClippedSurrogate,
    ConstantLength,
    PolicyGradient,
    SequenceMean,
    Term,
    TokenMean,
    objective,
)
from rlreason.mismatch import TruncatedImportance
from rlreason.shaping import KLReward, Shaping, shaped
from rlreason.types import Batch, Outputs

EXACT = 1e-12
"""Of sums of at most a few thousand float64 numbers of size 1."""
ROUNDED = 1e-7
"""Of weights that float32 rounds by 3e-8 at most (1 / 3, say), on gradients below 2."""
BOUND = 4.0
"""On abs(z) in every component: a normal z is above it once in 16,000 times, but the seed is fixed."""
GROUPS = 40_000

Objective = Callable[[torch.Tensor], torch.Tensor]


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


LOGITS = torch.stack([numbers(0.4, -0.3), numbers(-0.5, 0.2)])
"""(place, token). A first token 0 has probability 0.668, a second one 0.332."""
ELSEWHERE = torch.stack([numbers(-0.2, 0.1), numbers(0.6, -0.4)])
"""Another policy: the KL's reference, or who wrote the completions."""


@dataclass(frozen=True, eq=False)
class Toy:
    """The completions (C, 2) there are, and which of their tokens are written (C, 2)."""

    tokens: torch.Tensor
    written: torch.Tensor

    def token_logp(self, logits: torch.Tensor) -> torch.Tensor:
        """Of each token of each completion, 0 where there is none: (..., 2, 2) -> (..., C, 2)."""
        logp = logits.log_softmax(-1)
        found = torch.stack([logp[..., place, :][..., self.tokens[:, place]] for place in range(2)], -1)
        return torch.where(self.written, found, 0.0)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """(2, 2) -> (C,), by sigmoids: not the way that the log-probabilities come."""
        zero = torch.sigmoid(logits[:, 0] - logits[:, 1])  # (2,) the probability of token 0 at each place
        each = torch.where(self.tokens == 0, zero, 1 - zero)
        return torch.where(self.written, each, 1.0).prod(1)


ONE = Toy(torch.tensor([[0, 0], [1, 0]]), torch.tensor([[True, False]] * 2))
"""One token, so a coin."""
TWO = Toy(torch.tensor([[0, 0], [1, 0], [1, 1]]), torch.tensor([[True, False], [True, True], [True, True]]))
"""Token 0 ends the completion at once, token 1 is followed by a second one, which is the last."""

REWARDS = numbers(0.2, -0.5, 1.0)
RIGHT = numbers(0, 0, 1)  # p(correct) is 0.332 x 0.668 = 0.222
VALUES = numbers(0.3, -0.2)
"""A critic's estimate at each place; a wrong one."""


REINFORCE = PolicyGradient()
BY_COMPLETION = ConstantLength(1)
"""1 and not 2, so that the gradient is that of the objective and not half of it."""


@dataclass(frozen=True, eq=False)
class Method:
    """What a step does with a group. ``sampler``: the logits of who wrote the completions. ``known``: whether the
    batch has ``old_logp``; with one step a batch that is the policy's own, given or not."""

    estimator: Estimator
    term: Term = REINFORCE
    aggregation: Aggregation = BY_COMPLETION
    shaping: tuple[Shaping, ...] = ()
    sampler: torch.Tensor = LOGITS
    known: bool = False

    def gradients(self, toy: Toy, groups: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
        """Where the step would move the logits, for each group (G, n) of numbers of completions: (G, 2, 2)."""
        if whitens(self.estimator) and len(groups) > 1:  # over all that it is given, so one step at a time
            return torch.cat([self.gradients(toy, group[None], rewards) for group in groups])
        count, n = groups.shape
        drawn, owner = groups.flatten(), torch.arange(count).repeat_interleave(n)
        logits = LOGITS.expand(count, 2, 2).clone().requires_grad_()  # each group's own, for its own gradient
        logp = toy.token_logp(logits)[owner, drawn]
        mask, yes = toy.written[drawn], torch.ones(len(drawn), dtype=torch.bool)
        batch = Batch(
            tokens=toy.tokens[drawn],
            attention=mask,
            mask=mask,
            prompt_length=torch.zeros_like(drawn),
            rollout=torch.arange(len(drawn)),
            group=owner,
            sampler_logp=toy.token_logp(self.sampler)[drawn],
            reward=rewards[drawn],
            correct=torch.full_like(rewards[drawn], math.nan),
            truncated=~yes,
            graded=yes,
            live=yes,
            old_logp=logp.detach() if self.known else None,
            ref_logp=toy.token_logp(ELSEWHERE)[drawn],
            value=torch.where(mask, VALUES, 0.0),
        )
        batch = self.estimator(shaped(batch, self.shaping))
        live = torch.stack([batch.live, live_tokens(batch).sum(1)], 1).float()
        rows, tokens = torch.zeros(count, 2).index_add(0, owner, live)[owner].split(1, dim=1)  # of the row's step
        loss, _ = objective([self.term], Outputs(logp), batch, self.aggregation(batch, rows, tokens))
        (gradient,) = torch.autograd.grad(-loss, logits)
        return gradient


def whitens(estimator: Estimator) -> bool:
    return isinstance(estimator, ReinforcePlusPlus) or (isinstance(estimator, GAE) and estimator.whiten_advantages)


def every_group(toy: Toy, n: int) -> torch.Tensor:
    """(C^n, n), in the order of the numbers that the groups spell in base C."""
    return torch.tensor(list(itertools.product(range(len(toy.tokens)), repeat=n)))


def expectation(method: Method, n: int, rewards: torch.Tensor, toy: Toy = TWO) -> torch.Tensor:
    """The mean of the gradient (2, 2) over all groups of n, each by its probability."""
    groups = every_group(toy, n)
    chance = toy.probabilities(method.sampler)[groups].prod(1)  # (G,)
    assert chance.sum().item() == pytest.approx(1, abs=EXACT)
    return (chance[:, None, None] * method.gradients(toy, groups, rewards)).sum(0)


def sampled(method: Method, n: int, rewards: torch.Tensor) -> torch.Tensor:
    """The gradients of ``GROUPS`` groups that the sampler wrote token by token, (G, 2, 2). A group's gradient depends
    on its completions alone, so that of each possible one is computed once."""
    chance = torch.Generator().manual_seed(0)
    is_one = torch.rand(GROUPS, n, 2, generator=chance, dtype=torch.float64) < method.sampler.softmax(-1)[:, 1]
    first, second = is_one.long().unbind(-1)
    number = (first * (1 + second) * 3 ** torch.arange(n - 1, -1, -1)).sum(1)
    return method.gradients(TWO, every_group(TWO, n), rewards)[number]


def z_scores(gradients: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """How many standard errors the mean is off, in each component."""
    return (gradients.mean(0) - expected) / (gradients.std(0) / math.sqrt(len(gradients)))


def gradient_of(objective: Objective) -> torch.Tensor:
    logits = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(logits), logits)
    return gradient


def expected_reward(rewards: torch.Tensor = REWARDS, toy: Toy = TWO) -> Objective:
    return lambda logits: (toy.probabilities(logits) * rewards).sum()


def log_likelihood(rewards: torch.Tensor, toy: Toy = TWO) -> Objective:
    """log p(correct)."""
    return lambda logits: (toy.probabilities(logits) * rewards).sum().log()


def truncated_likelihood(terms: int, rewards: torch.Tensor, toy: Toy = TWO) -> Objective:
    """The sum over k up to ``terms`` of pass@k / k, where pass@k = 1 - (1 - p)^k."""

    def total(logits: torch.Tensor) -> torch.Tensor:
        p = (toy.probabilities(logits) * rewards).sum()
        return torch.stack([(1 - (1 - p) ** k) / k for k in range(1, terms + 1)]).sum()

    return total


def regularised(coefficient: float) -> Objective:
    """E[r] - coefficient x KL(pi || ELSEWHERE)."""

    def value(logits: torch.Tensor) -> torch.Tensor:
        p, q = TWO.probabilities(logits), TWO.probabilities(ELSEWHERE)
        return (p * (REWARDS - coefficient * (p / q).log())).sum()

    return value


def solved(rewards: torch.Tensor, toy: Toy) -> float:
    """The probability of reward 1."""
    return float((toy.probabilities(LOGITS) * rewards).sum())


def test_closed_form_by_hand() -> None:
    """sigmoid(0.7) = 0.6681878: completions 0, 10 and 11 have 0.6681878, 0.3318122^2 = 0.1100993 and 0.2217129.
    E[r] = 0.2 x 0.6681878 - 0.5 x 0.1100993 + 0.2217129 = 0.3003008. What follows a first 1 is worth
    (0.2217129 - 0.0550497) / 0.3318122 = 0.5022817, so the first logits have the gradient
    +-0.6681878 x 0.3318122 x (0.2 - 0.5022817) = -+0.0670197, the second +-0.3318122 x 0.2217129 x (-0.5 - 1) =
    -+0.1103506."""
    torch.testing.assert_close(TWO.probabilities(LOGITS), numbers(0.6681878, 0.1100993, 0.2217129), rtol=0, atol=1e-7)
    torch.testing.assert_close(TWO.token_logp(LOGITS).sum(1).exp(), TWO.probabilities(LOGITS), rtol=0, atol=EXACT)
    assert float(expected_reward()(LOGITS)) == pytest.approx(0.3003008, abs=1e-7)
    by_hand = torch.stack([numbers(-0.0670197, 0.0670197), numbers(-0.1103506, 0.1103506)])
    torch.testing.assert_close(gradient_of(expected_reward()), by_hand, rtol=0, atol=1e-7)


# --- without bias

MONTE_CARLO = GAE(gamma=1.0, gae_lambda=1.0, whiten_advantages=False)
TERMS: dict[str, Term] = {
    "policy gradient": REINFORCE,
    "clipped": ClippedSurrogate(),
    "dual clip": ClippedSurrogate(epsilon_high=0.28, delta=3.0),
    "sequence": ClippedSurrogate(epsilon=3e-4, epsilon_high=4e-4, importance_sampling_level="sequence"),
    "cispo": ClippedImportance(),
}
Target = Callable[[int], torch.Tensor]  # of the size of the group
ESTIMATORS: dict[str, tuple[Estimator, torch.Tensor, Target]] = {
    "rloo": (RLOO(), REWARDS, lambda n: gradient_of(expected_reward())),
    "centred": (GroupRelative("none"), REWARDS, lambda n: (n - 1) / n * gradient_of(expected_reward())),
    "gae": (MONTE_CARLO, REWARDS, lambda n: gradient_of(expected_reward())),
    "maxrl": (MaxRL(), RIGHT, lambda n: gradient_of(truncated_likelihood(n - 1, RIGHT))),
}
UNBIASED: dict[str, tuple[Method, torch.Tensor, Target]] = {
    f"{name}, {loss}, {'old_logp' if known else 'none'}": (Method(estimator, term, known=known), rewards, target)
    for (name, (estimator, rewards, target)), (loss, term), known in itertools.product(
        ESTIMATORS.items(), TERMS.items(), (True, False)
    )
} | {
    f"{name}, KL in the reward": (
        Method(estimator, shaping=(KLReward(0.3),), known=True),
        REWARDS,
        lambda n: gradient_of(regularised(0.3)),
    )
    for name, estimator in (("rloo", RLOO()), ("gae", MONTE_CARLO))
}
# Another policy wrote it: the ratio of the whole completion, not truncated, puts that right.
UNBIASED["rloo, other sampler"] = (
    Method(RLOO(), PolicyGradient(TruncatedImportance(cap=math.inf, level="sequence")), sampler=ELSEWHERE),
    REWARDS,
    lambda n: gradient_of(expected_reward()),
)


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize(("method", "rewards", "target"), UNBIASED.values(), ids=UNBIASED.keys())
def test_expectation_is_the_gradient(method: Method, rewards: torch.Tensor, target: Target, n: int) -> None:
    expected = target(n)
    assert expected.abs().min() > 0.03
    torch.testing.assert_close(expectation(method, n, rewards), expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize(("method", "rewards", "target"), UNBIASED.values(), ids=UNBIASED.keys())
def test_sampled_gradient_agrees_within_its_standard_error(
    method: Method, rewards: torch.Tensor, target: Target
) -> None:
    gradients, expected = sampled(method, 4, rewards), target(4)
    assert z_scores(gradients, expected).abs().max() < BOUND
    # That says something: what is a tenth larger would not pass.
    assert z_scores(gradients, 1.1 * expected).abs().max() > BOUND


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8])
def test_maxrl_climbs_n_minus_1_terms_of_the_likelihood(n: int) -> None:
    """(1 - (1 - p)^(n-1)) / p times the gradient of p, from the coin's 2^n groups.

    If K of n are right, their mean score has the expectation grad p / p. In all groups but those of K = 0 that comes to
    (1 - (1 - p)^n) / p x grad p, which is n terms. What is taken off, the mean score of all n, is 0 in expectation over
    all groups; but those of K = 0, where it is -grad p / (1 - p), are left out, so that it takes off
    (1 - p)^(n-1) grad p: the n-th term."""
    tolerance = EXACT if n in (2, 4, 8) else ROUNDED
    for rewards in (numbers(1, 0), numbers(0, 1)):
        p, slope = solved(rewards, ONE), gradient_of(expected_reward(rewards, ONE))
        found = expectation(Method(MaxRL()), n, rewards, ONE)
        torch.testing.assert_close(found, slope * (1 - (1 - p) ** (n - 1)) / p, rtol=0, atol=tolerance)
        expected = gradient_of(truncated_likelihood(n - 1, rewards, ONE))
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
        # another term would show, and with all terms it would be log p
        assert (gradient_of(truncated_likelihood(n, rewards, ONE)) - found).abs().max() > 1e-5
        rest = gradient_of(log_likelihood(rewards, ONE)) - found
        torch.testing.assert_close(rest, slope * (1 - p) ** (n - 1) / p, rtol=0, atol=tolerance)


# --- with bias


def factor_of_scaling(p: float, n: int) -> float:
    """What dividing by a group's standard deviation multiplies the gradient of p with, for rewards of 0 and 1.

    If K of n are right, the standard deviation is s = sqrt(K (n - K) / (n (n - 1))). The right ones have the advantage
    (1 - K / n) / s and a mean score of grad p / p, the others -(K / n) / s and -grad p / (1 - p). So the step is
    K (n - K) / (n^2 s) x (1 / p + 1 / (1 - p)) grad p = (n - 1) / n x s / (p (1 - p)) grad p, averaged over K."""
    chance = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    spread = [math.sqrt(k * (n - k) / (n * (n - 1))) for k in range(n + 1)]
    return (n - 1) / n * sum(c * s for c, s in zip(chance, spread, strict=True)) / (p * (1 - p))


@pytest.mark.parametrize("n", [2, 4, 8])
@pytest.mark.parametrize("whitened", [False, True], ids=["group", "batch"])
def test_scaling_by_the_spread_multiplies_by_another_factor_for_each_p(whitened: bool, n: int) -> None:
    """``ReinforcePlusPlus`` does over a batch what ``GroupRelative`` does over a group; here the batch is a group of
    completions of one token. Its 1e-8 beside a variance of 1 / n at least makes 4e-8 of a difference."""
    method = Method(ReinforcePlusPlus() if whitened else GroupRelative(epsilon_std=0))
    for rewards in (numbers(1, 0), numbers(0, 1)):
        expected = factor_of_scaling(solved(rewards, ONE), n) * gradient_of(expected_reward(rewards, ONE))
        found = expectation(method, n, rewards, ONE)
        torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDED if whitened else EXACT)


def test_scaling_favours_hard_questions() -> None:
    """By hand for n = 4: s is 1 / 2 for one or three, 1 / sqrt(3) for two. At p = 1 / 2 these have 8 and 6 chances of
    16, so the factor is 3 / 4 x (4 + 3.4641016) / 16 x 4 = 1.3995191. Towards p = 0 it is 3 / 4 x 4 p / 2 / p = 1.5."""
    assert factor_of_scaling(0.5, 4) == pytest.approx(1.3995191, abs=1e-7)
    assert factor_of_scaling(1e-9, 4) == pytest.approx(1.5, abs=1e-7)
    # of two tokens, p = 0.110 and 0.332: each factor from the listed groups
    factors: dict[GroupRelative, list[float]] = {GroupRelative("group", 0): [], GroupRelative("none"): []}
    for estimator, found in factors.items():
        for rewards in (numbers(0, 1, 0), numbers(0, 1, 1)):
            slope = gradient_of(expected_reward(rewards))
            step = expectation(Method(estimator), 4, rewards)
            found.append(float((step * slope).sum() / slope.square().sum()))
            torch.testing.assert_close(step, found[-1] * slope, rtol=0, atol=EXACT)
    scaled, centred = factors.values()
    assert centred == pytest.approx([0.75, 0.75], abs=EXACT)
    assert scaled == pytest.approx([factor_of_scaling(p, 4) for p in (0.3318122**2, 0.3318122)], abs=1e-6)
    assert scaled[0] > 1.03 * scaled[1]


def weighed(weights: torch.Tensor, baseline: torch.Tensor | float) -> torch.Tensor:
    """The sum over completions of P x (r - baseline) x weight x grad log P: the step, where a completion's tokens all
    have the same weight and advantage."""
    p = TWO.probabilities(LOGITS)
    return gradient_of(lambda logits: (p * weights * (REWARDS - baseline) * TWO.probabilities(logits).log()).sum())


@pytest.mark.parametrize("term", [REINFORCE, TERMS["sequence"]], ids=["policy gradient", "sequence"])
@pytest.mark.parametrize("n", [2, 4])
def test_sequence_mean_is_biased_where_the_length_is_an_action(term: Term, n: int) -> None:
    """A token of a completion of two weighs half as much."""
    mean = float(expected_reward()(LOGITS))  # what the baseline, other completions, is in expectation
    found = expectation(Method(RLOO(), term, SequenceMean()), n, REWARDS)
    torch.testing.assert_close(found, weighed(numbers(1, 0.5, 0.5), mean), rtol=0, atol=EXACT)
    unbiased = gradient_of(expected_reward())
    torch.testing.assert_close(weighed(numbers(1, 1, 1), mean), unbiased, rtol=0, atol=EXACT)
    assert (found - unbiased).abs().max() > 0.02


def test_the_bias_of_the_token_mean_shrinks_with_the_group() -> None:
    """A ratio of means: the gradient of the expected reward over the expected length, but for an error like 1 / n."""
    length = float((TWO.probabilities(LOGITS) * numbers(1, 2, 2)).sum())
    unbiased = gradient_of(expected_reward()) / length
    small, large = (
        float((expectation(Method(RLOO(), aggregation=TokenMean()), n, REWARDS) - unbiased).norm()) for n in (3, 6)
    )
    assert small > 0.005
    assert large == pytest.approx(small / 2, rel=0.15)


def test_bootstrapping_from_a_wrong_critic_is_biased() -> None:
    """With lambda 0, what follows a first 1 is what the critic says, not what comes."""
    found = expectation(Method(GAE(1.0, 0.0, whiten_advantages=False)), 2, REWARDS)

    def believed(logits: torch.Tensor) -> torch.Tensor:
        first, second = logits.softmax(-1)
        now = first[0] * REWARDS[0] + first[1] * VALUES[1]
        return now + LOGITS.softmax(-1)[0, 1] * (second * REWARDS[1:]).sum()

    torch.testing.assert_close(found, gradient_of(believed), rtol=0, atol=EXACT)
    assert (found - gradient_of(expected_reward())).abs().max() > 0.1


@pytest.mark.parametrize("toy", [ONE, TWO], ids=["one token", "two tokens"])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_imitation_climbs_the_log_likelihood_of_the_rewarded(toy: Toy, n: int) -> None:
    """The rewarded have a mean score of grad log p, whenever there are any: a factor of 1 / p on hard questions."""
    rewards = RIGHT if toy is TWO else numbers(0, 1)
    p, slope = solved(rewards, toy), gradient_of(expected_reward(rewards, toy))
    found = expectation(Method(Rewarded()), n, rewards, toy)
    expected = (1 - (1 - p) ** n) * gradient_of(log_likelihood(rewards, toy))
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDED)
    if toy is ONE:  # as there is one length, a mean over tokens is one over rows
        by_token = expectation(Method(Rewarded(), aggregation=TokenMean()), n, rewards, toy)
        torch.testing.assert_close(by_token, expected, rtol=0, atol=ROUNDED)
    if n > 1:
        assert (found - slope).abs().max() > 0.1


def test_a_token_s_own_ratio_does_not_put_another_sampler_right() -> None:
    """It leaves the first token judged by what the other policy writes after it, and the second visited as often as
    the other policy gets there."""
    method = Method(RLOO(), PolicyGradient(TruncatedImportance(cap=math.inf)), sampler=ELSEWHERE)
    other = ELSEWHERE.softmax(-1)

    def followed(logits: torch.Tensor) -> torch.Tensor:
        first, second = logits.softmax(-1)
        now = first[0] * REWARDS[0] + first[1] * (other[1] * REWARDS[1:]).sum()
        return now + other[0, 1] * (second * REWARDS[1:]).sum()

    found = expectation(method, 4, REWARDS)
    torch.testing.assert_close(found, gradient_of(followed), rtol=0, atol=EXACT)
    assert (found - gradient_of(expected_reward())).abs().max() > 0.05


BIASED: dict[str, tuple[Method, torch.Tensor]] = {
    "scaled by the group": (Method(GroupRelative()), REWARDS),
    "whitened": (Method(ReinforcePlusPlus()), REWARDS),
    "whitened around the group": (Method(ReinforcePlusPlus(baseline="group")), REWARDS),
    "gae, whitened": (Method(GAE(1.0, 1.0)), REWARDS),
    "gae, lambda": (Method(GAE(1.0, 0.5, whiten_advantages=False)), REWARDS),
    "sequence mean": (Method(RLOO(), aggregation=SequenceMean()), REWARDS),
    "gspo": (Method(RLOO(), TERMS["sequence"], SequenceMean()), REWARDS),
    "other sampler": (Method(RLOO(), sampler=ELSEWHERE), REWARDS),
    "KL in the reward": (Method(RLOO(), shaping=(KLReward(0.3),), known=True), REWARDS),
    "rewarded": (Method(Rewarded()), RIGHT),
    "maxrl": (Method(MaxRL()), RIGHT),
}


@pytest.mark.parametrize(("method", "rewards"), BIASED.values(), ids=BIASED.keys())
def test_a_biased_one_is_told_from_samples(method: Method, rewards: torch.Tensor) -> None:
    """By the same test that the others pass, with room to spare; while it does agree with its own expectation."""
    gradients, slope = sampled(method, 4, rewards), gradient_of(expected_reward(rewards))
    assert z_scores(gradients, slope).abs().max() > 5 * BOUND
    expected = expectation(method, 4, rewards)
    assert z_scores(gradients, expected).abs().max() < BOUND
    # MaxRL and imitation, on rewards of 0 and 1, only go further along the gradient. The others also lead elsewhere,
    # which no learning rate puts right: they have a part at right angles to it.
    across = torch.stack([slope[1], -slope[0]]) / slope.norm()
    sine = abs(float((expected * across).sum() / expected.norm()))
    assert sine < EXACT if rewards is RIGHT else sine > 0.01
