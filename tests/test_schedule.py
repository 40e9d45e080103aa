"""What each step of a training reads, and how fast it learns."""

from __future__ import annotations

import pytest
import torch

from puzzle.config import Heal, Phase
from puzzle.errors import PuzzleError
from puzzle.schedule import batch, rate, schedule, sequences


def test_every_sequence_is_read_once_an_epoch() -> None:
    picks = torch.cat([sequences(10, 4 * step, 4) for step in range(5)])
    assert sorted(picks[:10].tolist()) == sorted(picks[10:].tolist()) == list(range(10))
    assert picks[:10].tolist() != picks[10:].tolist()


def test_the_rate_warms_up_and_falls_to_a_tenth() -> None:
    rates = [rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0.1 < rates[-1] < 0.11
    assert rate(0, 1) == 1


def test_phases_read_on_where_the_last_one_ended() -> None:
    """Short sequences in small batches first; together they read every token of an epoch once."""
    phases = (Phase(share=1, sequence_length=8, batch_tokens=64), Phase(share=3))
    options = Heal(tokens=64 * 32, batch_tokens=256, schedule=phases)
    tokens_ST = torch.arange(64 * 32).view(64, 32)
    steps = schedule(options, length=32)
    batches = [batch(tokens_ST, step) for step in steps]
    assert [each.shape for each in batches] == [(8, 8)] * 8 + [(8, 32)] * 6
    read = torch.cat([each.flatten() for each in batches])
    assert sorted(read.tolist()) == list(range(64 * 32))
    assert [step.rate for step in steps] == [rate(step, 14) for step in range(14)]


def test_one_phase_is_the_default() -> None:
    options = Heal(tokens=1000, batch_tokens=96)
    alone = options.model_copy(update={"schedule": (Phase(sequence_length=24, batch_tokens=96),)})
    assert schedule(options, 24) == schedule(alone, 24)
    assert len(schedule(options, 24)) == 10


def test_sequences_that_do_not_divide_the_text_are_refused() -> None:
    options = Heal(schedule=(Phase(sequence_length=100),))
    with pytest.raises(PuzzleError, match=r"sequences of 100 tokens, the text comes in .* of 256"):
        schedule(options, 256)


def test_places_are_those_of_one_permutation_an_epoch() -> None:
    whole = sequences(7, 0, 21).tolist()
    assert [sorted(whole[at : at + 7]) for at in (0, 7, 14)] == [list(range(7))] * 3
    assert sequences(7, 5, 11).tolist() == whole[5:16]


@pytest.mark.parametrize("schedule_", [(), (Phase(share=1), Phase(share=9))])
def test_fewer_tokens_than_a_batch_are_refused(schedule_: tuple[Phase, ...]) -> None:
    options = Heal(tokens=1000, batch_tokens=2048, schedule=schedule_)
    with pytest.raises(PuzzleError, match=r"00 tokens of healing are less than one batch of 2048"):
        schedule(options, 64)
    assert schedule(Heal(tokens=0, schedule=schedule_), 64) == []
