"""GSM8K: each source, its failures, and that generated problems are never taken for GSM8K.

The hub is never asked: it is replaced by closed, silent or fake servers on this machine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import envs.gsm8k
import envs.rows
from envs.base import SPLITS, Answer
from envs.formats import R1, Format, Hash, Plain
from envs.gsm8k import Gsm8k, SyntheticDataWarning
from envs.verify import MathVerifier
from rlreason.types import Problem

CONF = str(Path(__file__).resolve().parent.parent / "conf")
FORMATS: list[Format] = [Plain(), Hash(), R1()]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def row(number: int, answer: str | None = None) -> dict[str, Any]:
    solution = f"Half of it is {2 * number}/2 = <<{2 * number}/2={number}>>{number}.\n#### {number}"
    return {"question": f"What is half of {2 * number}?", "answer": solution if answer is None else answer}


def write(folder: Path, train: list[Any], test: list[Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in (("train", train), ("test", test)):
        lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "data", [row(n) for n in range(100, 130)], [row(n) for n in range(10)])


def problems(env: Gsm8k, split: str) -> list[Problem]:
    found = env.split(split)
    assert found.size is not None
    return [found[index] for index in range(found.size)]


# Local files


def test_local(folder: Path) -> None:
    env = Gsm8k(data_dir=str(folder), num_validation=5, system="Be brief.")
    assert env.name == "gsm8k"
    assert {name: env.split(name).size for name in SPLITS} == {"train": 25, "validation": 5, "test": 10}
    assert problems(env, "test")[7] == Problem(
        id="gsm8k/test/7",
        prompt=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"What is half of 14?\n{R1().instruction}"},
        ],
        answer="7",
        meta={"solution": "Half of it is 14/2 = 7."},
    )
    held_out = {p.id for p in problems(env, "validation")}
    train = [p.id for p in problems(env, "train")]
    assert len(held_out) == 5
    assert not held_out & set(train)
    assert held_out | set(train) == {f"gsm8k/train/{n}" for n in range(30)}
    assert train == sorted(train, key=lambda id: int(id.rpartition("/")[2]))


def test_validation_is_chosen_by_the_environments_seed_alone(folder: Path) -> None:
    chosen = [
        [p.id for p in problems(Gsm8k(data_dir=str(folder), num_validation=5, seed=s), "validation")] for s in (0, 0, 1)
    ]
    assert chosen[0] == chosen[1] != chosen[2]
    assert chosen[0] == ["gsm8k/train/23", "gsm8k/train/19", "gsm8k/train/5", "gsm8k/train/12", "gsm8k/train/2"]


def test_local_manifest(folder: Path) -> None:
    manifest = json.loads(json.dumps(Gsm8k(data_dir=str(folder), num_validation=5, format=Hash("Go.")).manifest()))
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("train.jsonl", "test.jsonl")}
    assert manifest == {
        "name": "gsm8k",
        "worked_example": False,
        "source": "local",
        "data_dir": str(folder.resolve()),
        "sha256": files,
        "seed": 0,
        "sizes": {"train": 25, "validation": 5, "test": 10},
        "format": {"type": "Hash", "instruction": "Go."},
        "weights": {"accuracy": 1.0, "format": 0.2, "lenient": 0.0},
        "verifier": str(MathVerifier(percent_as_unit=True)),
    }


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: type(format).__name__)
def test_worked_example_is_a_solved_turn_before_the_question(folder: Path, format: Format) -> None:
    plain = Gsm8k(data_dir=str(folder), num_validation=5, format=format, system="Be brief.")
    shown = Gsm8k(data_dir=str(folder), num_validation=5, format=format, system="Be brief.", worked_example=True)
    system, user, assistant, question = shown.split("train")[0].prompt
    assert [system, question] == plain.split("train")[0].prompt
    assert (user["role"], assistant["role"]) == ("user", "assistant")
    problem = dataclasses.replace(shown.split("train")[0], answer="5")
    text = assistant["content"]
    grade, echoed = shown.grade_texts(
        [Answer(dataclasses.replace(problem, prompt=[]), text, "stop"), Answer(problem, text, "stop")]
    )
    assert grade.correct is True
    assert grade.reward == shown.max_reward
    assert echoed.correct is False  # copying the example is no answer, whatever the problem's is
    shown.validate()


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: type(format).__name__)
def test_local_validates(folder: Path, format: Format) -> None:
    Gsm8k(data_dir=str(folder), num_validation=5, format=format).validate()


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"question": "a"', "this is not JSON"),
        ("not json", "this is not JSON"),
        (b"\xff\xfe", "this is not JSON"),
        ("[" * 100_000, "this is not JSON"),
        ("[1, 2]", "this is not a JSON object"),
        ('"text"', "this is not a JSON object"),
        ({"answer": "#### 1"}, "'question' is missing, empty or not a string"),
        ({"question": "  ", "answer": "#### 1"}, "'question' is missing, empty or not a string"),
        ({"question": "a"}, "'answer' is missing, empty or not a string"),
        ({"question": "a", "answer": 18}, "'answer' is missing, empty or not a string"),
        ({"question": "a", "answer": "It is 18."}, "'answer' has no '####'"),
        ({"question": "a", "answer": "####"}, "the final answer '' after '####' is not a number"),
        ({"question": "a", "answer": "#### eighteen"}, "the final answer 'eighteen' after '####' is not a number"),
        ({"question": "a", "answer": "#### 18\nDone."}, "the final answer '18\\nDone.' after '####' is not a number"),
        ({"question": "a", "answer": "#### 1/0"}, "the final answer '1/0' after '####' is not a number"),
    ],
)
@pytest.mark.parametrize("file", ["train.jsonl", "test.jsonl"])
def test_malformed_rows_are_named_by_file_and_line(folder: Path, file: str, line: Any, what: str) -> None:
    content = line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
    lines = (folder / file).read_bytes().split(b"\n")
    (folder / file).write_bytes(b"\n".join([*lines[:3], b"", content, *lines[3:]]))
    for source in ("auto", "local"):
        with pytest.raises(ValueError, match=re.escape(f"{folder / file}:5: {what}")) as caught:
            Gsm8k(source=source, data_dir=str(folder), num_validation=5)
        assert "correct or remove this row" in str(caught.value)


def test_line_separators_inside_a_string_are_no_line_ends(tmp_path: Path) -> None:
    line = json.dumps({"question": "a\u2028b\x0c", "answer": "c\u2028#### 1,000.00"}, ensure_ascii=False)
    folder = write(tmp_path, [line.replace("\\f", "\u0085"), row(2), ""], [row(1), row(2)])
    env = Gsm8k(data_dir=str(folder), num_validation=1)
    found = {p.id: p for name in ("train", "validation") for p in problems(env, name)}
    assert found["gsm8k/train/0"].answer == "1000"
    assert set(found) == {"gsm8k/train/0", "gsm8k/train/1"}


@pytest.mark.parametrize("missing", ["train.jsonl", "test.jsonl", None])
@pytest.mark.parametrize("source", ["auto", "local"])
def test_missing_files(folder: Path, missing: str | None, source: str) -> None:
    if missing is None:
        shutil.rmtree(folder)
    else:
        (folder / missing).unlink()
    expected = folder / (missing or "train.jsonl")
    with pytest.raises(FileNotFoundError, match=re.escape(f"there is no file {expected}.")) as caught:
        Gsm8k(source=source, data_dir=str(folder))
    assert "grade-school-math" in str(caught.value)
    assert "env.source=synthetic" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"source": "web"}, "source is 'web'; it must be one of auto, hub, local, synthetic"),
        ({"source": "local"}, "source=local needs env.data_dir"),
        ({"source": "hub", "data_dir": "x"}, "source=hub does not read it"),
        ({"source": "synthetic", "data_dir": "x"}, "source=synthetic does not read it"),
        ({"source": "synthetic", "num_validation": 0}, "num_validation is 0"),
        ({"source": "synthetic", "synthetic_steps": []}, r"synthetic_steps is \[\]"),
        ({"source": "synthetic", "synthetic_steps": [1, 5]}, r"synthetic_steps is \[1, 5\]"),
        ({"source": "synthetic", "weights": {"speed": 1.0}}, "no reward part 'speed'"),
    ],
)
def test_refuses(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Gsm8k(**settings)


def test_refuses_to_hold_out_everything(folder: Path) -> None:
    with pytest.raises(ValueError, match="num_validation is 30, but train has only 30 problems"):
        Gsm8k(data_dir=str(folder), num_validation=30)
    (folder / "test.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="the test data have no rows"):
        Gsm8k(data_dir=str(folder), num_validation=5)


# The real data


def test_real_gsm8k(shared_data: Path) -> None:
    env = Gsm8k(data_dir=str(shared_data / "gsm8k"))
    assert {name: env.split(name).size for name in SPLITS} == {"train": 7273, "validation": 200, "test": 1319}
    questions = {name: {p.prompt[0]["content"] for p in problems(env, name)} for name in SPLITS}
    assert [len(questions[name]) for name in SPLITS] == [7273, 200, 1319]
    assert len(set.union(*questions.values())) == 8792
    assert problems(env, "test")[0].answer == "18"
    assert not any("<<" in p.meta["solution"] for name in SPLITS for p in problems(env, name))
    for format in FORMATS:
        real = Gsm8k(data_dir=str(shared_data / "gsm8k"), format=format)
        real.validate()
        # Every problem, not only the sample that validate takes.
        for name in SPLITS:
            answers = [Answer(problem, real.gold(problem), "stop") for problem in problems(real, name)]
            assert all(grade.correct for grade in real.grade_texts(answers))


# Generated problems


def test_synthetic() -> None:
    env = Gsm8k(source="synthetic")
    assert env.name == "gsm8k-synthetic"
    assert {name: env.split(name).size for name in SPLITS} == {"train": None, "validation": 200, "test": 1000}
    ids = {name: [p.id for p in problems(env, name)] for name in ("validation", "test")}
    ids["train"] = [env.split("train")[index].id for index in range(2000)]
    keys = {
        name: [id.removeprefix("gsm8k-synthetic/").rpartition("/")[0] for id in found] for name, found in ids.items()
    }
    assert len(set(keys["test"])) == 1000
    assert len(set(keys["validation"])) == 200
    assert len(set(keys["train"])) > 1000
    assert not set(keys["train"]) & set(keys["test"])
    assert not set(keys["train"]) & set(keys["validation"])
    assert not set(keys["test"]) & set(keys["validation"])
    assert {p.meta["steps"] for p in problems(env, "test")} == {1, 2, 3}
    same, other = Gsm8k(source="synthetic"), Gsm8k(source="synthetic", seed=1)
    assert [p.id for p in problems(same, "test")] == ids["test"] != [p.id for p in problems(other, "test")]
    assert same.split("train")[10**9] == env.split("train")[10**9]
    assert json.loads(json.dumps(env.manifest()))["source"] == "synthetic"


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: type(format).__name__)
def test_synthetic_validates(format: Format) -> None:
    Gsm8k(source="synthetic", format=format, num_validation=20).validate()


def test_synthetic_steps() -> None:
    env = Gsm8k(source="synthetic", synthetic_steps=(2,), num_validation=20)
    assert {p.meta["steps"] for p in problems(env, "validation")} == {2}
    # There are fewer than 1,000 different one-step problems in the test split: what there is, and no endless search.
    few = problems(Gsm8k(source="synthetic", synthetic_steps=(1,), num_validation=20), "test")
    assert 500 < len(few) < 1000


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match="no split 'dev'"):
        Gsm8k(source="synthetic").split("dev")


# The hub


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub that refuses connections (nothing listens on port 9)."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def fill(cache: Path, folder: Path, commit: str) -> None:
    """Put the folder's data where ``load_dataset`` keeps openai/gsm8k at this commit."""
    made = datasets.load_dataset(
        "json",
        data_files={name: str(folder / f"{name}.jsonl") for name in ("train", "test")},
        cache_dir=str(cache / "made"),
    )
    target = cache / "openai___gsm8k" / "main" / "0.0.0" / commit
    source = Path(made["train"].cache_files[0]["filename"]).parent
    target.mkdir(parents=True)
    for name in ("train", "test"):
        shutil.copy(source / f"json-{name}.arrow", target / f"gsm8k-{name}.arrow")
    info = json.loads((source / "dataset_info.json").read_text())
    info.update(dataset_name="gsm8k", config_name="main", builder_name="parquet")
    for split in info["splits"].values():
        split["dataset_name"] = "gsm8k"
    (target / "dataset_info.json").write_text(json.dumps(info))


@contextmanager
def fake_hub(status: int, headers: dict[str, str], body: bytes) -> Iterator[str]:
    """A server that gives this one answer; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_unreachable_hub_says_what_to_do_at_once(cache: Path) -> None:
    start = time.perf_counter()
    with pytest.raises(ConnectionError, match="'openai/gsm8k' can't be had from the Hugging Face hub") as caught:
        Gsm8k(source="hub")
    assert time.perf_counter() - start < 5
    for hint in ("env.source=local env.data_dir=<folder>", "env.source=synthetic", "grade-school-math"):
        assert hint in str(caught.value)
    assert "127.0.0.1:9" in str(caught.value.__cause__)
    assert datasets.config.HF_HUB_OFFLINE is False  # put back


def test_silent_hub_is_given_up(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envs.rows, "HUB_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        start = time.perf_counter()
        with pytest.raises(ConnectionError, match="can't be had"):
            Gsm8k(source="hub")
        assert time.perf_counter() - start < 5


def test_hanging_name_resolution_is_given_up(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envs.rows, "HUB_SECONDS", 0.3)
    released = threading.Event()
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *args, **kwargs: released.wait(30))
    start = time.perf_counter()
    try:
        with pytest.raises(ConnectionError) as caught:
            Gsm8k(source="hub")
    finally:
        released.set()
    assert time.perf_counter() - start < 5
    assert "did not answer within 0.3 s" in str(caught.value.__cause__)


def test_auto_falls_back_to_generated_problems_and_says_so(cache: Path) -> None:
    with pytest.warns(SyntheticDataWarning) as caught:
        env = Gsm8k(num_validation=20)
    (warning,) = [w for w in caught if w.category is SyntheticDataWarning]
    text = str(warning.message)
    assert len(text.splitlines()) > 8
    for part in ("NOT GSM8K", "gsm8k-synthetic", "env.data_dir=", "127.0.0.1:9"):
        assert part in text
    widths = {len(line) for line in text.splitlines()[1:]}
    assert len(widths) == 1  # a box
    assert env.name == "gsm8k-synthetic"
    assert env.manifest()["source"] == "synthetic"


def test_chosen_synthetic_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Gsm8k(source="synthetic", num_validation=20).name == "gsm8k-synthetic"


@pytest.mark.parametrize("source", ["auto", "hub"])
@pytest.mark.parametrize("offline", [False, True])
def test_cached_data_are_used_without_the_hub(
    cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, source: str, offline: bool
) -> None:
    """With HF_HUB_OFFLINE, and when the hub does not answer."""
    fill(cache, folder, COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    env = Gsm8k(source=source, num_validation=5)
    assert env.name == "gsm8k"
    local = Gsm8k(data_dir=str(folder), num_validation=5)
    for name in SPLITS:
        assert problems(env, name) == problems(local, name)
    manifest = env.manifest()
    assert (manifest["source"], manifest["dataset"], manifest["revision"]) == ("hub", "openai/gsm8k", COMMIT)


def test_cached_data_of_another_revision_are_refused(cache: Path, folder: Path) -> None:
    fill(cache, folder, COMMIT)
    assert Gsm8k(source="hub", revision=COMMIT, num_validation=5).manifest()["revision"] == COMMIT
    with pytest.raises(ConnectionError) as caught:
        Gsm8k(source="hub", revision="f" * 40, num_validation=5)
    assert f"the cache holds commit {COMMIT}, not revision {'f' * 40}" in str(caught.value.__cause__)


def test_offline_without_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(envs.rows, "_hub_commit", lambda *args: pytest.fail("the hub was asked"))
    with pytest.raises(ConnectionError, match="can't be had"):
        Gsm8k(source="hub")


def test_a_reachable_hub_is_asked_for_one_commit(cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's answer pins what is downloaded; the download itself is replaced by the cache."""
    fill(cache, folder, COMMIT)
    asked: list[tuple[Any, ...]] = []
    load: Callable[..., Any] = datasets.load_dataset

    def from_cache(path: str, name: str, revision: str) -> Any:
        asked.append((path, name, revision, datasets.config.HF_HUB_OFFLINE))
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        return load(path, name)

    monkeypatch.setattr(datasets, "load_dataset", from_cache)
    body = json.dumps({"id": "openai/gsm8k", "sha": COMMIT}).encode()
    with fake_hub(200, {"Content-Type": "application/json"}, body) as address:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        env = Gsm8k(source="auto", num_validation=5)
    assert asked == [("openai/gsm8k", "main", COMMIT, False)]
    assert (env.name, env.manifest()["revision"]) == ("gsm8k", COMMIT)


@pytest.mark.parametrize("source", ["auto", "hub"])
@pytest.mark.parametrize("code", ["RepoNotFound", "RevisionNotFound"])
def test_a_data_set_that_does_not_exist_is_an_error_even_for_auto(
    cache: Path, monkeypatch: pytest.MonkeyPatch, source: str, code: str
) -> None:
    with fake_hub(404, {"X-Error-Code": code}, b"") as address:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        with pytest.raises(ValueError, match="the hub has no data set 'openai/gsm9k' at revision 'v9'"):
            Gsm8k(source=source, dataset="openai/gsm9k", revision="v9")


def test_malformed_hub_rows_are_an_error_even_for_auto(cache: Path, tmp_path: Path) -> None:
    fill(cache, write(tmp_path / "bad", [row(1), row(2), row(3, "no mark")], [row(1)]), COMMIT)
    with pytest.raises(ValueError, match=r"openai/gsm8k, train, row 2: 'answer' has no '####'"):
        Gsm8k(num_validation=1)


def test_hub_data_without_the_columns_are_an_error(cache: Path, tmp_path: Path) -> None:
    fill(cache, write(tmp_path / "bad", [{"text": "a"}], [{"text": "a"}]), COMMIT)
    with pytest.raises(ValueError, match="lacks train and test with question and answer"):
        Gsm8k(num_validation=1)


# Configuration


def from_config(*overrides: str) -> Gsm8k:
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose(overrides=["+env=gsm8k", *overrides])
    env = instantiate(config.env)
    assert isinstance(env, Gsm8k)
    return env


def test_config_has_the_defaults(folder: Path) -> None:
    env = from_config("env.source=synthetic")
    assert env == Gsm8k(source="synthetic")
    assert env.synthetic_steps == (1, 2, 3)


def test_config_overrides(folder: Path) -> None:
    env = from_config(f"env.data_dir={folder}", "env.num_validation=5", "env.format._target_=envs.formats.Hash")
    assert env == Gsm8k(data_dir=str(folder), num_validation=5, format=Hash())
    env.validate()


def test_bad_data_stop_the_config(tmp_path: Path) -> None:
    write(tmp_path, [row(1), "oops"], [row(1)])
    with pytest.raises(Exception, match=r"train\.jsonl:2: this is not JSON"):
        from_config(f"env.data_dir={tmp_path}")
