"""A student and what it is trained to, as one module: tokens in, loss out.

Legend: S sequences, T tokens.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from puzzle.errors import PuzzleError
from puzzle.export.modeling_puzzle import PuzzleForCausalLM
from puzzle.losses import End, Factors, Text, cosine_loss, head_loss

LOOK = 32  # tokens that say whether a model's logits are what its head makes
TOLERANCE = 1e-3  # of a logit, relative to the largest
Streams = tuple[torch.Tensor, ...]
Pairs = Sequence[tuple[int, int]]  # streams that are compared: a student's, a teacher's


class Trunk(nn.Module):
    """A model up to its head: tokens in; out come its streams and where they end."""

    def __init__(self, model: PuzzleForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_ST: torch.Tensor, *, streams: bool) -> tuple[Streams, End]:
        """The streams [S, T, D] that enter each layer and, normed, leave the last; and the end."""
        return run_trunk(self.model, tokens_ST, streams=streams)


class Objective(nn.Module):
    """The losses of a student; its teacher is frozen and no part of the module.

    Args:
        teacher: not needed by the language modeling loss alone.
        layers: the teacher's layers that the student holds; see `matched`.
    """

    def __init__(
        self,
        student: PuzzleForCausalLM,
        teacher: Trunk | None,
        factors: Factors,
        layers: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if factors.guided and teacher is None:
            raise PuzzleError("the cosine and KL losses need a teacher; give one, or only heal.lm")
        if factors.kl and teacher is not None:
            sizes = [model.config.vocab_size for model in (student, teacher.model)]
            if sizes[0] != sizes[1]:
                raise PuzzleError(
                    f"the student knows {sizes[0]} tokens, the teacher {sizes[1]}; "
                    "KL needs one vocabulary; choose another teacher, or heal.kl=0"
                )
        self.student, self.factors = student, factors
        self._teacher = (teacher if factors.guided else None,)  # in a tuple it is no submodule
        self.pairs: Pairs = ()
        if teacher is not None and factors.cosine:
            self.pairs = matched(student.config, teacher.model.config, layers)
        if not (self.pairs or factors.kl or factors.lm):
            raise PuzzleError(
                "nothing is left to learn from: hidden states of different widths are not "
                "compared, or all losses are 0; set heal.kl or heal.lm above 0"
            )

    @property
    def device(self) -> torch.device:
        """Where the student is."""
        return next(self.student.parameters()).device

    def forward(
        self, tokens_ST: torch.Tensor, share_S: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss, and the parts of it before their factors, without gradient.

        Args:
            share_S: what a token of each sequence counts; over a batch they sum to 1.
        """
        (teacher,), factors = self._teacher, self.factors
        streams, end = run_trunk(self.student, tokens_ST, streams=bool(self.pairs))
        wanted: Streams = ()
        target = None
        if teacher is not None:
            with torch.no_grad():
                wanted, target = teacher(tokens_ST, streams=bool(self.pairs))
        text = Text.of(tokens_ST, share_S)
        total, parts = head_loss(end, target if factors.kl else None, text, factors)
        if self.pairs:
            paired = [(streams[own], wanted[other]) for own, other in self.pairs]
            cosine = cosine_loss(paired, share_S)
            total, parts = total + factors.cosine * cosine, {**parts, "cosine": cosine.detach()}
        return total, parts


def run_trunk(
    model: PuzzleForCausalLM, tokens_ST: torch.Tensor, *, streams: bool
) -> tuple[Streams, End]:
    """What `Trunk` gives; no streams unless they are asked for."""
    outputs = model.model(tokens_ST, use_cache=False, output_hidden_states=streams)
    end = End(outputs.last_hidden_state.flatten(0, 1), model.lm_head.weight)
    return outputs.hidden_states or (), end


@torch.no_grad()
def check_head(name: str, model: Any) -> None:
    """PuzzleError where a model's logits are not those of its head on its last hidden states."""
    tokens_ST = torch.arange(min(LOOK, model.config.vocab_size))[None]
    wanted = model(tokens_ST).logits.flatten(0, 1).float()
    trunk, head = getattr(model, "model", None), getattr(model, "lm_head", None)
    error = math.inf
    if trunk is not None and head is not None:
        _, end = run_trunk(model, tokens_ST, streams=False)
        found = (end.last_ND @ end.head_VD.T).float()
        error = float((found - wanted).abs().max() / wanted.abs().max())
    if not error <= TOLERANCE:
        raise PuzzleError(
            f"{name} makes its logits of more than a norm and a head, as models of the family "
            f"{model.config.model_type} do; such are neither trained nor compared here"
        )


def matched(student: Any, teacher: Any, layers: Sequence[int] = ()) -> Pairs:
    """Which streams are compared; none, with a warning, where hidden sizes differ.

    A layer's output is the stream that enters the next one. So what leaves layer j of a student
    that holds the teacher's `layers` is compared with what enters `layers[j + 1]` of the teacher,
    and what leaves the last with what leaves the last. Without `layers` they are taken to lie
    evenly, which is each by each where there are as many. A stream that the student's next layer
    hands on as it is, holding nothing, is compared behind that layer alone: the layers before may
    do its part.

    Args:
        student: its configuration, as transformers has it; likewise the teacher's.

    Raises:
        PuzzleError: `layers` that are not as many as the student's, rising, and the teacher's.
    """
    ours, theirs = (config.num_hidden_layers for config in (student, teacher))
    widths = [config.hidden_size for config in (student, teacher)]
    if widths[0] != widths[1]:
        warnings.warn(
            f"the student's hidden size is {widths[0]}, the teacher's {widths[1]}: hidden states "
            "have no common width, so healing is by KL alone",
            stacklevel=2,
        )
        return ()
    if ours > theirs and not layers:
        raise PuzzleError(
            f"the student has {ours} layers, the teacher {theirs}: hidden states cannot be paired; "
            "set heal.cosine=0, and heal by KL alone"
        )
    kept = list(layers) or [layer * theirs // ours for layer in range(ours)]
    if len(kept) != ours or kept != sorted(set(kept)) or not set(kept) <= set(range(theirs)):
        raise PuzzleError(
            f"heal.layers names {kept} for a student of {ours} layers; name {ours} of the "
            f"teacher's layers 0 to {theirs - 1}, in order"
        )
    empty = _empty(student)
    return [*((own, kept[own]) for own in range(1, ours) if own not in empty), (ours, theirs)]


def _empty(config: Any) -> set[int]:
    """The layers that hold neither attention nor FFN."""
    entries = enumerate(getattr(config, "block_configs", None) or ())
    return {i for i, each in entries if each["attention"]["no_op"] and each["ffn"]["no_op"]}
