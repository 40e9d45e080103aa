"""Run the tests that launch kernels in a process whose Triton interprets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")
HERE = Path(__file__).parent


def test_kernels_agree_with_their_references_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", str(HERE), "--confcutdir", str(HERE), "-x"]
    # one thread: the interpreter's arrays are tiny, and idle threads spin on a busy machine
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
