from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from helpers import tiny

from rlreason.advantages import GAE, GroupRelative
from rlreason.batch import collate
from rlreason.clock import Clock
from rlreason.engines.torch import TorchEngine
from rlreason.policy import Policy
from rlreason.rollout import Collector, carries_signal, roll_out
from rlreason.sampler import UniformSampler
from rlreason.types import Completion, Engine, Episode, Finish, Grade, Message, Problem, Request, Rollout, Sampling


@dataclass(frozen=True)
class Sums:
    """Eleven problems."""

    size: int | None = 11

    def __getitem__(self, index: int) -> Problem:
        return Problem(f"p{index}", [{"role": "user", "content": f"{index} + 1?"}], index + 1)


@dataclass
class Toy:
    """Single turn; ``verdict`` grades from the number of the episode within its call and the episode itself."""

    verdict: Callable[[int, Episode], Grade]
    name: str = "toy"
    calls: list[int] = field(default_factory=list)

    def split(self, name: str) -> Sums:
        return Sums()

    def start(self, problem: Problem, seed: int) -> Any:
        return seed

    def replies(self, states: Sequence[Any], conversations: Sequence[list[Message]]) -> list[list[Message] | None]:
        return [None for _ in conversations]

    def grade(self, episodes: Sequence[Episode]) -> list[Grade]:
        self.calls.append(len(episodes))
        return [self.verdict(i, episode) for i, episode in enumerate(episodes)]

    def validate(self) -> None: ...

    def manifest(self) -> dict[str, Any]:
        return {}


@dataclass
class TwoTurns:
    """Asks back once, with a message that depends on the answer; keeps what it was asked."""

    name: str = "two-turns"
    conversations: list[list[list[Message]]] = field(default_factory=list)
    episodes: list[Episode] = field(default_factory=list)

    def split(self, name: str) -> Sums:
        return Sums()

    def start(self, problem: Problem, seed: int) -> Any:
        return {"problem": problem.id}

    def replies(self, states: Sequence[Any], conversations: Sequence[list[Message]]) -> list[list[Message] | None]:
        self.conversations.append([list(c) for c in conversations])
        found: list[list[Message] | None] = []
        for state, conversation in zip(states, conversations, strict=True):
            answers = [m for m in conversation if m["role"] == "assistant"]
            asked = f"{state['problem']}: why {len(answers[-1]['content'])}?"
            found.append([{"role": "user", "content": asked}] if len(answers) < 2 else None)
        return found

    def grade(self, episodes: Sequence[Episode]) -> list[Grade]:
        self.episodes = list(episodes)
        return [Grade(float(len(e.text)), None) for e in episodes]

    def validate(self) -> None: ...

    def manifest(self) -> dict[str, Any]:
        return {}


@dataclass
class Scripted:
    """An engine that writes what it is told, by the place of the request, and keeps the requests."""

    policy: Policy
    write: Callable[[int], list[int]]
    requests: list[Request] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    max_length: int = 1 << 20
    finish: Finish | None = None

    def submit(self, request: Request) -> int:
        self.requests.append(request)
        self.waiting.append(len(self.requests) - 1)
        return len(self.requests) - 1

    def completed(self) -> Iterator[tuple[int, Completion]]:
        waiting, self.waiting = self.waiting, []
        for ticket in reversed(waiting):  # in another order than they were submitted
            ids = self.write(ticket)
            finish = self.finish or ("stop" if ids[-1] == 2 else "length")
            yield ticket, Completion(ids, [-0.5] * len(ids), finish, 0)

    def sync(self, policy: Any) -> None: ...


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny()


SAMPLING = Sampling(max_completion_length=8)


def collector(policy: Policy, env: Toy | TwoTurns, engine: Engine | None = None) -> Collector:
    return Collector(
        engine=engine or TorchEngine(policy, max_tokens_in_flight=20_000),
        env=env,
        policy=policy,
        sampler=UniformSampler(env.split("train"), 5),
        sampling=SAMPLING,
        num_prompts=4,
        num_generations=3,
        max_attempts=1,
        seed=5,
        clock=Clock(),
    )


def tokens(rollouts: Sequence[Rollout]) -> list[list[int]]:
    return [segment.completion_ids for r in rollouts for segment in r.segments]


# --- one turn


def test_rollouts_carry_what_was_written_and_its_grade(policy: Policy) -> None:
    letters = policy.tokenizer("abc", add_special_tokens=False).input_ids
    # Samples 0 and 2 of each problem end by themselves, sample 1 does not.
    engine = Scripted(policy, lambda i: letters[i % 3 :] + ([2] if i % 3 != 1 else []))
    env = Toy(lambda i, episode: Grade(float(i), i % 2 == 0, parts={"length": float(len(episode.text))}))
    problems = [Sums()[i] for i in (7, 2)]
    rollouts = roll_out(engine, env, policy, problems, SAMPLING, samples=3, groups=[40, 10], seed=1, clock=Clock())
    assert [r.problem.id for r in rollouts] == ["p7"] * 3 + ["p2"] * 3
    assert [r.group for r in rollouts] == [40] * 3 + [10] * 3
    assert [r.text for r in rollouts] == ["abc", "bc", "c"] * 2
    assert [r.finish for r in rollouts] == ["stop", "length", "stop"] * 2
    assert [r.grade.reward for r in rollouts] == [0, 1, 2, 3, 4, 5]
    assert [r.grade.parts for r in rollouts] == [{"length": n} for n in (3.0, 2.0, 1.0)] * 2
    assert env.calls == [6]  # graded in one call
    for i, rollout in enumerate(rollouts):
        (segment,) = rollout.segments
        assert segment.prompt_ids == policy.render(rollout.problem.prompt).ids == engine.requests[i].ids
        assert segment.completion_ids == engine.write(i)  # the end token with it
        assert segment.sampler_logp == [-0.5] * len(segment.completion_ids)
        assert segment.mask == [True] * len(segment.completion_ids)
        assert rollout.messages == [*rollout.problem.prompt, {"role": "assistant", "content": rollout.text}]
    assert problems[0].prompt == Sums()[7].prompt  # the problem itself is left alone
    assert len({request.seed for request in engine.requests}) == 6
    assert {request.sampling for request in engine.requests} == {SAMPLING}


def test_environments_get_state_seed_and_episode(policy: Policy) -> None:
    seen: list[Episode] = []

    def keep(i: int, episode: Episode) -> Grade:
        seen.append(episode)
        return Grade(0.0, False)

    rollouts = roll_out(
        Scripted(policy, lambda i: [50, 2]), Toy(keep), policy, [Sums()[0], Sums()[1]], SAMPLING,
        samples=2, groups=[0, 1], seed=1, clock=Clock(),
    )  # fmt: skip
    assert [e.problem for e in seen] == [r.problem for r in rollouts]
    assert [e.text for e in seen] == [r.text for r in rollouts]
    assert [e.messages for e in seen] == [r.messages for r in rollouts]
    assert len({e.state for e in seen}) == 4  # ``start`` got a seed of its own for each episode


def test_the_clock_is_told(policy: Policy) -> None:
    clock = Clock()
    env = Toy(lambda i, e: Grade(0.0, False))
    roll_out(
        Scripted(policy, lambda i: [2]), env, policy, [Sums()[0]], SAMPLING, samples=1, groups=[0], seed=0, clock=clock
    )
    assert set(clock.take()) == {"timing/draw", "timing/generate", "timing/grade"}


# --- several turns


def test_two_turns_by_hand(policy: Policy) -> None:
    env = TwoTurns()
    words = [policy.tokenizer(w, add_special_tokens=False).input_ids for w in ("ab", "c", "def", "gh")]
    # Requests 0 and 1 are the first turns of the two episodes. The second is written first, answered at once, and
    # its second turn is request 2.
    engine = Scripted(policy, lambda i: [*words[i], 2])
    rollouts = roll_out(engine, env, policy, [Sums()[3]], SAMPLING, samples=2, groups=[6], seed=9, clock=Clock())
    first, second = rollouts
    assert first.messages == [
        {"role": "user", "content": "3 + 1?"},
        {"role": "assistant", "content": "ab"},
        {"role": "user", "content": "p3: why 2?"},
        {"role": "assistant", "content": "gh"},
    ]
    assert [m["content"] for m in second.messages] == ["3 + 1?", "c", "p3: why 1?", "def"]
    assert [r.text for r in rollouts] == ["gh", "def"]
    assert [r.grade.reward for r in rollouts] == [2.0, 3.0]
    for rollout, own in zip(rollouts, [(0, 3), (1, 2)], strict=True):
        (segment,) = rollout.segments  # the template appends
        whole = policy.render(rollout.messages[:3]).ids
        end = len(segment.prompt_ids) + len(words[own[0]]) + 1  # of the first turn
        assert segment.prompt_ids == policy.render(rollout.messages[:1]).ids
        assert segment.prompt_ids + segment.completion_ids == [*whole, *words[own[1]], 2]
        assert segment.mask == (
            [True] * (len(words[own[0]]) + 1) + [False] * (len(whole) - end) + [True] * (len(words[own[1]]) + 1)
        )
        assert segment.sampler_logp == [-0.5 if written else 0.0 for written in segment.mask]
        assert segment.generate_seconds is not None
        assert engine.requests[own[1]].ids == whole
    assert [len(c) for c in env.conversations] == [1, 1, 1, 1]
    assert [e.messages for e in env.episodes] == [r.messages for r in rollouts]
    batch = collate(rollouts)
    assert batch.rollout.tolist() == [0, 1]
    assert batch.group.tolist() == [6] * 2
    assert batch.token_reward is None
    assert len({request.seed for request in engine.requests}) == 4  # a turn's draws are its own


def test_ids_stay_as_they_were_sampled(policy: Policy) -> None:
    """Half a character is no text: tokenised again, it would be other ids. The second turn is asked after the very
    ones."""
    half = policy.tokenizer("aé", add_special_tokens=False).input_ids[:-1]
    assert policy.tokenizer(policy.decode(half), add_special_tokens=False).input_ids != half
    engine = Scripted(policy, lambda i: [*half, 2])
    (rollout,) = roll_out(
        engine, TwoTurns(), policy, [Sums()[3]], SAMPLING, samples=1, groups=[0], seed=9, clock=Clock()
    )
    (segment,) = rollout.segments
    assert segment.completion_ids[: len(half) + 1] == [*half, 2]
    assert engine.requests[1].ids == (segment.prompt_ids + segment.completion_ids)[: -len(half) - 1]
    assert policy.tokenizer.decode(engine.requests[1].ids) == policy.render(rollout.messages[:3]).text


def test_a_turn_that_a_stop_string_ended_is_closed_by_the_environment(policy: Policy) -> None:
    """The policy did not write its end token, so it is not trained on it."""
    word = policy.tokenizer("ab!", add_special_tokens=False).input_ids
    engine = Scripted(policy, lambda i: word)
    engine.finish = "stop"
    (rollout,) = roll_out(
        engine, TwoTurns(), policy, [Sums()[3]], SAMPLING, samples=1, groups=[0], seed=9, clock=Clock()
    )
    (segment,) = rollout.segments
    place = len(word)
    assert segment.completion_ids[: place + 1] == [*word, 2]
    assert segment.mask[: place + 1] == [True] * place + [False]


def test_a_truncated_turn_ends_its_episode_alone(policy: Policy) -> None:
    env = TwoTurns()
    engine = Scripted(policy, lambda i: [60, 61] if i == 0 else [62, 2])
    rollouts = roll_out(engine, env, policy, [Sums()[3]], SAMPLING, samples=2, groups=[0], seed=9, clock=Clock())
    assert [sum(m["role"] == "assistant" for m in r.messages) for r in rollouts] == [1, 2]
    assert [r.finish for r in rollouts] == ["length", "stop"]
    assert rollouts[0].text == policy.decode([60, 61])
    assert rollouts[0].messages[:2] == [*Sums()[3].prompt, {"role": "assistant", "content": rollouts[0].text}]
    assert [e.finish for e in env.episodes] == ["length", "stop"]


@pytest.mark.parametrize(
    ("sampling", "room", "turns", "lengths"),
    [
        (Sampling(max_completion_length=8, max_turns=1), 1 << 20, 1, [8]),
        (Sampling(max_completion_length=8, max_turns=2), 1 << 20, 2, [8, 8]),
        (Sampling(max_completion_length=8, max_total_length=10), 1 << 20, 2, [8, 7]),  # 3 tokens are written
        (Sampling(max_completion_length=3, max_total_length=3), 1 << 20, 1, [3]),
        (Sampling(max_completion_length=8), -5, 2, [8, 5]),
        (Sampling(max_completion_length=8), 0, 1, [8]),
    ],
    ids=["one turn", "two turns", "tokens cut the turn", "tokens spent", "context cuts the turn", "context spent"],
)
def test_budgets_end_episodes(policy: Policy, sampling: Sampling, room: int, turns: int, lengths: list[int]) -> None:
    """``room`` up to 0: what the engine holds less the second turn's prompt."""
    engine = Scripted(policy, lambda i: [60, 61, 2])
    if room <= 0:
        talk = [*Sums()[3].prompt, {"role": "assistant", "content": policy.decode([60, 61])}]
        asked = policy.render([*talk, {"role": "user", "content": f"p3: why {len(policy.decode([60, 61]))}?"}])  # type: ignore[list-item]
        engine.max_length = len(asked.ids) - room
    ended: list[int] = []
    (rollout,) = roll_out(
        engine, TwoTurns(), policy, [Sums()[3]], sampling, samples=1, groups=[0], seed=9, clock=Clock(),
        on_completion=lambda: ended.append(1),
    )  # fmt: skip
    assert [request.sampling.max_completion_length for request in engine.requests] == lengths
    assert sum(m["role"] == "assistant" for m in rollout.messages) == turns
    assert rollout.finish == ("stop" if turns == 2 else "length")
    assert rollout.segments[-1].mask[-1]  # nothing of the environment's hangs on at the end
    assert ended == [1]


def test_budgets_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="max_turns is 0"):
        Sampling(max_turns=0)
    with pytest.raises(ValueError, match="max_total_length is 7; it must be at least"):
        Sampling(max_completion_length=8, max_total_length=7)


def test_a_reply_without_a_message_is_refused(policy: Policy) -> None:
    class Silent(TwoTurns):
        def replies(self, states: Sequence[Any], conversations: Sequence[list[Message]]) -> list[list[Message] | None]:
            return [[]]

    with pytest.raises(ValueError, match="problem p3: the environment's reply has no message"):
        roll_out(
            Scripted(policy, lambda i: [60, 2]), Silent(), policy, [Sums()[3]], SAMPLING, samples=1, groups=[0],
            seed=9, clock=Clock(),
        )  # fmt: skip


def test_turns_earn_on_their_last_token(policy: Policy) -> None:
    class Pays(TwoTurns):
        def grade(self, episodes: Sequence[Episode]) -> list[Grade]:
            return [Grade(2.0, None, turn_rewards=(0.25, 0.5)), Grade(1.0, None)]

    engine = Scripted(policy, lambda i: [60, 61, 2])
    rollouts = roll_out(engine, Pays(), policy, [Sums()[3]], SAMPLING, samples=2, groups=[0], seed=9, clock=Clock())
    batch = collate(rollouts)
    assert batch.token_reward is not None
    (segment, _) = (s for r in rollouts for s in r.segments)
    begin, whole = len(segment.prompt_ids), len(segment.prompt_ids) + len(segment.completion_ids)
    expected = [0.0] * whole
    expected[begin + 2], expected[whole - 1] = 0.25, 0.5
    assert batch.token_reward[0].tolist() == expected
    assert not batch.token_reward[1].any()
    assert batch.reward.tolist() == [1.25, 1.0]  # and with the turns' 2.0, what estimators compare
    estimated = GroupRelative(scale_rewards="none")(batch)
    assert estimated.advantage is not None
    assert estimated.advantage[:, whole - 1].tolist() == [0.5, -0.5]
    returned = GAE(gae_lambda=1.0, whiten_advantages=False)(replace(batch, value=torch.zeros_like(batch.sampler_logp)))
    assert returned.returns is not None
    assert returned.returns[0][batch.mask[0]].tolist() == [2.0] * 3 + [1.75] * 3


def test_rewards_of_other_turns_are_refused(policy: Policy) -> None:
    class Pays(TwoTurns):
        def grade(self, episodes: Sequence[Episode]) -> list[Grade]:
            return [Grade(2.0, None, turn_rewards=(0.25,))]

    with pytest.raises(ValueError, match=r"problem p3: .* has 1 turn_rewards, but the policy had 2"):
        roll_out(
            Scripted(policy, lambda i: [60, 2]), Pays(), policy, [Sums()[3]], SAMPLING, samples=1, groups=[0], seed=9,
            clock=Clock(),
        )  # fmt: skip


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_turns_through_the_engine_repeat_whoever_else_is_in_the_batch(policy: Policy, rows: int) -> None:
    """Several turns on the real engine: the log-probabilities that it reports are the trainer's of the same tokens,
    and neither they nor the tokens depend on how many conversations are written at once."""
    problems = [Sums()[i] for i in range(4)]
    engine = TorchEngine(policy, max_tokens_in_flight=20_000, max_rows=rows)
    sampling = Sampling(max_completion_length=24, stop=tuple("aeioutns"))
    rollouts = roll_out(
        engine, TwoTurns(), policy, problems, sampling, samples=3, groups=range(4), seed=1, clock=Clock()
    )
    alone = TorchEngine(policy, max_tokens_in_flight=20_000, max_rows=12)
    again = roll_out(alone, TwoTurns(), policy, problems, sampling, samples=3, groups=range(4), seed=1, clock=Clock())
    assert tokens(rollouts) == tokens(again)
    assert sum(not all(s.mask) for r in rollouts for s in r.segments) >= 6  # of two turns
    batch = collate(rollouts)
    logp = policy.forward(batch, 1.0).logp
    assert (logp - batch.sampler_logp).abs().max() < 1e-4
    assert not logp[~batch.mask].any()


# --- seeds and ranks


def test_a_step_repeats_by_its_seed_alone(policy: Policy) -> None:
    env = Toy(lambda i, e: Grade(0.0, False))
    one = collector(policy, env).collect(3)
    again = collector(policy, env, TorchEngine(policy, max_tokens_in_flight=20_000, max_rows=2)).collect(3)
    assert [replace(r, segments=[]) for r in one.rollouts] == [replace(r, segments=[]) for r in again.rollouts]
    assert tokens(one.rollouts) == tokens(again.rollouts)
    assert len(one.rollouts) == 12
    assert len({tuple(ids) for ids in tokens(one.rollouts)}) == 12
    other_step = collector(policy, env).collect(4)
    assert not {tuple(ids) for ids in tokens(other_step.rollouts)} & {tuple(ids) for ids in tokens(one.rollouts)}
    other_seed = replace(collector(policy, env), seed=6).collect(3)
    assert [r.problem for r in other_seed.rollouts] == [r.problem for r in one.rollouts]  # drawn by the sampler's seed
    assert not {tuple(ids) for ids in tokens(other_seed.rollouts)} & {tuple(ids) for ids in tokens(one.rollouts)}


@pytest.mark.parametrize(("world", "prompts"), [(2, 4), (3, 5), (4, 3)])
def test_shares_of_the_ranks_make_the_whole(policy: Policy, world: int, prompts: int) -> None:
    env = Toy(lambda i, e: Grade(0.0, False))
    whole = replace(collector(policy, env), num_prompts=prompts).collect(2).rollouts
    shares = [
        replace(collector(policy, env), num_prompts=prompts, rank=rank, world=world).collect(2).rollouts
        for rank in range(world)
    ]
    groups = [{r.group for r in share} for share in shares]
    assert [len(g) for g in groups] == [len(range(rank, prompts, world)) for rank in range(world)]
    assert sum(len(g) for g in groups) == len(set().union(*groups)) == prompts
    together = sorted((r for share in shares for r in share), key=lambda r: r.group)
    assert [(r.group, r.problem.id) for r in together] == [(r.group, r.problem.id) for r in whole]
    assert tokens(together) == tokens(whole)


# --- dynamic sampling


def shaped(i: int, episode: Episode) -> Grade:
    """Rewards differ within every group; problems with an even answer have every sample wrong."""
    right = episode.problem.answer % 2 == 1 and i % 3 == 0
    return Grade(float(right) + 0.01 * i, right, parts={"length": 0.01 * i})


def test_dynamic_sampling_filters_on_correctness_not_on_a_shaped_reward(policy: Policy) -> None:
    drawing = replace(collector(policy, Toy(shaped)), max_attempts=6)
    found = drawing.collect(1)
    kept, rejected = found.rollouts, found.rejected
    assert {r.problem.answer % 2 for r in kept} == {1}
    assert {r.problem.answer % 2 for r in rejected} == {0}
    assert all(len({r.grade.reward for r in rejected if r.group == g}) == 3 for g in {r.group for r in rejected})
    assert len({r.group for r in kept}) == 4  # as many as were asked for, and no more
    assert len(kept) == 12
    assert 1 < found.attempts <= 6
    numbers = [r.group for r in kept + rejected]
    assert all(numbers.count(n) == 3 for n in set(numbers))  # a group's number is given once in all attempts
    again = drawing.collect(1)
    assert tokens(again.rollouts) == tokens(kept)
    assert again.attempts == found.attempts


def test_later_attempts_draw_only_what_is_missing(policy: Policy) -> None:
    env = Toy(shaped)
    found = replace(collector(policy, env), max_attempts=20).collect(1)
    missing, drawn = 4, []
    for size in env.calls:
        assert size == 3 * missing
        drawn.append(size // 3)
        numbers = {r.group for r in found.rollouts} & set(range(4 * (len(drawn) - 1), 4 * len(drawn)))
        missing -= len(numbers)
    assert missing == 0
    assert len(env.calls) == found.attempts


@pytest.mark.parametrize("right", [True, False])
def test_attempts_are_bounded(policy: Policy, right: bool) -> None:
    env = Toy(lambda i, episode: Grade(float(i), right))
    found = replace(collector(policy, env), max_attempts=3).collect(1)
    assert found.rollouts == []
    assert found.attempts == 3
    assert len(found.rejected) == 3 * 12
    assert env.calls == [12, 12, 12]


def test_a_single_attempt_keeps_everything(policy: Policy) -> None:
    found = collector(policy, Toy(lambda i, episode: Grade(0.0, False))).collect(1)
    assert (len(found.rollouts), len(found.rejected), found.attempts) == (12, 0, 1)


def test_ranks_fill_up_their_own_share(policy: Policy) -> None:
    shares = [
        replace(collector(policy, Toy(shaped)), max_attempts=20, rank=rank, world=2).collect(1) for rank in range(2)
    ]
    numbers = [{r.group for r in share.rollouts + share.rejected} for share in shares]
    assert not numbers[0] & numbers[1]
    assert [len({r.group for r in share.rollouts}) for share in shares] == [2, 2]


def test_carries_signal() -> None:
    def group(*verdicts: bool | None, errors: int = 0) -> list[Rollout]:
        grades = [Grade(0.0, v) for v in verdicts] + [Grade(0.0, None, status="error")] * errors
        return [Rollout(Sums()[0], 0, [], [], "", "stop", grade) for grade in grades]

    assert carries_signal(group(True, False, False))
    assert not carries_signal(group(True, True))
    assert not carries_signal(group(False, False))
    assert not carries_signal(group(True, errors=2))  # what broke in the harness says nothing
    assert carries_signal(group(True, False, errors=1))
    assert not carries_signal(group(errors=3))
    with pytest.raises(ValueError, match=r"algo\.max_attempts=1"):
        carries_signal(group(True, None))
