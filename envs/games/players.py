"""Players of any OpenSpiel game: by chance, by search, by the solved game, and by a language model's earlier weights.

A player chooses for many games at once. What it draws is a function of the game's seed and the number of moves played,
so that a game repeats. Search is OpenSpiel's own (alpha-beta, MCTS); where several moves are equally good, one of them
is drawn, so that a strong player is not the same game over and over.

Left out: players who remember games, and who learn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from envs.games.library import has_chance, is_hidden
from rlreason.types import Message

MAX_POSITIONS = 20_000
"""A game of more positions than this is not solved: that takes two seconds."""

MAX_MOVES = 100
"""Nor one that can last longer."""


@dataclass(frozen=True)
class Seat:
    """One game as the player to move has it.

    ``state`` is a ``pyspiel.State`` and is not to be changed. ``talk`` is the conversation so far, as a policy in this
    seat would have had it, up to where it speaks; ``read`` gives the legal action that an answer to it names, or None.
    ``seed`` is the game's, ``moves`` how many have been played since its opening.
    """

    state: Any
    talk: list[Message]
    read: Callable[[str], int | None]
    seed: int
    moves: int

    def chance(self) -> random.Random:
        """What this move is drawn from."""
        return random.Random(f"player/{self.seed}/{self.moves}")


@dataclass(frozen=True)
class Move:
    """A legal action, and the text that it was chosen by, where it was chosen by a text."""

    action: int
    text: str | None = None


class Player(Protocol):
    """Chooses moves."""

    def refuse(self, game: Any) -> None:
        """Raise ValueError, with the reason, if this player can't play ``game`` (a ``pyspiel.Game``)."""
        ...

    def choose(self, seats: Sequence[Seat]) -> list[Move]:
        """A move for each seat, in order."""
        ...


class Writer(Protocol):
    """Writes turns of conversations, as ``rlreason.opponent.PastSelves`` does."""

    def __call__(self, conversations: Sequence[list[Message]], seeds: Sequence[int]) -> list[str]:
        """The next turn of each. The seed is a conversation's own, the same for all its turns; with the number of the
        turn it decides what is drawn."""
        ...


@dataclass(frozen=True)
class Random:
    """Any legal move, each as likely."""

    def refuse(self, game: Any) -> None:
        """It plays everything."""

    def choose(self, seats: Sequence[Seat]) -> list[Move]:
        return [Move(seat.chance().choice(seat.state.legal_actions())) for seat in seats]


@dataclass(frozen=True)
class Minimax:
    """Looks ``depth`` moves ahead, its own the first (OpenSpiel's alpha-beta; with chance, expectiminimax). What lies
    beyond is worth nothing either way: it plays like ``Random`` but for wins and losses that it sees."""

    depth: int

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"minimax: depth is {self.depth}; it must be at least 1")

    def refuse(self, game: Any) -> None:
        _refuse_hidden(game, "minimax")

    def choose(self, seats: Sequence[Seat]) -> list[Move]:
        return [Move(_best(seat, self._value)) for seat in seats]

    def _value(self, state: Any, player: int) -> float:
        # Imported here: OpenSpiel is optional.
        from open_spiel.python.algorithms.minimax import alpha_beta_search, expectiminimax

        game = state.get_game()
        if has_chance(game):
            found = expectiminimax(state, self.depth - 1, lambda _: 0.0, player)
        else:
            found = alpha_beta_search(game, state, lambda _: 0.0, self.depth - 1, player)
        return float(found[0])


@dataclass(frozen=True)
class MCTS:
    """OpenSpiel's Monte Carlo tree search: ``simulations`` random games a move, UCT with constant ``uct_c``."""

    simulations: int
    uct_c: float = 2.0

    def __post_init__(self) -> None:
        if self.simulations < 1:
            raise ValueError(f"mcts: simulations is {self.simulations}; it must be at least 1")
        if not self.uct_c > 0:
            raise ValueError(f"mcts: uct_c is {self.uct_c}; it must be above 0")

    def refuse(self, game: Any) -> None:
        _refuse_hidden(game, "mcts")
        if game.get_type().reward_model != type(game.get_type().reward_model).TERMINAL:
            raise ValueError(f"mcts can't play {game}, which pays before its end; choose minimax or random")

    def choose(self, seats: Sequence[Seat]) -> list[Move]:
        import pyspiel  # imported here: OpenSpiel is optional

        moves = []
        for seat in seats:
            seed = seat.chance().randrange(2**31)
            rollouts = pyspiel.RandomRolloutEvaluator(1, seed)
            bot = pyspiel.MCTSBot(
                seat.state.get_game(), rollouts, self.uct_c, self.simulations, _MCTS_MEMORY_MB, True, seed, False
            )
            moves.append(Move(bot.step(seat.state)))
        return moves


_MCTS_MEMORY_MB = 64  # of a move's tree


@dataclass(frozen=True)
class Optimal:
    """Perfect play, of a game small enough to be solved by going through all its positions (tic-tac-toe, Nim): at most
    ``MAX_POSITIONS`` of them, and ``MAX_MOVES`` moves. It takes a win wherever there is one, however late."""

    _solved: dict[str, _Solution] = field(init=False, repr=False, compare=False, default_factory=dict)

    def refuse(self, game: Any) -> None:
        self._solution(game)

    def choose(self, seats: Sequence[Seat]) -> list[Move]:
        return [Move(_best(seat, self.value)) for seat in seats]

    def value(self, state: Any, player: int) -> float:
        """What ``player`` gets from ``state`` if both play perfectly, in OpenSpiel's returns."""
        first = self._solution(state.get_game()).value(state)
        return first if player == 0 else -first

    def _solution(self, game: Any) -> _Solution:
        if str(game) not in self._solved:
            _refuse_hidden(game, "optimal")
            if game.max_game_length() > MAX_MOVES:
                raise ValueError(_too_large(game))
            solution = _Solution()
            solution.value(game.new_initial_state())
            self._solved[str(game)] = solution
        return self._solved[str(game)]


@dataclass(frozen=True)
class PastSelf:
    """A language model in the other seat: it is told what the policy would be told there. Where it names no legal
    move, a random one is played for it: the policy shall not win by that."""

    writer: Writer

    def refuse(self, game: Any) -> None:
        """It may try anything."""

    def choose(self, seats: Sequence[Seat]) -> list[Move]:
        texts = self.writer([seat.talk for seat in seats], [seat.seed for seat in seats])
        moves = []
        for seat, text in zip(seats, texts, strict=True):
            action = seat.read(text)
            moves.append(Move(seat.chance().choice(seat.state.legal_actions()) if action is None else action, text))
        return moves


class _Solution:
    """The first player's value of every position that was asked for, and of those after it."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, int], float] = {}

    def value(self, state: Any) -> float:
        if state.is_terminal():
            return float(state.returns()[0])
        key = (str(state), state.current_player())
        if key not in self._values:
            if state.is_chance_node():
                found = sum(share * self.value(state.child(action)) for action, share in state.chance_outcomes())
            else:
                values = [self.value(state.child(action)) for action in state.legal_actions()]
                found = max(values) if state.current_player() == 0 else min(values)
            if len(self._values) >= MAX_POSITIONS:
                raise ValueError(_too_large(state.get_game()))
            self._values[key] = found
        return self._values[key]


def _best(seat: Seat, value: Callable[[Any, int], float]) -> int:
    """One of the legal actions that lead to the highest ``value``."""
    player, actions = seat.state.current_player(), seat.state.legal_actions()
    values: Mapping[int, float] = {action: value(seat.state.child(action), player) for action in actions}
    best = max(values.values())
    return seat.chance().choice([action for action in actions if values[action] > best - 1e-9])


def _refuse_hidden(game: Any, who: str) -> None:
    if is_hidden(game):
        raise ValueError(f"{who} would see what {game} hides; choose random, or a language model")


def _too_large(game: Any) -> str:
    return (
        f"{game} is too large to be solved (more than {MAX_POSITIONS} positions, or than {MAX_MOVES} moves); choose "
        "minimax with a depth, or mcts"
    )
