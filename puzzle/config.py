"""The configuration of a run: every field, its default, and the strict loader of its YAML.

>>> config = load_config(None, ["seed=7", "space.ffn+=ffn768"])
>>> config.seed, config.space.ffn[-1], config.budget
(7, 'ffn768', 'h100-1gpu')
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainSerializer,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
)

from puzzle.blocks.variant import parse_attention, parse_ffn
from puzzle.errors import PuzzleError
from puzzle.strict_yaml import Document, Override, StrictModel
from puzzle.units import Quantity, Relative, parse


def _space_entry(parse: Callable[[str], object], shares: str = "%") -> Callable[[str], str]:
    """A check that an entry is a percentage of the parent's, or a variant's own text.

    Args:
        shares: regular expression of what may follow the number of a percentage.
    """

    def check(entry: str) -> str:
        if match := re.fullmatch(rf"(\d+(?:\.\d+)?){shares}", entry):
            if not 0 < float(match[1]) <= 100:
                raise ValueError("expected a percentage above 0% and up to 100%")
        else:
            try:
                parse(entry)
            except ValueError as error:
                raise ValueError(f"a percentage like 50%, or a variant ({error})") from None
        return entry

    return check


AttentionEntry = Annotated[str, AfterValidator(_space_entry(parse_attention, "%(?: groups)?"))]
FFNEntry = Annotated[str, AfterValidator(_space_entry(parse_ffn))]


def _size(value: object) -> Quantity:
    try:
        amount = parse(str(value))
    except ValueError:
        amount = None
    if not isinstance(amount, Quantity) or amount.unit != "B":
        raise ValueError("expected an amount like 8 GiB")
    return amount


Size = Annotated[Quantity, PlainValidator(_size), PlainSerializer(str)]


def _data(value: object) -> str | dict[str, float]:
    if isinstance(value, str):
        return value
    weights = value if isinstance(value, dict) else {}
    if weights and all(
        isinstance(weight, int | float) and weight > 0 for weight in weights.values()
    ):
        return {str(source): float(weight) for source, weight in weights.items()}
    raise ValueError("expected a text, or several with weights: {books.txt: 0.7, web.jsonl: 0.3}")


Data = Annotated[str | dict[str, float], PlainValidator(_data)]


DType = Literal["float32", "bfloat16"]
Loss = Literal["mse", "cosine", "fisher"]  # of blockwise distillation
Doubt = Literal["never", "saturated", "picked"]  # which picked blocks are scored exactly


class Space(StrictModel):
    """Which variants each layer may take: percentages of the parent's, or variants by name.

    A percentage of the attention is of the KV heads, which all query heads then share; one of its
    `groups` is of KV heads that keep their query heads, while the other query heads go.
    """

    attention: tuple[AttentionEntry, ...] = (
        *("100%", "50%", "25%", "12.5%"),
        *("75% groups", "50% groups", "25% groups"),
        *("linear", "noop"),
    )
    ffn: tuple[FFNEntry, ...] = (
        *("100%", "87%", "75%", "50%", "25%", "20%", "10%"),
        *("linear", "noop"),
    )
    keep: tuple[NonNegativeInt, ...] = ()  # layers that stay as the parent's
    removal: PositiveInt = 8  # layers in a row that may be removed as one, at most


class Tokens(StrictModel):
    """How much text each of the three disjoint splits gives."""

    calibration: PositiveInt = 65_536
    scoring: PositiveInt = 8_192
    evaluation: PositiveInt = 16_384


class Local(StrictModel):
    """Training of one layer from its streams."""

    tokens: NonNegativeInt = 65_536
    batch_tokens: PositiveInt = 2_048
    learning_rate: PositiveFloat = 1e-3
    dtype: DType | None = None  # of its arithmetic; the run's unless told

    def batch(self, length: int) -> int:
        """How many sequences of a length a step reads: whole ones, so one at least."""
        return max(1, self.batch_tokens // length)

    def steps(self, length: int) -> int:
        """How many steps read `tokens` in sequences of a length; one at least, unless 0 tokens."""
        return max(1, self.tokens // (self.batch(length) * length)) if self.tokens else 0


class Distill(Local):
    """Blockwise local distillation of every variant; 0 tokens leaves the initialization."""

    loss: Loss = "mse"
    coupled: bool = False  # train every composed block as a whole too: for a narrow space


class Mend(Local):
    """Distillation of the child's layers on its own stream, once they are refit; 0 tokens: none."""

    learning_rate: PositiveFloat = 3e-3  # best of those tried on parents of 256 and 576 channels


class Scoring(StrictModel):
    """Fisher scores, from so many sets of labels drawn from the parent's distribution.

    `exact` says which blocks of the best child are scored exactly before it is chosen: `never`,
    those whose scores are `saturated`, or every one that is `picked`.
    """

    samples: PositiveInt = 4
    exact: Doubt = "never"


class Choose(StrictModel):
    """How many of the best children by their scores are measured; 1 trusts the scores.

    In every round after the first, blocks are scored around the best child so far, and a nearer
    one is looked for in its neighborhood.
    """

    finalists: PositiveInt = 16
    rounds: PositiveInt = 5


class Evaluate(StrictModel):
    """How many multiple-choice questions of the embedded set are asked: all unless told."""

    items: PositiveInt = 834


class Phase(StrictModel):
    """A stretch of the healing: its share of the tokens, its batch, its sequences."""

    share: PositiveFloat = 1.0  # of the sum of all phases' shares
    sequence_length: PositiveInt | None = None  # a divisor of the text's, which is the default
    batch_tokens: PositiveInt | None = None  # heal.batch_tokens unless told otherwise


class Heal(StrictModel):
    """Training of the whole child: cosine sum_layers (1 - cos) + kl KL(p || c) + lm LM."""

    tokens: NonNegativeInt = 131_072
    batch_tokens: PositiveInt = 2_048
    learning_rate: PositiveFloat = 5e-4
    cosine: NonNegativeFloat = 1.0
    kl: NonNegativeFloat = 1.0
    lm: NonNegativeFloat = 0.0  # on the text itself; the paper's best has none
    data: Data | None = None  # another text than the run's, or a mixture
    data_tokens: PositiveInt | None = None  # of it, read again when through; `tokens` unless told
    schedule: tuple[Phase, ...] = ()  # one phase unless told otherwise
    checks: NonNegativeInt = 0  # of the loss on the scoring text, evenly spread; the best is kept
    patience: PositiveInt = 3  # so many checks in a row without a new best end the healing
    correct_tokens: NonNegativeInt = 0  # that the parent first learns, before it teaches
    layers: tuple[NonNegativeInt, ...] = ()  # of the parent, that a shallower student holds
    dtype: DType | None = None  # of its arithmetic; the run's unless told
    recompute: bool = False  # activations in the backward pass: less memory, a third more time


Aggregation = Literal["mean", "l2", "var"]  # of activations


def _amount(value: object) -> Quantity | Relative:
    """A size relative to the parent's own, or absolute."""
    try:
        return parse(str(value))
    except ValueError:
        raise ValueError(
            "expected a multiple of the parent's like 0.75x, or 6.5 B params"
        ) from None


Target = Annotated[Quantity | Relative, PlainValidator(_amount), PlainSerializer(str)]


class Prune(StrictModel):
    """Minitron: how far, of what and by which measure a whole parent is pruned."""

    target: Target = Relative(0.75)
    of: Literal["parameters", "throughput", "memory"] = "parameters"  # the last two by the budget
    axes: Annotated[tuple[Literal["width", "depth"], ...], Field(min_length=1)] = ("width", "depth")
    tokens: PositiveInt = 32_768  # of the calibration text, that importance is measured on
    over_tokens: Aggregation = "mean"  # of absolute values
    over_texts: Aggregation = "l2"
    depth: Literal["influence", "perplexity", "accuracy"] = "perplexity"  # what removal costs
    merge: float = 0.0  # of a head that goes, into one that stays; 1 is Minitron's
    candidates: PositiveInt = 4  # that are healed lightly before the best is kept
    light: NonNegativeInt = 16_384  # tokens of their healing
    rounds: PositiveInt = 1  # of measuring and pruning


class Ceiling(StrictModel):
    """What a search may take: disk for its streams, memory for each process (its GPU's, if any)."""

    disk: Size | None = None
    memory: Size | None = None


class Config(StrictModel):
    """One run, whole; what is not said is the embedded demonstration."""

    model: str = "embedded"  # or a checkpoint folder, or a hub id
    teacher: str | None = None  # what heals the child; the model itself unless told
    data: Data = "embedded"  # or text files, or a hub dataset, or several: {books.txt: 0.7, ...}
    budget: str = "h100-1gpu"  # or a budget's YAML file
    costs: str = "data sheet"  # or roofline, public or measured (tables), or a table's path
    target: Literal["vllm", "hf", "llama.cpp"] = "vllm"  # the engine that must load the child
    seed: NonNegativeInt = 0
    dtype: DType = "float32"  # of the search's own arithmetic
    sequence_length: PositiveInt = 256
    tokens: Tokens = Tokens()
    space: Space = Space()
    distill: Distill = Distill()
    score: Scoring = Scoring()
    choose: Choose = Choose()
    mend: Mend = Mend()
    fuse: bool = False  # FFNs that follow each other without attention, before healing
    heal: Heal = Heal()
    evaluate: Evaluate = Evaluate()
    prune: Prune = Prune()
    ceiling: Ceiling = Ceiling()

    def check(self, max_positions: int) -> None:
        """PuzzleError where its parts, or it and a parent of so many positions, do not agree."""
        if self.sequence_length > max_positions:
            raise PuzzleError(
                f"sequence_length is {self.sequence_length}, the parent has {max_positions} "
                f"positions; set sequence_length={max_positions} or less"
            )
        for name, part in (("distill", self.distill), ("mend", self.mend)):
            if (self.dtype, part.dtype) == ("bfloat16", "float32"):
                raise PuzzleError(
                    f"{name}.dtype is float32 where dtype, that of the streams it reads, is "
                    f"bfloat16; leave {name}.dtype away, or set dtype=float32"
                )

    def to_yaml(self) -> str:
        """The configuration as YAML that `load_config` reads back to the same value."""
        text: str = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
        return text


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a run's YAML, then apply `a.b=c` and `a.b+=c` (append to a list) in order."""
    document = Document.read(path) if path else Document("defaults", {})
    for text in overrides:
        document = _override(document, text)
    return document.validate(Config)


def _override(document: Document, text: str) -> Document:
    name, equals, written = text.partition("=")
    append = name.endswith("+")
    keys = tuple(name.removesuffix("+").strip().split("."))
    if not equals or not all(keys):
        raise PuzzleError(f"--set {text}: write key=value, like distill.tokens=65536")
    try:
        value = yaml.safe_load(written)
    except yaml.YAMLError:
        raise PuzzleError(f"--set {text}: {written!r} is not a YAML value") from None
    if append:
        value = [*_list_at(document.data, keys, text), value]
    return replace(
        document,
        data=_with(document.data, keys, value),
        overrides=(*document.overrides, Override(keys, text)),
    )


def _with(data: Any, keys: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy of nested mappings with one value set."""
    mapping = dict(data) if isinstance(data, dict) else {}
    first, *rest = keys
    mapping[first] = _with(mapping.get(first), rest, value) if rest else value
    return mapping


def _list_at(data: dict[str, Any], keys: Sequence[str], text: str) -> list[Any]:
    """The list that `+=` extends: the file's, or the default's."""
    for candidate in (data, Config().model_dump(mode="json")):
        found: Any = candidate
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, list):
            return found
    raise PuzzleError(f"--set {text}: {'.'.join(keys)} is not a list; write = instead of +=")
