"""What every environment keeps to, asked of each configuration in ``conf/env``: a new one is asked too, without being
named here, as it stands. ``CASES`` says what a configuration needs besides, and from what it is exempt, and why.

The text of an episode is said again in each of the policy's turns, up to ``TURNS``. Left out: what a right answer is,
and what is the same problem in other words, which each environment's own tests know.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from test_code import HUMANEVAL, MBPP

from envs.base import SPLITS
from rlreason.types import Env, Episode, Finish, Message, Problem

CONF = Path(__file__).resolve().parent.parent / "conf"
TURNS = 8
LOOKED_AT = 4  # problems of each split
COMPARED = 200  # problems of each split, for whether splits meet
GRADES = 1000  # a second
ADVERSARIAL_SECONDS = 30.0  # of this process's CPU time, for some 100 texts of up to 100 kB


@dataclass(frozen=True)
class Case:
    """What to know of a configuration. ``overrides``: DATA is a folder that holds ``ROWS``. ``seed``: the key that
    changes which problems come, None where the data have their own order. ``best`` and ``least``: the bounds of the
    reward, None for the environment's ``max_reward``. ``gold``: it writes right completions. ``needs``: a package
    without which it is skipped. ``slow``: why its grades are not counted by the second."""

    overrides: tuple[str, ...] = ()
    splits: tuple[str, ...] = SPLITS
    seed: str | None = "env.seed"
    best: float | None = None
    least: float = 0.0
    gold: bool = True
    needs: str = ""
    slow: str = ""


WORKERS = "a pool of worker processes"
SANDBOX = "programs run in the sandbox"
ASYNC = "each is scored by the library's own asynchronous rubric"
SAYS = ("env.gold_key=answer", "env.pass_threshold=1.0")
LOCAL = ("env.source=local", "env.data_dir=DATA")
MATH = Case((*LOCAL, "env.num_validation=10"), slow=WORKERS)
MATH_TEST = Case(LOCAL, splits=("test",), seed=None, slow=WORKERS)
CODE_FILES = tuple(f"env.files.{split}=code.jsonl" for split in SPLITS)
CODE_IDS = "env.task_ids={train: [1, 4], validation: [5, 6], test: [7, 8]}"

CASES: dict[str, Case] = {
    "abstain": Case(seed="env.env.seed", least=-1.0),  # of env=arithmetic; a confident error costs 1
    "aime": MATH_TEST,
    "amc": MATH_TEST,
    "code": Case((*LOCAL, *CODE_FILES, CODE_IDS), seed=None, slow=SANDBOX),
    "games": Case(gold=False, needs="pyspiel"),  # a game has no right text
    "gsm8k": Case(("env.source=synthetic",), slow=WORKERS),
    "humaneval": Case((*LOCAL, "env.files.test=humaneval.jsonl"), ("test",), seed=None, slow=SANDBOX),
    "jsonl_grader": Case(("env.source.train=DATA/says.jsonl", "env.grader=DATA/grader.py", *SAYS), seed=None, best=1.0),
    "math": MATH,
    "math500": MATH_TEST,
    # Members in turns, each with a reward of its own: the best of them is what bounds all.
    "mixture": Case(seed="env.envs.arithmetic.seed", best=1.2, gold=False),
    "notes": Case(best=1.0, gold=False),  # better and worse notes, none right
    "prefilled": Case(seed="env.env.seed", best=1.0, gold=False),  # of env=arithmetic
    # The prompts of comparisons: no test split, and no reward but 0.
    "prompts": Case(
        ("data@env.data=synthetic", "env.data.num_train=50", "env.data.num_validation=20"),
        splits=("train", "validation"),
        seed="env.data.env.seed",
        best=1.0,
        gold=False,
    ),
    "reasoning_gym": Case(needs="reasoning_gym", slow=WORKERS),
    # A scorer's reward has no bounds, so the inner one is paid beside it; the scorer stands in for a model.
    "rlhf": Case(
        ("~env.scorer", "+env.scorer._target_=test_conformance.Zero", "env.weights.gold=1.0"),
        seed="env.env.seed",
        best=1.0,
        gold=False,
    ),
    "svamp": replace(MATH, overrides=(*MATH.overrides, "env.problem_key=problem", "env.answer_key=answer")),
    "tools": Case(seed="env.env.seed"),  # of env=arithmetic
    "trl_reward": Case(
        ("env.source.train=DATA/says.jsonl", "env.functions=test_conformance.says_it", *SAYS), seed=None, best=1.0
    ),
    "verifiers": Case(("env.env=test_conformance", *SAYS), seed=None, best=1.0, needs="verifiers", slow=ASYNC),
}
NAMES = sorted(path.stem for path in (CONF / "env").glob("*.yaml"))
ROWS: dict[str, list[dict[str, Any]]] = {
    "train.jsonl": [{"problem": f"What is ${i}^2$?", "answer": str(i * i)} for i in range(40)],
    "test.jsonl": [{"problem": f"What is ${i}^2$?", "answer": str(i * i)} for i in range(40, 60)],
    "says.jsonl": [{"prompt": [{"role": "user", "content": f"Say {i}."}], "answer": f"It is {i}."} for i in range(60)],
    "code.jsonl": MBPP,
    # Both are to define the same name: programs that define different ones don't contradict each other.
    "humaneval.jsonl": [
        HUMANEVAL,
        {
            "task_id": "HumanEval/1",
            "prompt": 'def double(x):\n    """x with itself behind it."""\n',
            "canonical_solution": "    return [x, x]\n",
            "entry_point": "double",
            "test": "def check(candidate):\n    assert candidate(2) == [2, 2]\n",
        },
    ],
}


GRADER = """
def grade(sample, item):
    return float(sample["output_text"].endswith(item["answer"]))
"""


class Zero:
    """A scorer to which everything is alike."""

    def __call__(self, conversations: Sequence[list[Message]]) -> list[tuple[float, ...]]:
        return [(0.0,) for _ in conversations]


def says_it(completions: list[list[Message]], answer: list[str], **columns: Any) -> list[float]:
    """The grader, as a reward function in TRL's form."""
    return [float(said[-1]["content"].endswith(wanted)) for said, wanted in zip(completions, answer, strict=True)]


def load_environment() -> Any:
    """The grader, as an environment of the package verifiers."""
    import verifiers
    from datasets import Dataset

    def ends_with_it(completion: list[Message], answer: str) -> float:
        return float(completion[-1]["content"].endswith(answer))

    rubric = verifiers.Rubric(funcs=[ends_with_it], weights=[1.0])
    return verifiers.SingleTurnEnv(dataset=Dataset.from_list(ROWS["says.jsonl"]), rubric=rubric)


@dataclass(frozen=True)
class Subject:
    """An environment of ``conf/env`` and what its case says."""

    name: str
    case: Case
    data: Path
    env: Env

    @property
    def best(self) -> float:
        return self.env.max_reward if self.case.best is None else self.case.best  # type: ignore[attr-defined]

    def again(self, *overrides: str) -> Env:
        return build(self.name, self.data, *overrides)

    def gold(self, problem: Problem) -> str:
        return self.env.gold(problem)  # type: ignore[attr-defined]

    def problems(self, count: int = LOOKED_AT) -> list[Problem]:
        return [problem for split in self.case.splits for problem in first(self.env, split, count)]


def case_of(name: str) -> Case:
    return CASES.get(name, Case())


def build(name: str, data: Path, *overrides: str) -> Env:
    asked = [override.replace("DATA", str(data)) for override in case_of(name).overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        env: Env = instantiate(compose(overrides=[f"+env={name}", *asked, *overrides]).env)
    return env


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "grader.py").write_text(GRADER, encoding="utf-8")
    for file, rows in ROWS.items():
        (folder / file).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=NAMES)
def subject(request: pytest.FixtureRequest, data: Path) -> Subject:
    name, case = request.param, case_of(request.param)
    if case.needs:
        pytest.importorskip(case.needs, reason=f"env={name} needs {case.needs}")
    env = build(name, data)
    assert hasattr(env, "gold") == case.gold, f"CASES must say whether {name} writes right completions"
    return Subject(name, case, data, env)


def of(names: Sequence[str]) -> pytest.MarkDecorator:
    """For these configurations only."""
    return pytest.mark.parametrize("subject", names, indirect=True)


def first(env: Env, split: str, count: int) -> list[Problem]:
    found = env.split(split)
    return [found[index] for index in range(count if found.size is None else min(count, found.size))]


def played(env: Env, problem: Problem, text: str, finish: Finish = "stop") -> Episode:
    """An episode whose policy says ``text`` in each of its turns; in the first, after what was begun for it."""
    state, messages = env.start(problem, 0), list(problem.prompt)
    said = (messages.pop()["content"] if messages[-1]["role"] == "assistant" else "") + text
    for _ in range(TURNS):
        messages.append({"role": "assistant", "content": said})
        (reply,) = env.replies([state], [messages]) if finish == "stop" else [None]
        if reply is None:
            return Episode(problem, state, messages, said, finish)
        messages.extend(reply)
        said = text
    return Episode(problem, state, messages, said, "length")  # as where sampling.max_turns is spent


def turns_of(messages: Sequence[Message]) -> int:
    """Turns of the policy, or of whoever speaks in its place in the prompt."""
    return sum(message["role"] == "assistant" for message in messages)


def wrong(subject: Subject) -> Iterator[tuple[Problem, str]]:
    """Problems with a right completion for another answer."""
    for split in subject.case.splits:
        problems = first(subject.env, split, LOOKED_AT)
        for problem in problems:
            others = [other.answer for other in problems if str(other.answer) != str(problem.answer)]
            yield from ((problem, subject.gold(replace(problem, answer=answer))) for answer in others[:1])


def bad(subject: Subject, problem: Problem) -> Iterator[tuple[str, Finish]]:
    """Texts that say nothing, are no answer, copy the prompt, or were cut off before the answer."""
    yield from (
        (text, "stop") for text in ("", " \n\t ", "Lorem ipsum dolor sit amet, consectetur.", "<think>\n", "?" * 500)
    )
    contents = [message["content"] for message in problem.prompt]
    yield from ((text, "stop") for text in (*contents, "\n".join(contents), "\n".join(contents * 2)))
    if subject.case.gold:
        gold = subject.gold(problem)
        before = gold.partition(str(problem.answer))[0]
        yield (before if before != gold else gold[: len(gold) // 2]), "length"


VALUES = (
    f"1{'0' * 5000}",
    "٣",
    "１２",
    "nan",
    "-inf",
    "1e999999999",
    "1/0",
    "9**9**9**9",
    "\x00\x1b[2J\x07\r",
    "\ud800\udfff",
    "\u202e\u200b\ufeff",
    "(" * 5000,
    "[" * 5000,
    "\\frac{" * 2000,
    "lorem ipsum " * 8000,
    "<answer>" * 10_000,
    "</think><answer>" * 5000,
    "\\boxed{" * 10_000,
    "#### 987654321\n" * 5000,
    '{"name": ' * 5000,
)
FRAMES = (
    "{}",
    "<think>So.</think>\n<answer>{}</answer>",
    "\\boxed{{{}}}",
    "So.\n#### {}",
    "```python\n{}\n```",
    "<answer>{}",
)


def test_the_table_is_of_configurations_that_there_are() -> None:
    assert CASES.keys() <= {*NAMES}


def test_it_validates_itself(subject: Subject) -> None:
    subject.env.validate()


def test_a_configuration_is_the_same_environment_each_time(subject: Subject) -> None:
    again, problems = subject.again(), subject.problems(20)
    assert [p for split in subject.case.splits for p in first(again, split, 20)] == problems
    for problem in subject.problems():
        texts = ["", "It is 7."]
        if subject.case.gold:
            texts.append(subject.gold(problem))
            assert replace(subject, env=again).gold(problem) == texts[-1]
        own, other = ([played(env, problem, text) for text in texts] for env in (subject.env, again))
        assert subject.env.grade(own) == again.grade(other)
    if subject.case.seed is not None:
        other_seed = subject.again(f"{subject.case.seed}=1")
        assert [p.id for split in subject.case.splits for p in first(other_seed, split, 20)] != [p.id for p in problems]


def test_splits_do_not_meet(subject: Subject) -> None:
    """By id and by words; those of other seeds, too, where problems are generated."""
    envs = [subject.env]
    if subject.case.seed is not None and subject.env.manifest().get("source") in ("generated", "synthetic"):
        envs.append(subject.again(f"{subject.case.seed}=1"))
    ids: dict[str, set[str]] = {}
    words: dict[str, set[tuple[str, ...]]] = {}
    for split in subject.case.splits:
        problems = [problem for env in envs for problem in first(env, split, COMPARED)]
        ids[split] = {problem.id for problem in problems}
        words[split] = {tuple(w for m in p.prompt for w in m["content"].lower().split()) for p in problems}
    for one, other in itertools.combinations(subject.case.splits, 2):
        assert not ids[one] & ids[other]
        assert not words[one] & words[other]


@of([name for name in NAMES if case_of(name).gold])
def test_right_completions_pay_and_hedges_do_not(subject: Subject) -> None:
    """Two answers in one text are right in one order at most: whoever does not know gains nothing by saying both."""
    pairs = list(wrong(subject))
    assert pairs
    for problem, foil in pairs:
        gold = subject.gold(problem)
        texts = (gold, foil, f"{gold}\n{foil}", f"{foil}\n{gold}")
        right, other, *hedges = subject.env.grade([played(subject.env, problem, text) for text in texts])
        assert right.correct is True
        assert math.isclose(right.reward, subject.best)
        assert other.correct is False
        assert other.reward < subject.best
        assert [grade.correct for grade in hedges] != [True, True]


def test_bad_answers_are_not_right(subject: Subject) -> None:
    for problem in subject.problems():
        texts = list(bad(subject, problem))
        grades = subject.env.grade([played(subject.env, problem, text, finish) for text, finish in texts])
        for (text, _), grade in zip(texts, grades, strict=True):
            assert grade.correct is not True, text
            assert grade.reward < subject.best, text
            assert grade.status != "error"


def test_nothing_that_the_policy_writes_breaks_it(subject: Subject) -> None:
    problem = subject.problems(1)[0]
    texts = [frame.format(value) for value in VALUES for frame in FRAMES]
    start = time.process_time()
    episodes = [played(subject.env, problem, text) for text in texts]
    grades = subject.env.grade(episodes)
    assert time.process_time() - start < ADVERSARIAL_SECONDS
    for episode, grade in zip(episodes, grades, strict=True):
        assert grade.status != "error", episode.text[:100]
        assert grade.correct is not True, episode.text[:100]
        assert subject.case.least - 1e-9 <= grade.reward <= subject.best + 1e-9, episode.text[:100]
        assert all(map(math.isfinite, (grade.reward, *grade.parts.values(), *grade.turn_rewards)))
        turns = turns_of(episode.messages) - turns_of(
            problem.prompt[:-1]
        )  # the last one may have been begun for the policy
        assert len(grade.turn_rewards) in (0, turns)


def test_a_grade_does_not_depend_on_the_others(subject: Subject) -> None:
    assert subject.env.grade([]) == []
    written = [(problem, *pair) for problem in subject.problems(2) for pair in bad(subject, problem)]
    if subject.case.gold:
        written += [(problem, text, "stop") for problem, text in wrong(subject)]
        written += [(problem, subject.gold(problem), "stop") for problem in subject.problems(2)]
    episodes = [played(subject.env, *each) for each in written]
    together = subject.env.grade(episodes)
    assert subject.env.grade(episodes[::-1])[::-1] == together
    assert [grade for episode in episodes for grade in subject.env.grade([episode])] == together


@of([name for name in NAMES if not case_of(name).slow])
def test_grades_are_quick(subject: Subject) -> None:
    """CPU time of one process, the best of five tries: a busy machine does not fail it."""
    thoughts = "First 12 * 3 = 36, then we take 5 away, which leaves $31.00 for the rest.\n" * 25  # about 600 tokens
    problems = subject.problems(10)
    texts = [thoughts + (subject.gold(problem) if subject.case.gold else "7") for problem in problems]
    one = [played(subject.env, problem, text) for problem, text in zip(problems, texts, strict=True)]
    episodes = list(itertools.islice(itertools.cycle(one), GRADES))
    seconds = []
    for _ in range(5):
        start = time.process_time()
        subject.env.grade(episodes)
        seconds.append(time.process_time() - start)
        if seconds[-1] < 1.0:
            return
    pytest.fail(f"{GRADES} grades took {min(seconds):.2f} s at best")
