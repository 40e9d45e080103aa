"""Continued training of a checkpoint, on plain text or from a teacher: `puzzle heal MODEL`.

The folder written is the one read with other numbers in it: same architecture, same dtype, same
tokenizer. Models are those of transformers that end in a norm and a head, and our children.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from puzzle import corpus
from puzzle.config import Config
from puzzle.errors import PuzzleError
from puzzle.export.register import register
from puzzle.heal import Course, heal
from puzzle.mixture import mixed
from puzzle.modules import Weights
from puzzle.parent import open_parent
from puzzle.ranks import here
from puzzle.run import Run, fingerprint
from puzzle.tracker import tensorboard
from puzzle.training import Texts

RECORD = "training"  # what says that a folder is done, and how it came to be
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth")


def pretrain(config: Config, out: Path) -> Path:
    """Train `config.model` by `config.heal` on `config.data`, and write it as `out`; resumes.

    Raises:
        PuzzleError: models, texts or losses that do not go together.
    """
    source = _folder(config.model)
    run = Run(out)
    with run.locked():
        register()
        student, tokenizer = _model(source), AutoTokenizer.from_pretrained(source)
        texts = _texts(config, tokenizer)
        course = Course(run, f"{RECORD}/trained", _inputs(config, source, texts))
        if run.fresh(RECORD, course.inputs):
            return out
        teacher = _model(_folder(config.teacher)) if config.teacher else None
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
    return Path(model) if Path(model).is_dir() else open_parent(model).folder


def _model(folder: Path) -> Any:
    """The model of a folder, in the dtype it is stored in."""
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PuzzleError(f"{folder} is no checkpoint that loads: {reason}") from None


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


def _inputs(config: Config, source: Path, texts: Texts) -> str:
    """Identifies all that the result depends on."""
    read = [text for text in (texts.training_ST, texts.validation_ST) if text is not None]
    sizes = [(path.name, path.stat().st_size) for path in sorted(source.glob("*.safetensors"))]
    return fingerprint(
        *(config.model, sizes, config.teacher, config.heal.model_dump()),
        [corpus.digest(text) for text in read],
    )


def _write(out: Path, source: Path, model: Any, weights: Weights) -> None:
    """Write the source's folder with these weights: all its other files are taken over."""
    model.load_state_dict(weights, strict=False)  # a tied head is no tensor of its own
    model.save_pretrained(out)
    old = {path for pattern in WEIGHTS for path in source.glob(pattern)}
    for path in source.iterdir():
        if path.is_file() and path not in old:
            shutil.copyfile(path, out / path.name)
