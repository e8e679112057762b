"""The known rule of notes: its parts by hand, its shape, and the prompts."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from envs.base import SPLITS
from envs.notes import AUDIENCES, PARTS, TONES, TOPICS, WEIGHTS, NoteRule, Notes
from rlreason.types import Env, Episode, Finish

CONF = str(Path(__file__).resolve().parent.parent / "conf")
RULE = NoteRule(enough=10, too_many=20)


def parts(text: str, finish: Finish = "stop", topic: str = "rain") -> dict[str, float]:
    return RULE.parts(topic, text, finish)


def words(count: int) -> str:
    """So many different content words, none of them a topic."""
    return " ".join("".join(letters) for letters in itertools.islice(itertools.product("bdfg", repeat=4), count))


def test_all_parts_by_hand() -> None:
    # Content: quiet, rain, falls, roofs, makes, gardens, green; "and", "the", "on", "is" are too short, "very" and
    # "when" function words. Fourteen words have twelve trigrams, all different.
    text = "Quiet rain falls on the roofs and makes gardens green, when rain is very"
    found = parts(text)
    assert found == {"on_topic": 1.0, "informative": 0.7, "varied": 1.0, "finished": 0.0, "plain": 1.0}
    by_weight = 0.35 * 1 + 0.3 * 0.7 + 0.15 * 1 + 0.1 * 0 + 0.1 * 1
    assert RULE.total(found) == pytest.approx(by_weight, abs=1e-12)
    notes = Notes(RULE)
    problem = next(p for i in range(1000) if (p := notes.split("train")[i]).meta["topic"] == "rain")
    grade = notes.grade([Episode(problem, notes.start(problem, 0), [], text, "stop")])[0]
    assert (grade.reward, grade.correct, grade.status, grade.parts) == (RULE.total(found), None, "ok", found)
    assert notes.replies([None], [[]]) == [None]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Nothing of the kind falls today.", 0.0),
        ("Here the rain falls and falls.", 0.5),
        ("RAIN falls, and more rain's water.", 1.0),
        ("Rains and rains and rains and rains.", 1.0),
        ("Rain’s music, and rain again, comes.", 1.0),
        ("'Rain and rain,' they say to us.", 1.0),
        ("Trains run, rainy days, brains work.", 0.0),
    ],
)
def test_on_topic(text: str, value: float) -> None:
    assert parts(text)["on_topic"] == value


@pytest.mark.parametrize(
    ("count", "value"), [(5, 0.5), (9, 0.9), (10, 1.0), (11, 0.9), (15, 0.5), (19, 0.1), (20, 0.0), (40, 0.0)]
)
def test_informative_rises_and_falls(count: int, value: float) -> None:
    """With enough=10 and too_many=20: n/10 up to ten different content words, then (20 - n)/10."""
    assert parts(words(count))["informative"] == pytest.approx(value, abs=1e-12)
    assert parts(f"{words(count)} {words(count)} it's an a don't")["informative"] == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("one two three four five", 1.0),
        ("one two three one two three", 3 / 4),  # 123 231 312 123
        ("la la la la la la", 1 / 4),
        ("One, two: three! One two THREE.", 3 / 4),
    ],
)
def test_varied(text: str, value: float) -> None:
    assert parts(text)["varied"] == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "finish", "value"),
    [
        ("It rains and rains all day.", "stop", 1.0),
        ("It rains and rains all day!\n", "stop", 1.0),
        ('She said: "It rains and rains."', "stop", 1.0),
        ("(Does it rain and rain today?)", "stop", 1.0),
        ("It rains and rains all day.", "length", 0.0),
        ("It rains and rains all day", "stop", 0.0),
        ("It rains. It rains all day,", "stop", 0.0),
        ("It rains and rains all day:", "stop", 0.0),
    ],
)
def test_finished(text: str, finish: Finish, value: float) -> None:
    assert parts(text, finish)["finished"] == value


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("It rains on the old town again.", 0),
        ("It rains 10% more, and costs $5.", 0),  # two symbols are none too many
        ("Surely it rains on the sure-footed town!", 0),
        ("NASA says that it rains on Mars.", 1),
        ("It rains again and again!! Truly so.", 1),
        ("It rains! It pours! We all sleep!", 1),
        ("It rains! It pours all day long!", 0),
        ("Certainly! It rains on the old town.", 1),
        ("I'm glad you asked about the rain.", 1),
        ("I’m so happy to write about rain.", 1),
        ("**Here is** a note about the rain.", 2),
        ("Rain is:\n- wet\n- cold\n- a joy to see", 1),
        ("Rain is:\n 1. wet\n 2. cold on the skin", 1),
        ("Dear [Your Name] / Dear all, it rains.", 1),
        ("Sure!! RAIN:\n* wet\n* cold on the skin", 3),
    ],
)
def test_plain(text: str, faults: int) -> None:
    assert parts(text)["plain"] == pytest.approx(1 - faults / 3, abs=1e-12)


@pytest.mark.parametrize("text", ["", " \n", "Rain.", "Rain is rain again.", "!!! *** 1 2 3 4 5 6 7"])
def test_fewer_than_five_words_are_no_note(text: str) -> None:
    assert parts(text) == dict.fromkeys(PARTS, 0.0)
    assert parts("Rain is rain again today.")["finished"] == 1.0


def test_more_is_better_only_up_to_a_point() -> None:
    rule = NoteRule()
    rewards = [
        rule.total(rule.parts("rain", f"Of rain, rain: {words(count)}.", "stop")) for count in (4, 20, 39, 60, 79, 120)
    ]
    assert rewards[0] < rewards[1] < rewards[2] == pytest.approx(1.0)
    assert rewards[2] > rewards[3] > rewards[4]
    assert rewards[4] == rewards[5] == pytest.approx(1 - WEIGHTS["informative"])
    assert rewards[4] < rewards[0]  # rambling is worse than brevity


def test_weights_and_settings() -> None:
    only = replace(RULE, weights={"finished": 2.0})
    assert only.total(only.parts("rain", "It rains and rains again.", "stop")) == 2.0
    assert sum(WEIGHTS.values()) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no reward part 'style'"):
        NoteRule(weights={"style": 1.0})
    for enough, too_many in ((40, 40), (4, 20)):
        with pytest.raises(ValueError, match=f"enough is {enough} and too_many {too_many}"):
            NoteRule(enough, too_many)


def test_prompts_are_each_in_one_split() -> None:
    notes = Notes()
    assert isinstance(notes, Env)
    prompts = {}
    for name in SPLITS:
        size = notes.split(name).size
        assert size is not None
        prompts[name] = [notes.split(name)[i] for i in range(size)]
    everything = [problem.prompt[0]["content"] for name in SPLITS for problem in prompts[name]]
    assert len(everything) == len(set(everything)) == len(TOPICS) * len(AUDIENCES) * len(TONES)
    assert "Write a short note about rain." in everything
    assert "Write a short note about rain for children." in everything
    assert "Write a short note about rain in a warm tone." in everything
    assert "Write a short note about rain for children in a warm tone." in everything
    assert [round(len(prompts[name]) / len(everything), 1) for name in SPLITS] == [0.6, 0.2, 0.2]
    other = Notes(seed=1)
    for name in SPLITS:
        order = [other.split(name)[i] for i in range(len(prompts[name]))]
        assert order != prompts[name]
        assert {problem.id for problem in order} == {problem.id for problem in prompts[name]}
    with pytest.raises(ValueError, match="no split 'dev'"):
        notes.split("dev")


def test_every_topic_is_one_word_that_the_rule_finds() -> None:
    for topic in TOPICS:
        assert RULE.parts(topic, f"Some say {topic}, others say {topic.capitalize()}.", "stop")["on_topic"] == 1.0


@pytest.mark.parametrize("rule", [NoteRule(), NoteRule(5, 6), NoteRule(100, 300), NoteRule(weights={"plain": 1.0})])
def test_the_rule_validates_itself(rule: NoteRule) -> None:
    Notes(rule).validate()


@pytest.mark.parametrize("part", PARTS)
def test_validate_finds_a_part_that_is_blind(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sighted = NoteRule.parts

    def blind(rule: NoteRule, topic: str, text: str, finish: Finish) -> dict[str, float]:
        return {**sighted(rule, topic, text, finish), part: 1.0}

    monkeypatch.setattr(NoteRule, "parts", blind)
    with pytest.raises(ValueError, match=rf"notes/.* should lose by {part}"):
        Notes().validate()


def test_validate_finds_a_part_that_never_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NoteRule, "parts", lambda *_: dict.fromkeys(PARTS, 0.5))
    with pytest.raises(ValueError, match="should lose nothing"):
        Notes().validate()


def test_config() -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        env = instantiate(compose(overrides=["+env=notes"]).env)
    assert env == Notes()  # the config and the class agree on every default
    assert math.isclose(sum(env.manifest()["weights"].values()), 1.0)
