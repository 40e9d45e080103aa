"""Subjects: the models of a run, or of two checkpoints, as they are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from puzzle import records
from puzzle.assemble import assemble, from_weights
from puzzle.config import Config, load_config
from puzzle.errors import PuzzleError
from puzzle.evaluate import Reading
from puzzle.export.register import load_checkpoint
from puzzle.library import Library
from puzzle.measure import nearest
from puzzle.mixture import Mixture, mixed
from puzzle.objective import check_head
from puzzle.parent import Parent, checkpoint_folder, checkpoint_print, open_parent
from puzzle.result import COLUMNS, Result, open_result
from puzzle.run import CONFIG, Run, fingerprint, usual_folder


@dataclass(frozen=True)
class Subject:
    """A model to be compared, loaded when first asked; `inputs` identifies its weights."""

    title: str
    inputs: str
    load: Callable[[], PreTrainedModel]

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model itself."""
        return self.load()


@dataclass(frozen=True)
class Examination:
    """What subjects (the parent first, by short names) are asked, and where answers are kept."""

    run: Run
    place: str  # of the records
    parent: Parent
    subjects: Mapping[str, Subject]
    text: tuple[str | Mixture, int, int, int]  # source, length of a sequence, tokens in all, seed

    @cached_property
    def tokens(self) -> torch.Tensor:
        """The evaluation split [S, T], or what a text has of it that has less."""
        source, length, count, seed = self.text
        found = mixed(
            source,
            self.parent.tokenizer,
            length=length,
            tokens={"evaluation": count},
            seed=seed,
            at_most=True,
        )
        return found["evaluation"]

    @cached_property
    def reading(self) -> Reading:
        """What the parent makes of it."""
        return Reading(self.subjects["parent"].model, self.tokens)

    def answers(self, what: str, inputs: Any, ask: Callable[[Subject], Any]) -> dict[str, Any]:
        """What each subject answers by its title, from records where they are fresh."""
        found = {}
        for name, subject in self.subjects.items():
            # the parent is part of what every other is asked
            prints = [self.parent.fingerprint, subject.inputs]
            found[subject.title] = self.run.remember(
                f"{self.place}/{name}.{what}",
                fingerprint(what, prints, inputs),
                lambda subject=subject: ask(subject),  # type: ignore[misc]
            )
        return found


def of_run(target: str | Path | Result, data: str | None, other: object) -> Examination:
    """The child of a run against its parent."""
    if other:
        raise PuzzleError("a run has its own parent and records; leave --parent and --out away")
    result = target if isinstance(target, Result) else open_result(target)
    run, blocks, written = result.run, result.architecture.blocks, result.written.blocks
    config = load_config(run.folder / CONFIG)
    parent = open_parent(config.model, config.dtype)
    library = Library(run, parent, config.distill.coupled)
    healed, child = (records.child(result.name, name) for name in ("healed", "child"))
    layers = [records.layer_of(child, layer) for layer in range(len(blocks))]
    mendings = {run.fingerprint_of(name) for name in layers}
    if len(mendings) > 1:
        raise PuzzleError(
            f"{run.folder} holds a child that is being mended anew; run `puzzle search` with "
            f"budget {result.name} to its end first"
        )

    def before() -> PreTrainedModel:
        mended = parent.outside_weights()
        for layer, name in enumerate(layers):
            for key, tensor in run.load_tensors(name).items():
                mended[f"model.layers.{layer}.{key}"] = tensor
        return nearest(library, blocks, mended)

    def after() -> PreTrainedModel:
        return from_weights(library, written, run.load_tensors(healed))

    subjects = {
        "parent": Subject("parent", "", lambda: assemble(library, parent.blocks)),
        "child": Subject(COLUMNS["child"], str(mendings.pop()), before),
        "healed": Subject(COLUMNS["healed"], str(run.fingerprint_of(healed)), after),
    }
    text = (data or config.data, config.sequence_length, config.tokens.evaluation, config.seed)
    return Examination(run, records.child(result.name, "compared"), parent, subjects, text)


def of_checkpoints(
    target: str, parent: str | None, data: str | None, out: str | Path | None
) -> Examination:
    """Any checkpoint against another."""
    if parent is None:
        raise PuzzleError(f"{target} is no run directory; say what it is compared with: --parent")
    opened, folder = open_parent(parent), checkpoint_folder(target)
    run = Run(out or usual_folder(target, "-evaluated"))
    subjects = {
        "parent": Subject("parent", "", lambda: assemble(Library(run, opened), opened.blocks)),
        "child": Subject(
            "child", checkpoint_print(folder, opened.dtype), lambda: _load(folder, opened)
        ),
    }
    usual = Config()
    length = min(usual.sequence_length, opened.shape.max_positions)
    text = (data or usual.data, length, usual.tokens.evaluation, usual.seed)
    return Examination(run, "compared", opened, subjects, text)


def _load(folder: Path, parent: Parent) -> PreTrainedModel:
    """A checkpoint as transformers loads it, in the parent's compute dtype."""
    model = load_checkpoint(folder, parent.dtype)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    if vocabulary != parent.shape.vocab_size:
        raise PuzzleError(
            f"{folder} has a vocabulary of {vocabulary} tokens, {parent.name} one of "
            f"{parent.shape.vocab_size}; models are compared token by token, so give two of the "
            "same vocabulary"
        )
    check_head(str(folder), model)
    return model
