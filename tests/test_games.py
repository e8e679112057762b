"""Games: what the policy is told and what it earns, by hand; players against theory and OpenSpiel's own search."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyspiel
import pytest
from open_spiel.python.algorithms.minimax import alpha_beta_search

from envs.base import SPLITS, split_of
from envs.data.game_moves import GameMoves
from envs.formats import R1, Boxed, Hash, Plain
from envs.games import MCTS, Alone, Games, Minimax, Move, Optimal, PastSelf, Player, Random, Seat
from envs.games.env import Match
from envs.games.text import words_for
from rlreason.types import Episode, Finish, Grade, Message, Problem


@dataclass
class Script:
    """A player who makes the moves he is told, whoever asks."""

    actions: list[int]
    asked: list[int] = field(default_factory=list)  # how many seats each time

    def refuse(self, game: Any) -> None: ...

    def choose(self, seats: Sequence[Seat]) -> list[Move]:
        self.asked.append(len(seats))
        return [Move(self.actions.pop(0)) for _ in seats]


def position(env: Games, *opening: int) -> Problem:
    """A problem with an opening of our own."""
    state = env._game.new_initial_state()
    for action in opening:
        state.apply_action(action)
    return Problem("p", env._prompt(state, state.current_player()), None, {"opening": list(opening)})


def turn(text: str) -> Message:
    return {"role": "assistant", "content": text}


def played(env: Games, problem: Problem, *texts: str, finish: Finish = "stop", seed: int = 0) -> tuple[Grade, Match]:
    """The grade of an episode of these answers, of which the last is cut off if ``finish`` is ``length``."""
    match, talk = env.start(problem, seed), list(problem.prompt)
    for number, text in enumerate(texts, start=1):
        talk.append(turn(text))
        if number < len(texts) or finish == "stop":
            (reply,) = env.replies([match], [talk])
            assert (reply is None) == (match.over or number == len(texts)), (texts, number, reply)
            talk += reply or []
    return env.grade([Episode(problem, match, talk, texts[-1], finish)])[0], match


# --- what is said


def test_a_game_of_tic_tac_toe_word_by_word() -> None:
    """x has the upper left and o the centre; x takes 2, o answers 9, x takes 3 and has the row."""
    env = Games(opponent=Script([8]))
    problem = position(env, 0, 4)
    assert problem.prompt == [
        {
            "role": "user",
            "content": "Tic-tac-toe: three in a row win. Free squares show their numbers; a move is such a number.\n"
            "You are x.\nx 2 3\n4 o 6\n7 8 9\nLegal moves: 2, 3, 4, 6, 7, 8, 9\nAnswer with the move alone.",
        }
    ]
    match = env.start(problem, 5)
    talk = [*problem.prompt, turn(" 2\n")]
    (reply,) = env.replies([match], [talk])
    assert reply == [{"role": "user", "content": "o: 9\nx x 3\n4 o 6\n7 8 o\nLegal moves: 3, 4, 6, 7, 8"}]
    talk += [*reply, turn("3")]
    assert env.replies([match], [talk]) == [None]
    (grade,) = env.grade([Episode(problem, match, talk, "3", "stop")])
    assert grade == Grade(
        1.0,
        True,
        parts={
            "won": 1.0, "drawn": 0.0, "lost": 0.0, "unfinished": 0.0, "illegal": 0.0, "plies": 3.0,
        },
    )  # fmt: skip


def test_words_are_the_configs() -> None:
    env = Games(rules="", legal_moves=False, format=R1(instruction="Think."), system="You play.", opponent=Script([8]))
    problem = position(env, 0, 4)
    assert [m["content"] for m in problem.prompt] == ["You play.", "You are x.\nx 2 3\n4 o 6\n7 8 9\nThink."]
    (reply,) = env.replies([env.start(problem, 0)], [[*problem.prompt, turn("<think>a</think><answer>2</answer>")]])
    assert reply == [{"role": "user", "content": "o: 9\nx x 3\n4 o 6\n7 8 o"}]


def test_connect_four_and_nim_in_words() -> None:
    env = Games(game="connect_four", params={"rows": 4, "columns": 5, "x_in_row": 3}, opponent=Script([2]))
    problem = position(env, 0, 4, 4)
    assert problem.prompt[0]["content"] == (
        "Connect 3: 3 in a row, across, down or diagonally, win. A move is the number of a column, 1 to 5; the piece "
        "falls to its lowest free place.\nYou are o.\n1 2 3 4 5\n. . . . .\n. . . . .\n. . . . x\nx . . . o\n"
        "Legal moves: 1, 2, 3, 4, 5\nAnswer with the move alone."
    )
    (reply,) = env.replies([env.start(problem, 0)], [[*problem.prompt, turn("4")]])
    assert reply == [
        {
            "role": "user",
            "content": "x: 3\n1 2 3 4 5\n. . . . .\n. . . . .\n. . . . x\nx . x o o\nLegal moves: 1, 2, 3, 4, 5",
        }
    ]
    nim = Games(game="nim", params={"pile_sizes": "1;3;4"})
    start = position(nim)
    assert start.prompt[0]["content"] == (
        "Nim: in turn, take one or more from a single pile. Whoever takes the last one loses. A move is pile-number: "
        "2-3 takes 3 from pile 2.\nYou are the first player.\npile 1: 1\npile 2: 3\npile 3: 4\n"
        "Legal moves: 1-1, 2-1, 3-1, 2-2, 3-2, 2-3, 3-3, 3-4\nAnswer with the move alone."
    )
    match = nim.start(start, 0)
    nim._play(match, nim._names(match.state)["3-2"])
    assert str(match.state) == "(1): 1 3 2"
    normal = pyspiel.load_game("nim", {"is_misere": False})
    assert "Whoever takes the last one wins." in words_for(normal).rules


def test_other_games_speak_openspiels_words() -> None:
    env = Games(game="breakthrough", params={"rows": 4, "columns": 4})
    problem = env.split("train")[1]
    names = problem.prompt[0]["content"].partition("Legal moves: ")[2].partition("\n")[0].split(", ")
    assert env.play([problem], [1], Random())[0].messages[1]["content"] in names
    assert all(re.fullmatch(r"[a-d][1-4][a-d][1-4]\*?", name) for name in names)
    twixt = Games(game="twixt", params={"board_size": 5})
    assert "\x1b" not in twixt.split("train")[0].prompt[0]["content"]


def test_what_is_hidden_is_not_told() -> None:
    """Kuhn poker: cards 0, 1, 2. A player's text must not depend on the other one's card, nor the order of legal moves
    show it; phantom tic-tac-toe: where the other one moved is not said."""
    kuhn = Games(game="kuhn_poker", opening_plies=(0, 1))
    assert position(kuhn, 2, 0).prompt == position(kuhn, 2, 1).prompt
    assert position(kuhn, 2, 0).prompt != position(kuhn, 1, 0).prompt
    phantom = Games(game="phantom_ttt", opponent=Script([8]))
    problem = position(phantom)
    (reply,) = phantom.replies([phantom.start(problem, 0)], [[*problem.prompt, turn("x(0,0)")]])
    assert reply is not None
    assert "(2,2)" in reply[0]["content"]  # still listed as a move that may be tried
    assert "o" not in reply[0]["content"].partition("Legal")[0]


# --- problems


def test_openings_sides_and_splits() -> None:
    envs = [Games(seed=0), Games(seed=1), Games(seed=0, opening_plies=(2, 4), rules="")]
    where: dict[str, set[str]] = {}
    for env in envs:
        for name in SPLITS:
            problems = [env.split(name)[i] for i in range(60)]
            assert [p.meta["side"] for p in problems[:4]] == ["x", "o", "x", "o"]
            assert problems == [env.split(name)[i] for i in range(60)]
            for problem in problems:
                least, most = env.opening_plies
                assert least <= len(problem.meta["opening"]) <= most
                where.setdefault(env._words.position(env.start(problem, 0).state), set()).add(name)
    assert {len(names) for names in where.values()} == {1}
    assert {next(iter(names)) for names in where.values()} == set(SPLITS)
    first, second = ([e.split("train")[i].id for i in range(60)] for e in envs[:2])
    assert first != second


def test_mirrored_positions_are_one_problem() -> None:
    ttt, four, nim = (pyspiel.load_game(name) for name in ("tic_tac_toe", "connect_four", "nim"))

    def at(game: Any, *actions: int) -> str:
        state = game.new_initial_state()
        for action in actions:
            state.apply_action(action)
        return words_for(game).position(state)

    assert len({at(ttt, corner) for corner in (0, 2, 6, 8)}) == 1
    assert len({at(ttt, a) for a in range(9)}) == 3  # corner, edge, centre
    assert len({at(ttt, a, b) for a in range(9) for b in range(9) if a != b}) == 12  # known: openings of two moves
    assert at(ttt, 0, 1) != at(ttt, 1, 0)  # x in the corner, o beside it; and the other way round
    assert at(four, 0, 1, 6) == at(four, 6, 5, 0)
    assert at(four, 0, 1, 6) != at(four, 0, 2, 6)
    # Piles 1 3 5 7; actions number the legal moves of all piles: taking 2 from the second, or all of the fourth.
    state = nim.new_initial_state()
    names = {words_for(nim).move(state, action): action for action in state.legal_actions()}
    assert at(nim, names["4-2"]) == "1 3 5 5"
    assert at(nim, names["2-3"]) == "1 5 7"
    assert split_of("nim/1 5 7") in SPLITS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"game": "matrix_rps"}, "its players move at the same time"),
        ({"game": "2048"}, r"it has 1 player\(s\)"),
        ({"game": "tiny_hanabi"}, "one player's win is not the other's loss"),
        ({"game": "tictactoe"}, r"Unknown game 'tictactoe' \(there is tic_tac_toe"),
        ({"game": "nim", "params": {"piles": "3"}}, "Unknown parameter 'piles'. Available parameters are"),
        ({"game": "nim", "params": {"pile_sizes": 3}}, "Wrong type for parameter pile_sizes"),
        ({"game": "kuhn_poker", "opponent": Minimax(1)}, "opponent: minimax would see what kuhn_poker"),
        ({"game": "kuhn_poker", "opponent": MCTS(1)}, "opponent: mcts would see"),
        ({"game": "kuhn_poker", "opponent": Optimal()}, "opponent: optimal would see"),
        ({"game": "chess", "opponent": Optimal()}, "too large to be solved"),
        ({"game": "connect_four", "opponent": Optimal()}, "too large to be solved"),
        ({"format": Plain()}, "format Plain can't be used: it takes one of the two moves"),
        ({"format": Hash()}, "format Hash can't be used: it takes one of the two moves"),
        ({"game": "breakthrough", "format": Plain()}, "format Plain can't be used: it does not read the move"),
        ({"opening_plies": (0, 0)}, "had none for the .* split with . to move; make them more varied, such as .0, 2."),
        ({"opening_plies": (3, 1)}, r"opening_plies is \[3, 1\]"),
        ({"opening_plies": (3,)}, "opening_plies is"),
        ({"opening_plies": (30, 31)}, "had none for"),
        ({"retries": -1}, "retries is -1"),
        ({"rewards": {"won": 1.0, "drawn": 0.5}}, "it must give a number for each of won, drawn, lost"),
        ({"rewards": {"won": 1.0, "drawn": float("nan"), "lost": 0.0}}, "it must give a number"),
        ({"rewards": {"won": 0.0, "drawn": 0.5, "lost": 0.0}}, "a win must earn no less"),
        ({"legal_bonus": float("inf")}, "legal_bonus is inf"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Games(**settings)


def test_player_settings_are_checked() -> None:
    for make, message in ((lambda: Minimax(0), "depth is 0"), (lambda: MCTS(0), "simulations is 0")):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(ValueError, match="uct_c is 0"):
        MCTS(1, uct_c=0)


# --- what is earned

NEARLY = (0, 4, 1, 5)  # x x 3 / 4 o o / 7 8 9: x is to move; 3 wins, and so would 4 for o


@pytest.mark.parametrize(
    ("opening", "texts", "answers", "outcome", "plies"),
    [
        (NEARLY, ["3"], [], "won", 1),
        (NEARLY, ["7"], [3], "lost", 2),  # o takes 4
        ((0, 2, 1, 4), ["7", "6", "8"], [3, 8], "drawn", 5),  # x x o / 4 o 6 / 7 8 9; o takes 4 and 9
    ],
)
def test_outcomes_by_hand(
    opening: tuple[int, ...], texts: list[str], answers: list[int], outcome: str, plies: int
) -> None:
    rewards = {"won": 3.0, "drawn": 1.0, "lost": -2.0}
    env = Games(opponent=Script(list(answers)), rewards=rewards)
    grade, match = played(env, position(env, *opening), *texts)
    assert grade.reward == rewards[outcome]
    assert grade.correct is (outcome == "won")
    assert {name for name in rewards if grade.parts[name]} == {outcome}
    assert grade.parts["plies"] == plies == len(match.moves)
    assert grade.status == "ok"


@pytest.mark.parametrize(
    "text",
    ["", " ", "x", "0", "10", "1", "5", "-3", "3.0", "03", "３", "٣", "3 or 4", "3\n4", "3, 4", "33", "3.", "nan",
     "I play 3", "<answer>3</answer>", "Legal moves: 3, 4, 7, 8, 9", "9" * 5000, "3\u200b", "'3'", "3<|im_end|>"],
)  # fmt: skip
def test_whatever_is_not_one_legal_move_loses(text: str) -> None:
    env = Games()
    grade, match = played(env, position(env, *NEARLY), text)
    assert grade.reward == 0.0
    assert grade.correct is False
    assert grade.status == "unparseable"
    assert (grade.parts["lost"], grade.parts["illegal"], grade.parts["plies"]) == (1.0, 1.0, 0.0)
    assert match.forfeited


@pytest.mark.parametrize(
    "text",
    ["3", "<think>a</think>3", "<think>a</think><answer>3</answer><answer>4</answer>", "<answer>3</answer>",
     "<think>a</think><answer>3 or 4</answer>", "<think><answer>3</answer></think>", "<think>a</think><answer>3"],
)  # fmt: skip
def test_hedges_in_tags_are_no_moves(text: str) -> None:
    env = Games(format=R1())
    assert played(env, position(env, *NEARLY), text)[0].reward == 0.0
    assert played(env, position(env, *NEARLY), "<think>a</think> <answer> 3 </answer>")[0].reward == 1.0
    boxed = Games(format=Boxed())
    assert played(boxed, position(boxed, *NEARLY), "so \\boxed{3}")[0].reward == 1.0
    assert played(boxed, position(boxed, *NEARLY), "\\boxed{3} or \\boxed{4}")[0].reward == 0.0


def test_a_move_that_was_cut_off_is_not_played() -> None:
    env = Games()
    grade, match = played(env, position(env, *NEARLY), "3", finish="length")
    assert grade.reward == 0.0
    assert not match.moves
    assert grade.parts["unfinished"] == grade.parts["lost"] == grade.parts["illegal"] == 1.0


def test_a_game_whose_turns_are_spent_is_lost() -> None:
    """The opponent has answered, and no turn is left: ``roll_out`` ends it with ``length``."""
    env = Games(opponent=Script([2]), legal_bonus=0.5)
    problem = position(env, 0, 4)
    match, talk = env.start(problem, 0), [*problem.prompt, turn("2")]
    (reply,) = env.replies([match], [talk])
    assert reply is not None
    (grade,) = env.grade([Episode(problem, match, [*talk, *reply], "2", "length")])
    assert (grade.correct, grade.parts["unfinished"], grade.parts["illegal"]) == (False, 1.0, 0.0)
    assert grade.reward == 0.5
    assert grade.turn_rewards == (0.5,)


def test_retries_and_the_bonus_for_legal_moves() -> None:
    """Two tries are left after the first; the bonus of 0.4 is for the shares of legal answers: 1 of 2, 1 of 3."""
    env = Games(retries=2, legal_bonus=0.4)
    problem = position(env, *NEARLY)
    match, talk = env.start(problem, 0), [*problem.prompt, turn("1")]
    (reply,) = env.replies([match], [talk])
    assert reply == [
        {
            "role": "user",
            "content": "That is no legal move; 2 tries are left. Legal moves: 3, 4, 7, 8, 9\n"
            "Answer with the move alone.",
        }
    ]
    (reply,) = env.replies([match], [[*talk, *reply, turn("no")]])
    assert reply is not None
    assert reply[0]["content"].startswith("That is no legal move; 1 try is left.")
    grade, _ = played(env, problem, "1", "3")
    assert grade.reward == pytest.approx(1.2)
    assert grade.turn_rewards == pytest.approx((0.0, 0.2))
    assert grade.parts["illegal"] == 1.0
    assert env.max_reward == 1.4
    lost, match = played(env, problem, "a", "b", "c")
    assert match.forfeited
    assert lost.reward == 0.0
    assert lost.turn_rewards == (0.0, 0.0, 0.0)
    won, _ = played(env, problem, "a", "b", "3")
    assert won.reward == pytest.approx(1 + 0.4 / 3)
    assert Games(retries=2).grade([Episode(problem, match, talk, "", "stop")])[0].turn_rewards == ()


def test_games_of_several_moves_in_a_row_and_of_chance() -> None:
    """Dots and boxes: who closes a box goes on. Pig: dice, and several rolls in a row."""
    for name, params in (("dots_and_boxes", {"num_rows": 1, "num_cols": 2}), ("pig", {"winscore": 20})):
        env = Games(game=name, params=params)
        problems = [env.split("train")[i] for i in range(12)]
        episodes = env.play(problems, range(12), Random())
        assert all(e.finish == "stop" for e in episodes)
        runs = [[who for who, _ in e.state.moves] for e in episodes]
        assert any(a == b for moves in runs for a, b in itertools.pairwise(moves))
        grades = env.grade(episodes)
        for episode, grade in zip(episodes, grades, strict=True):
            own = sum(who == episode.state.side for who, _ in episode.state.moves)
            assert own == sum(m["role"] == "assistant" for m in episode.messages)
            assert grade.correct is (episode.state.state.returns()[episode.state.side] > 0)
        assert {g.correct for g in grades} == {True, False}


# --- players


@pytest.mark.parametrize("opponent", [Random(), Minimax(2), MCTS(20)])
@pytest.mark.parametrize("game", ["connect_four", "pig"])
def test_games_repeat_by_their_seeds(game: str, opponent: Player) -> None:
    params = {"winscore": 15} if game == "pig" else {}
    envs = [Games(game=game, params=params, opponent=opponent) for _ in range(2)]
    problem = envs[0].split("test")[0]

    def talk(env: Games, *seeds: int) -> list[list[Message]]:
        return [e.messages for e in env.play([problem] * len(seeds), seeds, Random(), max_turns=12)]

    together = talk(envs[0], 1, 2, 3, 4)
    assert talk(envs[1], 4, 1) == [together[3], together[0]]  # whoever else is played
    assert len({str(messages) for messages in together}) > 1


def test_minimax_sees_as_far_as_its_depth() -> None:
    state = pyspiel.load_game("tic_tac_toe").new_initial_state()
    for action in NEARLY:
        state.apply_action(action)
    seats = [Seat(state, [], lambda text: None, seed, 0) for seed in range(40)]
    assert {m.action for m in Minimax(1).choose(seats)} == {2}  # wins
    state.apply_action(8)  # now o is to move: 3 (action 2) blocks, 4 (action 3) wins
    assert {m.action for m in Minimax(1).choose(seats)} == {3}
    state = pyspiel.load_game("tic_tac_toe").new_initial_state()
    for action in (0, 4, 1):  # o must block the upper row
        state.apply_action(action)
    seats = [Seat(state, [], lambda text: None, seed, 0) for seed in range(40)]
    assert {m.action for m in Minimax(2).choose(seats)} == {2}
    assert {m.action for m in Minimax(1).choose(seats)} == set(state.legal_actions())  # sees no threat


def test_optimal_play_is_openspiels() -> None:
    """Values of positions along random games are alpha-beta's to the end, and its moves are among the best."""
    game, optimal = pyspiel.load_game("tic_tac_toe"), Optimal()
    for seed in range(4):
        state = game.new_initial_state()
        while not state.is_terminal():
            if len(state.history()) >= 3:  # before that alpha-beta takes a second
                value, _ = alpha_beta_search(game, state)
                assert optimal.value(state, state.current_player()) == value
            seat = Seat(state, [], lambda text: None, seed, len(state.history()))
            (best,) = optimal.choose([seat])
            assert optimal.value(state.child(best.action), state.current_player()) == optimal.value(
                state, state.current_player()
            )
            state.apply_action(Random().choose([seat])[0].action)
    assert optimal.value(game.new_initial_state(), 0) == 0


def test_optimal_play_of_nim_is_bouton() -> None:
    """Who takes the last one wins: the player to move loses where the piles' exclusive or is 0 (Bouton 1901)."""
    game, optimal = pyspiel.load_game("nim", {"pile_sizes": "2;3;4", "is_misere": False}), Optimal()
    pending, seen = [game.new_initial_state()], set()
    while pending:
        state = pending.pop()
        if state.is_terminal() or str(state) in seen:
            continue
        seen.add(str(state))
        a, b, c = (int(n) for n in str(state).partition(":")[2].split())
        assert optimal.value(state, state.current_player()) == (-1 if a ^ b ^ c == 0 else 1)
        pending += [state.child(action) for action in state.legal_actions()]
    assert len(seen) > 60


def test_the_strong_beat_the_weak_and_are_not_always_the_same() -> None:
    def score(env: Games, player: Player, count: int) -> float:
        problems = [env.split("test")[i] for i in range(count)]
        return sum(g.reward for g in env.grade(env.play(problems, range(count), player))) / count

    ttt = Games()
    assert score(ttt, Optimal(), 60) > 0.9 > score(ttt, Minimax(1), 60) > 0.65
    assert 0.3 < score(ttt, Random(), 60) < 0.7
    against_optimal = Games(opponent=Optimal())
    assert score(against_optimal, Random(), 30) < 0.25
    problems = [against_optimal.split("test")[i] for i in range(30)]
    episodes = against_optimal.play(problems, range(30), Optimal())
    worth = [Optimal().value(against_optimal.start(p, 0).state, i % 2) for i, p in enumerate(problems)]
    assert {-1.0, 0.0, 1.0} == set(worth)
    assert [g.reward for g in against_optimal.grade(episodes)] == [(value + 1) / 2 for value in worth]
    assert score(Games(game="connect_four"), MCTS(50), 8) == 1.0
    start = Seat(pyspiel.load_game("tic_tac_toe").new_initial_state(), [], lambda text: None, 0, 0)
    seats = [Seat(start.state, [], start.read, seed, 0) for seed in range(60)]
    assert {m.action for m in Optimal().choose(seats)} == set(range(9))  # all draw


def test_opponents_are_asked_together() -> None:
    script = Script([8, 8, 8])
    env = Games(opponent=script)
    problems = [position(env, 0, 4), position(env, *NEARLY), position(env, 0, 4), position(env, 1, 4)]
    matches = [env.start(problem, i) for i, problem in enumerate(problems)]
    texts = ("2", "3", "illegal", "3")  # the second wins, the third loses: nobody has to answer them
    talks = [[*p.prompt, turn(text)] for p, text in zip(problems, texts, strict=True)]
    replies = env.replies(matches, talks)
    assert [reply is None for reply in replies] == [False, True, True, False]
    assert script.asked == [2]


@dataclass
class Fake:
    """A writer who says what he is told and keeps what he was asked."""

    texts: list[str]
    asked: list[tuple[list[Message], int]] = field(default_factory=list)

    def __call__(self, conversations: Sequence[list[Message]], seeds: Sequence[int]) -> list[str]:
        self.asked += [(list(c), s) for c, s in zip(conversations, seeds, strict=True)]
        return [self.texts.pop(0) for _ in conversations]


def test_a_past_self_is_told_what_the_policy_would_be() -> None:
    writer = Fake(["9", "hm", "7"])
    env = Games(opponent=PastSelf(writer))
    problem = position(env, 0, 4)
    match, talk = env.start(problem, 77), list(problem.prompt)
    for move in ("2", None):
        move = move or next(n for n in ("7", "8") if n in env._names(match.state))
        talk.append(turn(move))
        (reply,) = env.replies([match], [talk])
        assert reply is not None
        talk += reply
    (first, seed), (second, again) = writer.asked
    assert seed == again == 77
    assert first == position(env, 0, 4, 1).prompt
    assert "You are o." in first[0]["content"]
    assert second[:2] == [*first, turn("9")]
    assert second[2]["content"].startswith("x: 7\nx x 3\n4 o 6\nx 8 o\n")
    assert len(second) == 3
    assert match.slips == 1  # "hm": a random legal move was played in its place
    assert len(match.moves) == 4
    (grade,) = env.grade([Episode(problem, match, talk, "7", "stop")])
    assert grade.parts["opponent_illegal"] == 1.0


# --- the whole


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"game": "nim"},
        {"game": "connect_four", "params": {"rows": 4, "columns": 4, "x_in_row": 3}},
        {"game": "kuhn_poker"},
        {"game": "backgammon", "opening_plies": (0, 1)},
        {"format": R1(), "legal_bonus": 0.2, "retries": 3, "opponent": Minimax(2)},
    ],
    ids=lambda settings: settings.get("game", "tic_tac_toe"),
)
def test_environments_validate(settings: dict[str, Any]) -> None:
    Games(**settings).validate()


def test_validation_finds_a_verifier_that_is_too_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    env = Games()
    monkeypatch.setattr(Games, "_check_format", lambda self: None)
    monkeypatch.setattr(Games, "_read", lambda self, state, text: self._names(state).get(text[:1]))
    with pytest.raises(ValueError, match=r"problem .*: '.\\n.' \(finish stop\) should lose the game, but got"):
        env.validate()
    monkeypatch.undo()
    # an "optimal" player who moves at random is found out by what the openings are worth
    monkeypatch.setattr(Optimal, "choose", lambda self, seats: Random().choose(seats))
    with pytest.raises(ValueError, match=r"should have (won|drawn) at least"):
        Games(seed=1).validate()


def test_demonstrations_are_whole_games(monkeypatch: pytest.MonkeyPatch) -> None:
    env = Games(format=Alone(instruction=""))
    data = GameMoves(env, Optimal(), 40, 10)
    assert (len(data.split("train")), len(data.split("validation"))) == (40, 10)
    assert data.name == "tic_tac_toe-moves"
    for place, demonstration in enumerate(data.split("train")):
        problem = env.split("train")[place]
        assert demonstration.messages[: len(problem.prompt)] == problem.prompt
        answers = [m["content"] for m in demonstration.messages if m["role"] == "assistant"]
        assert demonstration.messages[-1]["role"] == "assistant"
        assert all(re.fullmatch("[1-9]", answer) for answer in answers)
        grade, _ = played(env, problem, *answers, seed=place)  # the same game again
        assert grade.reward >= 0.5 or Optimal().value(env.start(problem, 0).state, place % 2) < 0
    assert GameMoves(env, Optimal(), 40, 10).split("train") == data.split("train")
    assert GameMoves(env, Optimal(), 40, 10, seed=1).split("train") != data.split("train")
    with pytest.raises(ValueError, match="num_train is 0"):
        GameMoves(env, Optimal(), 0, 10)
    with pytest.raises(ValueError, match="would see what"):
        GameMoves(Games(game="kuhn_poker"), Minimax(1), 4, 4)


def test_grading_is_quick() -> None:
    env = Games()
    problems = [env.split("train")[i] for i in range(50)] * 10
    episodes = env.play(problems, range(500), Random())
    begin = time.perf_counter()
    env.grade(episodes)
    assert 500 / (time.perf_counter() - begin) > 1000
