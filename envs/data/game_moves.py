"""Games of a scripted player, to imitate before reinforcement learning: AlphaGo's order (Silver et al. 2016, "Mastering
the game of Go with deep neural networks and tree search", https://doi.org/10.1038/nature16961).

Each demonstration is a whole game, as ``envs.games`` tells it, with the player's moves in the environment's format.
What it teaches is how a move is written and how well that player plays, lost games included: with ``Random`` the rules
alone. Left out: reasons for the moves, which no player here gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs.data.base import Splits, first_problems
from envs.games import Games, Player
from rlreason.types import Demonstration, Split


@dataclass(frozen=True)
class GameMoves:
    """One game of ``player`` against the opponent of ``env`` for each of the first ``num_train`` openings of its train
    split, and the first ``num_validation`` of its validation split. ``seed`` is the games'.

    Raises ValueError for a player who can't play the game.
    """

    env: Games
    player: Player
    num_train: int
    num_validation: int
    seed: int = 0
    _splits: Splits[Demonstration] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        splits = Splits(
            self._demonstrations(self.env.split("train"), self.num_train, "num_train"),
            self._demonstrations(self.env.split("validation"), self.num_validation, "num_validation"),
        )
        object.__setattr__(self, "_splits", splits)

    @property
    def name(self) -> str:
        return f"{self.env.name}-moves"

    def split(self, name: str) -> Sequence[Demonstration]:
        return self._splits[name]

    def manifest(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "source": "generated",
            "sizes": self._splits.sizes,
            "player": f"{self.player}",
            "seed": self.seed,
            "env": self.env.manifest(),
        }

    def _demonstrations(self, split: Split, count: int, key: str) -> list[Demonstration]:
        problems = first_problems(split, count, what=f"{self.name}: {key}")
        seeds = range(self.seed * count, (self.seed + 1) * count)
        episodes = self.env.play(problems, seeds, self.player)
        return [
            Demonstration(episode.messages, f"{episode.problem.id}, game {seed}")
            for episode, seed in zip(episodes, seeds, strict=True)
        ]
