"""Commands about hardware: what budgets ask of it, what a model costs on it, what is here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from puzzle.cli.options import ConfigFile, Settings
from puzzle.cli.tables import print_rows


def budgets() -> None:
    """List the budgets that come with the package."""
    from puzzle.budget import budget_names, load_budget

    shipped = map(load_budget, budget_names())
    rows = [(budget.name, budget.hardware, budget.description) for budget in shipped]
    print_rows(("budget", "hardware", "what it asks for"), rows)


def estimate(
    model: Annotated[str, typer.Option(help="A config.json, architecture file, or shipped name.")],
    hardware: Annotated[str, typer.Option(help="A device, or several: 8xh100-sxm.")] = "h100-sxm",
    workload: Annotated[str, typer.Option(help="Prompt/new tokens.")] = "128/1024",
    dtypes: Annotated[str, typer.Option(help="Weights/cache, like int4/bfloat16.")] = "",
    costs: Annotated[str, typer.Option(help="roofline, public, measured, or a path.")] = "roofline",
    reserve: Annotated[str, typer.Option(help="Memory left alone on each GPU.")] = "2 GB",
) -> None:
    """Predict memory, throughput and latency of a model from its sizes, without weights."""
    from puzzle.hardware.estimate import estimate as estimate_for

    found = estimate_for(model, hardware, workload, dtypes=dtypes, costs=costs, reserve=reserve)
    facts = Table(show_header=False, box=None, pad_edge=False)
    for what, value in found.facts():
        facts.add_row(what, escape(value))
    Console().print(facts, "")
    print_rows(("batch", "per GPU", "first token", "per token", "cache"), found.table())
    for warning in found.warnings():
        typer.echo(f"warning: {warning}", err=True)


def profile(
    out: Annotated[Path, typer.Option(help="The table to write or go on with.")],
    model: Annotated[
        str | None, typer.Option(help="A config.json, or a shipped name; as --config says.")
    ] = None,
    workload: Annotated[str, typer.Option(help="Prompt/new tokens.")] = "200/56",
    batches: Annotated[str, typer.Option(help="Requests at once.")] = "1,4,16",
    dtype: Annotated[str, typer.Option(help="Of weights and cache.")] = "float32",
    config: ConfigFile = None,
    settings: Settings = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be timed.")] = False,
) -> None:
    """Time every half layer of a search's space on this machine, as a table of costs."""
    from puzzle.config import load_config
    from puzzle.hardware.estimate import workload_of
    from puzzle.hardware.profile import AGAIN, STEADY, Profile, batches_of, device_name

    asked = workload_of(workload, dtype, batches_of(batches))
    search = load_config(config, settings or ())
    wanted = Profile(model or search.model, asked, out, search.space, search.target)
    if not plan:
        typer.echo(f"{wanted.run()} timings of {device_name()} in {out}")
        if unsteady := wanted.unsteady():
            typer.echo(
                f"{len(unsteady)} of {len(wanted.cases())} vary by more than {STEADY:.0%}: "
                "something else runs here. The same command takes them anew and keeps the faster."
            )
        return
    rows = wanted.plan()
    halves = [(name, str(count), f"{seconds:.1f}") for name, count, seconds in rows]
    whole = ("all", str(sum(row[1] for row in rows)), f"{sum(row[2] for row in rows):.0f}")
    print_rows(("half", "timings", "seconds"), [*halves, whole])
    typer.echo(
        f"Timings that vary by more than {STEADY:.0%} are then taken anew, up to {AGAIN} times; "
        f"of those in {out} {len(wanted.unsteady())} do."
    )


def doctor() -> None:
    """Print versions, devices, and what is available here or why not."""
    from puzzle.doctor import checkup

    print_rows(("what", "found"), checkup())
