"""Earlier weights of a policy as its opponent: a callable that writes turns of conversations by saved checkpoints.

Environments know it only as a function from conversations and seeds to texts (``envs.games.PastSelf``), given to them
by the config. A conversation's seed chooses which checkpoint writes it, and with the number of the turn what is drawn,
so that games repeat.

Left out: other engines than ours, and keeping games apart by strength. While several processes train, one of them may
see a new checkpoint of their own run before another does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from accelerate import Accelerator

from rlreason import checkpoint, models
from rlreason.engines import generate
from rlreason.engines.torch import TorchEngine
from rlreason.policy import Policy
from rlreason.sampler import derived_seed
from rlreason.types import Message, Request, Sampling


@dataclass(frozen=True)
class PastSelves:
    """A pool of frozen models: ``paths`` (names of ``conf/model``, hub ids, run folders, whose newest checkpoint is
    taken now, or model folders) and the checkpoints of the run folder ``run``, the newest ``newest`` of them (None:
    all).

    ``run`` may be the folder of the run that trains (``${hydra:runtime.output_dir}``): the pool then grows with its
    checkpoints, and ``paths`` says who plays before there is one. Checkpoints that the run removes leave the pool.

    At most ``loaded`` models are in memory, in ``dtype``; a turn has at most ``max_completion_length`` tokens. A
    conversation that has outgrown a model's context gets an empty text.

    Raises ValueError for settings that make no sense, FileNotFoundError for a folder that is not there, and, when it
    is asked, ValueError for a pool that is empty still.
    """

    paths: Sequence[str] = ()
    run: str | None = None
    newest: int | None = None
    temperature: float = 1.0
    max_completion_length: int = 32
    max_tokens_in_flight: int = 65536
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    loaded: int = 2
    _weights: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _sampling: Sampling = field(init=False, repr=False, compare=False)
    _engines: dict[str, TorchEngine] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.paths, str):
            raise ValueError(f"paths is {self.paths!r}; it must be a list, such as [{self.paths}]")
        if not self.paths and self.run is None:
            raise ValueError("there is nobody to play against: name models in paths, or a run folder in run")
        for key in ("newest", "loaded"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key} is {value}; it must be at least 1")
        if self.run is not None and not Path(self.run).is_dir():
            raise FileNotFoundError(f"run={self.run} is no folder (looked in {Path.cwd()})")
        sampling = Sampling(temperature=self.temperature, max_completion_length=self.max_completion_length)
        object.__setattr__(self, "_sampling", sampling)
        object.__setattr__(self, "_weights", tuple(checkpoint.weights_of(str(path)) for path in self.paths))
        if not self.paths and not self.pool():
            raise ValueError(f"run={self.run} holds no checkpoint yet; name in paths who plays until it does")

    def pool(self) -> list[str]:
        """Where the weights are that may be chosen now: those of ``paths``, then the run's, oldest first."""
        of_run = checkpoint.found(Path(self.run)) if self.run is not None else []
        if self.newest is not None:
            of_run = of_run[-self.newest :]
        return [*self._weights, *map(str, of_run)]

    def __call__(self, conversations: Sequence[list[Message]], seeds: Sequence[int]) -> list[str]:
        """The next turn of each conversation. The seed is a conversation's own, the same for all its turns."""
        pool = self.pool()
        if not pool:
            raise ValueError(f"run={self.run} holds no checkpoint any more, and paths names nobody else")
        places: dict[str, list[int]] = defaultdict(list)
        for place, seed in enumerate(seeds):
            places[pool[derived_seed(seed, "self") % len(pool)]].append(place)
        texts = [""] * len(conversations)
        for path, own in places.items():
            written = self._write(path, [conversations[place] for place in own], [seeds[place] for place in own])
            for place, text in zip(own, written, strict=True):
                texts[place] = text
        return texts

    def _write(self, path: str, conversations: Sequence[list[Message]], seeds: Sequence[int]) -> list[str]:
        engine = self._engine(path)
        policy: Policy = engine.policy
        prompts = [policy.render(conversation) for conversation in conversations]
        asked: dict[int, Request] = {}
        for place, (conversation, prompt, seed) in enumerate(zip(conversations, prompts, seeds, strict=True)):
            budget = min(self.max_completion_length, engine.max_length - len(prompt.ids))
            if budget > 0:
                turn = sum(message["role"] == "assistant" for message in conversation)
                sampling = replace(self._sampling, max_completion_length=budget)
                asked[place] = Request(prompt.ids, sampling, derived_seed(seed, "self", turn))
        texts = [""] * len(conversations)
        for place, completion in zip(asked, generate(engine, list(asked.values())), strict=True):
            if completion.finish == "stop":  # one that was cut off may say something else than was meant
                texts[place] = prompts[place].opened + policy.decode(completion.ids)
        return texts

    def _engine(self, path: str) -> TorchEngine:
        """The weights at ``path``, ready to write; those that were used longest ago make room for them."""
        engine = self._engines.pop(path, None)
        if engine is None:
            while len(self._engines) >= self.loaded:
                del self._engines[next(iter(self._engines))]
            policy = models.load(path, dtype=self.dtype, device=Accelerator().device)
            policy.take_masters()  # nothing trains them
            engine = TorchEngine(policy, max_tokens_in_flight=self.max_tokens_in_flight)
        self._engines[path] = engine
        return engine
