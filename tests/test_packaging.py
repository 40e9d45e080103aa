"""The wheel holds the package, all of it and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"puzzle": "puzzle", "blocks": "puzzle/blocks", "solver": "puzzle/solver"}

pytestmark = pytest.mark.skipif(not (ROOT / "blocks").is_dir(), reason="no source tree here")


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The files under version control, as they are on disk."""
    listed = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked:
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    # as .py files are imported from there in daily work, and must not ship what that leaves
    (folder / "source" / "puzzle" / "data" / "__pycache__").mkdir()
    (folder / "source" / "puzzle" / "data" / "__pycache__" / "__init__.pyc").write_bytes(b"")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", folder, folder / "source"], check=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_holds_every_file_of_the_package_and_no_other(
    tracked: list[str], wheel: zipfile.ZipFile
) -> None:
    wanted = {
        FOLDERS[top] + name.removeprefix(top)
        for name in tracked
        if (top := name.partition("/")[0]) in FOLDERS
    }
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert sorted(wanted - held) == [], "not in the wheel: name them in pyproject.toml"
    assert sorted(held - wanted) == [], "should not be in the wheel"


def test_the_wheel_carries_the_licenses_and_the_command(wheel: zipfile.ZipFile) -> None:
    about = {
        name.partition(".dist-info/")[2]: wheel.read(name).decode()
        for name in wheel.namelist()
        if ".dist-info/" in name
    }
    assert "License-Expression: Apache-2.0" in about["METADATA"]
    assert "puzzle = puzzle.cli:main" in about["entry_points.txt"]
    assert "Apache License" in about["licenses/LICENSE"]
    folder = "licenses/puzzle/data/LICENSES/"
    assert "public domain" in about[f"{folder}World-English-Bible.txt"]
    assert (
        "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2" in about[f"{folder}Python-documentation.txt"]
    )
    assert "WordNet 3.0 Copyright 2006 by Princeton" in about[f"{folder}WordNet.txt"]


def test_every_data_file_is_in_the_table_of_licenses(tracked: list[str]) -> None:
    table = (ROOT / "puzzle" / "data" / "LICENSES" / "README.md").read_text()
    data = [name.removeprefix("puzzle/data/") for name in tracked if "puzzle/data/" in name]
    for name in data:
        if not name.startswith(("LICENSES/", "__init__")):
            row = "parent/" if name.startswith("parent/") else name
            assert f"`{row}`" in table, name


def test_every_dependency_is_pinned() -> None:
    """What pyproject.toml asks for everywhere and for development, constraints.txt fixes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().lower().splitlines()
        if not line.startswith("#")
    )
    names = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    for requirement in asked:
        name = requirement.partition(";")[0].split(">")[0].strip().lower()
        assert name in names, requirement
    assert names["torch"].replace(".", "").isdigit()  # any build of torch satisfies it
