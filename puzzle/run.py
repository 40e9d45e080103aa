"""The run directory: one file a record, absent or complete, with a fingerprint of its inputs.

A record is written to a temporary name, synced and renamed, so a killed process leaves no half
record. Its fingerprint covers exactly what its stage reads: a stage asks `fresh(name, print)` and
does only what is missing. Tensors are safetensors, everything else JSON; nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import resource
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from puzzle.errors import PuzzleError
from puzzle.ranks import here

if TYPE_CHECKING:
    import torch

JSON, TENSORS = ".json", ".safetensors"
CONFIG = "config.yaml"  # of the last search; what makes a folder a run
KIB = 1024


def fingerprint(*inputs: Any) -> str:
    """A short hash of inputs that JSON can write; equal inputs, equal fingerprint."""
    text = json.dumps(inputs, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def usual_folder(model: str, suffix: str = "") -> Path:
    """Where a run of this model lies unless told otherwise: `runs/<its name>`.

    >>> str(usual_folder("HuggingFaceTB/SmolLM2-135M")), str(usual_folder("runs/mine-pruned/hf"))
    ('runs/SmolLM2-135M', 'runs/mine-pruned-hf')
    """
    path = Path(model).resolve()
    name = f"{path.parent.name}-hf" if path.name == "hf" else path.name  # a checkpoint of ours
    return Path("runs") / f"{name}{suffix}"


class Run:
    """The folder of one search; opening it creates it."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PuzzleError(f"cannot create {folder}: {error.strerror}; choose --out") from None

    @classmethod
    def existing(cls, folder: str | Path) -> Run:
        """A run that was begun before; PuzzleError where there is none."""
        if not (Path(folder) / CONFIG).exists():
            raise PuzzleError(f"there is no run in {folder}; `puzzle search --out` makes one")
        return cls(folder)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process and its ranks; PuzzleError names who holds it already."""
        if not here().leads:
            here().barrier()
            yield
            return
        with (self.folder / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise PuzzleError(
                    f"{self.folder} is in use by {holder}; wait for it, or choose another --out"
                ) from None
            for torn in self.folder.rglob(".*.tmp"):  # of a process that was killed while writing
                torn.unlink()
            file.truncate(0)
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}")
            file.flush()
            here().barrier()
            yield

    def fresh(self, name: str, *inputs: str) -> bool:
        """True when the record exists and was made from these inputs (any of several)."""
        return self.fingerprint_of(name) in inputs

    def fingerprint_of(self, name: str) -> str | None:
        """What identifies the inputs a record was made from; None where there is no record."""
        return self._header(name).get("fingerprint")

    def names(self, pattern: str) -> list[str]:
        """Names of the records that match a glob, sorted."""
        paths = [p for p in self.folder.glob(pattern) if p.suffix in (JSON, TENSORS)]
        return sorted(str(p.relative_to(self.folder).with_suffix("")) for p in paths)

    def written(self, name: str) -> float:
        """When a JSON record was written, in seconds since the epoch."""
        return self._path(name, JSON).stat().st_mtime

    def save(self, name: str, data: Any, inputs: str) -> None:
        """Write a JSON record."""
        text = json.dumps({"fingerprint": inputs, "data": data}, indent=1)
        self._write(self._path(name, JSON), lambda path: path.write_text(text + "\n"), len(text))

    def load(self, name: str) -> Any:
        """What `save` wrote; PuzzleError where there is no such record."""
        path = self._path(name, JSON)
        if not path.exists():
            raise PuzzleError(f"{self.folder} has no {name} yet; run `puzzle search` on it first")
        return json.loads(path.read_text())["data"]

    def remember(self, name: str, inputs: str, make: Callable[[], Any]) -> Any:
        """The data of a JSON record, made and saved first where it is missing or stale."""
        if not self.fresh(name, inputs):
            self.save(name, make(), inputs)
        return self.load(name)

    def save_tensors(
        self, name: str, tensors: dict[str, torch.Tensor], inputs: str, info: Any = None
    ) -> None:
        """Write named tensors, with `info` (JSON) beside them in the same file."""
        from safetensors.torch import save_file

        metadata = {"fingerprint": inputs, "info": json.dumps(info)}
        whole = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
        size = sum(t.numel() * t.element_size() for t in whole.values())
        path = self._path(name, TENSORS)
        self._write(path, lambda target: save_file(whole, target, metadata), size)

    def load_tensors(self, name: str) -> dict[str, torch.Tensor]:
        """What `save_tensors` wrote, on the current device; on the CPU memory-mapped."""
        from safetensors.torch import load_file

        from puzzle.device import current

        loaded = load_file(self._path(name, TENSORS))
        return {key: tensor.to(current()) for key, tensor in loaded.items()}

    def info(self, name: str) -> Any:
        """The `info` of a tensor record."""
        return json.loads(self._header(name)["info"])

    def event(self, **fields: Any) -> None:
        """Append one line to the log of what happened and when."""
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S"), **fields})
        path = self.folder / "events.jsonl"
        torn = path.exists() and not path.read_text().endswith("\n")
        with self._room(len(line)), path.open("a") as file:
            file.write("\n" * torn + line + "\n")

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Log how long a stage took, and the peak memory of the process up to its end."""
        begin = time.monotonic()
        yield
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
        seconds = time.monotonic() - begin
        self.event(stage=name, rank=here().rank, seconds=seconds, peak_bytes=peak_bytes)

    def events(self) -> list[dict[str, Any]]:
        """Every event so far; a line torn by a crash is left out."""
        path = self.folder / "events.jsonl"
        found = []
        for line in path.read_text().splitlines() if path.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found

    def timings(self) -> dict[str, tuple[float, int]]:
        """Stage -> seconds of the leading rank in all, largest peak memory up to its end."""
        found: dict[str, tuple[float, int]] = {}
        for event in self.events():
            if stage := event.get("stage"):
                seconds, peak_bytes = found.get(stage, (0.0, 0))
                longest = max(peak_bytes, event["peak_bytes"])
                found[stage] = (seconds + event["seconds"] * (event.get("rank", 0) == 0), longest)
        return found

    def forget(self, *folders: str) -> None:
        """Delete every record below these folders of the run."""
        for folder in folders:
            shutil.rmtree(self.folder / folder, ignore_errors=True)

    def write_text(self, name: str, text: str) -> Path:
        """Write a plain file people read (report, architecture), atomically; returns its path."""
        path = self.folder / name
        self._write(path, lambda target: target.write_text(text), len(text))
        return path

    def _path(self, name: str, suffix: str) -> Path:
        return self.folder / (name + suffix)

    def _header(self, name: str) -> dict[str, str]:
        from safetensors import safe_open

        path = self._path(name, TENSORS)
        if path.exists():
            with safe_open(path, framework="pt") as file:
                return file.metadata() or {}
        path = self._path(name, JSON)
        return json.loads(path.read_text()) if path.exists() else {}

    def _write(self, path: Path, write: Any, size: int) -> None:
        temporary = path.with_name(f".{path.name}.{here().rank}.{os.getpid()}.tmp")
        try:
            with self._room(size):
                path.parent.mkdir(parents=True, exist_ok=True)
                write(temporary)
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _room(self, size: int) -> Iterator[None]:
        """PuzzleError when the disk has no room for `size` bytes, or fills while they are written.

        safetensors' error of a full disk is no OSError, so both are known by their words.
        """
        self._require_space(size)
        try:
            yield
        except (OSError, SafetensorError) as error:
            if os.strerror(errno.ENOSPC) not in str(error):
                raise
            self._require_space(size, full=True)

    def _require_space(self, size: int, full: bool = False) -> None:
        free = shutil.disk_usage(self.folder).free
        if full or size > free:
            raise PuzzleError(
                f"out of disk: {self.folder} needs {size / 2**20:.1f} MiB for its next record and "
                f"{free / 2**20:.1f} MiB are free; make room and run the same command again, "
                "nothing done so far is lost"
            )
