"""Board games against an opponent, on the library OpenSpiel."""

from envs.games.env import Alone, Games
from envs.games.players import MCTS, Minimax, Move, Optimal, PastSelf, Player, Random, Seat, Writer

__all__ = ["MCTS", "Alone", "Games", "Minimax", "Move", "Optimal", "PastSelf", "Player", "Random", "Seat", "Writer"]
