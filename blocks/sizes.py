"""The numbers of a parent's layers that variants compute with, and the matrices they count."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Sizes and switches of the layers of one family's model."""

    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    gated: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    norm_bias: bool
    sinks: bool = False  # one learned attention sink per query head
    experts: int = 0  # of a layer that holds a mixture, as the parent has it; 0: none does
    experts_per_token: int = 0
    expert_size: int = 0  # channels of one expert
    expert_bias: bool = False  # in experts and router

    @property
    def norm_params(self) -> int:
        """One norm over the hidden size: a weight, and a bias where the family has one."""
        return self.hidden_size * (2 if self.norm_bias else 1)


@dataclass(frozen=True)
class Matrix:
    """A linear map of every token; of `experts` such maps each token takes `used`.

    >>> Matrix(64, 256, bias=True).params, Matrix(64, 256, experts=8, used=2).params
    (16640, 131072)
    """

    size_in: int
    size_out: int
    bias: bool = False
    experts: int = 1
    used: int = 1

    @property
    def params(self) -> int:
        """Numbers in all of them."""
        return self.experts * (self.size_in + self.bias) * self.size_out

    def hit(self, tokens: float) -> float:
        """How many of the experts some token takes, expected of independent even routing.

        >>> Matrix(64, 64).hit(1000), Matrix(64, 64, experts=8, used=2).hit(1)
        (1.0, 2.0)
        >>> round(Matrix(64, 64, experts=8, used=2).hit(4), 2)
        5.47
        """
        return self.experts * (1 - (1 - self.used / self.experts) ** tokens)
