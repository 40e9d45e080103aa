"""The answer of a search: which block each layer holds.

Text form, one line a layer (the layer number is optional, `#` starts a comment):

    parent: HuggingFaceTB/SmolLM2-135M
    0  gqa3+ffn1536
    1  noop+ffn512
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from puzzle.blocks.variant import Block
from puzzle.errors import PuzzleError


@dataclass(frozen=True)
class Architecture:
    """One block per layer of `parent`; all that assemble and export need besides the library."""

    parent: str
    blocks: tuple[Block, ...]

    def __str__(self) -> str:
        width = len(str(len(self.blocks) - 1))
        lines = [f"{layer:>{width}}  {block}" for layer, block in enumerate(self.blocks)]
        return "\n".join([f"parent: {self.parent}", *lines]) + "\n"

    @classmethod
    def parse(cls, text: str) -> Architecture:
        """Read the text form; PuzzleError names the line that does not read."""
        parent, blocks = "", list[Block]()
        for number, raw in enumerate(text.splitlines(), start=1):
            line = raw.partition("#")[0].strip()
            if line.startswith("parent:"):
                parent = line.removeprefix("parent:").strip()
            elif line:
                *layer, block = line.split()
                if layer and layer != [str(len(blocks))]:
                    raise PuzzleError(
                        f"architecture line {number}: expected layer {len(blocks)}, "
                        f"found {' '.join(layer)!r}"
                    )
                try:
                    blocks.append(Block.parse(block))
                except ValueError as error:
                    raise PuzzleError(f"architecture line {number}: {error}") from None
        if not blocks:
            raise PuzzleError(
                "the architecture names no layer: write one line a layer, gqa2+ffn768"
            )
        return cls(parent, tuple(blocks))

    @classmethod
    def from_config(cls, path: str | Path, parent: str = "") -> Architecture:
        """Read the config.json of a child in the DeciLM format, ours or a published one.

        Args:
            path: the file, or the folder it lies in.
            parent: what the child came from, which the file does not say.
        """
        from puzzle.hardware.published import config_of
        from puzzle.shape import Shape

        return cls(parent, Shape.from_config(config_of(path)).blocks)

    def counts(self) -> Counter[Block]:
        """How many layers hold each block."""
        return Counter(self.blocks)
