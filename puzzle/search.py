"""The search, top to bottom: a parent and a budget in, a faster child out.

1. Trace    the parent's residual streams and Fisher gradients, one layer in memory at a time.
2. Distill  every variant of every layer on its own, from those streams: the block library.
3. Score    every composed block, and every run of layers removed: the KL it would cost.
4. Choose   one block per layer, the least summed score within the budget, by integer programming,
            on request again with exact scores where picked blocks are in doubt; the best few at
            several weights of FFN to attention losses are measured, and the nearest to the parent
            is the child, or one still nearer around it.
5. Mend     the assembled child: layer by layer, its last matrices are refit on its own stream and
            the whole layer is distilled there; on request FFNs that follow each other without
            attention are fused.
6. Heal     it by global knowledge distillation from the parent, or another teacher.
7. Evaluate the parent, the uniform child and the child, before and after healing.
8. Export   the child as a checkpoint that engines load, and write the report.

Every step writes records into the run directory and skips those that are there: running the same
command again does what is missing, and another budget re-solves in seconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from puzzle import corpus, records
from puzzle.architecture import Architecture
from puzzle.assemble import assemble, from_weights
from puzzle.baselines.minitron.pruned import taught_by
from puzzle.baselines.uniform import uniform
from puzzle.budget import Budget, load_budget
from puzzle.choose import choose
from puzzle.config import Config, Mend, load_config
from puzzle.device import placed
from puzzle.distill import behind, distill
from puzzle.errors import PuzzleError
from puzzle.evaluate import Reading, evaluate
from puzzle.export.checkpoint import write_checkpoint
from puzzle.export.gguf import check_writable
from puzzle.export.modeling_puzzle import PuzzleForCausalLM
from puzzle.export.rewrite import Child
from puzzle.export.targets import check_family
from puzzle.finalists import finalists
from puzzle.fuse import fuse
from puzzle.hardware.price import cost_source, price
from puzzle.hardware.throughput import reference_of
from puzzle.heal import Course, heal
from puzzle.library import Library
from puzzle.measure import nearest
from puzzle.mend import mend
from puzzle.menu import Choice, Losses, Menu
from puzzle.mixture import healing_text, split_texts
from puzzle.modules import Weights
from puzzle.parent import Parent, open_parent
from puzzle.provenance import provenance
from puzzle.ranks import here
from puzzle.report import model_card, write_report
from puzzle.result import Result, chosen
from puzzle.rounds import further
from puzzle.run import CONFIG, Run, fingerprint, usual_folder
from puzzle.score import require_current, score, scores
from puzzle.settle import settle
from puzzle.space import Options, layer_blocks, pieces
from puzzle.swap import Blocks
from puzzle.trace import trace, trace_print
from puzzle.tracker import Watch, tensorboard
from puzzle.training import Texts
from puzzle.trial import trial
from puzzle.window import Window, windows

# title -> the fingerprint of a model, the blocks that were chosen for it, and how to come by it
Models = dict[str, tuple[str, Blocks, Callable[[], PuzzleForCausalLM]]]


@placed
def search(
    model: str | None = None,
    *,
    data: str | Mapping[str, float] | None = None,
    budget: str | None = None,
    out: str | Path | None = None,
    config: str | Path | None = None,
    settings: Sequence[str] = (),
    watch: Watch | None = None,
) -> Result:
    """Derive a faster child from a pretrained parent, for a budget.

    Args:
        model: `embedded` (the default), a Hugging Face checkpoint folder, or a hub id.
        data: `embedded` (the default), text, JSONL or parquet files, or a hub dataset; or several
            of them with their weights.
        budget: the name of a shipped budget (default `h100-1gpu`), or a YAML file.
        out: the run directory; `runs/<model>` unless told otherwise.
        config: a YAML file with any field of `puzzle.config.Config`.
        settings: `a.b=c` overrides of the same fields, in order.
        watch: called after every step of healing, for a tracker beside TensorBoard.

    Raises:
        PuzzleError: bad input, in one sentence.
        InfeasibleError: no child keeps the budget.
    """
    given = {"model": model, "data": data, "budget": budget}
    said = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    wanted = load_config(Path(config) if config else None, [*said, *settings])
    run = Run(out or usual_folder(wanted.model))
    with run.locked():
        return _search(run, wanted, watch)


@placed
def solve(out: str | Path, budget: str) -> Result:
    """Choose again for another budget from the scores a run already has; nothing is trained."""
    run = Run.existing(out)
    config = load_config(run.folder / CONFIG)
    with run.locked():
        parent = open_parent(config.model, config.dtype)
        space = layer_blocks(parent.blocks, config.space, config.target)
        asked = load_budget(budget)
        library = Library(run, parent, config.distill.coupled)
        require_current(library, space)
        _choose(library, space, asked, config)
        return Result(run, asked.name)


@placed
def heal_again(out: str | Path, *, settings: Sequence[str], watch: Watch | None = None) -> Result:
    """Heal the child of a run anew, as if the run had been configured so from the start.

    Args:
        out: the run directory of a finished search.
        settings: what is to be different, like `heal.cosine=0`, or the child's `budget`: the name
            of one that a child is chosen for, or any that a search takes. The one chosen last
            unless told.
        watch: called after every step, for a tracker beside TensorBoard.
    """
    run = Run.existing(out)
    last = [f"budget={json.dumps(name)}" for name in chosen(run)[-1:]]
    config = load_config(run.folder / CONFIG, [*last, *settings])
    with run.locked():
        return _search(run, _with_own_budget(run, config), watch)


def _with_own_budget(run: Run, config: Config) -> Config:
    """The configuration with a file for its budget, where that names one the run has chosen for."""
    if config.budget not in chosen(run):
        return config
    name = records.solution(config.budget)
    text = yaml.safe_dump(run.load(name)["budget"], sort_keys=False)
    return config.model_copy(update={"budget": str(run.write_text(f"{name}.yaml", text))})


def _search(run: Run, config: Config, watch: Watch | None) -> Result:
    parent, budget = open_parent(config.model, config.dtype), load_budget(config.budget)
    config.check(parent.shape.max_positions)
    _refuse_to_replace(run, config.model)
    check_family(config.target, parent.family)
    if config.target == "llama.cpp":
        check_writable(parent.folder, parent.config)
    space = layer_blocks(parent.blocks, config.space, config.target)
    _require_feasible(parent, space, budget, config)
    _teacher(parent, config)  # what is wrong with it is said before anything is computed
    texts = split_texts(config, parent.tokenizer)
    if here().leads:
        run.write_text(CONFIG, config.to_yaml())
        run.write_text("provenance.json", provenance(parent, texts))
    made, window = make_library(run, parent, space, texts, config)
    library = Library(run, parent, config.distill.coupled)
    with run.stage("scores"):
        score(run, library, space, config.space.removal, made)
        here().barrier()
    _make_child(library, space, texts, config, made=made, window=window, watch=watch)
    here().barrier()
    return Result(run, budget.name)


def _refuse_to_replace(run: Run, model: str) -> None:
    """PuzzleError where the run is another parent's, whose library would be lost."""
    path = run.folder / CONFIG
    before = load_config(path).model if path.exists() else model
    if Path(before).resolve() != Path(model).resolve():
        raise PuzzleError(
            f"{run.folder} holds a search of {before}, not of {model}; give another --out, or "
            f"where this parent has only moved, change `model` in {path}"
        )


def make_library(
    run: Run, parent: Parent, space: Options, texts: dict[str, torch.Tensor], config: Config
) -> tuple[str, Window]:
    """Trace and distill, a window of the calibration text at a time; every rank its own layers.

    Returns the fingerprint of the library and the last window, whose streams stay.
    """
    wanted = pieces(space, parent.blocks, coupled=config.distill.coupled)
    draws = {"samples": config.score.samples, "seed": config.seed}
    traced = trace_print(parent, texts["scoring"], **draws)
    for window in windows(texts, parent, config, traced):
        parts = window.parts
        if not window.last and not behind(run, wanted, config.distill, window):
            parts = {}
        with run.stage("trace"):
            trace(run, parent, {"scoring": texts["scoring"], **parts}, **draws)
            here().barrier()
        with run.stage("library"):
            made = distill(run, parent, wanted, config.distill, window)
            here().barrier()
        if not window.last and here().leads:
            run.forget(*map(records.traced, window.parts))
    return made, window


def _make_child(
    library: Library,
    space: Options,
    texts: dict[str, torch.Tensor],
    config: Config,
    *,
    made: str,
    window: Window,
    watch: Watch | None,
) -> None:
    """Choose, mend, heal, evaluate and export the child of a scored library.

    All ranks heal; the rest is the leading one's.
    """
    run, parent, budget = library.run, library.parent, load_budget(config.budget)
    with run.stage("choose"):
        choice, plain = here().first(lambda: _choose(library, space, budget, config))
    with run.stage("mend"):
        taught = fingerprint(made, config.mend.model_dump())
        mended = partial(_mended, library, window, config.mend, taught)
        child = here().first(lambda: mended(choice, records.child(budget.name, "child")))
        blocks, student = _fused(library, choice, child) if config.fuse else (choice.blocks, child)
    with run.stage("heal"):
        whole = assemble(library, parent.blocks)
        inputs = fingerprint("mended", taught, [*map(str, choice.blocks)], config.fuse)
        course, healed = _healed(library, student, whole, texts, config, inputs=inputs, watch=watch)
    if not here().leads:
        return
    with run.stage("evaluate"):
        models: Models = {
            "parent": (made, parent.blocks, lambda: whole),
            "child": (inputs, choice.blocks, lambda: child),
            "healed": (
                course.inputs,
                choice.blocks,
                partial(from_weights, library, blocks, healed),
            ),
        }
        if plain:
            made_of, place = fingerprint(taught, str(plain)), records.child(budget.name, "uniform")
            models["uniform"] = made_of, plain.blocks, lambda: mended(plain, place)
        asked = _evaluated(run, parent, models, texts["evaluation"], config)
    with run.stage("export"):
        result = Result(run, budget.name)
        if not run.fresh(records.exported(budget.name), asked):
            architecture = Architecture(parent.name, blocks)
            folder, text = result.checkpoint, model_card(result, architecture)
            write_checkpoint(folder, parent, architecture, healed, card=text)
            written = {**choice.as_record(), "written": [*map(str, blocks)]}
            run.save(records.exported(budget.name), written, asked)
    with run.stage("report"):
        write_report(result)


def _healed(
    library: Library,
    student: PuzzleForCausalLM,
    whole: PuzzleForCausalLM,
    texts: dict[str, torch.Tensor],
    config: Config,
    *,
    inputs: str,
    watch: Watch | None,
) -> tuple[Course, Weights]:
    """The tensors of the student once healed by the whole parent or another teacher.

    Args:
        inputs: fingerprint of the student.
    """
    run, parent, name = library.run, library.parent, load_budget(config.budget).name
    other = _teacher(parent, config)
    teacher = assemble(replace(library, parent=other), other.blocks) if other else whole
    lesson = healing_text(config, parent.tokenizer, texts["calibration"])
    options = taught_by(config.heal, parent.folder, config.teacher)
    taught = [options.model_dump(), corpus.digest(lesson), other and other.fingerprint]
    course = Course(run, records.child(name, "healed"), fingerprint(inputs, taught))
    read = Texts(lesson, texts["scoring"])
    with tensorboard(run.folder / records.child(name, "tensorboard"), watch) as watched:
        return course, heal(course, student, teacher, read, options, watch=watched)


def _evaluated(
    run: Run, parent: Parent, models: Models, tokens: torch.Tensor, config: Config
) -> str:
    """Evaluate the models, the parent among them, into records; returns their fingerprint.

    Args:
        tokens: token ids [S, T] of the evaluation text.
    """
    name, reading = load_budget(config.budget).name, Reading(models["parent"][-1](), tokens)
    items = corpus.accuracy_items()[: config.evaluate.items]
    asked = corpus.digest(tokens), len(items)

    def examined(blocks: list[str], model: Callable[[], PuzzleForCausalLM]) -> dict[str, Any]:
        found = evaluate(model(), reading, tokenizer=parent.tokenizer, items=items)
        return {"blocks": blocks, **asdict(found)}

    for title, (inputs, blocks, model) in models.items():
        names = [*map(str, blocks)]
        place, of = records.evaluation(name, title), fingerprint(inputs, names, *asked)
        run.remember(place, of, partial(examined, names, model))
    return fingerprint([inputs for inputs, *_ in models.values()], *asked)


def _teacher(parent: Parent, config: Config) -> Parent | None:
    """The model a child learns from where that is not its parent.

    Raises:
        PuzzleError: it does not know the same tokens.
    """
    if config.teacher is None:
        return None
    teacher = open_parent(config.teacher, config.dtype)
    if teacher.shape.vocab_size != parent.shape.vocab_size:
        raise PuzzleError(
            f"the teacher {teacher.name} has a vocabulary of {teacher.shape.vocab_size} tokens, "
            f"{parent.name} one of {parent.shape.vocab_size}; a child learns token by token, so "
            "give a teacher of the same vocabulary"
        )
    return teacher


def _mended(
    library: Library, window: Window, options: Mend, taught: str, choice: Choice, name: str
) -> PuzzleForCausalLM:
    """The assembled child of a choice; mended, where that brings it nearer on the scoring text."""
    inputs = fingerprint("mend", taught, choice.as_record()["blocks"])
    weights = mend(library, choice.blocks, list(window.parts), options, name=name, inputs=inputs)
    return nearest(library, choice.blocks, weights)


def _fused(
    library: Library, choice: Choice, child: PuzzleForCausalLM
) -> tuple[Blocks, PuzzleForCausalLM]:
    """The child with its FFNs fused where they follow each other without attention."""
    whole = Child(library.parent.config, choice.blocks, dict(child.named_parameters()))
    fused = fuse(whole)
    return fused.blocks, from_weights(library, fused.blocks, fused.weights)


def _menu(parent: Parent, losses: Losses, budget: Budget, config: Config) -> Menu:
    """What to choose from: scores, prices and limits."""
    shape, space = parent.shape, [list(options) for options in losses]
    source = cost_source(config.costs, shape, budget)
    prices = price(shape, parent.family, space, budget, source, config.target)
    return Menu(losses, prices, budget, reference_of(shape, budget, source))


def _require_feasible(parent: Parent, space: Options, budget: Budget, config: Config) -> None:
    """Let an infeasible budget say so before anything is trained: choose as if blocks were free."""
    choose(_menu(parent, [dict.fromkeys(blocks, 0.0) for blocks in space], budget, config))


def _choose(
    library: Library, space: Options, budget: Budget, config: Config
) -> tuple[Choice, Choice | None]:
    """The child, and the uniform child it must beat: of the best by scores, the best measured."""
    run, parent, count = library.run, library.parent, config.choose.finalists
    found = scores(run, space)
    removals = {layers: score.loss for layers, score in found.removals.items()}
    menu = replace(_menu(parent, found.losses, budget, config), removals=removals)

    def record() -> dict[str, Any]:
        own = {"blocks": [str(block) for block in parent.blocks], "prediction": asdict(menu.parent)}
        settled, exact = settle(library, menu, found, config.score.exact)
        first = finalists(library, settled, count)
        later = further(library, settled, first[0], config.choose.rounds)
        tried = [choice.as_record() for choice in (*reversed(later), *first)]
        plain = [choice.as_record() for choice in trial(library, uniform(settled)[:count])]
        return {
            "budget": budget.model_dump(mode="json"),
            "models": {
                "parent": own,
                "uniform": next(iter(plain), None),
                "child": tried[0],
            },
            "finalists": tried,
            "exact": {records.exact(swap.layer, swap.blocks): kl for swap, kl in exact.items()},
        }

    inputs = fingerprint(
        "solution at several weights",
        menu.digest(),
        config.choose.model_dump(),
        config.score.model_dump(),
    )
    models = run.remember(records.solution(budget.name), inputs, record)["models"]
    choice = Choice.from_record(models["child"])
    costs = records.costs(budget.hardware, budget.name)
    run.remember(costs, inputs, menu.prices.rows)
    run.write_text(f"{records.solution(budget.name)}.txt", str(choice.architecture(parent.name)))
    return choice, models["uniform"] and Choice.from_record(models["uniform"])
