"""The import rule: `rlreason` never imports `envs`; `envs` imports only `rlreason.types` from `rlreason`.

Read from the source, so that imports inside functions, under TYPE_CHECKING, relative ones and those by name
(``import_module("envs.gsm8k")``, a ``_target_`` in code) count as well. A name put together at run time is not seen.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
BY_NAME = {"__import__", "import_module", "find_spec", "get_class", "get_method", "get_object", "resolve_name"}
DOTTED = re.compile(r"(rlreason|envs)([.:]\w+)+")


def imports(source: str, module: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """(line, full dotted name) of everything that the source of `module` imports, or names for importing."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if is_package and node.level == 1 else is_package - node.level]
                base = ".".join([*parents, base] if base else parents)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0] if node.args else None
            if name in BY_NAME and isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield node.lineno, first.value.replace(":", ".")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and DOTTED.fullmatch(node.value):
            yield node.lineno, node.value.replace(":", ".")


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def forbidden_in_rlreason(name: str) -> bool:
    return within(name, "envs")


def forbidden_in_envs(name: str) -> bool:
    return within(name, "rlreason") and not within(name, "rlreason.types")


def violations(package: Path, forbidden: Callable[[str], bool]) -> list[str]:
    """``file:line: name`` for every forbidden import in the package's files."""
    found = []
    for path in sorted(package.rglob("*.py")):
        is_package = path.name == "__init__.py"
        parts = path.relative_to(package.parent).with_suffix("").parts
        module = ".".join(parts[:-1] if is_package else parts)
        for line, name in imports(path.read_text(encoding="utf-8"), module, is_package):
            if forbidden(name):
                found.append(f"{path.relative_to(package.parent)}:{line}: {name}")
    return found


def test_rlreason_never_imports_envs() -> None:
    assert len(list((REPO / "rlreason").rglob("*.py"))) > 5
    assert violations(REPO / "rlreason", forbidden_in_rlreason) == []


def test_envs_import_only_the_types_of_rlreason() -> None:
    assert len(list((REPO / "envs").rglob("*.py"))) > 2
    assert violations(REPO / "envs", forbidden_in_envs) == []


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("import envs", "envs"),
        ("import os, envs.gsm8k as g", "envs.gsm8k"),
        ("from envs import gsm8k", "envs.gsm8k"),
        ("from envs.base import Env", "envs.base.Env"),
        ("from ... import envs\nfrom envs import *", "envs.*"),
        ("import importlib; importlib.import_module('envs')", "envs"),
        ("__import__('envs.verify')", "envs.verify"),
        ("config = {'_target_': 'envs.gsm8k.GSM8K'}", "envs.gsm8k.GSM8K"),
        ("find('envs.gsm8k:GSM8K')", "envs.gsm8k.GSM8K"),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import envs", "envs"),
        ("def f():\n    class A:\n        import envs.base\n", "envs.base"),
    ],
)
def test_a_planted_import_of_envs_is_found(tmp_path: Path, line: str, name: str) -> None:
    folder = tmp_path / "rlreason" / "engines"
    folder.mkdir(parents=True)
    (folder / "planted.py").write_text(f'"""Not envs.gsm8k itself."""\nimport envsx\n{line}\n', encoding="utf-8")
    found = violations(tmp_path / "rlreason", forbidden_in_rlreason)
    assert {entry.split(": ")[1] for entry in found} == {name}
    assert all(entry.startswith("rlreason/engines/planted.py:") for entry in found)


def test_planted_imports_of_rlreason_in_envs_are_found(tmp_path: Path) -> None:
    source = (
        "import rlreason.types\n"
        "from rlreason.types import Grade\n"
        "from rlreason import types\n"
        "from .base import SingleTurnEnv\n"
        "import rlreason\n"
        "from rlreason import policy\n"
        "from rlreason.batch import collate\n"
        "from rlreason.typesetting import x\n"
        "name = 'rlreason.learner.Learner'\n"
    )
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "planted.py").write_text(source, encoding="utf-8")
    assert violations(tmp_path / "envs", forbidden_in_envs) == [
        "envs/planted.py:5: rlreason",
        "envs/planted.py:6: rlreason.policy",
        "envs/planted.py:7: rlreason.batch.collate",
        "envs/planted.py:8: rlreason.typesetting.x",
        "envs/planted.py:9: rlreason.learner.Learner",
    ]


def test_relative_imports_are_resolved() -> None:
    source = "from . import a\nfrom .b import c\nfrom .. import d\nfrom ..e import f\n"
    inside = [name for _, name in imports(source, "envs.verify.pool")]
    assert inside == ["envs.verify.a", "envs.verify.b.c", "envs.d", "envs.e.f"]
    package = [name for _, name in imports(source, "envs.verify", is_package=True)]
    assert package == inside
