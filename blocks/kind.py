"""What every kind of half a layer says of itself: its text form, its cost, its checkpoint entry."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

from .sizes import Matrix, Sizes


class Variant(ABC):
    """What may stand in one half of a layer: its text form, its cost, how checkpoints name it.

    Subclasses are frozen dataclasses whose fields are the groups of `pattern`.
    """

    pattern: ClassVar[str]  # the whole text form as a regular expression, numbers in groups
    examples: ClassVar[tuple[str, ...]]  # for the sentence that says what can be written

    @abstractmethod
    def __str__(self) -> str:
        """The text form, which `read` reads back."""

    @abstractmethod
    def matrices(self, sizes: Sizes) -> tuple[Matrix, ...]:
        """The linear maps a token passes, in order: nearly all parameters, and all GEMMs."""

    @abstractmethod
    def entry(self, heads: int, group: int) -> dict[str, Any]:
        """What it writes into its half of a layer's `block_configs` entry.

        Args:
            heads: query heads of the parent.
            group: how many of them share a KV head.
        """

    @classmethod
    def read(cls, text: str) -> Self | None:
        """The variant of this text; None where it is of another kind."""
        match = re.fullmatch(cls.pattern, text)
        return cls(*(group and int(group) for group in match.groups())) if match else None

    def vectors(self, sizes: Sizes) -> int:
        """Parameters beside the matrices: the half's norm, and what a kind has more."""
        return sizes.norm_params

    def params(self, sizes: Sizes) -> int:
        """Parameters of the half, its norm included."""
        return self.vectors(sizes) + sum(matrix.params for matrix in self.matrices(sizes))

    @property
    def beyond_decilm(self) -> str | None:
        """Why an engine that reads DeciLM checkpoints cannot load it; None where it can."""
        return f"knows no {self} in a layer"

    def share(self, fraction: float) -> Variant | None:
        """The same kind with this share of its parts; None where there is no such part."""
        return None

    def suits(self, own: Variant) -> bool:
        """Whether it can be made from `own`, the parent's."""
        return True

    def excess(self, own: Variant) -> str | None:
        """What it asks for that `own`, the parent's of the same kind, cannot give; None: fine."""
        return None


class AttentionVariant(Variant):
    """What may stand in the attention half."""

    @property
    def cached_heads(self) -> int:
        """KV heads whose keys and values it keeps for every token."""
        return 0

    @property
    def sees(self) -> int | None:
        """How many tokens back it looks; None: all."""
        return None


class FFNVariant(Variant):
    """What may stand in the FFN half."""
