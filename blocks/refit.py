"""Closed-form refit: the last linear map of a half, solved by weighted ridge least squares.

After choosing what a variant keeps, its last matrix (`down_proj`, `o_proj`, or the one matrix of
a linear half) is set to what best reproduces the parent's output on calibration tokens. The
normal equations are accumulated once per layer: every FFN width reads a submatrix of one Gram
matrix. Tokens are weighted, because in a layer that writes a massive activation plain least
squares serves that one token.

Legend: N tokens, F features, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

Tokens = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

RIDGE = 1e-3  # a multiple of the mean feature energy


@dataclass(frozen=True)
class NormalEquations:
    """`gram` [F, F] = sum w x x^T and `cross` [F, D] = sum w x y^T, in float64."""

    gram: torch.Tensor
    cross: torch.Tensor

    @classmethod
    def of(cls, tokens: Iterable[Tokens], features: int, outputs: int) -> NormalEquations:
        """The sums over batches of x [N, F], y [N, D] and token weights [N].

        Products in float32, sums in float64: a batch is short, so float32 loses nothing there,
        and no sum over many tokens drowns the small ones.
        """
        gram = torch.zeros(features, features, dtype=torch.float64)
        cross = torch.zeros(features, outputs, dtype=torch.float64)
        for x_NF, y_ND, weight_N in tokens:
            weighted_FN = (x_NF * weight_N[:, None]).T
            gram += weighted_FN @ x_NF
            cross += weighted_FN @ y_ND
        return cls(gram, cross)

    def features(self, kept: torch.Tensor) -> NormalEquations:
        """The equations of a subset of the features."""
        return NormalEquations(self.gram[kept][:, kept], self.cross[kept])

    def solve(self, start_DF: torch.Tensor, ridge: float = RIDGE) -> torch.Tensor:
        """The matrix M [D, F] that minimises `sum w |M x - y|^2 + ridge |M - start|^2`.

        Shrinking towards the sliced matrix rather than towards zero keeps directions that the
        calibration tokens do not cover as the parent had them.
        """
        start = start_DF.double().T
        energy = self.gram.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
        wanted = self.cross - self.gram @ start
        system = self.gram.clone()
        system.diagonal().add_(ridge * energy)
        factor, failed = torch.linalg.cholesky_ex(system)
        if failed:  # float32's rounding reached the ridge
            change = torch.linalg.solve(system, wanted)
        else:
            change = torch.cholesky_solve(wanted, factor)
        return (start + change).T.to(start_DF.dtype)

    def excess(self, matrix_DF: torch.Tensor) -> float:
        """What a matrix M misses more than none at all: `sum w (|M x - y|^2 - |y|^2)`."""
        matrix = matrix_DF.double()
        return float(((matrix @ self.gram - 2 * self.cross.T) * matrix).sum())


def token_weights(stream_ND: torch.Tensor) -> torch.Tensor:
    """`1 / |h|^2` of the residual stream after the layer, with mean 1 [N]."""
    weight = 1 / stream_ND.float().square().sum(dim=-1).clamp_min(1e-12)
    return weight / weight.mean()
