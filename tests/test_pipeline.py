"""The pipeline: what a recipe may say, that stages hand over what they made, and that nothing done is done again.

Most tests put ``fake_job.py`` in the place of the jobs; one runs the recipe ``tiny`` with the real ones in this
process, and one (slow) as a user would.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from rlreason import recipe
from rlreason.analysis.stages import markdown, plot
from rlreason.child import Ended, Runner
from rlreason.config import CONF, ConfigError, model_paths, register, resolved, start
from rlreason.pipeline import main, run

REPO = Path(__file__).resolve().parent.parent
FAKE = Path(__file__).resolve().parent / "fake_job.py"
QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none")

# Four kinds of jobs that build on each other.
STAGES: dict[str, Any] = {
    "one": {"job": "train", "overrides": ["model=tiny", "seed=1"], "select": "best"},
    "two": {"job": "sample", "overrides": ["model={one.checkpoint}", ["num_samples=2", "seed=2"]]},
    "three": {"job": "sft", "overrides": ["model=tiny", "data=chat", "data.source.train={two.file}"]},
    "four": {"job": "sft", "overrides": ["model={three.checkpoint}", "data=accepted_traces", "data.path={one.run}"]},
}
RECIPE: dict[str, Any] = {
    "base_model": "tiny", "stages": STAGES, "validation": ["limit=4"], "final": {"test": ["split=test", "limit=8"]},
}  # fmt: skip


def composed(name: str, *overrides: str) -> DictConfig:
    register()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return compose(name, overrides=model_paths(list(overrides)))


def config(given: Mapping[str, Any] = RECIPE, **changes: Any) -> DictConfig:
    """``conf/pipeline.yaml`` with a recipe; ``changes`` are of its root keys."""
    cfg = composed("pipeline")
    for key, value in {**given, **changes}.items():
        cfg[key] = value
    return cfg


def changed(stage: str, **changes: Any) -> dict[str, Any]:
    """The stages with other keys of one of them."""
    return {**STAGES, stage: {**STAGES[stage], **changes}}


class Fake:
    """Runs pipelines of fake jobs in ``<base>/run``."""

    def __init__(self, base: Path) -> None:
        self.base, self.out = base, base / "run"
        self.control()

    def control(self, **by_folder: Mapping[str, Any]) -> None:
        names = {name.replace("__", "/").replace("_at_", "/evaluations/step-00000"): c for name, c in by_folder.items()}
        (self.base / "control.json").write_text(json.dumps(names))

    def run(self, **changes: Any) -> float | None:
        return run(config(**changes), self.out)

    def calls(self) -> list[dict[str, Any]]:
        """The starts since the last time this was asked."""
        path = self.base / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def names(self) -> list[str]:
        return [call["name"] for call in self.calls()]

    def lineage(self) -> dict[str, Any]:
        return json.loads((self.out / "lineage.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    def command(job: str, overrides: Sequence[str], folder: Path) -> list[str]:
        real = recipe_command(job, overrides, folder)
        assert real[:3] == [sys.executable, "-m", f"rlreason.{job}"]
        return [sys.executable, str(FAKE), job, *real[3:]]

    recipe_command = recipe.command
    monkeypatch.setattr(recipe, "command", command)
    monkeypatch.setattr(recipe, "check", lambda recipe, out: None)  # a second a run; has tests of its own
    return Fake(tmp_path)


ALL = [
    "one", "one/evaluations/step-000001", "one/evaluations/step-000002", "two", "three", "four", "final/test/start",
    "final/test/one", "final/test/three", "final/test/four",
]  # fmt: skip


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def weights_sha(name: str, step: int) -> dict[str, str]:
    """Of the file that the fake job writes."""
    return {"model.safetensors": sha(sha(f"{name} {step}"))}


def test_stages_hand_over_what_they_made(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.control(
        one_at_1={"values": {"accuracy": 0.5, "reward": 0.1}}, one_at_2={"values": {"accuracy": 0.25, "reward": 0.9}},
        final__test__four={"values": {"accuracy": 0.75, "reward": 0.8, "mean_length": 12.0}},
        final__test__start={"values": {"accuracy": 0.0, "reward": 0.2, "mean_length": 20.0}},
        final__test__one={"values": {"accuracy": 0.5, "reward": 0.6, "mean_length": 16.0}},
        final__test__three={"values": {"accuracy": 0.25, "reward": 0.4, "mean_length": 18.0}},
    )  # fmt: skip
    assert fake.run() == 0.75
    calls, out = fake.calls(), fake.out
    assert [call["name"] for call in calls] == ALL
    overrides = {call["name"]: call["overrides"] for call in calls}
    best = f"model={out}/one/checkpoints/step-000001"
    assert overrides["one"] == ["model=tiny", "seed=1"]
    assert overrides["one/evaluations/step-000002"] == [f"model={out}/one/checkpoints/step-000002", "limit=4"]
    assert overrides["two"] == [best, "num_samples=2", "seed=2"]
    assert overrides["three"] == ["model=tiny", "data=chat", f"data.source.train={out}/two/sft.jsonl"]
    assert overrides["four"][0] == f"model={out}/three/checkpoints/step-000002"
    assert overrides["four"][2] == f"data.path={out}/one"
    assert overrides["final/test/start"] == ["model=tiny", "split=test", "limit=8"]
    assert overrides["final/test/one"] == [best, "split=test", "limit=8"]

    lineage = fake.lineage()
    one, two, four = (lineage["stages"][name] for name in ("one", "two", "four"))
    assert one["selection"]["how"] == "best"
    assert one["selection"]["chosen"] == "step-000001"
    assert one["selection"]["values"]["step-000002"]["accuracy"]["mean"] == 0.25
    assert one["output"] == {"path": f"{out}/one/checkpoints/step-000001", "sha256": weights_sha("one", 1)}
    assert one["metrics"] == {"steps": 2}
    assert one["inputs"] == {}
    assert two["inputs"] == {"{one.checkpoint}": one["output"]}
    assert two["output"]["sha256"] == {"sft.jsonl": sha((out / "two" / "sft.jsonl").read_text())}
    assert "selection" not in two
    assert four["selection"]["chosen"] == "step-000002"
    assert set(four["inputs"]["{one.run}"]["sha256"]) == {
        f"checkpoints/step-00000{step}/model.safetensors" for step in (1, 2)
    }
    assert four["overrides"] == STAGES["four"]["overrides"]
    (attempt,) = four["attempts"]
    assert attempt["exit_code"] == 0
    assert attempt["began"] <= attempt["ended"]
    assert two["command"].endswith(f"sample {best} num_samples=2 seed=2 hydra.run.dir={out}/two")
    assert lineage["evaluations"]["final/test/one"]["inputs"]["model"]["sha256"] == weights_sha("one", 1)

    log = (out / "three" / "log.txt").read_text(encoding="utf-8")
    assert log == f"$ {lineage['stages']['three']['command']}\nsft at work\ngrüße \x1b[1m\n"
    printed = capsys.readouterr().out
    assert "sft at work" in printed
    assert "grüße" in printed
    summary = json.loads((out / "summary.json").read_text())
    assert summary["chosen"]["one"] == one["output"]["path"]
    assert [found["accuracy"]["mean"] for found in summary["final"]["test"].values()] == [0, 0.5, 0.25, 0.75]
    assert (out / "summary.md").read_text() == (
        "**test**, 10 problems, 95 % intervals\n\n"
        "| stage | accuracy | reward | mean_length |\n| --- | --- | --- | --- |\n"
        "| start | 0 (0 to 0) | 0.2 (0.1 to 0.4) | 20 (10 to 40) |\n"
        "| one | 0.5 (0.25 to 1) | 0.6 (0.3 to 1.2) | 16 (8 to 32) |\n"
        "| three | 0.25 (0.125 to 0.5) | 0.4 (0.2 to 0.8) | 18 (9 to 36) |\n"
        "| four | 0.75 (0.375 to 1.5) | 0.8 (0.4 to 1.6) | 12 (6 to 24) |\n"
    )
    assert (out / "stages.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("first", "second", "chosen"),
    [
        ({"accuracy": 0.3, "reward": 0.1}, {"accuracy": 0.2, "reward": 0.9}, 1),
        ({"accuracy": 0.3, "reward": 0.1}, {"accuracy": 0.3, "reward": 0.2}, 2),
        ({"accuracy": 0.3, "reward": 0.2}, {"accuracy": 0.3, "reward": 0.1}, 1),
        ({"accuracy": 0.0, "reward": 0.1}, {"accuracy": 0.0, "reward": 0.1}, 2),  # alike: the one trained longer
        ({"reward": -0.1}, {"reward": -0.2}, 1),  # no notion of right
    ],
)
def test_the_best_checkpoint(fake: Fake, first: Any, second: Any, chosen: int) -> None:
    fake.control(one_at_1={"values": first}, one_at_2={"values": second})
    fake.run(stages={"one": STAGES["one"]}, final={})
    assert fake.lineage()["stages"]["one"]["selection"]["chosen"] == f"step-00000{chosen}"
    assert (fake.out / "summary.md").read_text() == ""  # nothing to compare


@pytest.mark.parametrize("select", ["best", "latest"])
def test_where_nothing_is_to_choose_nothing_is_evaluated(fake: Fake, select: str) -> None:
    fake.control(one={"steps": [7] if select == "best" else [7, 8]})
    fake.run(stages={"one": {**STAGES["one"], "select": select}}, final={})
    assert fake.names() == ["one"]
    chosen = "step-000007" if select == "best" else "step-000008"
    assert fake.lineage()["stages"]["one"]["selection"]["chosen"] == chosen


def test_a_finished_pipeline_runs_nothing_again(fake: Fake) -> None:
    fake.run()
    lineage, summary = fake.lineage(), (fake.out / "summary.json").read_bytes()
    fake.calls()
    fake.run()
    assert fake.names() == []
    assert fake.lineage() == lineage
    assert (fake.out / "summary.json").read_bytes() == summary


def test_a_moved_folder_is_still_done(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.run()
    fake.calls()
    fake.out.rename(fake.base / "elsewhere")
    fake.out = fake.base / "elsewhere"
    fake.run()
    assert fake.names() == []


@pytest.mark.parametrize("failing", ["two", "one/evaluations/step-000002", "final/test/one"])
def test_a_failure_is_told_and_gone_on_from(fake: Fake, failing: str) -> None:
    fake.control(**{failing.replace("/", "__"): {"fail": 3}})
    with pytest.raises(ConfigError) as caught:
        fake.run()
    said = str(caught.value)
    assert said.startswith(f"{failing} ended with exit code 3. Its last lines:\n    line 25\n")  # 15 of 40
    assert f"    line 39\ncommand: {sys.executable}" in said
    assert f"log: {fake.out}/{failing}/log.txt" in said
    assert f"resume={fake.out}" in said
    place = ALL.index(failing)
    assert fake.names() == ALL[: place + 1]
    assert not (fake.out / "summary.json").exists()
    fake.control()
    fake.run()
    assert fake.names() == ALL[place:]
    entries = fake.lineage()["stages" if failing == "two" else "evaluations"]
    assert [attempt["exit_code"] for attempt in entries[failing]["attempts"]] == [3, 0]
    assert (fake.out / failing / "log.txt").read_text().count("at work") == 2


def test_a_job_without_results_has_failed(fake: Fake) -> None:
    fake.control(two={"nothing": True})
    with pytest.raises(ConfigError, match=r"two ended without a summary\.json"):
        fake.run()


def test_a_job_that_was_killed(fake: Fake) -> None:
    fake.control(one={"wait": True})
    when(fake.out / "one" / "waiting", lambda: os.kill(pid_of(fake.out / "one"), signal.SIGKILL))
    with pytest.raises(ConfigError, match=r"one was killed by signal 9 .*memory"):
        fake.run()


def when(path: Path, action: Any) -> None:
    """Do something, in a thread, as soon as a file is there."""

    def wait() -> None:
        for _ in range(3000):
            if path.exists():
                action()
                return
            time.sleep(0.01)

    threading.Thread(target=wait, daemon=True).start()


def pid_of(folder: Path) -> int:
    """The process whose command names a folder."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if f"hydra.run.dir={folder}".encode() in arguments:
            return int(path.parent.name)
    raise AssertionError(f"nothing runs in {folder}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", ["two", "final/test/one"])
def test_a_signal_reaches_the_job_once(
    fake: Fake, at: str, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.control(**{at.replace("/", "__"): {"wait": True}})
    before = signal.getsignal(number)
    when(fake.out / at / "waiting", lambda: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as caught:
        fake.run()
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) is before
    assert json.loads((fake.out / at / "signals.json").read_text()) == [number]
    # A terminal sends Ctrl-C to all of its foreground: the job must not be there.
    assert int((fake.out / at / "session").read_text()) != os.getsid(0)
    assert str(fake.out / "lock") in (fake.out / at / "held").read_text().splitlines()
    assert f"Stopped at {at}; the same command with resume={fake.out} goes on." in capsys.readouterr().out
    assert fake.names() == ALL[: ALL.index(at) + 1]
    fake.control()
    fake.run()
    assert fake.names() == ALL[ALL.index(at) :]


def test_a_job_that_ends_well_after_a_signal_is_the_last(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the signal comes in its last step."""
    real = Runner.run

    def run_and_note(self: Runner, command: Sequence[str], log: Path) -> Ended:
        ended = real(self, command, log)
        if log.parent.name == "two":
            os.kill(os.getpid(), signal.SIGINT)
        return ended

    monkeypatch.setattr(Runner, "run", run_and_note)
    with pytest.raises(SystemExit):
        fake.run()
    assert fake.names()[-1] == "two"
    assert fake.lineage()["stages"]["two"]["output"]["sha256"]
    assert "three" not in fake.lineage()["stages"]  # not even begun


def test_what_is_done_must_be_what_is_asked_for(fake: Fake) -> None:
    fake.control(four={"fail": 1})
    with pytest.raises(ConfigError):
        fake.run()
    fake.calls()
    fake.control()
    other = changed("two", overrides=["model={one.checkpoint}", "num_samples=3"])
    with pytest.raises(ConfigError, match=r"(?s)run/two is done, but.*num_samples=2.*num_samples=3.*remove"):
        fake.run(stages=other)
    # another choice of an earlier stage is another input of the later ones
    first = {"values": {"accuracy": 1.0, "reward": 0.0}}
    for path in fake.out.glob("one/evaluations/*/summary.json"):
        path.unlink()
    fake.control(one_at_1=first)
    with pytest.raises(ConfigError, match=r"run/two is done, but"):
        fake.run()
    assert fake.names() == ["one/evaluations/step-000001", "one/evaluations/step-000002"]
    # what is not done may be changed
    for path in fake.out.glob("one/evaluations/*/summary.json"):
        path.unlink()
    fake.control()
    fake.run(stages=changed("four", overrides=["model={three.checkpoint}", "seed=7"]), final={})
    calls = fake.calls()
    assert [call["name"] for call in calls] == [ALL[1], ALL[2], "four"]
    assert calls[-1]["overrides"][-1] == "seed=7"
    assert "seed=7" in (fake.out / "config.yaml").read_text()


def test_killed_before_the_lineage_was_written(fake: Fake) -> None:
    fake.run()
    fake.calls()
    whole = fake.lineage()
    cut = fake.lineage()
    for key in ("output", "selection", "metrics"):
        del cut["stages"]["one"][key]
    cut["stages"]["one"]["attempts"][0] |= {"ended": None, "exit_code": None}
    (fake.out / "lineage.json").write_text(json.dumps(cut))
    fake.run()
    assert fake.names() == []
    again = fake.lineage()
    for entry in (again, whole):
        del entry["stages"]["one"]["attempts"]
    assert again == whole


def test_two_at_work_in_one_folder(fake: Fake) -> None:
    fake.out.mkdir()
    with (fake.out / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711")
        lock.flush()
        with pytest.raises(ConfigError, match=r"run is at work: process 4711"):
            fake.run()
    assert fake.names() == []
    fake.run(stages={"one": STAGES["one"]}, final={})


def test_a_job_that_outlives_its_pipeline_holds_the_lock(fake: Fake, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with Runner(lock) as runner:
        orphan = subprocess.Popen(["sleep", "60"], pass_fds=[runner._held], start_new_session=True)
    try:
        with pytest.raises(ConfigError, match="is at work"), Runner(lock):
            pass
    finally:
        orphan.kill()
        orphan.wait()
    with Runner(lock):
        pass


def bad(stages: Mapping[str, Any] = STAGES, **others: Any) -> dict[str, Any]:
    return {**RECIPE, "stages": stages, **others}


# A recipe, and what the message must say.
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no stages": (bad({}), r"no stages.*\+recipe=r1"),
    "unknown job": (bad(changed("two", job="sampel")), r"stages\.two\.job is 'sampel'.*sample"),
    "unknown key": (bad(changed("two", need="one")), r"stages\.two has the keys"),
    "no job": (bad({"one": {"overrides": []}}), r"stages\.one.*job must be there"),
    "unknown choice": (bad(changed("one", select="last")), r"stages\.one\.select is 'last'.*latest"),
    "the best file": (bad(changed("two", select="best")), r"stages\.two\.select is best.*sample makes no policy"),
    "no validation": (bad(validation=[]), r"stages\.one\.select is best.*validation"),
    "bad name": (bad({"a-b": STAGES["one"]}), r"stages\.a-b: .*letters"),
    "taken name": (bad({"final": STAGES["one"]}), r"stages\.final: "),
    "not made yet": (
        bad({"two": STAGES["two"], "one": STAGES["one"]}), r"stages\.two asks for \{one\.checkpoint\}.* is nothing",
    ),
    "unknown stage": (bad(changed("four", overrides=["model={fourr.run}"])), r"\{fourr\.run\}.*\{three\.checkpoint\}"),
    "wrong product": (bad(changed("three", overrides=["model={two.checkpoint}"])), r"\{two\.ch.*\{two\.file\}"),
    "a model in the validation": (bad(validation=["model=tiny"]), r"validation names a model"),
    "a stage in the final": (bad(final={"test": ["limit={one.run}"]}), r"final\.test asks for"),
    "its own folder": (bad(changed("one", overrides=["hydra.run.dir=x"])), r"stages\.one: hydra\.run\.dir=x"),
    "no list": (bad(changed("one", overrides="seed=1")), r"stages\.one: overrides are a list"),
    "no string": (bad(changed("one", overrides=[{"seed": 1}])), r"stages\.one: .*no override"),
    "misspelled": (bad(changed("four", job="train", overrides=["max_step=3"])), r"stages\.four \(train\).*max_step"),
    "misspelled, added": (bad(changed("four", job="train", overrides=["+max_step=3"])), r"four \(train\).*max_step"),
    "missing": (bad(changed("three", overrides=["data=chat"])), r"stages\.three \(sft\).*data\.source\.train"),
    "out of range": (bad(changed("four", job="train", overrides=["env.digits=0"])), r"four \(train\).*digits is 0"),
    "misspelled in the end": (bad(final={"test": ["spllit=test"]}), r"test \(evaluate\).*spllit"),
    "no list of final evaluations": (bad(final=None), r"final has evaluations by name.*it is None"),
    "a list of stages": (bad([1]), r"stages has a stage under each name; it is \[1\]"),
    "no such group": (bad(changed("four", job="train", overrides=["env=nothing"])), r"stages\.four \(train\).*nothing"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_told_before_anything_runs(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        run(config(given), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["a,b", "a=b", "it's", "a(b)"])
def test_a_folder_that_hydra_would_take_apart_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Hydra takes such a path apart"):
        recipe.check(recipe.Recipe("tiny", (), (), {}), tmp_path / name)


def test_filling_in() -> None:
    overrides = ["a={s.run}/x", "b=[{s.run},{t.file}]", "c={d: 1}", "e=${f.run}"]
    assert recipe.needed(overrides) == [("s", "run"), ("t", "file")]
    made = {"s": {"run": "/r"}, "t": {"file": "/f"}}
    assert recipe.filled(overrides, made) == ["a=/r/x", "b=[/r,/f]", "c={d: 1}", "e=${f.run}"]
    assert recipe.command("sft", ["a=1"], Path("/r/s"))[1:] == ["-m", "rlreason.sft", "a=1", "hydra.run.dir=/r/s"]
    assert recipe.command("sft", [], Path("/r=1/s, t"))[-1] == "hydra.run.dir='/r=1/s, t'"


RECIPES = sorted(path.stem for path in (CONF / "recipe").glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_composes(name: str, tmp_path: Path) -> None:
    """Every command of it, and what of them can be built ahead."""
    for split, count in (("train", 250), ("test", 5)):
        rows = [{"question": f"{split} {i} + {i}?", "answer": f"It is.\n#### {2 * i}"} for i in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = composed("pipeline", f"+recipe={name}")
    if "data_dir" in cfg.vars:
        cfg.vars.data_dir = str(tmp_path)
    assert cfg.name == name
    plan = recipe.read(resolved(cfg))
    recipe.check(plan, tmp_path / "out")
    assert plan.final


def test_tables_and_figures_by_hand(tmp_path: Path) -> None:
    def value(mean: float, low: float | None, high: float | None, n: int = 4) -> dict[str, Any]:
        return {"mean": mean, "low": low, "high": high, "n": n}

    alone = {"reward": value(-0.5, None, None, 1), "mean_length": value(3.0, 3.0, 3.0, 1)}
    results = {
        "a": {
            "start": {"accuracy": value(0.5, 0, 1), "reward": value(1, 1, 1)},
            "rl": {"reward": value(1, 0, 2)},
        },
        "b": {"start": alone},
    }
    assert markdown(results) == (
        "**a**, 4 problems, 95 % intervals\n\n| stage | reward |\n| --- | --- |\n"  # not both have an accuracy
        "| start | 1 (1 to 1) |\n| rl | 1 (0 to 2) |\n"
        "\n**b**, 1 problems, 95 % intervals\n\n| stage | reward | mean_length |\n| --- | --- | --- |\n"
        "| start | -0.5 | 3 (3 to 3) |\n"
    )
    plot(results, tmp_path / "stages.png")
    assert (tmp_path / "stages.png").stat().st_size > 10_000


def in_process(self: Runner, command: Sequence[str], log: Path) -> Ended:
    """A real job without a process of its own: composed and run as its ``main`` would."""
    _, _, module, *overrides = command
    run_dir = overrides.pop().removeprefix("hydra.run.dir=")
    quiet = [] if module == "rlreason.evaluate" else ["console.quiet=true"]
    cfg = composed(module.removeprefix("rlreason."), *overrides, *quiet)
    importlib.import_module(module).run(cfg, Path(run_dir))
    return Ended(0, ())


def test_the_tiny_recipe_with_real_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runner, "run", in_process)
    run(composed("pipeline", "+recipe=tiny"), tmp_path / "run")
    assert_whole(tmp_path / "run")


@pytest.mark.slow
def test_the_tiny_recipe_as_a_user_runs_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rlreason.pipeline", "+recipe=tiny"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPO)}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (out,) = (tmp_path / "runs" / "tiny").iterdir()
    assert f"written to {out}" in done.stdout
    assert_whole(out)


def assert_whole(out: Path) -> None:
    """What the recipe ``tiny`` leaves, and that the stages really took what is handed on."""
    lineage = json.loads((out / "lineage.json").read_text())
    stages = lineage["stages"]
    assert list(stages) == ["rl", "rejection", "sft"]
    taken = json.loads((out / "rejection" / "manifest.json").read_text())["model"]
    assert taken["path"] == stages["rl"]["output"]["path"]
    assert taken["weights"] == stages["rl"]["output"]["sha256"]
    assert set(stages["rl"]["selection"]["values"]) == {"step-000001", "step-000002"}
    rows = [json.loads(line) for line in (out / "rejection" / "sft.jsonl").read_text().splitlines()]
    assert stages["rejection"]["metrics"]["kept"] == len(rows) > 1
    data = json.loads((out / "sft" / "manifest.json").read_text())["env"]
    assert stages["rejection"]["output"]["sha256"]["sft.jsonl"] in json.dumps(data)
    evaluated = json.loads((out / "final" / "test" / "sft" / "manifest.json").read_text())["model"]
    assert evaluated["weights"] == stages["sft"]["output"]["sha256"]
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["final"]["test"]) == ["start", "rl", "sft"]
    assert summary["final"]["test"]["start"]["mean_length"]["n"] == 8


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["rlreason/pipeline.py", *arguments, *QUIET])
        try:
            start(main)
        except SystemExit as error:
            return int(error.code or 0)
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Runner, "run", lambda self, command, log: Ended(7, ("it broke",)))
    assert command("+recipe=tiny") == 2
    err = capsys.readouterr().err
    assert "error: rl ended with exit code 7" in err
    assert "    it broke" in err
    assert "Traceback" not in err
    (out,) = (tmp_path / "runs" / "tiny").iterdir()
    begun: list[str] = []
    monkeypatch.setattr(Runner, "run", lambda self, command, log: (begun.append(command[-1]), Ended(7, ()))[1])
    assert command(f"resume={out}") == 2  # that pipeline's own recipe
    assert begun == [f"hydra.run.dir={out}/rl"]
    assert command("+recipe=tiny", "base_model=some/model", "name=other") == 2
    (other,) = (tmp_path / "runs" / "other").iterdir()
    assert "rlreason.train model=some/model " in (other / "lineage.json").read_text()
    assert command("resume=nowhere") == 2
    assert "resume=nowhere" in capsys.readouterr().err
    assert command() == 2
    assert "+recipe=" in capsys.readouterr().err
    assert command("+recipe=tinny") == 1
    assert command("+recipe=tiny", 'stages.rl.overrides=["max_step=3"]') == 2
    assert "stages.rl (train)" in capsys.readouterr().err
