"""Single-turn environments of the package ``verifiers``, written as its documentation has them."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

pytest.importorskip("verifiers")

from envs.adapters.verifiers import VerifiersEnv
from envs.base import Answer
from rlreason.types import Env

REVERSE = """
    import verifiers as vf
    from datasets import Dataset

    def load_environment(words=20, evaluation=False, **kwargs):
        def rows(first, count):
            texts = [f"word{place}" for place in range(first, first + count)]
            return Dataset.from_list([
                {"question": text, "answer": text[::-1], "info": {"best": f"<reversed>{text[::-1]}</reversed>"}}
                for text in texts
            ])

        parser = vf.XMLParser(["reversed"], answer_field="reversed")

        async def matches(completion, answer, parser) -> float:
            return 1.0 if parser.parse_answer(completion) == answer else 0.0

        def short(completion, state, info, **kwargs) -> float:
            assert state["is_truncated"] in (True, False)
            return float(len(completion[-1]["content"]) <= len(info["best"]))

        rubric = vf.Rubric(funcs=[matches, short], weights=[1.0, 0.5], parser=parser)
        rubric.add_reward_func(parser.get_format_reward_func(), weight=0.0)
        return vf.SingleTurnEnv(
            dataset=rows(0, words), eval_dataset=rows(words, 5) if evaluation else None,
            system_prompt="Reverse the word, in <reversed> tags.", parser=parser, rubric=rubric, **kwargs,
        )
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path, for modules with ``load_environment``."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def module(folder: Path, name: str, source: str) -> str:
    (folder / f"{name}.py").write_text(dedent(source))
    sys.modules.pop(name, None)
    return name


def test_an_environment_with_its_own_parser_and_rubric(package: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    env = VerifiersEnv(module(package, "vf_reverse", REVERSE), pass_threshold=1.0)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert isinstance(env, Env)
    env.validate()
    problem = env.split("train")[0]
    word = problem.answer["question"]
    assert problem.prompt == [
        {"role": "system", "content": "Reverse the word, in <reversed> tags."},
        {"role": "user", "content": word},
    ]
    texts = [f"<reversed>{word[::-1]}</reversed>", f"<reversed>\n{word[::-1]}\n</reversed>  ", word[::-1], ""]
    found = env.grade_texts([Answer(problem, text, "stop") for text in texts])
    # matches + 0.5 * short
    assert [grade.reward for grade in found] == [1.5, 1.0, 0.5, 0.5]
    assert [grade.correct for grade in found] == [True, True, False, False]
    assert (found[0].parts["matches"], found[0].parts["short"], found[1].parts["short"]) == (1.0, 1.0, 0.0)
    assert sum(env.manifest()["sizes"].values()) == 20


def test_its_evaluation_data_are_validation(package: Path) -> None:
    args = {"words": 10, "evaluation": True}
    env = VerifiersEnv(module(package, "vf_reverse_eval", REVERSE), args, name="reverse")
    assert env.manifest()["sizes"] == {"train": 10, "validation": 5}
    assert env.split("validation")[0].prompt[1]["content"] == "word10"
    assert env.grade_texts([Answer(env.split("validation")[0], "", "length")])[0].correct is None
    with pytest.raises(ValueError, match="reverse has no test split"):
        env.split("test")


MULTI_TURN = """
    import verifiers as vf
    from datasets import Dataset

    class Game(vf.MultiTurnEnv):
        async def env_response(self, messages, state, **kwargs):
            return [{"role": "user", "content": "Go on."}]

    def load_environment():
        rubric = vf.Rubric(funcs=[lambda completion: 1.0])
        return Game(dataset=Dataset.from_list([{"question": "Hi", "answer": ""}]), rubric=rubric, max_turns=3)
"""
GROUP = """
    import verifiers as vf
    from datasets import Dataset

    def diverse(completions, **kwargs) -> list:
        return [1.0] * len(completions)

    def load_environment():
        rows = [{"question": f"Say {n}", "answer": ""} for n in range(20)]
        return vf.SingleTurnEnv(dataset=Dataset.from_list(rows), rubric=vf.Rubric(funcs=[diverse]))
"""
EVALUATION_ONLY = """
    import verifiers as vf
    from datasets import Dataset

    def load_environment():
        rubric = vf.Rubric(funcs=[lambda completion: 1.0])
        return vf.SingleTurnEnv(eval_dataset=Dataset.from_list([{"question": "Hi", "answer": ""}]), rubric=rubric)
"""


@pytest.mark.parametrize(
    ("name", "source", "args", "what"),
    [
        ("vf_game", MULTI_TURN, {}, "is a Game, and only verifiers.SingleTurnEnv is taken: one of several turns"),
        ("vf_group", GROUP, {}, "compare the rollouts of a group are refused"),
        ("vf_evaluation", EVALUATION_ONLY, {}, "evaluation data only"),
        ("vf_args", REVERSE, {"words": "many"}, r"can't load env='vf_args' with args \{'words': 'many'\}"),
        ("vf_nothing", "x = 1", {}, "does not have a 'load_environment' function"),
    ],
)
def test_what_can_not_be_used_is_refused(package: Path, name: str, source: str, args: Any, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        VerifiersEnv(module(package, name, source), args)


def test_an_environment_that_is_not_installed_is_named() -> None:
    with pytest.raises(ValueError, match=r"no-such-environment.*installed"):
        VerifiersEnv("no-such-environment")


def test_a_published_environment_runs_unmodified() -> None:
    """``staros-stardata``, from the Python package index: poems of a fixed form, checked by rules."""
    pytest.importorskip("stardata")
    env = VerifiersEnv("stardata.envs.constraint_gym", {"forms": ["haiku", "limerick"], "topics_per_form": 10})
    env.validate()
    split = env.split("train")
    haiku = next(split[i] for i in range(split.size or 0) if "haiku" in split[i].prompt[0]["content"])
    # Five, seven and five syllables; then five, six and five.
    poems = [f"An old silent pond\nA frog jumps into {there}\nSplash! Silence again" for there in ("the pond", "ponds")]
    found = env.grade_texts([Answer(haiku, text, "stop") for text in [*poems, ""]])
    assert found[0].reward == 1.0 > found[1].reward > found[2].reward == 0.0
