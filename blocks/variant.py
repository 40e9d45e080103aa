"""The variants a half layer may take, and their text form.

A block is an attention variant and an FFN variant. Every variant is a frozen value with a short
text form that round-trips: `gqa2`, `gqa8w1024`, `linear`, `noop` for attention; `ffn768`,
`linear`, `noop` for the FFN; `gqa2+ffn768` for a block.

>>> Block.parse("gqa2+ffn768")
Block(attention=GQA(kv_heads=2, window=None), ffn=FFN(intermediate_size=768))
>>> str(Block(GQA(8, window=1024), NoOp()))
'gqa8w1024+noop'
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class GQA:
    """Grouped-query attention with `kv_heads` KV heads, seeing `window` tokens back (None: all)."""

    kv_heads: int
    window: int | None = None

    def __str__(self) -> str:
        return f"gqa{self.kv_heads}" + (f"w{self.window}" if self.window else "")


@dataclass(frozen=True)
class FFN:
    """The parent's feed-forward network with `intermediate_size` channels."""

    intermediate_size: int

    def __str__(self) -> str:
        return f"ffn{self.intermediate_size}"


@dataclass(frozen=True)
class LinearMap:
    """One hidden x hidden matrix on the normalised input."""

    def __str__(self) -> str:
        return "linear"


@dataclass(frozen=True)
class NoOp:
    """Nothing: the residual stream passes through; the half's norm goes too."""

    def __str__(self) -> str:
        return "noop"


AttentionVariant = GQA | LinearMap | NoOp
FFNVariant = FFN | LinearMap | NoOp


@dataclass(frozen=True)
class Block:
    """What one layer holds."""

    attention: AttentionVariant
    ffn: FFNVariant

    def __str__(self) -> str:
        return f"{self.attention}+{self.ffn}"

    @classmethod
    def parse(cls, text: str) -> Block:
        """Read `attention+ffn`; ValueError names the part that does not read."""
        attention, plus, ffn = text.partition("+")
        if not plus:
            raise ValueError(f"block {text!r} is not of the form attention+ffn, like gqa2+ffn768")
        return cls(parse_attention(attention), parse_ffn(ffn))


def parse_attention(text: str) -> AttentionVariant:
    """Read `gqa<kv heads>[w<window>]`, `linear` or `noop`."""
    if match := re.fullmatch(r"gqa([1-9]\d*)(?:w([1-9]\d*))?", text):
        return GQA(int(match[1]), int(match[2]) if match[2] else None)
    return _linear_or_noop(text, "attention", "gqa2, gqa8w1024")


def parse_ffn(text: str) -> FFNVariant:
    """Read `ffn<intermediate size>`, `linear` or `noop`."""
    if match := re.fullmatch(r"ffn([1-9]\d*)", text):
        return FFN(int(match[1]))
    return _linear_or_noop(text, "FFN", "ffn768")


def _linear_or_noop(text: str, half: str, examples: str) -> LinearMap | NoOp:
    if text == "linear":
        return LinearMap()
    if text == "noop":
        return NoOp()
    raise ValueError(f"{half} variant {text!r} is unknown; write {examples}, linear or noop")
