"""A two-player game in turns: the policy is shown the position, answers with a move, and is shown the next one.

A problem is an opening, some random moves long, after which the policy is to move; problems with an even number begin
for the first player and the others for the second, so that it plays both sides. The splits partition openings by their
position (mirrored ones are the same, where ``text.py`` says so), for every seed and configuration; positions later in
a game are wherever play takes it. Chance (dice, cards) is drawn from the seed of the episode.

Left out: simultaneous moves, more than two players, games in which both may win, and chance that OpenSpiel doesn't
list; they are refused with the reason. Time and tokens are bounded by ``sampling`` (``max_turns``): a game that is
unfinished then is lost.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from envs.base import SPLITS, GeneratedSplit, check_split, make_prompt, split_of
from envs.formats import Format
from envs.games.library import drawn, has_chance, is_hidden, load, refuse
from envs.games.players import MCTS, Move, Optimal, Player, Random, Seat
from envs.games.text import Words, words_for
from rlreason.types import Episode, Finish, Grade, Message, Problem, Split

OUTCOMES = ("won", "drawn", "lost")

DRAWS = 2_000
"""Openings drawn for a problem before it is said that there is none."""

VALIDATED = 2
"""Openings of each split that ``validate`` plays."""

LONGEST = 15
"""Moves of the policy after which ``validate`` leaves a game unfinished."""


@dataclass(frozen=True)
class Alone:
    """The move and nothing else: the whole text but for white space around it."""

    instruction: str = "Answer with the move alone."

    def extract(self, text: str) -> str | None:
        return text.strip() or None

    def score(self, text: str) -> float | None:
        return None

    def gold(self, reasoning: str, answer: str) -> str:
        return answer


@dataclass
class Match:
    """A game being played. ``legal`` has an entry for each answer of the policy that was looked at: whether it was a
    legal move. ``talk`` is the opponent's side of it, and ``slips`` how many of his answers named no legal move, if he
    is one that answers in words."""

    state: Any
    side: int
    seed: int
    talk: list[Message] = field(default_factory=list)
    told: list[int] = field(default_factory=lambda: [0, 0])  # how many of ``moves`` each player has been told
    moves: list[tuple[int, str]] = field(default_factory=list)  # who, and the move's name
    legal: list[bool] = field(default_factory=list)
    forfeited: bool = False
    slips: int | None = None

    @property
    def over(self) -> bool:
        return self.forfeited or self.state.is_terminal()


@dataclass(frozen=True)
class Games:
    """A ``rlreason.types.Env`` of games against ``opponent``.

    ``game`` is one of OpenSpiel's by name (``tic_tac_toe``), with ``params`` its own (``{pile_sizes: "3;4;5"}``).
    ``opening_plies`` are the least and the most random moves of an opening. ``rules`` null is what ``text.py`` says of
    the game. ``legal_moves``: whether they are listed. An answer is a move only if ``format`` extracts from it exactly
    the name of a legal move; ``retries`` other answers a game get an error and another try, the next one loses it.

    The reward is that of the outcome (``rewards``), an unfinished game being a lost one, plus ``legal_bonus`` times the
    share of the policy's answers that were legal moves, earned answer by answer (``Grade.turn_rewards``): a share, so
    that a longer game earns no more. ``correct`` is a win: in evaluation the accuracy is the share of games won, and
    the reward, draws being worth half, the score. Parts: ``won``, ``drawn``, ``lost`` (one of them 1), ``unfinished``,
    ``illegal`` (answers that were no legal move), ``plies`` (moves after the opening) and, of an opponent who answers
    in words, ``opponent_illegal``.

    Raises ImportError without OpenSpiel, and ValueError for a game that can't be played here and for settings that make
    no sense.
    """

    game: str = "tic_tac_toe"
    params: Mapping[str, Any] = field(default_factory=dict)
    opponent: Player = field(default_factory=Random)
    opening_plies: tuple[int, int] = (0, 3)
    rules: str | None = None
    legal_moves: bool = True
    format: Format = field(default_factory=Alone)
    retries: int = 0
    rewards: Mapping[str, float] = field(default_factory=lambda: {"won": 1.0, "drawn": 0.5, "lost": 0.0})
    legal_bonus: float = 0.0
    system: str | None = None
    seed: int = 0
    name: str = ""
    _game: Any = field(init=False, repr=False, compare=False)
    _words: Words = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_game", load(self.game, self.params))
        object.__setattr__(self, "name", self.name or self._game.get_type().short_name)
        object.__setattr__(self, "opening_plies", tuple(self.opening_plies))
        object.__setattr__(self, "rewards", dict(self.rewards))
        refuse(self._game)
        object.__setattr__(self, "_words", words_for(self._game))
        plies = self.opening_plies
        if len(plies) != 2 or not 0 <= plies[0] <= plies[1]:
            raise ValueError(
                f"games: opening_plies is {list(plies)}; it must be the least and the most moves, such as [0, 3]"
            )
        if self.retries < 0:
            raise ValueError(f"games: retries is {self.retries}; it must be 0 (an illegal move loses) or more")
        if set(self.rewards) != set(OUTCOMES) or not all(map(math.isfinite, self.rewards.values())):
            raise ValueError(
                f"games: rewards is {self.rewards}; it must give a number for each of {', '.join(OUTCOMES)}"
            )
        if not self.rewards["won"] >= self.rewards["drawn"] >= self.rewards["lost"]:
            raise ValueError(
                f"games: rewards is {self.rewards}; a win must earn no less than a draw, nor a draw a loss"
            )
        if not (math.isfinite(self.legal_bonus) and self.legal_bonus >= 0):
            raise ValueError(f"games: legal_bonus is {self.legal_bonus}; it must be a finite number, 0 or more")
        try:
            self.opponent.refuse(self._game)
        except ValueError as error:
            raise ValueError(f"games: opponent: {error}") from error
        for name in SPLITS:
            for index in (0, 1):
                self._opening(name, index)
        self._check_format()

    @property
    def max_reward(self) -> float:
        return self.rewards["won"] + self.legal_bonus

    def split(self, name: str) -> Split:
        check_split(name)
        return GeneratedSplit(None, lambda index: self._problem(name, index))

    def start(self, problem: Problem, seed: int) -> Match:
        state = self._game.new_initial_state()
        for action in problem.meta["opening"]:
            state.apply_action(action)
        return Match(state, state.current_player(), seed)

    def replies(self, states: Sequence[Match], conversations: Sequence[list[Message]]) -> list[list[Message] | None]:
        """The policy's moves, the opponent's answers to them, and what the policy is told then."""
        found: list[list[Message] | None] = [None] * len(states)
        moved = []
        for place, (match, conversation) in enumerate(zip(states, conversations, strict=True)):
            action = self._read(match.state, conversation[-1]["content"])
            match.legal.append(action is not None)
            if action is not None:
                self._play(match, action)
                moved.append(place)
            elif match.legal.count(False) <= self.retries:
                found[place] = [self._error(match)]
            else:
                match.forfeited = True
        self._answer([states[place] for place in moved])
        for place in moved:
            match = states[place]
            if not match.over:
                found[place] = [{"role": "user", "content": self._news(match, match.side)}]
        return found

    def grade(self, episodes: Sequence[Episode]) -> list[Grade]:
        return [self._grade(episode) for episode in episodes]

    def play(
        self, problems: Sequence[Problem], seeds: Sequence[int], player: Player, *, max_turns: int | None = None
    ) -> list[Episode]:
        """Games of ``player`` in the policy's seat, told as the policy would be told them: to imitate, and to measure
        players by. One that has not ended after ``max_turns`` of its moves is cut off. Raises ValueError if it can't
        play this game."""
        player.refuse(self._game)
        matches = [self.start(problem, seed) for problem, seed in zip(problems, seeds, strict=True)]
        talks = [list(problem.prompt) for problem in problems]
        open_, turns = list(range(len(matches))), 0
        while open_ and turns != max_turns:
            moves = player.choose([self._seat(matches[place], talks[place]) for place in open_])
            for place, move in zip(open_, moves, strict=True):
                talks[place].append(self._said(matches[place], move))
            answers = self.replies([matches[place] for place in open_], [talks[place] for place in open_])
            open_ = [place for place, answer in zip(open_, answers, strict=True) if answer is not None]
            turns += 1
            if turns != max_turns:
                for place, answer in zip(open_, (a for a in answers if a is not None), strict=True):
                    talks[place].extend(answer)
        return [
            Episode(problem, match, talk, talk[-1]["content"], "stop" if match.over else "length")
            for problem, match, talk in zip(problems, matches, talks, strict=True)
        ]

    def validate(self) -> None:
        """Check the rules without a model, against a random player, on ``VALIDATED`` openings of each split.

        Where the game can be solved, perfect play must earn at least what the opening is worth; else what MCTS (or
        where something is hidden, chance) plays must be legal and end as OpenSpiel says. No move, two moves at once and
        a move that was cut off must earn what a lost game does. Raises ValueError naming the problem.
        """
        env = replace(self, opponent=Random(), retries=0)
        expert = env._expert()
        for name in SPLITS:
            problems = [env.split(name)[index] for index in range(VALIDATED)]
            for episode in env.play(problems, range(len(problems)), expert, max_turns=LONGEST):
                env._check_played(episode, expert)
            for problem in problems:
                env._check_refused(problem)

    def manifest(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "source": "generated",
            "game": str(self._game),
            "opponent": f"{self.opponent}",
            "opening_plies": list(self.opening_plies),
            "retries": self.retries,
            "rewards": dict(self.rewards),
            "legal_bonus": self.legal_bonus,
            "seed": self.seed,
            "format": {"type": type(self.format).__name__, "instruction": self.format.instruction},
        }

    # --- problems

    def _problem(self, split: str, index: int) -> Problem:
        opening = self._opening(split, index)
        state = self._game.new_initial_state()
        for action in opening:
            state.apply_action(action)
        side = state.current_player()
        return Problem(
            id=f"{self._game}/{'-'.join(map(str, opening)) or 'start'}",
            prompt=self._prompt(state, side),
            answer=None,
            meta={"game": str(self._game), "side": self._words.sides[side], "opening": opening},
        )

    def _opening(self, split: str, index: int) -> list[int]:
        """OpenSpiel's actions, those of chance among them."""
        rng = random.Random(f"games/{self._game}/{self.seed}/{split}/{index}")
        for _ in range(DRAWS):
            state, plies, actions = self._game.new_initial_state(), rng.randint(*self.opening_plies), list[int]()
            while not state.is_terminal() and (plies or state.is_chance_node()):
                if state.is_chance_node():
                    actions.append(drawn(state, rng))
                else:
                    actions.append(rng.choice(state.legal_actions()))
                    plies -= 1
                state.apply_action(actions[-1])
            if not state.is_terminal() and state.current_player() == index % 2:
                key = f"{self._game.get_type().short_name}/{self._words.position(state)}"
                if split_of(key) == split:
                    return actions
        raise ValueError(
            f"games: opening_plies={list(self.opening_plies)} of {self._game}: {DRAWS} openings had none for the "
            f"{split} split with {self._words.sides[index % 2]} to move; make them more varied, such as "
            f"[{self.opening_plies[0]}, {self.opening_plies[1] + 2}]"
        )

    def _prompt(self, state: Any, side: int) -> list[Message]:
        rules = self._words.rules if self.rules is None else self.rules
        lines = [rules, f"You are {self._words.sides[side]}.", self._position(state)]
        return make_prompt("\n".join(line for line in lines if line), self.format.instruction, self.system)

    def _position(self, state: Any) -> str:
        board = self._words.board(state, state.current_player())
        return f"{board}\n{self._listed(state)}" if self.legal_moves else board

    def _listed(self, state: Any) -> str:
        return f"Legal moves: {', '.join(self._names(state))}"

    def _names(self, state: Any) -> dict[str, int]:
        return {self._words.move(state, action): action for action in state.legal_actions()}

    # --- play

    def _read(self, state: Any, text: str) -> int | None:
        named = self.format.extract(text)
        return None if named is None else self._names(state).get(named)

    def _play(self, match: Match, action: int) -> None:
        match.moves.append((match.state.current_player(), self._words.move(match.state, action)))
        match.state.apply_action(action)

    def _answer(self, matches: Sequence[Match]) -> None:
        """Let chance and the opponent move, all games together, until the policy is to move or the game is over."""
        waiting = list(matches)
        while waiting:
            for match in waiting:
                rng = random.Random(f"chance/{match.seed}/{len(match.moves)}")
                while match.state.is_chance_node():
                    match.state.apply_action(drawn(match.state, rng))
            waiting = [m for m in waiting if not m.state.is_terminal() and m.state.current_player() != m.side]
            if not waiting:
                return
            for match in waiting:
                match.talk += self._told(match)
            seats = [self._seat(match, match.talk) for match in waiting]
            for match, move in zip(waiting, self.opponent.choose(seats), strict=True):
                if move.text is not None:
                    match.slips = (match.slips or 0) + (self._read(match.state, move.text) is None)
                match.talk.append(self._said(match, move))
                self._play(match, move.action)

    def _seat(self, match: Match, talk: list[Message]) -> Seat:
        state = match.state
        return Seat(state, talk, lambda text: self._read(state, text), match.seed, len(match.moves))

    def _said(self, match: Match, move: Move) -> Message:
        """A player's turn in its own conversation."""
        text = move.text
        if text is None:
            text = self.format.gold("", self._words.move(match.state, move.action))
        return {"role": "assistant", "content": text}

    def _told(self, match: Match) -> list[Message]:
        """What the opponent is told before its move."""
        other = 1 - match.side
        if not match.talk:
            match.told[other] = len(match.moves)
            return self._prompt(match.state, other)
        return [{"role": "user", "content": self._news(match, other)}]

    def _news(self, match: Match, player: int) -> str:
        """What has happened since ``player`` was last told, and the position."""
        since = match.moves[match.told[player] :]
        match.told[player] = len(match.moves)
        shown = [] if is_hidden(self._game) else [f"{self._words.sides[w]}: {name}" for w, name in since if w != player]
        return "\n".join([*shown, self._position(match.state)])

    def _error(self, match: Match) -> Message:
        left = self.retries - match.legal.count(False) + 1
        tries = "1 try is" if left == 1 else f"{left} tries are"
        said = f"That is no legal move; {tries} left. {self._listed(match.state)}"
        return {"role": "user", "content": f"{said}\n{self.format.instruction}".rstrip()}

    # --- verdicts

    def _grade(self, episode: Episode) -> Grade:
        match: Match = episode.state
        outcome = "lost"
        if match.state.is_terminal() and not match.forfeited:
            difference = match.state.returns()[match.side] - match.state.returns()[1 - match.side]
            outcome = "won" if difference > 0 else "drawn" if difference == 0 else "lost"
        answers = sum(m["role"] == "assistant" for m in episode.messages[len(episode.problem.prompt) :])
        legal = match.legal + [False] * (answers - len(match.legal))  # the last one may have been cut off
        bonus = [self.legal_bonus * was / len(legal) for was in legal]
        parts = {name: float(name == outcome) for name in OUTCOMES}
        parts["unfinished"] = float(not match.over)
        parts["illegal"] = float(legal.count(False))
        parts["plies"] = float(len(match.moves))
        if match.slips is not None:
            parts["opponent_illegal"] = float(match.slips)
        return Grade(
            reward=self.rewards[outcome] + sum(bonus),
            correct=outcome == "won",
            status="ok" if legal and legal[-1] else "unparseable",
            parts=parts,
            turn_rewards=tuple(bonus) if self.legal_bonus else (),
        )

    # --- checks

    def _check_format(self) -> None:
        """ValueError unless a move in the format is read as that move, and two moves are none."""
        state, rng = self._game.new_initial_state(), random.Random(0)
        while state.is_chance_node():
            state.apply_action(drawn(state, rng))
        golds = {name: self.format.gold("", name) for name in self._names(state)}
        kind = type(self.format).__name__
        for name, gold in golds.items():
            if self.format.extract(gold) != name:
                raise ValueError(f"games: format {kind} can't be used: it does not read the move {name!r} in {gold!r}")
        for pair in itertools.pairwise(golds.values()):
            if self._read(state, "\n".join(pair)) is not None:
                raise ValueError(
                    f"games: format {kind} can't be used: it takes one of the two moves in {' '.join(pair)!r}; choose "
                    "envs.games.Alone, envs.formats.R1 or Boxed"
                )

    def _expert(self) -> Player:
        for player in (Optimal(), MCTS(5)):
            with contextlib.suppress(ValueError):
                player.refuse(self._game)
                return player
        return Random()

    def _check_played(self, episode: Episode, expert: Player) -> None:
        match, grade = episode.state, self._grade(episode)
        least = "lost"
        if isinstance(expert, Optimal) and not has_chance(self._game):
            value = expert.value(self.start(episode.problem, 0).state, match.side)
            least = "won" if value > 0 else "drawn" if value == 0 else "lost"
        if not all(match.legal) or grade.reward < self.rewards[least] + self.legal_bonus - 1e-9:
            raise ValueError(
                f"{self.name}: problem {episode.problem.id}: {expert} should have {least} at least, by legal moves, "
                f"but got {grade} for {episode.messages}"
            )

    def _check_refused(self, problem: Problem) -> None:
        match = self.start(problem, 0)
        legal = [self.format.gold("", name) for name in self._names(match.state)]
        cases: list[tuple[str, Finish]] = [("", "stop"), ("I resign.", "stop"), (legal[0], "length")]
        if len(legal) > 1:
            cases.append((f"{legal[0]}\n{legal[1]}", "stop"))
        for text, finish in cases:
            match = self.start(problem, 0)
            talk: list[Message] = [*problem.prompt, {"role": "assistant", "content": text}]
            went_on = finish == "stop" and self.replies([match], [talk]) != [None]
            grade = self._grade(Episode(problem, match, talk, text, finish))
            if went_on or grade.correct or grade.reward != self.rewards["lost"]:
                raise ValueError(
                    f"{self.name}: problem {problem.id}: {text!r} (finish {finish}) should lose the game, but got "
                    f"{grade}"
                )
