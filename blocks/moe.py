"""Which experts of a mixture matter.

Legend: N tokens, D hidden, E experts, k experts a token takes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Router = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
Experts = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@torch.no_grad()
def expert_contributions(router: Router, experts: Experts, x_ND: torch.Tensor) -> torch.Tensor:
    """`sum over tokens of w_e |y_e|` [E]: routing weight times the norm of what the expert says.

    The expert analogue of channel contribution. The experts run as in the model, one of each
    token's k at a time, so each comes out alone and already weighted.
    """
    logits_NE, weight_Nk, chosen_Nk = router(x_ND)
    total_E = torch.zeros(logits_NE.shape[1], dtype=torch.float64)
    for weight_N1, chosen_N1 in zip(weight_Nk.split(1, dim=1), chosen_Nk.split(1, dim=1)):
        said_ND = experts(x_ND, chosen_N1, weight_N1)
        total_E.index_add_(0, chosen_N1.flatten(), said_ND.double().norm(dim=1))
    return total_E
