"""Other people's pruning packages, each in an environment and processes of its own.

`quality_peers.py` is what runs there. The environment holds the package alone; everything else
(torch, transformers) it sees where the benchmark's own environment has it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VERSIONS = {"torch-pruning": "1.6.1", "optipfair": "0.4.2"}
SCRIPT = Path(__file__).parent / "quality_peers.py"
SHOWN = 20  # last lines of a failure


def environment(folder: Path, package: str) -> Path:
    """The python of a package's environment in `folder`, made where missing or unfinished."""
    wanted = f"{package}=={VERSIONS[package]}"
    root = (folder / wanted).absolute()
    places = sysconfig.get_paths("venv", {"base": str(root), "platbase": str(root)})
    python, borrowed = Path(places["scripts"]) / "python", Path(places["purelib"]) / "borrowed.pth"
    if not borrowed.exists():  # it is written last
        venv.create(root, clear=True, with_pip=True)
        _run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", wanted])
        borrowed.write_text(sysconfig.get_path("purelib") + "\n")
    return python


def pruned(python: Path, task: Mapping[str, Any]) -> dict[str, Any]:
    """What `quality_peers.py` prints for a task on one thread; the task stays beside `out`."""
    out = Path(task["out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(f"{out.name}.json")
    path.write_text(json.dumps(dict(task), indent=1) + "\n")
    found: dict[str, Any] = json.loads(_run([str(python), str(SCRIPT), str(path)]))
    return found


def _run(command: list[str]) -> str:
    """What a command prints; RuntimeError with the end of its errors where it fails."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        errors = "\n".join(done.stderr.splitlines()[-SHOWN:])
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{errors}")
    return done.stdout
