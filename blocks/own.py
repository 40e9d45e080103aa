"""Variants of your own: one class says all that a search needs to know of them.

`examples/own_variant.py` adds a low-rank FFN in a few lines; `puzzle.add_variant` makes it known.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from .kind import AttentionVariant, FFNVariant


@dataclass(frozen=True)
class OwnVariant(AttentionVariant, FFNVariant):
    """A variant of one half that Puzzle does not come with.

    Write a frozen dataclass whose fields are whole numbers, with the class variables

    - `half`: which half of a layer it may stand in;
    - `pattern`: its text form as a regular expression, one group a field;
    - `examples`: its text form as people write it;

    and the methods `__str__`, `matrices` (parameters and seconds follow from them, the norm
    before it is counted too), `module` and `initial`. It is scored, priced and chosen as all
    others are. Training starts from `initial`; a last linear map that the module calls `down_proj`
    (in attention `o_proj`) is refit in closed form first. It keeps no keys and values: attention
    of your own sees the tokens of one pass, so what looks back generates with `use_cache=False`.

    Hugging Face loads a checkpoint that holds it once `puzzle.add_variant` and `puzzle.register`
    were called in the same process; no other engine does.
    """

    half: ClassVar[Literal["attention", "ffn"]]

    @abstractmethod
    def module(self, config: Any) -> nn.Module:
        """The half without its norm, sized by the parent's transformers configuration.

        An FFN is called with the normalised stream [B, T, D] and returns as much; attention is
        called with `hidden_states` and what transformers gives its attentions, and returns a pair
        of which the first counts.
        """

    @abstractmethod
    def initial(self, parent: dict[str, Tensor]) -> dict[str, Tensor]:
        """The module's tensors by name, from those of the parent's layer (`mlp.up_proj.weight`)."""

    def entry(self, heads: int, group: int) -> dict[str, Any]:
        """The class's name and its fields."""
        return {"own": {"kind": type(self).__name__, **asdict(self)}}


def check(kind: type[OwnVariant]) -> None:
    """ValueError where a class does not say what it must."""
    missing = [name for name in ("half", "pattern", "examples") if not hasattr(kind, name)]
    if missing or kind.__abstractmethods__:
        lacking = ", ".join([*missing, *sorted(kind.__abstractmethods__)])
        raise ValueError(f"variant {kind.__name__} lacks {lacking}; see puzzle.OwnVariant")
    for example in kind.examples:
        read = kind.read(example)
        if read is None or str(read) != example:
            raise ValueError(
                f"variant {kind.__name__} reads its own example {example!r} as {read}; pattern, "
                f"{len(fields(kind))} fields and __str__ must agree"
            )
