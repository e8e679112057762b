"""OpenSpiel: loading a game by name, what can be played here, and small questions to a game.

It is optional, so it is imported where a game is loaded, and a ``pyspiel.Game`` or ``State`` is Any here.
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Mapping
from typing import Any


def load(name: str, params: Mapping[str, Any]) -> Any:
    """A ``pyspiel.Game``. Raises ImportError without OpenSpiel, and ValueError for what it does not know."""
    try:
        import pyspiel
    except ImportError as error:
        raise ImportError("games: OpenSpiel is not installed: pip install 'rlreason[games]', or open_spiel") from error
    try:
        return pyspiel.load_game(name, dict(params)) if params else pyspiel.load_game(name)
    except (pyspiel.SpielError, TypeError) as error:
        near = difflib.get_close_matches(name, pyspiel.registered_names(), n=3)
        hint = f" (there is {', '.join(near)})" if near and name not in near else ""
        said = str(error).splitlines()[0].rstrip(".: ").replace(". Available games are", "")
        raise ValueError(f"games: game={name}, params={dict(params)}: {said}{hint}") from error


def refuse(game: Any) -> None:
    """ValueError, with the reason, for a game that can't be played here."""
    kind, reason = game.get_type(), ""
    if kind.dynamics != type(kind.dynamics).SEQUENTIAL:
        reason = "its players move at the same time, and here they take turns"
    elif game.num_players() != 2:
        reason = f"it has {game.num_players()} player(s), and here there are two"
    elif kind.utility not in (type(kind.utility).ZERO_SUM, type(kind.utility).CONSTANT_SUM):
        reason = "one player's win is not the other's loss in it"
    elif kind.chance_mode == type(kind.chance_mode).SAMPLED_STOCHASTIC:
        reason = "it draws its chance by itself, so that no seed repeats a game"
    elif is_hidden(game) and not (kind.provides_observation_string or kind.provides_information_state_string):
        reason = "some of it is hidden, and OpenSpiel has no text of what a player sees"
    if reason:
        raise ValueError(f"games: {game} can't be played: {reason}")


def drawn(state: Any, rng: random.Random) -> int:
    """An outcome of chance."""
    actions, shares = zip(*state.chance_outcomes(), strict=True)
    return int(rng.choices(actions, shares)[0])


def is_hidden(game: Any) -> bool:
    """Whether a player does not see all of a ``pyspiel.Game``."""
    information = game.get_type().information
    return bool(information != type(information).PERFECT_INFORMATION)


def has_chance(game: Any) -> bool:
    """Whether chance moves in it, too."""
    mode = game.get_type().chance_mode
    return bool(mode != type(mode).DETERMINISTIC)
