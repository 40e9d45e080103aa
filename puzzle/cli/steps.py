"""Commands that are steps of the search on their own, for a run or for any checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from puzzle.cli.options import DataSource, OutFolder
from puzzle.cli.tables import print_frames, print_result
from puzzle.errors import PuzzleError

WIDE = 120  # columns a comparison may take, whatever the terminal's
LOSSES = ("cosine", "kl", "lm")  # of a healing, each with its factor in the settings


def prune(
    model: Annotated[str, typer.Argument(help="A checkpoint folder or hub id.")] = "embedded",
    target: Annotated[
        str | None, typer.Option(help="0.75x of the parent's, or 6.5 B params.")
    ] = None,
    of: Annotated[str | None, typer.Option(help="parameters, throughput or memory.")] = None,
    axes: Annotated[str | None, typer.Option(help="width, depth, or width,depth.")] = None,
    data: DataSource = None,
    out: OutFolder = None,
    method: Annotated[str, typer.Option(help="minitron.")] = "minitron",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, like prune.candidates=8.")
    ] = None,
) -> None:
    """Prune a parent as a whole and heal it: a smaller model, or the start of a search."""
    if method != "minitron":
        raise PuzzleError(f"--method {method} is unknown; the one there is is minitron")
    from puzzle import prune as prune_for

    said = [f"prune.of={of}"] if of else []
    said += [f"prune.axes=[{axes}]"] if axes else []
    print_result(
        prune_for(model, target=target, data=data, out=out, settings=[*said, *(settings or ())])
    )


def heal(
    target: Annotated[str, typer.Argument(help="A run directory, checkpoint folder or hub id.")],
    loss: Annotated[str | None, typer.Option(help="cosine+kl, kl, lm, or others summed.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="A text; several with weights: --data a.txt=0.7.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="A checkpoint folder or hub id.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Which budget's child of the run; the last chosen.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where a trained checkpoint goes.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, like heal.tokens=65536.")
    ] = None,
) -> None:
    """Heal a run's child anew, or train a checkpoint further on text or from a teacher."""
    from puzzle.config import load_config
    from puzzle.ranks import here
    from puzzle.run import CONFIG

    said = [*_heal_settings(loss, data, teacher, budget), *(settings or ())]
    if (Path(target) / CONFIG).exists():
        if out:
            raise PuzzleError(f"{target} is a run, its healed child stays in it; leave out --out")
        from puzzle.search import heal_again

        result = heal_again(target, settings=said)
        if here().leads:
            print_result(result)
        return
    if out is None:
        raise PuzzleError(f"{target} is no run directory; give --out to train it as a checkpoint")
    from puzzle.pretrain import pretrain

    folder = pretrain(load_config(None, [f"model={json.dumps(target)}", *said]), out)
    if here().leads:
        typer.echo(f"checkpoint  {folder}")


def _heal_settings(
    loss: str | None, data: list[str] | None, teacher: str | None, budget: str | None
) -> list[str]:
    """What these options are as settings."""
    from puzzle.mixture import parse

    named = {"teacher": teacher, "budget": budget, "heal.data": parse(data) if data else None}
    said = [f"{key}={json.dumps(value)}" for key, value in named.items() if value is not None]
    if loss is None:
        return said
    counted = loss.split("+")
    if unknown := [name for name in counted if name not in LOSSES]:
        raise PuzzleError(f"--loss {loss}: {unknown[0]!r} is none of {', '.join(LOSSES)}")
    return [*said, *(f"heal.{name}={float(name in counted)}" for name in LOSSES)]


def evaluate(
    target: Annotated[str, typer.Argument(help="A run directory, or a checkpoint.")],
    parent: Annotated[str | None, typer.Option(help="What a checkpoint is compared with.")] = None,
    data: Annotated[str | None, typer.Option(help="Other text than the run's own.")] = None,
    tasks: Annotated[str, typer.Option(help="lm-eval tasks, or YAML files of some: a,b.yaml")] = "",
    lengths: Annotated[str, typer.Option(help="Of texts that hide a number, in tokens.")] = "",
    budget: Annotated[
        str | None, typer.Option(help="Which budget's child of a run; the last chosen.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to keep what was found.")] = None,
) -> None:
    """Compare a child with its parent: text, questions, tasks, generation, long contexts."""
    from puzzle import open_result
    from puzzle.compare import LENGTHS
    from puzzle.compare import evaluate as evaluate_for

    found = evaluate_for(
        open_result(target, budget) if budget else target,
        parent=parent,
        data=data,
        tasks=_words(tasks),
        lengths=[*map(_whole, _words(lengths))] or LENGTHS,
        out=out,
    )
    print_frames(found.tables(), found.lines(), width=WIDE)


def sample(
    model: Annotated[str, typer.Argument(help="A checkpoint folder or hub id.")],
    out: Annotated[Path, typer.Option(help="The JSONL file to write or go on with.")],
    tokens: Annotated[int, typer.Option(min=1, help="About how many.")] = 360_000,
) -> None:
    """Let a parent write text to calibrate on, where you have none of the kind it will serve."""
    from puzzle.sample import sample as sample_of

    typer.echo(f"{sample_of(model, out, tokens):,} tokens of {model}'s own in {out}")


def _words(text: str) -> list[str]:
    """The words of a list with commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _whole(word: str) -> int:
    if not word.isdecimal():
        raise PuzzleError(f"{word!r} is not a whole number; write lengths like 1024,4096")
    return int(word)
