"""Games in words: what a player is told of a position, and what the moves are called.

Tic-tac-toe, connect four and Nim have boards and short move names of our own; every other game of OpenSpiel's speaks
its own strings. A move's name is unique among the legal ones and is compared exactly: in chess ``bxc3`` and ``Bxc3``
are two moves.

Left out: boards of our own for more games. Each is a class with the five members of ``Words``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

from envs.games.library import is_hidden

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # OpenSpiel prints twixt for a terminal
_NIM_MOVE = re.compile(r"pile:(\d+), take:(\d+);")


class Words(Protocol):
    """How one game is told. A ``state`` is a ``pyspiel.State`` in which a player, not chance, is to move."""

    @property
    def rules(self) -> str:
        """What the game is and how a move is written, for the first message."""
        ...

    @property
    def sides(self) -> tuple[str, str]:
        """What the two players are called, the one who begins first."""
        ...

    def board(self, state: Any, player: int) -> str:
        """The position as ``player`` may see it."""
        ...

    def move(self, state: Any, action: int) -> str:
        """The name of a legal action of the player to move."""
        ...

    def position(self, state: Any) -> str:
        """The same text for positions that are the same for whoever plays, mirrored ones among them where that is
        simple; different texts for all others."""
        ...


@dataclass(frozen=True)
class TicTacToe:
    """Free squares show their numbers, 1 to 9 from the upper left, which are the moves."""

    rules: str = "Tic-tac-toe: three in a row win. Free squares show their numbers; a move is such a number."
    sides: tuple[str, str] = ("x", "o")

    def board(self, state: Any, player: int) -> str:
        squares = "".join(str(state).split())
        shown = [str(place) if mark == "." else mark for place, mark in enumerate(squares, start=1)]
        return "\n".join(" ".join(shown[row : row + 3]) for row in (0, 3, 6))

    def move(self, state: Any, action: int) -> str:
        return str(action + 1)

    def position(self, state: Any) -> str:
        rows = str(state).split()
        seen = []
        for _ in range(4):
            rows = ["".join(column) for column in zip(*rows[::-1], strict=True)]  # a quarter turn
            seen += ["/".join(rows), "/".join(row[::-1] for row in rows)]
        return min(seen)


@dataclass(frozen=True)
class ConnectFour:
    """The columns are numbered from 1 on the left; ``columns`` and ``in_row`` are the game's own."""

    columns: int
    in_row: int
    sides: tuple[str, str] = ("x", "o")

    @property
    def rules(self) -> str:
        return (
            f"Connect {self.in_row}: {self.in_row} in a row, across, down or diagonally, win. A move is the number of "
            f"a column, 1 to {self.columns}; the piece falls to its lowest free place."
        )

    def board(self, state: Any, player: int) -> str:
        numbers = map(str, range(1, self.columns + 1))
        return "\n".join([" ".join(numbers), *(" ".join(row) for row in str(state).split())])

    def move(self, state: Any, action: int) -> str:
        return str(action + 1)

    def position(self, state: Any) -> str:
        rows = str(state).split()
        return min("/".join(rows), "/".join(row[::-1] for row in rows))


@dataclass(frozen=True)
class Nim:
    """A move is a pile's number, a hyphen and how many are taken: ``2-3``."""

    misere: bool
    sides: tuple[str, str] = ("the first player", "the second player")

    @property
    def rules(self) -> str:
        return (
            "Nim: in turn, take one or more from a single pile. Whoever takes the last one "
            f"{'loses' if self.misere else 'wins'}. A move is pile-number: 2-3 takes 3 from pile 2."
        )

    def board(self, state: Any, player: int) -> str:
        return "\n".join(f"pile {place}: {size}" for place, size in enumerate(_piles(state), start=1))

    def move(self, state: Any, action: int) -> str:
        found = _NIM_MOVE.fullmatch(state.action_to_string(state.current_player(), action))
        assert found is not None
        return f"{found[1]}-{found[2]}"

    def position(self, state: Any) -> str:
        return " ".join(str(size) for size in sorted(_piles(state)) if size)


@dataclass(frozen=True)
class OwnWords:
    """Any game as OpenSpiel writes it. ``hidden``: some of it is hidden, so that a player is shown the observation (or,
    where the game has none, the information state) that OpenSpiel has for him."""

    long_name: str
    hidden: bool
    observed: bool
    sides: tuple[str, str] = ("the first player", "the second player")

    @property
    def rules(self) -> str:
        return f"The game is {self.long_name}. A move is one of the legal moves, written as it is there."

    def board(self, state: Any, player: int) -> str:
        if not self.hidden:
            text = str(state)
        elif self.observed:
            text = state.observation_string(player)
        else:
            text = state.information_state_string(player)
        return _COLOURS.sub("", text).strip("\n")

    def move(self, state: Any, action: int) -> str:
        return str(state.action_to_string(state.current_player(), action))

    def position(self, state: Any) -> str:
        return f"{state.current_player()} {state}"


def words_for(game: Any) -> Words:
    """The words of a ``pyspiel.Game``."""
    kind, parameters = game.get_type(), game.get_parameters()
    if kind.short_name == "tic_tac_toe":
        return TicTacToe()
    if kind.short_name == "connect_four":
        return ConnectFour(parameters["columns"], parameters["x_in_row"])
    if kind.short_name == "nim":
        return Nim(parameters["is_misere"])
    return OwnWords(kind.long_name, is_hidden(game), kind.provides_observation_string)


def _piles(state: Any) -> list[int]:
    return [int(size) for size in str(state).partition(":")[2].split()]  # "(1): 0 0 5 1"
