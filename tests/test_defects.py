"""docs/defects.md, checked: each defect, put alone into a copy of the package, fails the tests named beside it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]


class Defect(NamedTuple):
    title: str
    file: str
    stands: str
    instead: str
    tests: list[str]


def defects() -> list[Defect]:
    found = []
    for section in (ROOT / "docs/defects.md").read_text().split("\n## ")[1:]:
        title, rest = section.split("\n", 1)
        diff, fails = rest.split("```diff\n")[1].split("```")
        file, *lines = diff.splitlines()
        stands, instead = ("".join(f"{line[1:]}\n" for line in lines if line[0] in kept) for kept in ("- ", "+ "))
        found.append(Defect(title, file, stands, instead, re.findall(r"test_\w+", fails)))
    return found


DEFECTS = defects()


def failing(tree: Path, tests: list[str]) -> set[str]:
    """Which of the tests of those names fail in the copy ``tree``."""
    files = [f for f in tree.glob("tests/test_*.py") if any(f"def {name}(" in f.read_text() for name in tests)]
    words = ["-m", "pytest", *map(str, files), "-k", " or ".join(tests), "--tb=no", "-rfE", "-p", "no:cacheprovider"]
    env = {**os.environ, "PYTHONPATH": str(tree)}
    out = subprocess.run([sys.executable, *words], cwd=tree, env=env, capture_output=True, text=True).stdout
    assert re.search(r"\d+ (passed|failed)", out), out
    return set(re.findall(r"^(?:FAILED|ERROR) \S+?::(\w+)", out, re.MULTILINE))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for folder in ("modexp", "tests", "conf", "sweeps"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.title)
def test_a_defect_can_be_put_in(defect: Defect) -> None:
    assert (ROOT / defect.file).read_text().count(defect.stands) == 1, "the code has changed: write the diff anew"
    assert defect.tests


@pytest.mark.slow
def test_without_a_defect_nothing_fails(tree: Path) -> None:
    assert failing(tree, sorted({test for defect in DEFECTS for test in defect.tests})) == set()


@pytest.mark.slow
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.title)
def test_a_defect_fails_the_tests_named_beside_it(defect: Defect, tree: Path) -> None:
    path = tree / defect.file
    path.write_text(path.read_text().replace(defect.stands, defect.instead))
    assert failing(tree, defect.tests) == set(defect.tests)
