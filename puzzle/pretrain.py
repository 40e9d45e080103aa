"""Continued training of a checkpoint, on plain text or from a teacher: `puzzle heal MODEL`.

The folder written is the one read with other numbers in it: same architecture, same dtype, same
tokenizer. Models are those of transformers that end in a norm and a head, and our children.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from puzzle import corpus
from puzzle.baselines.minitron.pruned import taught_by
from puzzle.config import Config, Heal
from puzzle.device import placed
from puzzle.errors import PuzzleError
from puzzle.export.register import load_checkpoint
from puzzle.heal import Course, heal
from puzzle.mixture import lesson
from puzzle.modules import Weights
from puzzle.objective import check_head
from puzzle.parent import checkpoint_folder, checkpoint_print, load_tokenizer
from puzzle.ranks import here
from puzzle.run import Run, fingerprint
from puzzle.tracker import Watch, tensorboard
from puzzle.training import Texts

RECORD = "training"  # what says that a folder is done, and how it came to be
CARD = "README.md"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth")


@placed
def pretrain(config: Config, out: Path, *, watch: Watch | None = None) -> Path:
    """Train `config.model` by `config.heal` on `config.data`, and write it as `out`; resumes.

    Args:
        watch: called after every step, for a tracker beside TensorBoard.

    Raises:
        PuzzleError: models, texts or losses that do not go together.
    """
    source = _folder(config.model)
    guide = checkpoint_folder(config.teacher) if config.teacher else None
    if out.resolve() == source.resolve():
        raise PuzzleError(f"{out} is what is trained and would be written over; give another --out")
    _refuse_to_replace(out, guide)
    options = taught_by(config.heal, source, config.teacher)
    run = Run(out)
    with run.locked():
        student = load_checkpoint(source)
        texts = _texts(config, load_tokenizer(source, config.model))
        course = Course(run, f"{RECORD}/trained", _inputs(options, source, guide, texts))
        if run.fresh(RECORD, course.inputs):
            return out
        teacher = load_checkpoint(guide) if guide else None
        for name, model in ((config.model, student), (config.teacher, teacher)):
            if model:
                check_head(f"{name}", model)
        with tensorboard(out / RECORD / "tensorboard", watch) as watched:
            weights = heal(course, student, teacher, texts, options, watch=watched)
        if here().leads:
            losses = run.info(course.record)["losses"]
            _write(out, source, student, weights)
            made = {"model": config.model, "data": config.data, "heal": options.model_dump()}
            run.save(RECORD, {**made, "losses": losses}, course.inputs)
            for tensors in (out / RECORD).glob("*.safetensors"):  # the model's, and a teacher's
                tensors.unlink()
        here().barrier()
    return out


def _refuse_to_replace(out: Path, guide: Path | None) -> None:
    """PuzzleError where `out` is the teacher, or a checkpoint that was not trained here."""
    if guide and out.resolve() == guide.resolve():
        raise PuzzleError(f"{out} is what teaches and would be written over; give another --out")
    begun = any(out.glob(f"{RECORD}*"))
    if (out / "config.json").exists() and not begun:
        raise PuzzleError(
            f"{out} holds a checkpoint that was not trained here and would be written over; give "
            "another --out"
        )


def _folder(model: str) -> Path:
    return Path(model) if Path(model).is_dir() else checkpoint_folder(model)


def _texts(config: Config, tokenizer: Any) -> Texts:
    """What is trained on and, where the loss is checked, what it is checked by."""
    checks = {"scoring": config.tokens.scoring} if config.heal.checks else {}
    texts = lesson(config, config.heal.data or config.data, tokenizer, checks)
    return Texts(texts["calibration"], texts.get("scoring"))


def _inputs(options: Heal, source: Path, guide: Path | None, texts: Texts) -> str:
    """Identifies all that the result depends on."""
    read = [text for text in (texts.training_ST, texts.validation_ST) if text is not None]
    models = [checkpoint_print(folder, torch.float32) for folder in (source, guide) if folder]
    digests = [corpus.digest(text) for text in read]
    return fingerprint(models, options.model_dump(), digests)


def _write(out: Path, source: Path, model: Any, weights: Weights) -> None:
    """Write the source's folder with these weights; its card, which is of others, stays behind."""
    model.load_state_dict(weights, strict=False)  # a tied head is no tensor of its own
    model.save_pretrained(out)
    old = {path for pattern in (*WEIGHTS, CARD) for path in source.glob(pattern)}
    for path in source.iterdir():
        if path.is_file() and path not in old:
            shutil.copyfile(path, out / path.name)
