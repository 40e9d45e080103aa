"""The report: one HTML file that needs nothing beside it, and the checkpoint's model card."""

from __future__ import annotations

import html
import json
from pathlib import Path
from string import Template

import yaml

from puzzle.architecture import Architecture
from puzzle.config import Config, load_config
from puzzle.result import Result
from puzzle.run import CONFIG
from puzzle.units import show

PAGE = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))


def write_report(result: Result) -> Path:
    """Write the report of a finished search; returns its path."""
    table = result.formatted()
    page = PAGE.substitute(
        title=html.escape(f"{result.architecture.parent} for {result.name}"),
        headline=html.escape(headline(result)),
        table=table.to_html(border=0, classes="numbers"),
        reason=html.escape(result.reason()),
        architecture=html.escape(str(result.architecture)),
        architecture_map=result.plot_architecture().svg(),
        score_map=result.plot_scores().svg(),
        budget_use=result.plot_budget().svg(),
        quality=result.plot_quality().svg(),
        throughput=result.plot_throughput().svg(),
        finalists=_finalists(result),
        timings=_timings(result),
        provenance=html.escape((result.run.folder / "provenance.json").read_text()),
        config=html.escape((result.run.folder / "config.yaml").read_text()),
    )
    name = result.report.relative_to(result.run.folder)
    return result.run.write_text(str(name), page)


def headline(result: Result) -> str:
    """The result in one sentence."""
    faster = result.value("throughput", "child") / result.value("throughput", "parent")
    parameters = result.value("parameters", "child") / result.value("parameters", "parent")
    return (
        f"{faster:.2f} times the parent's predicted throughput on {result.hardware} with "
        f"{parameters:.0%} of its parameters; KL to the parent "
        f"{result.value('KL to the parent', 'healed'):.3f} after healing, "
        f"next-token agreement {result.value('token agreement', 'healed'):.1%}."
    )


def model_card(result: Result, architecture: Architecture) -> str:
    """The README of an exported checkpoint: what it holds, where it comes from, what serves it."""
    config = load_config(result.run.folder / CONFIG)
    provenance = (result.run.folder / "provenance.json").read_text()
    name, family = architecture.parent, json.loads(provenance)["parent"]["family"]
    tags, served = ["puzzle"], "transformers alone, by the modeling files in this folder"
    if family == "llama":
        tags += ["nemotron-nas"]
        served = "transformers, and engines that read nemotron-nas (DeciLM); see `puzzle check`"
    local = Path(name).is_dir() or name == "embedded"
    origin = "" if local else f"base_model: {name}\n"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
{origin}tags: [{", ".join(tags)}]
---

# {name}, derived for {result.name}

{headline(result)}

Derived by [Puzzle](https://arxiv.org/abs/2411.19146): blocks made one by one, chosen by integer
programming for the budget below, {_healing(config)}. Served by {served}.
With transformers 5.17 or later:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this folder", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("this folder", trust_remote_code=True)
```

{_markdown(result)}

{result.reason()}

## Architecture

An engine that lacks one of these blocks gets it expressed in others, exactly.

```
{architecture}```

## Budget

```yaml
{yaml.safe_dump(result.solution["budget"], sort_keys=False)}```

## Provenance

```json
{provenance}```
"""


def _healing(config: Config) -> str:
    """How the child was healed, in words."""
    heal = config.heal
    factors = {"cosine": heal.cosine, "KL": heal.kl, "LM": heal.lm}
    if not heal.tokens:
        return "not healed"
    losses = " + ".join(loss for loss, factor in factors.items() if factor)
    teacher = config.teacher or "the parent"
    return f"healed with {heal.tokens:,} tokens by {losses}, taught by {teacher}"


def _markdown(result: Result) -> str:
    table = result.formatted()
    rows = [["", *table.columns], ["---"] * (1 + len(table.columns))]
    rows += [[str(name), *map(str, values)] for name, values in table.iterrows()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _finalists(result: Result) -> str:
    table = result.finalists[["loss", "measured_kl"]].set_axis(["predicted", "measured"], axis=1)
    return table.round(4).to_html(border=0, classes="numbers")


def _timings(result: Result) -> str:
    rows = result.timings
    seconds, peaks = rows["seconds"], rows["peak_bytes"]
    shown = rows[["stage"]].assign(
        time=[show(each, "s") for each in seconds], memory=[show(each, "B") for each in peaks]
    )
    return shown.to_html(border=0, index=False, classes="numbers")
