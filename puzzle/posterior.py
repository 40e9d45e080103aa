"""Posterior: scores around a center, corrected by what children near it were measured at.

Of the many swaps near a center the program takes those whose scores err most to their favor, and
near the best child every gain that is left may be an error. So what measured children teach is
carried over to those that were not: the KL of a child less its center's is the sum of `a s + e`
over its changed layers. Here s is the score of a swap, `a` one of two slopes, of all gains and of
all losses, and e a deviation of its own. All are Gaussian a priori, around 1 and 0; what layers do
to each other is the noise. The posterior mean then has a closed form (Bayesian linear regression).

Legend: N children, F features: the two slopes and a deviation for each swap that was tried.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from puzzle.blocks.variant import Block
from puzzle.menu import Choice, Losses
from puzzle.trial import measured

SLOPE = 0.5  # standard deviation of a slope
OWN = 0.5, 0.003  # of a deviation: of the size of its score, and of the center's KL
NOISE = 0.01  # of the center's KL, in a child with one changed layer


def posterior(losses: Losses, center: Choice, tried: Sequence[Choice]) -> Losses:
    """The expected loss of every swap, given the measured KL of the center and of those tried.

    Args:
        losses: per layer, by how much each block would change the center's KL; 0 is its own.
    """
    if not tried:
        return losses
    changes = [_changes(child, center) for child in tried]
    swaps = list(dict.fromkeys(swap for each in changes for swap in each))
    score_F = np.array([losses[layer][block] for layer, block in swaps])
    made_NF = np.array([[swap in each for swap in swaps] for each in changes], dtype=float)
    signs = [made_NF @ np.minimum(score_F, 0), made_NF @ np.maximum(score_F, 0)]
    features_NF = np.column_stack([*signs, made_NF])

    kl = measured(center)
    own_F = OWN[0] * np.abs(score_F) + OWN[1] * kl
    prior_F = np.concatenate([[SLOPE, SLOPE], own_F]) ** 2
    noise_N = (NOISE * kl) ** 2 * made_NF.sum(axis=1)
    gap_N = [measured(child) - kl for child in tried] - features_NF[:, :2].sum(axis=1)
    spread_NN = features_NF * prior_F @ features_NF.T + np.diag(noise_N)
    learned_F = prior_F * (features_NF.T @ np.linalg.lstsq(spread_NN, gap_N)[0])

    gain, loss = np.maximum(1 + learned_F[:2], 0)
    deviations = dict(zip(swaps, learned_F[2:]))
    return [
        {
            block: float((gain if score < 0 else loss) * score + deviations.get((i, block), 0))
            for block, score in layer.items()
        }
        for i, layer in enumerate(losses)
    ]


def _changes(child: Choice, center: Choice) -> list[tuple[int, Block]]:
    """The layers where a child is not its center, with its blocks there."""
    pairs = zip(child.blocks, center.blocks, strict=True)
    return [(layer, block) for layer, (block, own) in enumerate(pairs) if block != own]
