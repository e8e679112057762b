"""The data that flows through one training step: frozen dataclasses and protocols, no logic.

Conventions that every module relies on:

- R is the number of rows, S the number of tokens of prompt and completion, padded on the right.
- Every per-token tensor is indexed by the token it describes: ``logp[r, t]`` is the log-probability of
  ``tokens[r, t]`` given the tokens before it. Only ``policy.token_logprobs`` shifts by one.
- Log-probabilities are natural logarithms, at the sampling temperature.
- A group is an index, never the prompt's text: two equal prompts stay two groups.

A conversation of several turns is one segment of append-only tokens, in which the mask tells the policy's from the
environment's: each run of True is one of the policy's turns. Where the chat template rewrites history, a new segment
starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypedDict, TypeVar, runtime_checkable

import torch

Finish = Literal["stop", "length"]
Status = Literal["ok", "unparseable", "timeout", "error"]
T_co = TypeVar("T_co", covariant=True)


class Message(TypedDict):
    """One turn of a conversation, in the format of Hugging Face chat templates."""

    role: str
    content: str


@dataclass(frozen=True)
class Problem:
    """A task for the policy. ``answer`` is for the environment's eyes only; ``meta`` ends up in the traces. ``tools``
    are the functions that the policy may call, each as the JSON schema that chat templates take."""

    id: str
    prompt: list[Message]
    answer: Any
    meta: dict[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    ``temperature`` 0 is greedy decoding. ``max_completion_length`` is in tokens of a turn, the end token counted. An
    episode ends where the policy has written ``max_total_length`` tokens in all its turns, or ``max_turns`` turns
    (None: where the environment ends it), with ``finish`` ``length`` if the environment would have gone on.
    ``top_p`` < 1 and ``top_k`` > 0 are for evaluation only: training refuses them, because the importance
    ratio would be taken against another distribution. ``stop`` are strings; the first token that completes one
    is kept and ends the completion.
    """

    temperature: float = 1.0
    max_completion_length: int = 256
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    max_turns: int | None = None
    max_total_length: int | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"sampling.temperature is {self.temperature}; it must be 0 (greedy) or more")
        if self.max_completion_length < 1:
            raise ValueError(f"sampling.max_completion_length is {self.max_completion_length}; it must be at least 1")
        if self.max_turns is not None and self.max_turns < 1:
            raise ValueError(f"sampling.max_turns is {self.max_turns}; it must be at least 1, or null")
        if self.max_total_length is not None and self.max_total_length < self.max_completion_length:
            raise ValueError(
                f"sampling.max_total_length is {self.max_total_length}; it must be at least "
                f"sampling.max_completion_length={self.max_completion_length}, or null"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"sampling.top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.top_k < 0:
            raise ValueError(f"sampling.top_k is {self.top_k}; it must be 0 (off) or more")


@dataclass(frozen=True)
class Request:
    """One completion to generate: prompt token ids, how to sample, and the seed that alone decides the draw."""

    ids: list[int]
    sampling: Sampling
    seed: int


@dataclass(frozen=True)
class Completion:
    """What an engine wrote. ``ids`` keep the end token; ``logprobs`` has one entry per id, at the sampling
    temperature (at temperature 1 for greedy decoding); ``version`` counts the weight syncs before it was begun;
    ``seconds`` from submission to the end, where ``engines.generate`` looked at the clock."""

    ids: list[int]
    logprobs: list[float]
    finish: Finish
    version: int
    seconds: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Segment:
    """An append-only run of token ids. ``mask`` is False on tokens that the environment wrote. ``generate_seconds``:
    from submission to the end, of all its turns; None if nobody looked at the clock."""

    prompt_ids: list[int]
    completion_ids: list[int]
    sampler_logp: list[float]
    mask: list[bool]
    generate_seconds: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Grade:
    """A verdict. ``reward`` is what the policy is trained on; ``correct`` is what evaluation counts (None: no notion
    of correctness); ``parts`` are the reward's components, logged apart as ``rewards/<part>/mean``; ``answer`` is the
    canonical extracted answer, which maj@k votes on (None: nothing was extracted). ``turn_rewards``, one for each of
    the policy's turns, says how much of ``reward`` was earned there; the rest, and with () all of it, at the end.

    ``timeout`` is the policy's doing and earns what a wrong answer earns. ``error`` is the harness's failure: the
    row is excluded from training.
    """

    reward: float
    correct: bool | None
    status: Status = "ok"
    parts: dict[str, float] = field(default_factory=dict)
    answer: str | None = None
    turn_rewards: tuple[float, ...] = ()


@dataclass(frozen=True)
class Episode:
    """What an environment grades: the problem, its own state, the whole conversation, the policy's last raw text
    (end token removed, special tokens kept) and how it ended."""

    problem: Problem
    state: Any
    messages: list[Message]
    text: str
    finish: Finish


@dataclass(frozen=True)
class Rollout:
    """A graded episode with its tokens. ``group`` numbers the draws of a step: samples of one draw share it.
    ``grade_seconds``: that the call took which graded it, and others with it; None if nobody looked at the clock."""

    problem: Problem
    group: int
    segments: list[Segment]
    messages: list[Message]
    text: str
    finish: Finish
    grade: Grade
    grade_seconds: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Demonstration:
    """A conversation to imitate: the assistant's turns are what is learned. ``source`` says where it came from
    (``file:line``, or a run and its problem); ``tools`` as in ``Problem``."""

    messages: list[Message]
    source: str
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Two continuations of one conversation, of which ``chosen`` was preferred, by ``margin`` where that is known (else
    0). ``prompt`` ends before the turns that are compared; ``category`` is what accuracy is reported by."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    margin: float = 0.0
    category: str = "all"
    source: str = ""


@dataclass(frozen=True)
class Batch:
    """The rows of one training step, padded on the right.

    ``mask`` marks the tokens that the policy wrote and is trained on (the end token among them). ``live`` marks rows
    that count: a row that is not live leaves every denominator, but if graded it stays in its group's baseline.
    ``correct`` is NaN where there is no verdict.
    Fields that default to None are filled in by ``policy.annotate`` and by the estimator; nothing is overwritten.
    """

    tokens: torch.Tensor  # (R, S) int64
    attention: torch.Tensor  # (R, S) bool: not padding
    mask: torch.Tensor  # (R, S) bool
    prompt_length: torch.Tensor  # (R,) int64
    rollout: torch.Tensor  # (R,) int64: which rollout a row belongs to
    group: torch.Tensor  # (R,) int64
    sampler_logp: torch.Tensor  # (R, S) float32, 0 where mask is False
    reward: torch.Tensor  # (R,) float32: what the episode earned at its end
    correct: torch.Tensor  # (R,) float32: 1, 0 or NaN
    truncated: torch.Tensor  # (R,) bool: finished by length
    graded: torch.Tensor  # (R,) bool: False after an `error`; such rows leave the baselines too
    live: torch.Tensor  # (R,) bool
    old_logp: torch.Tensor | None = None  # (R, S)
    ref_logp: torch.Tensor | None = None  # (R, S)
    value: torch.Tensor | None = None  # (R, S) the critic before the update
    token_reward: torch.Tensor | None = None  # (R, S) rewards inside an episode, besides `reward` at its end
    advantage: torch.Tensor | None = None  # (R, S) 0 where mask is False
    returns: torch.Tensor | None = None  # (R, S)


@dataclass(frozen=True)
class Outputs:
    """One forward pass of the policy over a batch; entries where the batch's mask is False are 0."""

    logp: torch.Tensor  # (R, S) float32
    entropy: torch.Tensor | None = None  # (R, S) float32, nats
    value: torch.Tensor | None = None  # (R, S) float32


class Split(Protocol):
    """Problems by index. ``size`` None means that any non-negative index is a problem."""

    @property
    def size(self) -> int | None: ...

    def __getitem__(self, index: int) -> Problem: ...


@runtime_checkable
class Env(Protocol):
    """A verifier environment. ``name`` goes into metric names, so it says which data these are."""

    @property
    def name(self) -> str: ...

    def split(self, name: str) -> Split:
        """The problems of ``train``, ``validation`` or ``test``."""
        ...

    def start(self, problem: Problem, seed: int) -> Any:
        """A fresh state for one episode."""
        ...

    def replies(self, states: Sequence[Any], conversations: Sequence[list[Message]]) -> list[list[Message] | None]:
        """What the environment answers to each conversation, one message or more; None ends the episode."""
        ...

    def grade(self, episodes: Sequence[Episode]) -> list[Grade]:
        """A verdict for each episode, in order."""
        ...

    def validate(self) -> None:
        """Raise, naming the problem, unless gold answers score 1 and corrupted ones 0."""
        ...

    def manifest(self) -> Mapping[str, Any]:
        """Where the data came from (source, sizes, hashes), for the run's manifest."""
        ...


class DataSet(Protocol[T_co]):
    """What supervised training reads: demonstrations or comparisons. ``name`` goes into metric names."""

    @property
    def name(self) -> str: ...

    def split(self, name: str) -> Sequence[T_co]:
        """The examples of ``train`` or ``validation``; ValueError for another name."""
        ...

    def manifest(self) -> Mapping[str, Any]:
        """Where the data came from (source, sizes, hashes), for the run's manifest."""
        ...


class Scorer(Protocol):
    """Judges conversations, whose last message is the assistant's, by numbers; higher is better."""

    def __call__(self, conversations: Sequence[list[Message]]) -> list[tuple[float, ...]]:
        """For each conversation one number per member of the ensemble, each member's normalised to mean 0 and standard
        deviation 1 on the held-out pairs of its training."""
        ...


class Engine(Protocol):
    """Generates completions. Admission depends on token counts and seeds, never on time, so a run repeats exactly."""

    @property
    def max_length(self) -> int:
        """Tokens of prompt and completion together that a request may have at most."""
        ...

    def submit(self, request: Request) -> int:
        """Queue a request; returns its ticket. Raises ValueError if it can't fit the model's context."""
        ...

    def completed(self) -> Iterator[tuple[int, Completion]]:
        """Yield (ticket, completion) as requests finish, until nothing is queued; submitting meanwhile is allowed."""
        ...

    def sync(self, policy: Any) -> None:
        """Take over the policy's weights; completions begun from here on are written by them."""
        ...
