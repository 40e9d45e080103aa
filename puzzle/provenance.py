"""Where a run comes from: the parent, the texts, and the versions that made it."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from puzzle import corpus
from puzzle.parent import Parent

PACKAGES = ("puzzle-nas", "torch", "transformers", "safetensors", "numpy", "ortools")


def provenance(parent: Parent, texts: dict[str, torch.Tensor]) -> str:
    """JSON for people: which parent, which three disjoint texts, which software."""
    record = {
        "parent": {"name": parent.name, "family": parent.family, "fingerprint": parent.fingerprint},
        "texts": {
            split: {"tokens": tokens.numel(), "digest": corpus.digest(tokens)}
            for split, tokens in texts.items()
        },
        "versions": versions(),
    }
    return json.dumps(record, indent=1) + "\n"


def versions() -> dict[str, str]:
    """Python and the packages that a run's numbers depend on; `missing` where one is not there."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found
