"""A cut: the sizes a parent is pruned to, and which of its layers stay.

>>> shape = Shape.from_config({"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 64,
...     "num_attention_heads": 4, "intermediate_size": 256, "vocab_size": 100})
>>> str(Cut.whole(shape))
'hidden64.heads4.kv4.ffn256.layers0-3'
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from puzzle.blocks.variant import FFN, GQA
from puzzle.errors import PuzzleError
from puzzle.parent import Parent
from puzzle.shape import Shape

# families whose configuration wants the hidden size to be a multiple of the heads, whatever theirs
WHOLE_HEADS = {"llama"}
# families of which vLLM takes hidden size / heads for the size of a head
HIDDEN_BY_HEADS = {"qwen2"}


@dataclass(frozen=True)
class Cut:
    """One width for all layers, and the layers by their numbers in the parent."""

    hidden_size: int
    heads: int
    kv_heads: int
    intermediate_size: int
    layers: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Shape) -> Cut:
        """The parent as it is."""
        sizes = (shape.hidden_size, shape.heads, shape.kv_heads, shape.intermediate_size)
        return cls(*sizes, layers=tuple(range(shape.layers)))

    def __str__(self) -> str:
        stretches = []
        for _, run in groupby(enumerate(self.layers), lambda pair: pair[1] - pair[0]):
            numbers = [layer for _, layer in run]
            stretches.append(f"{numbers[0]}-{numbers[-1]}")
        layers = "_".join(stretches)
        return (
            f"hidden{self.hidden_size}.heads{self.heads}.kv{self.kv_heads}"
            f".ffn{self.intermediate_size}.layers{layers}"
        )

    def fits(self, family: str, whole: Cut) -> bool:
        """Whether models of a family can have these sizes, with the heads of the whole."""
        if family in HIDDEN_BY_HEADS:
            return self.hidden_size * whole.heads == whole.hidden_size * self.heads
        return family not in WHOLE_HEADS or self.hidden_size % self.heads == 0

    def config(self, parent_config: Any) -> Any:
        """The configuration of the pruned model, of the parent's own family.

        The size of a head stays and is always said: it no longer follows from the others.
        """
        fields = self.fields(parent_config.to_dict())
        for name in ("model_type", "architectures", "transformers_version"):
            fields.pop(name, None)
        config = type(parent_config)(**fields)
        config.architectures = parent_config.architectures
        return config

    def fields(self, parent: dict[str, Any]) -> dict[str, Any]:
        """The parent's config.json with this cut's sizes."""
        found = {
            **parent,
            "hidden_size": self.hidden_size,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": Shape.from_config(parent).head_dim,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": len(self.layers),
        }
        if kinds := parent.get("layer_types"):
            found["layer_types"] = [kinds[layer] for layer in self.layers]
        return found

    def shape(self, parent_config: Any) -> Shape:
        """The sizes that costs depend on."""
        return Shape.from_config(self.fields(parent_config.to_dict()))


def check_dense(parent: Parent) -> None:
    """PuzzleError where layers hold anything but attention and a dense FFN, of the same sizes."""
    first: tuple[int, int] | None = None
    for layer, block in enumerate(parent.blocks):
        if not isinstance(block.ffn, FFN) or not isinstance(block.attention, GQA):
            raise PuzzleError(
                f"Minitron prunes dense models, and layer {layer} of {parent.name} holds {block}; "
                "`puzzle search` with space.ffn=[100%, 50%] keeps the best of its experts"
            )
        sizes = block.attention.kv_heads, block.ffn.intermediate_size
        first = first or sizes
        if sizes != first:
            raise PuzzleError(
                f"Minitron cuts all layers alike, and of {parent.name} layer 0 holds "
                f"{parent.blocks[0]}, layer {layer} {block}; prune its parent, then search from "
                "there with `puzzle search --model PRUNED --teacher PARENT`"
            )
