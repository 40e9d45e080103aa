"""Continued training of a checkpoint, on plain text or from a teacher: `puzzle heal MODEL`.

The folder written is the one read with other numbers in it: same architecture, same dtype, same
tokenizer. Models are those of transformers that end in a norm and a head, and our children.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from puzzle import corpus
from puzzle.config import Config
from puzzle.device import placed
from puzzle.export.register import load_checkpoint
from puzzle.heal import Course, heal
from puzzle.mixture import mixed
from puzzle.modules import Weights
from puzzle.parent import checkpoint_folder, checkpoint_print
from puzzle.ranks import here
from puzzle.run import Run, fingerprint
from puzzle.tracker import tensorboard
from puzzle.training import Texts

RECORD = "training"  # what says that a folder is done, and how it came to be
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth")


@placed
def pretrain(config: Config, out: Path) -> Path:
    """Train `config.model` by `config.heal` on `config.data`, and write it as `out`; resumes.

    Raises:
        PuzzleError: models, texts or losses that do not go together.
    """
    source = _folder(config.model)
    guide = checkpoint_folder(config.teacher) if config.teacher else None
    run = Run(out)
    with run.locked():
        student = load_checkpoint(source)
        texts = _texts(config, AutoTokenizer.from_pretrained(source))
        course = Course(run, f"{RECORD}/trained", _inputs(config, source, guide, texts))
        if run.fresh(RECORD, course.inputs):
            return out
        teacher = load_checkpoint(guide) if guide else None
        with tensorboard(out / RECORD / "tensorboard") as watch:
            weights = heal(course, student, teacher, texts, config.heal, watch=watch)
        if here().leads:
            losses = run.info(course.record)["losses"]
            _write(out, source, student, weights)
            made = {"model": config.model, "data": config.data, "heal": config.heal.model_dump()}
            run.save(RECORD, {**made, "losses": losses}, course.inputs)
            (out / f"{course.record}.safetensors").unlink()
        here().barrier()
    return out


def _folder(model: str) -> Path:
    return Path(model) if Path(model).is_dir() else checkpoint_folder(model)


def _texts(config: Config, tokenizer: Any) -> Texts:
    """What is trained on and, where the loss is checked, what it is checked by."""
    tokens = {"calibration": config.heal.data_tokens or config.heal.tokens}
    if config.heal.checks:
        tokens["scoring"] = config.tokens.scoring
    texts = mixed(
        *(config.heal.data or config.data, tokenizer),
        length=config.sequence_length,
        tokens=tokens,
        seed=config.seed,
    )
    return Texts(texts["calibration"], texts.get("scoring"))


def _inputs(config: Config, source: Path, guide: Path | None, texts: Texts) -> str:
    """Identifies all that the result depends on."""
    read = [text for text in (texts.training_ST, texts.validation_ST) if text is not None]
    models = [checkpoint_print(folder, torch.float32) for folder in (source, guide) if folder]
    digests = [corpus.digest(text) for text in read]
    return fingerprint(models, config.heal.model_dump(), digests)


def _write(out: Path, source: Path, model: Any, weights: Weights) -> None:
    """Write the source's folder with these weights: all its other files are taken over."""
    model.load_state_dict(weights, strict=False)  # a tied head is no tensor of its own
    model.save_pretrained(out)
    old = {path for pattern in WEIGHTS for path in source.glob(pattern)}
    for path in source.iterdir():
        if path.is_file() and path not in old:
            shutil.copyfile(path, out / path.name)
