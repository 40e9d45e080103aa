"""The result of a search, read from its run directory: tables as pandas frames, plots as figures.

result = puzzle.search(budget="h100-1gpu")
result                      # parent, uniform child and child, side by side
result.scores               # what each block of each layer would cost in KL
result.plot_scores()
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from puzzle import records
from puzzle.architecture import Architecture
from puzzle.blocks.variant import Block
from puzzle.errors import PuzzleError
from puzzle.run import Run
from puzzle.units import show

if TYPE_CHECKING:
    from puzzle.figures import Picture

# row of the table -> its unit; "" is a plain number, "%" a share
ROWS = {
    "parameters": "params",
    "weights": "B",
    "KV cache": "B",
    "batch": "",
    "throughput": "tok/s",
    "time to first token": "s",
    "time per token": "s",
    "KL to the parent": "nats",
    "perplexity": "nats",
    "token agreement": "%",
    "accuracy": "%",
}
COLUMNS = {
    "parent": "parent",
    "uniform": "uniform child",
    "child": "child",
    "healed": "child, healed",
}
_BLOCKS_OF = {"healed": "child"}


def chosen(run: Run) -> list[str]:
    """The budgets that a run has chosen a child for, the last one last."""
    names = [Path(name).name for name in run.names("solutions/*.json")]
    return sorted(names, key=lambda name: run.written(records.solution(name)))


def open_result(folder: str | Path, budget: str | None = None) -> Result:
    """A run's result for a budget; without a budget, the one chosen last."""
    run = Run.existing(folder)
    names = chosen(run)
    if budget is None and names:
        budget = names[-1]
    if budget not in names:
        raise PuzzleError(
            f"{folder} has nothing chosen for budget {budget}; it has {', '.join(names) or 'none'}"
        )
    return Result(run, budget)


class Result:
    """One budget of one run; every table is read when asked for, so a running search can be seen.

    `name` is the budget's; PuzzleError where the run has nothing chosen for it.
    """

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.name = run, name
        self.solution: dict[str, Any] = run.load(records.solution(name))
        self.models = {name: model for name, model in self.solution["models"].items() if model}

    @property
    def hardware(self) -> str:
        """The device the child is for."""
        return str(self.solution["budget"]["hardware"])

    @property
    def checkpoint(self) -> Path:
        """The folder that vLLM and Hugging Face load."""
        return self.run.folder / "children" / self.name / "hf"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.run.folder / "report" / f"{self.name}.html"

    @cached_property
    def architecture(self) -> Architecture:
        """The blocks chosen."""
        text = (self.run.folder / f"{records.solution(self.name)}.txt").read_text()
        return Architecture.parse(text)

    @property
    def written(self) -> Architecture:
        """What the healed child holds and its checkpoint: the blocks chosen, fused where asked for.

        PuzzleError where the child that was chosen last is not healed.
        """
        made = self._of(records.exported(self.name), "child")
        if not made:
            raise PuzzleError(
                f"{self.run.folder} has chosen a child for budget {self.name} but not healed it; "
                f"run `puzzle heal {self.run.folder} --budget {self.name}` first, or name another "
                "with --budget"
            )
        blocks = map(Block.parse, made["written"])
        return Architecture(self.architecture.parent, tuple(blocks))

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row a layer and block: its score, its exact loss where known; which is chosen.

        `loss` is the KL per token it is thought to cost, `std_error` that over sequences, `change`
        how much it moves the stream, squared and relative; `exact` is NaN where none was needed.
        """
        chosen = set(enumerate(map(str, self.architecture.blocks)))
        rows = [
            {
                "layer": layer,
                "block": text,
                "attention": str(Block.parse(text).attention),
                "ffn": str(Block.parse(text).ffn),
                **score,
                "exact": self._exact(layer, Block.parse(text)),
                "chosen": (layer, text) in chosen,
            }
            for layer in range(len(self.architecture.blocks))
            for text, score in self.run.load(records.scores(layer)).items()
        ]
        return pd.DataFrame(rows)

    def _exact(self, layer: int, block: Block) -> float:
        exact: dict[str, float] = self.solution.get("exact", {})
        return exact.get(records.exact(layer, [block]), math.nan)

    @cached_property
    def library(self) -> pd.DataFrame:
        """One row a trained half: held-out loss when sliced, refit and trained."""
        rows = []
        for name in self.run.names("library/*"):
            layer, _, half = name.removeprefix("library/L").partition(".")
            rows.append({"layer": int(layer), "half": half, **self.run.info(name)})
        return pd.DataFrame(rows).sort_values(["layer", "half"], ignore_index=True)

    @cached_property
    def costs(self) -> pd.DataFrame:
        """One row a batch and block: parameters, bytes and seconds."""
        return pd.DataFrame(self.run.load(records.costs(self.hardware, self.name)))

    @cached_property
    def finalists(self) -> pd.DataFrame:
        """The best children by their scores: loss (their sum), measured_kl, throughput, blocks.

        Those that fell out of a heat (trial.py) have an estimate for measured_kl.
        """
        rows = [
            {
                "loss": finalist["loss"],
                "measured_kl": finalist["measured_kl"],
                "tokens_per_s": finalist["prediction"]["tokens_per_s"],
                "blocks": " ".join(finalist["blocks"]),
            }
            for finalist in self.solution["finalists"]
        ]
        return pd.DataFrame(rows)

    @cached_property
    def healing(self) -> pd.DataFrame:
        """One row a step of the healing: its losses, before their factors."""
        return pd.DataFrame(self.run.info(records.child(self.name, "healed"))["losses"])

    @cached_property
    def timings(self) -> pd.DataFrame:
        """One row a stage: seconds over all processes of the run, peak memory up to its end."""
        rows = [(stage, *took) for stage, took in self.run.timings().items()]
        return pd.DataFrame(rows, columns=["stage", "seconds", "peak_bytes"])

    @cached_property
    def table(self) -> pd.DataFrame:
        """Parent, uniform child and child before and after healing, in SI units."""
        found = {
            title: _column(self.served(model), self._evaluation(model))
            for model, title in COLUMNS.items()
            if model == "healed" or model in self.models
        }
        return pd.DataFrame(found, index=list(ROWS)).astype(float)

    def value(self, row: str, model: str) -> float:
        """One number of the table."""
        return float(self.table.to_dict()[COLUMNS[model]][row])

    def formatted(self) -> pd.DataFrame:
        """The table as people read it."""
        table = self.table.astype(object)
        for row, unit in ROWS.items():
            table.loc[row] = [
                written(float(value), unit) for value in self.table.loc[row].to_numpy()
            ]
        return table

    def reason(self) -> str:
        """Which limit binds, what is proven, and what the scores predicted."""
        child = self.models["child"]
        shares, proof = dict(child["shares"]), child["proof"]
        binding = max(shares, key=lambda name: shares[name])
        others = "".join(f", {n} to {share:.1%}" for n, share in shares.items() if n != binding)
        measured = self._evaluation("child").get("kl")
        return (
            f"{binding} binds: its limit is used to {shares[binding]:.1%}{others}. "
            f"Of {len(self.finalists)} finalists by integer programming ({proof['status']}, proof: "
            f"{proof['proof']}) the child is nearest to the parent: its scores sum to a KL of "
            f"{self.predicted_kl:.3f}, measured {child['measured_kl']:.3f}"
            + (f", mended and on the evaluation text {measured:.3f}." if measured else ".")
            + self._several()
            + self._warning()
        )

    def _several(self) -> str:
        """A sentence where one GPU does not hold the parent."""
        ours, parents = (self.served(model).get("gpus", 1) for model in ("child", "parent"))
        if ours == parents:
            return ""
        return (
            f" The parent does not fit: it is reckoned on {parents} GPUs instead of {ours}, which "
            "divide its work perfectly; its throughput is that of each, its bytes are of all."
        )

    def _warning(self) -> str:
        """A sentence where chosen blocks have scores that cannot be trusted."""
        from puzzle.score import SATURATED

        rows = self.scores
        doubtful = rows[rows["chosen"] & rows["exact"].isna() & (rows["change"] > SATURATED)]
        if doubtful.empty:
            return ""
        layers = ", ".join(str(layer) for layer in doubtful["layer"])
        return (
            f" The blocks chosen in layers {layers} change the stream by more than a second-order "
            "score can tell: trust the measured KL."
        )

    def summary(self) -> str:
        """The reason, the architecture one line a layer, and where things lie."""
        lines = [self.reason(), "", str(self.architecture)]
        if self._of(records.exported(self.name), "child"):
            lines += [f"checkpoint  {self.checkpoint}", f"report      {self.report}"]
        return "\n".join(lines)

    def served(self, model: str) -> dict[str, Any]:
        """What `parent`, `uniform`, `child` or `healed` comes to under the budget's workload."""
        prediction: dict[str, Any] = self.models[_BLOCKS_OF.get(model, model)]["prediction"]
        return prediction

    @property
    def predicted_kl(self) -> float:
        """The sum of the chosen blocks' scores, to compare with the child's measured KL."""
        return float(self.models["child"]["loss"])

    def plot_architecture(self) -> Picture:
        """What each layer holds, as shares of the parent's."""
        from puzzle.figures import architecture_map

        return architecture_map(self)

    def plot_scores(self) -> Picture:
        """The loss of every block in every layer, the chosen ones framed."""
        from puzzle.figures import score_map

        return score_map(self)

    def plot_budget(self) -> Picture:
        """How much of each limit parent, uniform child and child use."""
        from puzzle.figures import budget_use

        return budget_use(self)

    def plot_quality(self) -> Picture:
        """KL to the parent before and after healing, and the losses on the way."""
        from puzzle.figures import quality

        return quality(self)

    def plot_throughput(self) -> Picture:
        """Predicted throughput and where its time goes, parent and child."""
        from puzzle.figures import throughput

        return throughput(self)

    def _repr_html_(self) -> str:
        html: str = self.formatted().to_html()
        return html

    def _evaluation(self, model: str) -> dict[str, float]:
        return self._of(records.evaluation(self.name, model), _BLOCKS_OF.get(model, model))

    def _of(self, name: str, model: str) -> dict[str, Any]:
        """A record about a model, empty where there is none yet of the blocks chosen for it."""
        found: dict[str, Any] = self.run.load(name) if self.run.names(f"{name}.json") else {}
        return found if found.get("blocks") == self.models[model]["blocks"] else {}


def _column(prediction: dict[str, float], evaluation: dict[str, float]) -> dict[str, float | None]:
    return {
        "parameters": prediction["params"],
        "weights": prediction["weight_bytes"],
        "KV cache": prediction["kv_bytes"],
        "batch": prediction["batch"],
        "throughput": prediction["tokens_per_s"],
        "time to first token": prediction["ttft_s"],
        "time per token": prediction["tpot_s"],
        "KL to the parent": evaluation.get("kl"),
        "perplexity": evaluation.get("perplexity"),
        "token agreement": evaluation.get("agreement"),
        "accuracy": evaluation.get("accuracy"),
    }


def written(value: float, unit: str) -> str:
    """A number of a table as people read it; `-` where there is none."""
    if pd.isna(value):
        return "-"
    plain = {"": f"{value:.0f}", "nats": f"{value:.3f}", "%": f"{value:.1%}"}
    return plain[unit] if unit in plain else show(value, unit).removesuffix(" params")
