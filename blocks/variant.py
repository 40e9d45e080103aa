"""The variants a half layer may take, and their text form.

A block is an attention variant and an FFN variant. Every variant is a frozen value with a short
text form that round-trips: `gqa2`, `gqa8w1024`, `groups2`, `linear`, `noop` for attention;
`ffn768`, `moe4`, `linear`, `noop` for the FFN; `gqa2+ffn768` for a block.

>>> Block.parse("gqa2+ffn768")
Block(attention=GQA(kv_heads=2, window=None), ffn=FFN(intermediate_size=768))
>>> str(Block(GQA(8, window=1024), NoOp()))
'gqa8w1024+noop'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from .kind import AttentionVariant, FFNVariant, Variant
from .sizes import Matrix, Sizes

WIDTH_STEP = 256  # FFN widths of parents that are wide enough: what DeciLM and tensor cores like


@dataclass(frozen=True)
class GQA(AttentionVariant):
    """Grouped-query attention with `kv_heads` KV heads, seeing `window` tokens back (None: all)."""

    kv_heads: int
    window: int | None = None
    pattern: ClassVar[str] = r"gqa([1-9]\d*)(?:w([1-9]\d*))?"
    examples: ClassVar[tuple[str, ...]] = ("gqa2", "gqa8w1024")

    def __str__(self) -> str:
        return f"gqa{self.kv_heads}" + (f"w{self.window}" if self.window else "")

    def matrices(self, sizes: Sizes) -> tuple[Matrix, ...]:
        """Query, key and value in one, and the output projection."""
        inner = self.query_heads(sizes) * sizes.head_dim
        joint = inner + 2 * self.kv_heads * sizes.head_dim
        return (
            Matrix(sizes.hidden_size, joint, sizes.qkv_bias),
            Matrix(inner, sizes.hidden_size, sizes.o_bias),
        )

    def vectors(self, sizes: Sizes) -> int:
        """Norm, q and k norms, sinks."""
        sinks = self.query_heads(sizes) if sizes.sinks else 0
        return sizes.norm_params + sizes.qk_norm * 2 * sizes.head_dim + sinks

    def query_heads(self, sizes: Sizes) -> int:
        """As many as the parent has."""
        return sizes.heads

    def entry(self, heads: int, group: int) -> dict[str, Any]:
        """Heads per KV head, and the window."""
        return {"n_heads_in_group": heads // self.kv_heads, "window_length": self.window}

    @property
    def cached_heads(self) -> int:
        """All of its KV heads."""
        return self.kv_heads

    @property
    def sees(self) -> int | None:
        """Its window."""
        return self.window

    @property
    def beyond_decilm(self) -> str | None:
        """Windows are."""
        return "ignores the window of a layer" if self.window else None

    def share(self, fraction: float) -> GQA | None:
        """Fewer KV heads, where they are whole and divide."""
        heads = self.kv_heads * fraction
        divides = heads >= 1 and heads.is_integer() and self.kv_heads % int(heads) == 0
        return GQA(int(heads), self.window) if divides else None

    def groups(self, fraction: float) -> Groups | None:
        """About this share of its groups, one at least; None where that is all of them."""
        count = max(1, round(self.kv_heads * fraction))
        return Groups(count, self.window) if count < self.kv_heads else None

    def suits(self, own: Variant) -> bool:
        """Only attention that has all of its query heads can keep all of them."""
        return type(own) is GQA

    def excess(self, own: Variant) -> str | None:
        """KV heads that do not divide the parent's."""
        assert isinstance(own, GQA)
        if own.kv_heads % self.kv_heads == 0:
            return None
        return f"{self.kv_heads} KV heads, which do not divide the parent's {own.kv_heads}"


@dataclass(frozen=True)
class Groups(GQA):
    """`kv_heads` of the parent's KV heads, each with the query heads it serves; the others go."""

    pattern: ClassVar[str] = r"groups([1-9]\d*)(?:w([1-9]\d*))?"
    examples: ClassVar[tuple[str, ...]] = ("groups2",)

    def __str__(self) -> str:
        return f"groups{self.kv_heads}" + (f"w{self.window}" if self.window else "")

    def query_heads(self, sizes: Sizes) -> int:
        """Those of its groups."""
        return self.kv_heads * sizes.heads // sizes.kv_heads

    def entry(self, heads: int, group: int) -> dict[str, Any]:
        """Its own number of query heads beside; a field of ours."""
        return {
            "n_heads_in_group": group,
            "window_length": self.window,
            "num_attention_heads": self.kv_heads * group,
        }

    @property
    def beyond_decilm(self) -> str | None:
        """The format has one number of query heads for all layers."""
        return super().beyond_decilm or "knows no layer with fewer query heads"

    def share(self, fraction: float) -> GQA | None:
        """All of it: its KV heads are not pooled, as other query heads are gone."""
        return self if fraction == 1 else None

    def suits(self, own: Variant) -> bool:
        """Any grouped-query attention has groups to keep."""
        return isinstance(own, GQA)

    def excess(self, own: Variant) -> str | None:
        """As many groups as the parent has, or more."""
        assert isinstance(own, GQA)
        if self.kv_heads < own.kv_heads or self == own:
            return None
        return f"{self.kv_heads} groups of heads, the parent has {own.kv_heads}; ask for fewer"


@dataclass(frozen=True)
class FFN(FFNVariant):
    """The parent's feed-forward network with `intermediate_size` channels."""

    intermediate_size: int
    pattern: ClassVar[str] = r"ffn([1-9]\d*)"
    examples: ClassVar[tuple[str, ...]] = ("ffn768",)

    def __str__(self) -> str:
        return f"ffn{self.intermediate_size}"

    def matrices(self, sizes: Sizes) -> tuple[Matrix, ...]:
        """Gate and up in one (up alone where ungated), and down."""
        into = (2 if sizes.gated else 1) * self.intermediate_size
        return (
            Matrix(sizes.hidden_size, into, sizes.mlp_bias),
            Matrix(self.intermediate_size, sizes.hidden_size, sizes.mlp_bias),
        )

    def entry(self, heads: int, group: int) -> dict[str, Any]:
        """The width, which the exporter rewrites for its target."""
        return {"intermediate_size": self.intermediate_size}

    @property
    def beyond_decilm(self) -> str | None:
        """Any width is written, padded."""
        return None

    def share(self, fraction: float) -> FFN:
        """Fewer channels, in steps where the parent is wide enough; all of them stay all."""
        if fraction == 1:
            return self
        step = WIDTH_STEP if self.intermediate_size >= 4 * WIDTH_STEP else 1
        width = round(self.intermediate_size * fraction / step) * step
        return FFN(min(max(step, width), self.intermediate_size))

    def suits(self, own: Variant) -> bool:
        """A mixture of experts has no FFN to slice."""
        return isinstance(own, FFN)

    def excess(self, own: Variant) -> str | None:
        """Channels the parent does not have."""
        assert isinstance(own, FFN)
        if self.intermediate_size <= own.intermediate_size:
            return None
        return f"{self.intermediate_size} channels, the parent has {own.intermediate_size}"


@dataclass(frozen=True)
class MoE(FFNVariant):
    """The parent's mixture with `experts` of its experts; a token takes as many as before."""

    experts: int
    pattern: ClassVar[str] = r"moe([1-9]\d*)"
    examples: ClassVar[tuple[str, ...]] = ("moe4",)

    def __str__(self) -> str:
        return f"moe{self.experts}"

    def matrices(self, sizes: Sizes) -> tuple[Matrix, ...]:
        """Router, gate and up in one, and down."""
        bias, used = sizes.expert_bias, min(sizes.experts_per_token, self.experts)
        return (
            Matrix(sizes.hidden_size, self.experts, bias),
            Matrix(sizes.hidden_size, 2 * sizes.expert_size, bias, self.experts, used),
            Matrix(sizes.expert_size, sizes.hidden_size, bias, self.experts, used),
        )

    def entry(self, heads: int, group: int) -> dict[str, Any]:
        """The number of experts."""
        return {"moe": {"num_local_experts": self.experts}}

    @property
    def beyond_decilm(self) -> str | None:
        """No mixture is in the format."""
        return "knows no mixture of experts in a layer"

    def share(self, fraction: float) -> MoE:
        """Fewer experts, one at least."""
        return MoE(max(1, round(self.experts * fraction)))

    def suits(self, own: Variant) -> bool:
        """A dense FFN has no experts to keep."""
        return isinstance(own, MoE)

    def excess(self, own: Variant) -> str | None:
        """Experts the parent does not have."""
        assert isinstance(own, MoE)
        if self.experts <= own.experts:
            return None
        return f"{self.experts} experts, the parent has {own.experts}"


@dataclass(frozen=True)
class LinearMap(AttentionVariant, FFNVariant):
    """One hidden x hidden matrix on the normalised input."""

    pattern: ClassVar[str] = "linear"
    examples: ClassVar[tuple[str, ...]] = ("linear",)

    def __str__(self) -> str:
        return "linear"

    def matrices(self, sizes: Sizes) -> tuple[Matrix, ...]:
        """The one."""
        return (Matrix(sizes.hidden_size, sizes.hidden_size),)

    def entry(self, heads: int, group: int) -> dict[str, Any]:
        """As DeciLM says it."""
        return {"replace_with_linear": True}

    @property
    def beyond_decilm(self) -> str | None:
        """The format has it, vLLM does not."""
        return "knows no linear map in place of a half"


@dataclass(frozen=True)
class NoOp(AttentionVariant, FFNVariant):
    """Nothing: the residual stream passes through; the half's norm goes too."""

    pattern: ClassVar[str] = "noop"
    examples: ClassVar[tuple[str, ...]] = ("noop",)

    def __str__(self) -> str:
        return "noop"

    def matrices(self, sizes: Sizes) -> tuple[Matrix, ...]:
        """None."""
        return ()

    def vectors(self, sizes: Sizes) -> int:
        """Not even a norm."""
        return 0

    def entry(self, heads: int, group: int) -> dict[str, Any]:
        """As DeciLM says it."""
        return {"no_op": True}

    @property
    def beyond_decilm(self) -> str | None:
        """Engines leave the half out."""
        return None


# the kinds that `parse_attention` and `parse_ffn` try in turn; `puzzle.add_variant` adds to them
ATTENTIONS: dict[str, type[AttentionVariant]] = {
    "gqa": GQA,
    "groups": Groups,
    "linear": LinearMap,
    "noop": NoOp,
}
FFNS: dict[str, type[FFNVariant]] = {"ffn": FFN, "moe": MoE, "linear": LinearMap, "noop": NoOp}


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


NOTHING = Block(NoOp(), NoOp())

_Kind = TypeVar("_Kind", bound=Variant)


def parse_attention(text: str) -> AttentionVariant:
    """Read `gqa<KV heads>[w<window>]`, `groups<KV heads>[w<window>]`, `linear`, `noop`, or a kind
    that was added."""
    return _parse(text, "attention", ATTENTIONS)


def parse_ffn(text: str) -> FFNVariant:
    """Read `ffn<intermediate size>`, `moe<experts>`, `linear`, `noop`, or a kind that was added."""
    return _parse(text, "FFN", FFNS)


def _parse(text: str, half: str, kinds: Mapping[str, type[_Kind]]) -> _Kind:
    for kind in kinds.values():
        if (variant := kind.read(text)) is not None:
            return variant
    *examples, last = (example for kind in kinds.values() for example in kind.examples)
    raise ValueError(f"{half} variant {text!r} is unknown; write {', '.join(examples)} or {last}")
