"""The command line: `puzzle search`, and what looks at or goes on from its run directory.

Modules that load torch are imported inside the commands, so that help and errors are immediate.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from puzzle.errors import PuzzleError

if TYPE_CHECKING:
    import pandas as pd

    from puzzle.result import Result

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Derive a faster LLM for your hardware."
)
WIDE = 120  # columns a table may take, whatever the terminal's
LOSSES = ("cosine", "kl", "lm")  # of a healing, each with its factor in the settings
RunFolder = Annotated[Path, typer.Argument(help="A run directory that `puzzle search` made.")]


def main() -> None:
    """Run a command; an error a user can meet is one sentence and its exit code."""
    try:
        app()
    except PuzzleError as error:
        typer.echo(f"puzzle: {error}", err=True)
        sys.exit(error.exit_code)


@app.command()
def search(
    model: Annotated[str | None, typer.Option(help="A checkpoint folder or hub id.")] = None,
    teacher: Annotated[str | None, typer.Option(help="What heals it, if not MODEL.")] = None,
    data: Annotated[str | None, typer.Option(help="Text, JSONL, parquet or hub dataset.")] = None,
    budget: Annotated[str | None, typer.Option(help="A budget's name or YAML file.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run directory.")] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file of settings.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, like distill.tokens=65536.")
    ] = None,
) -> None:
    """Derive a child: trace, distill, score, choose, heal, evaluate, export, report.

    With no option at all, on the embedded parent and corpus.
    """
    from puzzle import search as search_for
    from puzzle.ranks import here

    said = [f"teacher={json.dumps(teacher)}"] if teacher else []
    result = search_for(
        model, data=data, budget=budget, out=out, config=config, settings=[*said, *(settings or ())]
    )
    if here().leads:
        _show(result)


@app.command()
def prune(
    model: Annotated[str, typer.Argument(help="A checkpoint folder or hub id.")] = "embedded",
    target: Annotated[
        str | None, typer.Option(help="0.75x of the parent's, or 6.5 B params.")
    ] = None,
    of: Annotated[str | None, typer.Option(help="parameters, throughput or memory.")] = None,
    axes: Annotated[str | None, typer.Option(help="width, depth, or width,depth.")] = None,
    data: Annotated[str | None, typer.Option(help="Text, JSONL, parquet or hub dataset.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run directory.")] = None,
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
    found = prune_for(model, target=target, data=data, out=out, settings=[*said, *(settings or ())])
    console = Console()
    console.print(_frame(found.formatted()))
    console.print()
    console.print(found.summary(), highlight=False, markup=False, soft_wrap=True)


@app.command()
def solve(
    run: Annotated[Path | None, typer.Argument(help="A run directory with scores.")] = None,
    budget: Annotated[str | None, typer.Option(help="A budget's name or YAML file.")] = None,
    problem: Annotated[Path | None, typer.Option(help="A problem of your own, as JSON.")] = None,
) -> None:
    """Choose again: a new budget on an old run, or a problem of your own."""
    if problem:
        _solve_problem(problem)
    elif run and budget:
        from puzzle import solve as solve_for

        _show(solve_for(run, budget))
    else:
        raise PuzzleError("give a run directory and --budget, or --problem FILE")


@app.command()
def heal(
    target: Annotated[str, typer.Argument(help="A run directory, checkpoint folder or hub id.")],
    loss: Annotated[str | None, typer.Option(help="cosine+kl, kl, lm, or others summed.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="A text; several with weights: --data a.txt=0.7.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="A checkpoint folder or hub id.")] = None,
    budget: Annotated[str | None, typer.Option(help="Which budget's child of the run.")] = None,
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
            _show(result)
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


@app.command()
def show(
    run: RunFolder,
    budget: Annotated[str | None, typer.Option(help="Which budget's child.")] = None,
) -> None:
    """Print the architecture and the table of a run's child."""
    from puzzle import open_result

    _show(open_result(run, budget))


@app.command()
def evaluate(
    target: Annotated[str, typer.Argument(help="A run directory, or a checkpoint.")],
    parent: Annotated[str | None, typer.Option(help="What a checkpoint is compared with.")] = None,
    data: Annotated[str | None, typer.Option(help="Other text than the run's own.")] = None,
    tasks: Annotated[str, typer.Option(help="lm-eval tasks, or YAML files of some: a,b.yaml")] = "",
    lengths: Annotated[str, typer.Option(help="Of texts that hide a number, in tokens.")] = "",
    budget: Annotated[str | None, typer.Option(help="Which budget's child of a run.")] = None,
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
    console = Console(width=WIDE)
    for table in found.tables():
        console.print(_frame(table))
        console.print()
    for line in found.lines():
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def status(run: RunFolder) -> None:
    """Print how far a run has come, and how long its stages took."""
    from puzzle.status import status_table

    Console().print(status_table(run))


@app.command()
def budgets() -> None:
    """List the budgets that come with the package."""
    from puzzle.budget import budget_names, load_budget

    table = Table("budget", "hardware", "what it asks for", box=None)
    for name in budget_names():
        budget = load_budget(name)
        table.add_row(name, budget.hardware, budget.description)
    Console().print(table)


@app.command()
def estimate(
    model: Annotated[str, typer.Option(help="A config.json, architecture file, or shipped name.")],
    hardware: Annotated[str, typer.Option(help="A device, or several: 8xh100-sxm.")] = "h100-sxm",
    workload: Annotated[str, typer.Option(help="Prompt/new tokens.")] = "128/1024",
    dtypes: Annotated[str, typer.Option(help="Weights/cache, like int4/bfloat16.")] = "",
    costs: Annotated[str, typer.Option(help="roofline, public, or a measured table.")] = "roofline",
    reserve: Annotated[str, typer.Option(help="Memory left alone on each GPU.")] = "2 GB",
) -> None:
    """Predict memory, throughput and latency of a model from its sizes, without weights."""
    from puzzle.hardware.estimate import estimate as estimate_for

    found = estimate_for(model, hardware, workload, dtypes=dtypes, costs=costs, reserve=reserve)
    facts = Table(show_header=False, box=None, pad_edge=False)
    for what, value in found.facts():
        facts.add_row(what, escape(value))
    batches = Table("batch", "per GPU", "first token", "per token", "cache", box=None)
    for row in found.table():
        batches.add_row(*row)
    Console().print(facts, "", batches)
    for warning in found.warnings():
        typer.echo(f"warning: {warning}", err=True)


@app.command()
def profile(
    model: Annotated[str, typer.Option(help="A config.json, or a shipped name.")],
    out: Annotated[Path, typer.Option(help="The table to write or go on with.")],
    workload: Annotated[str, typer.Option(help="Prompt/new tokens.")] = "200/56",
    batches: Annotated[str, typer.Option(help="Requests at once.")] = "1,4,16",
    dtype: Annotated[str, typer.Option(help="Of weights and cache.")] = "float32",
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be timed.")] = False,
) -> None:
    """Time every half layer of the space on this machine, as a table of costs."""
    from puzzle.hardware.estimate import workload_of
    from puzzle.hardware.profile import STEADY, Profile, batches_of, device_name

    asked = workload_of(workload, dtype, batches_of(batches))
    wanted = Profile(model, asked, out)
    if not plan:
        typer.echo(f"{wanted.run()} timings of {device_name()} in {out}")
        if unsteady := wanted.unsteady():
            typer.echo(
                f"{len(unsteady)} of {len(wanted.cases())} vary by more than {STEADY:.0%}: "
                "something else runs here. The same command takes them anew and keeps the faster."
            )
        return
    table = Table("half", "timings", "seconds", box=None)
    rows = wanted.plan()
    for name, count, seconds in rows:
        table.add_row(name, str(count), f"{seconds:.1f}")
    table.add_row("all", str(sum(row[1] for row in rows)), f"{sum(row[2] for row in rows):.0f}")
    Console().print(table)


@app.command()
def export(
    run: RunFolder,
    target: Annotated[str, typer.Option("--for", help="vllm, hf or llama.cpp.")] = "vllm",
    budget: Annotated[str | None, typer.Option(help="Which budget's child.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder, or GGUF file, to write.")] = None,
) -> None:
    """Write a run's child for an engine: a checkpoint folder, or a GGUF file for llama.cpp."""
    from puzzle.export.again import export as export_for

    typer.echo(export_for(run, target, budget=budget, out=out))


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="A checkpoint folder that Puzzle wrote.")],
) -> None:
    """Load an exported folder in a clean process, and say which engines take it."""
    from puzzle.export.check import check as check_folder

    table = Table("engine", "", box=None)
    for engine, verdict in check_folder(folder):
        table.add_row(engine, escape(verdict))
    Console().print(table)


@app.command()
def doctor() -> None:
    """Print versions, devices, and what is available here or why not."""
    from puzzle.doctor import checkup

    table = Table("what", "found", box=None)
    for what, found in checkup():
        table.add_row(what, escape(found))
    Console().print(table)


def _solve_problem(path: Path) -> None:
    from puzzle.solver import Problem, ProblemError
    from puzzle.solver import solve as solve_problem

    try:
        problem = Problem.from_json(path.read_text())
        solution = solve_problem(problem)
    except OSError as error:
        raise PuzzleError(f"{path}: {error.strerror}") from None
    except ProblemError as error:
        raise PuzzleError(f"{path}: {error}") from None
    typer.echo(solution)
    if solution.picks is None:
        raise typer.Exit(3)
    typer.echo(solution.table(problem))


def _show(result: Result) -> None:
    console = Console()
    console.print(_frame(result.formatted()))
    console.print()
    console.print(result.summary(), highlight=False, markup=False, soft_wrap=True)


def _frame(frame: pd.DataFrame) -> Table:
    """A frame of texts as a table: names on the left, numbers on the right."""
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in frame.columns:
        table.add_column(str(name), justify="right", no_wrap=True)
    for row, values in frame.iterrows():
        table.add_row(str(row), *map(str, values))
    return table


def _words(text: str) -> list[str]:
    """The words of a list with commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _whole(word: str) -> int:
    if not word.isdecimal():
        raise PuzzleError(f"{word!r} is not a whole number; write lengths like 1024,4096")
    return int(word)
