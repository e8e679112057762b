"""A leaderboard as a table for the screen, a page for readers and a plot.

Left out: the answers themselves; they are traces, and are read as such.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from rlreason.analysis.ratings import Standing


@dataclass(frozen=True)
class Player:
    """A model by name with its weights' place, its standing, its mean reward over the prompts, and its answers' mean
    length in tokens."""

    name: str
    path: str
    standing: Standing
    reward: float
    mean_length: float


@dataclass(frozen=True)
class Pair:
    """How ``a`` did against ``b``. ``inconsistent`` of the ties are verdicts that turned with the order of the two."""

    a: str
    b: str
    wins: int
    ties: int
    losses: int
    inconsistent: int


@dataclass(frozen=True)
class Board:
    """Players, best first. All answered ``prompts``; on ``left_out`` more, an answer could not be graded."""

    title: str
    players: list[Player]
    pairs: list[Pair]
    prompts: int
    left_out: int
    confidence: float

    @property
    def inconsistent(self) -> float:
        """The share of games whose verdict turned with the order."""
        games = len(self.pairs) * self.prompts
        return sum(pair.inconsistent for pair in self.pairs) / games


_HEADINGS = ("model", "rating", "interval", "win rate", "won", "tied", "lost", "reward", "tokens")


def _cells(player: Player) -> tuple[str, ...]:
    found = player.standing
    return (
        player.name,
        f"{found.rating:.0f}",
        _interval(found),
        f"{found.win_rate:.0%}",
        *(str(number) for number in (found.wins, found.ties, found.losses)),
        f"{player.reward:.3g}",
        f"{player.mean_length:.0f}",
    )


def table(board: Board) -> Table:
    found = Table(title=board.title, caption=_caption(board))
    for heading in _HEADINGS:
        found.add_column(heading, justify="left" if heading == "model" else "right")
    for player in board.players:
        found.add_row(*map(Text, _cells(player)))  # names are no markup
    return found


def markdown(board: Board) -> str:
    """The leaderboard, and who won against whom."""
    lines = [
        f"# {board.title}",
        "",
        *_rows(_HEADINGS, [_cells(player) for player in board.players]),
        "",
        _caption(board),
        "",
        *_rows(
            ("model", "against", "won", "tied", "lost", "inconsistent"),
            [(p.a, p.b, *map(str, (p.wins, p.ties, p.losses, p.inconsistent))) for p in board.pairs],
        ),
    ]
    return "\n".join(lines) + "\n"


def plot(board: Board, path: Path) -> None:
    """Ratings with their intervals, best on top. Raises ImportError without matplotlib."""
    from matplotlib.figure import Figure

    players = board.players[::-1]
    ratings = [player.standing.rating for player in players]
    known = [(p.standing.rating, p.standing.low, p.standing.high) for p in players]
    below = [0.0 if low is None else max(0.0, rating - low) for rating, low, _ in known]
    above = [0.0 if high is None else max(0.0, high - rating) for rating, _, high in known]
    figure = Figure(figsize=(7, 1.2 + 0.4 * len(players)), layout="constrained")
    panel = figure.subplots()
    panel.errorbar(ratings, range(len(players)), xerr=[below, above], fmt="o", capsize=4)
    panel.set_yticks(range(len(players)), [player.name for player in players])
    panel.set_xlabel(f"rating (Bradley-Terry, Elo scale), {board.confidence:.0%} intervals over prompts")
    panel.grid(alpha=0.3)
    figure.savefig(path, dpi=120, format="png")


def _interval(found: Standing) -> str:
    if found.low is None or found.high is None:
        return "unknown"
    return f"{found.low:.0f} to {found.high:.0f}" if found.low < found.high else ""  # the anchor has none


def _caption(board: Board) -> str:
    said = f"{board.prompts} prompts, {board.confidence:.0%} intervals over them"
    if board.left_out:
        said += f"; {board.left_out} more left out, whose answers could not all be graded"
    return said + f"; the verdict turned with the order in {board.inconsistent:.1%} of games, which count as ties"


def _rows(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    ruled = ["---" if place == 0 else "---:" for place in range(len(headings))]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return ["| " + " | ".join(cells) + " |" for cells in (headings, ruled, *escaped)]
