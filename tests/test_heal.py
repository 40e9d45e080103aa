"""Healing: its loss by the formula, that it learns, and that a killed one loses nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from puzzle import checkpoints, training
from puzzle import heal as stage
from puzzle.assemble import assemble, from_weights
from puzzle.blocks.variant import Block
from puzzle.config import Distill, Heal, Phase
from puzzle.distill import distill
from puzzle.errors import PuzzleError
from puzzle.export.modeling_puzzle import PuzzleForCausalLM
from puzzle.heal import Course, heal
from puzzle.library import Library
from puzzle.losses import Factors
from puzzle.modules import Weights
from puzzle.objective import Objective, Trunk
from puzzle.parent import Parent
from puzzle.run import Run
from puzzle.trace import trace
from puzzle.training import Progress, Texts
from puzzle.window import Window

BLOCKS = tuple(map(Block.parse, ("gqa2+ffn32", "noop+ffn96", "gqa1+noop")))
HALVES = [list(map(Block.parse, ("gqa1+noop", "noop+ffn32")))] * 3
STEPS = 12
OPTIONS = Heal(tokens=STEPS * 96, batch_tokens=96, learning_rate=3e-3)  # 4 sequences a step


@pytest.fixture(scope="module")
def library(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The halves of `BLOCKS` as they start, untrained."""
    run = Run(tmp_path_factory.mktemp("heal") / "run")
    parent = Parent(checkpoints["llama"], "llama")
    tokens = sequences(16, seed=1)
    window = Window(0, 1, {"calibration/all": tokens}, "inputs")
    trace(run, parent, {"scoring": tokens[:2], **window.parts}, samples=1, seed=0)
    distill(run, parent, HALVES, Distill(tokens=0), window)
    return Library(run, parent)


@pytest.fixture(scope="module")
def teacher(library: Library) -> PuzzleForCausalLM:
    return assemble(library, library.parent.blocks)


@pytest.fixture
def child(library: Library) -> PuzzleForCausalLM:
    return assemble(library, BLOCKS)


def sequences(count: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 97, (count, 24), generator=torch.Generator().manual_seed(seed))


def course(folder: Path, inputs: str = "inputs") -> Course:
    return Course(Run(folder), "children/budget/healed", inputs)


def same(one: Weights, other: Weights) -> bool:
    """Equal names and equal bits."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def losses_of(
    student: PuzzleForCausalLM, teacher: PuzzleForCausalLM, tokens: torch.Tensor
) -> dict[str, float]:
    """What an objective says of a student on these tokens, each loss before its factor."""
    with torch.no_grad():
        objective = Objective(student, Trunk(teacher), Factors())
        _, parts = objective(tokens, torch.full((len(tokens),), 1 / tokens.numel()))
    return {name: float(part) for name, part in parts.items()}


def test_a_model_loses_nothing_against_itself(teacher: PuzzleForCausalLM) -> None:
    losses = losses_of(teacher, teacher, sequences(2, seed=3))
    assert losses["kl"] == 0
    assert losses["cosine"] == pytest.approx(0, abs=1e-6)


def test_the_losses_are_the_formulas(child: PuzzleForCausalLM, teacher: PuzzleForCausalLM) -> None:
    tokens = sequences(3, seed=3)
    losses = losses_of(child, teacher, tokens)
    with torch.no_grad():
        c, p = (m(tokens, output_hidden_states=True) for m in (child, teacher))
        text = child(tokens, labels=tokens).loss
    log_p, log_c = (m.logits.double().log_softmax(-1) for m in (p, c))
    kl = (log_p.exp() * (log_p - log_c)).sum(-1).mean()
    assert losses["kl"] == pytest.approx(float(kl), rel=1e-4)
    assert losses["lm"] == pytest.approx(float(text), rel=1e-4)
    assert len(c.hidden_states) == len(BLOCKS) + 1  # the embedding first, which does not count
    cosine = 0.0
    for h_c, h_p in zip(c.hidden_states[1:], p.hidden_states[1:]):
        similar = (h_c * h_p).sum(-1) / (h_c.norm(dim=-1) * h_p.norm(dim=-1))
        cosine += float((1 - similar).mean())
    assert losses["cosine"] == pytest.approx(cosine, rel=1e-4)


def test_the_loss_falls_on_text_it_has_not_seen(
    library: Library, child: PuzzleForCausalLM, teacher: PuzzleForCausalLM, tmp_path: Path
) -> None:
    options = OPTIONS.model_copy(update={"tokens": 60 * 96})
    path = course(tmp_path)
    before = {name: weight.clone() for name, weight in child.state_dict().items()}
    healed = heal(path, child, teacher, Texts(sequences(64, seed=2)), options)
    steps = path.run.info(path.record)["losses"]
    assert len(steps) == 60
    first, last = (
        {name: sum(step[name] for step in some) for name in ("kl", "cosine")}
        for some in (steps[:6], steps[-6:])
    )
    assert all(last[name] < first[name] for name in first)
    unseen = sequences(8, seed=9)
    was, becomes = (
        losses_of(model, teacher, unseen)
        for model in (child, from_weights(library, BLOCKS, healed))
    )
    assert all(becomes[name] < was[name] for name in first)
    assert same(child.state_dict(), before)  # a copy was trained
    assert not any(p.requires_grad for p in child.parameters())
    assert not child.training


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_killed_healing_goes_on_to_the_same_bits(
    library: Library,
    teacher: PuzzleForCausalLM,
    tmp_path: Path,
    dtype: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = Texts(sequences(10, seed=2))  # three epochs, whose ends fall inside a step
    options = OPTIONS.model_copy(update={"dtype": dtype, "lm": 0.5})

    def live(path: Course, *, dies_at: int = STEPS + 1, checkpoint_s: float = 0.0) -> Weights:
        """A healing in a process that holds a new child, killed in a step."""

        def mortal(progress: Progress) -> None:
            if progress.step == dies_at:
                raise KeyboardInterrupt

        monkeypatch.setattr(checkpoints, "EVERY_S", checkpoint_s)
        monkeypatch.setattr(checkpoints, "SHARE", 0)
        child = assemble(library, BLOCKS)
        for layer in child.model.layers:
            if layer.self_attn is not None:
                layer.self_attn.attention_dropout = 0.1  # so every step draws
        return heal(path, child, teacher, texts, options, watch=mortal)

    whole, killed = course(tmp_path / "whole"), course(tmp_path / "killed")
    wanted = live(whole, checkpoint_s=1e9)
    with pytest.raises(KeyboardInterrupt):
        live(killed, dies_at=6)  # the checkpoint is of step 5
    assert len(killed.run.load(f"{killed.checkpoints.folder}/losses")) == 5
    with pytest.raises(KeyboardInterrupt):
        live(killed, dies_at=9, checkpoint_s=1e9)  # whose steps are lost
    assert same(live(killed), wanted)
    assert killed.run.info(killed.record) == whole.run.info(whole.record)
    assert not killed.run.names(f"{killed.checkpoints.folder}/**/*")  # no longer needed


def test_a_second_call_reads_the_first_and_other_inputs_train_again(
    library: Library,
    child: PuzzleForCausalLM,
    teacher: PuzzleForCausalLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = Texts(sequences(8, seed=2))
    first = heal(course(tmp_path), child, teacher, texts, OPTIONS)
    other = heal(course(tmp_path, "other"), child, teacher, texts, OPTIONS)
    assert same(first, other)  # the same result, though made again
    monkeypatch.setattr(stage, "Training", None)
    assert same(heal(course(tmp_path, "other"), child, teacher, texts, OPTIONS), first)
    with pytest.raises(TypeError):
        heal(course(tmp_path), child, teacher, texts, OPTIONS)


def test_no_tokens_leave_the_child(
    library: Library, child: PuzzleForCausalLM, teacher: PuzzleForCausalLM, tmp_path: Path
) -> None:
    none = Heal(tokens=0)
    healed = heal(course(tmp_path), child, teacher, Texts(sequences(4, seed=2)), none)
    assert same(healed, dict(child.named_parameters()))


def test_a_large_batch_is_the_mean_of_its_parts(
    child: PuzzleForCausalLM,
    teacher: PuzzleForCausalLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sequences go through a few at a time; the last part may be smaller."""
    texts = Texts(sequences(5, seed=2))
    options = Heal(tokens=3 * 120, batch_tokens=120)
    whole = heal(course(tmp_path / "whole"), child, teacher, texts, options)
    monkeypatch.setattr(training, "MICRO_TOKENS", 48)
    parts = heal(course(tmp_path / "parts"), child, teacher, texts, options)
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=1e-3, atol=1e-5)


def test_text_alone_is_learned_without_a_teacher(child: PuzzleForCausalLM, tmp_path: Path) -> None:
    options = OPTIONS.model_copy(update={"cosine": 0.0, "kl": 0.0, "lm": 1.0})
    path = course(tmp_path)
    heal(path, child, None, Texts(torch.arange(24).repeat(8, 1)), options)
    losses = path.run.info(path.record)["losses"]
    assert set(losses[0]) == {"lm", "learning_rate"}
    assert losses[-1]["lm"] < losses[0]["lm"] - 1


def test_recomputed_activations_change_nothing(
    child: PuzzleForCausalLM, teacher: PuzzleForCausalLM, tmp_path: Path
) -> None:
    texts = Texts(sequences(8, seed=2))
    options = OPTIONS.model_copy(update={"recompute": True})
    whole = heal(course(tmp_path / "whole"), child, teacher, texts, OPTIONS)
    again = heal(course(tmp_path / "again"), child, teacher, texts, options)
    assert same(whole, again)


def test_phases_set_batch_and_length(
    child: PuzzleForCausalLM, teacher: PuzzleForCausalLM, tmp_path: Path
) -> None:
    phases = (Phase(sequence_length=8, batch_tokens=48), Phase(share=3))
    options = OPTIONS.model_copy(update={"schedule": phases})
    read: list[int] = []
    texts = Texts(sequences(8, seed=2))
    heal(
        *(course(tmp_path), child, teacher, texts, options),
        watch=lambda progress: read.append(progress.tokens),
    )
    assert read == [48 * step for step in range(1, 7)] + [288 + 96 * step for step in range(1, 10)]


def test_a_healing_that_no_longer_helps_ends_and_its_best_is_kept(
    library: Library,
    child: PuzzleForCausalLM,
    teacher: PuzzleForCausalLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Learned by heart, one sequence makes others worse."""
    changes = {"cosine": 0.0, "kl": 0.0, "lm": 1.0, "learning_rate": 1e-2}
    options = OPTIONS.model_copy(update={**changes, "checks": STEPS, "patience": 2})
    texts = Texts(sequences(1, seed=2), sequences(4, seed=5))
    path = course(tmp_path / "whole")
    healed = heal(path, child, None, texts, options)
    losses = path.run.info(path.record)["losses"]
    checked = [step["validation"] for step in losses]
    best = checked.index(min(checked))
    assert len(checked) == best + 1 + options.patience < STEPS
    kept = from_weights(library, BLOCKS, healed)
    with torch.no_grad():
        _, parts = Objective(kept, None, Factors(0, 0, 1))(
            texts.validation_ST, torch.full((4,), 1 / 96)
        )
    assert float(parts["lm"]) == pytest.approx(checked[best], rel=1e-5)

    def mortal(progress: Progress) -> None:
        if progress.step == len(checked):
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "EVERY_S", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", 0)
    killed = course(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        heal(killed, child, None, texts, options, watch=mortal)
    assert same(heal(killed, child, None, texts, options), healed)
    with pytest.raises(PuzzleError, match=r"heal\.checks needs a validation text"):
        heal(course(tmp_path / "none"), child, None, Texts(texts.training_ST), options)


def test_a_parent_that_learned_the_text_teaches_another_child(
    child: PuzzleForCausalLM, teacher: PuzzleForCausalLM, tmp_path: Path
) -> None:
    texts = Texts(torch.arange(24).repeat(8, 1))
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    options = OPTIONS.model_copy(update={"correct_tokens": 10 * 96})
    path = course(tmp_path / "corrected")
    taught = heal(path, child, teacher, texts, options)
    plain = heal(course(tmp_path / "plain"), child, teacher, texts, OPTIONS)
    assert not same(taught, plain)
    assert same(teacher.state_dict(), before)  # a copy was corrected
    lessons = path.run.info("children/budget/corrected")["losses"]
    assert len(lessons) == 10
    assert lessons[-1]["lm"] < lessons[0]["lm"]
    rates = [step["learning_rate"] for step in path.run.info(path.record)["losses"]]
    assert max(step["learning_rate"] for step in lessons) == pytest.approx(max(rates) / 5)


def test_a_teacher_in_bfloat16_turns_by_angles_in_float32(teacher: PuzzleForCausalLM) -> None:
    guide = stage._guide(teacher, torch.bfloat16).model
    assert {p.dtype for p in guide.parameters()} == {torch.bfloat16}
    own, whole = dict(guide.named_buffers()), dict(teacher.named_buffers())
    assert own
    assert all(torch.equal(own[name], whole[name]) for name in whole)


def test_a_checkpoint_that_takes_long_to_write_is_written_less_often(
    library: Library, tmp_path: Path
) -> None:
    saved = course(tmp_path).checkpoints
    child = assemble(library, BLOCKS).requires_grad_()
    optimizer = torch.optim.AdamW(child.parameters())
    child(sequences(1, seed=0), labels=sequences(1, seed=0)).loss.backward()
    optimizer.step()

    def due_after(seconds: float) -> bool:
        saved.saved = time.monotonic() - seconds
        return saved.due

    assert [due_after(seconds) for seconds in (29, 31)] == [False, True]
    begin = time.monotonic()
    saved.save(child, optimizer, [{}])
    assert 0 < saved.took_s <= time.monotonic() - begin
    saved.took_s = 10.0
    assert [due_after(seconds) for seconds in (199, 201)] == [False, True]


def test_a_checkpoint_is_read_into_memory_not_onto_the_device_that_trains(tmp_path: Path) -> None:
    """Beside parameters and moments a GPU may have no room for them a second time."""
    kept = checkpoints.Checkpoints(Run(tmp_path), "training", "inputs")
    model = torch.nn.Linear(3, 2)
    kept.keep(model, 7)
    with torch.device("meta"):
        (part,) = kept._read(kept._best(7))
    assert {tensor.device.type for tensor in part.values()} == {"cpu"}
    with torch.no_grad():
        other = torch.nn.Linear(3, 2)
        kept.recall(other, 7)
    assert torch.equal(other.weight, model.weight)
