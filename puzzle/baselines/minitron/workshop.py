"""The workshop: where cuts are made, healed and compared with the teacher, each from its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain, zip_longest
from typing import Any

import torch

from puzzle import corpus
from puzzle.baselines.minitron.cut import Cut
from puzzle.baselines.minitron.depth import Layers, least_missed, turned_by
from puzzle.baselines.minitron.importance import Importance, activity
from puzzle.baselines.minitron.pruned import model_of, write_pruned
from puzzle.baselines.minitron.width import prune_tensors
from puzzle.config import Config
from puzzle.evaluate import Reading, evaluate
from puzzle.export.modeling_puzzle import PuzzleForCausalLM
from puzzle.heal import Course, corrected, heal
from puzzle.modules import Weights
from puzzle.parent import Parent
from puzzle.run import Run, fingerprint
from puzzle.training import Texts

ASKED = 200  # questions, where layers are judged by them
JUDGED = 32  # cuts of a kind whose KL is measured before any is healed
LIGHT, FINAL = "light", "final"  # healings: of every finalist, and of the one that is kept
# the settings that a cut's tensors and the layers that stay depend on
MAKING = ("tokens", "over_tokens", "over_texts", "depth", "merge", "rounds")


@dataclass(frozen=True)
class Workshop:
    """A parent, the teacher it is or was corrected to, and the texts."""

    run: Run
    parent: Parent
    teacher: PuzzleForCausalLM
    texts: Mapping[str, torch.Tensor]
    config: Config
    inputs: str  # fingerprint of all that cuts and their distances depend on

    @classmethod
    def open(
        cls,
        run: Run,
        parent: Parent,
        original: PuzzleForCausalLM,
        texts: Mapping[str, torch.Tensor],
        config: Config,
    ) -> Workshop:
        """With the teacher corrected first where `heal.correct_tokens` asks for it.

        Args:
            texts: the three splits, and `lesson`, which is healed on.
        """
        asked = config.prune.model_dump(mode="json", include=set(MAKING))
        options = config.heal.model_dump(mode="json", exclude={"tokens"})
        prints = [corpus.digest(texts[split]) for split in ("calibration", "scoring", "lesson")]
        inputs = fingerprint("minitron", parent.fingerprint, prints, asked, options)
        teacher = original
        if config.heal.correct_tokens:
            read = Texts(texts["lesson"], texts["scoring"])
            course = Course(run, "teacher", inputs)
            teacher = corrected(course, original, read, config.heal)
        return cls(run, parent, teacher, texts, config, inputs)

    @cached_property
    def reading(self) -> Reading:
        """What the teacher makes of the scoring text."""
        return Reading(self.teacher, self.texts["scoring"])

    @cached_property
    def importance(self) -> Importance:
        """Of the parent's parts, on the first sequences of the calibration text."""
        return self._importance(self.parent, "importance")

    def _importance(self, parent: Parent, name: str) -> Importance:
        asked, run = self.config.prune, self.run
        tokens = self.texts["calibration"][: max(1, asked.tokens // self.config.sequence_length)]
        inputs = fingerprint(parent.fingerprint, corpus.digest(tokens))
        if not run.fresh(name, inputs):
            run.save_tensors(name, activity(parent, tokens), inputs)
        return Importance.of(run.load_tensors(name), asked.over_tokens, asked.over_texts)

    def shallow(self, gone: int) -> Layers:
        """The layers that stay when so many go."""
        layers, by = self.parent.shape.layers, self.config.prune.depth
        if by == "influence":
            return least_missed(layers, gone, turned_by(self.importance.turns))
        whole, sign = Cut.whole(self.parent.shape), {"perplexity": 1, "accuracy": -1}[by]
        asked = ASKED if by == "accuracy" else 0

        def cost(kept: Layers) -> float:
            cut = replace(whole, layers=kept)
            worth = self._worth(f"depth/{cut}", lambda: self._without(cut), asked=asked)
            return float(sign * worth[by])

        return least_missed(layers, gone, cost)

    def _without(self, cut: Cut) -> PuzzleForCausalLM:
        """The teacher without the layers that a cut lacks; nothing is copied."""
        places = {str(layer): place for place, layer in enumerate(cut.layers)}
        found = {}
        for name, tensor in self.teacher.named_parameters():
            outside, inside, rest = name.partition("model.layers.")
            layer, _, rest = rest.partition(".")
            if not inside:
                found[outside] = tensor
            elif layer in places:
                found[f"{inside}{places[layer]}.{rest}"] = tensor
        return model_of(cut.config(self.parent.config), found)

    def first(self, kinds: Mapping[str, Sequence[Cut]]) -> list[Cut]:
        """The cuts to heal lightly: of every kind in turn the one nearest to the teacher."""
        ranked = [sorted(cuts[:JUDGED], key=self.kl) for cuts in kinds.values()]
        in_turn = (cut for cut in chain.from_iterable(zip_longest(*ranked)) if cut)
        return list(in_turn)[: self.config.prune.candidates]

    def weights(self, cut: Cut) -> Weights:
        """The tensors of a cut before any healing, measured and pruned in `prune.rounds`."""
        rounds, merge = self.config.prune.rounds, self.config.prune.merge
        parent, importance, rest = self.parent, self.importance, cut
        for turn in range(1, rounds):
            step = partway(Cut.whole(parent.shape), rest, rounds - turn + 1)
            weights = prune_tensors(parent, step, importance, merge=merge)
            place = f"rounds/{turn}"
            folder = write_pruned(self.run.folder / place, parent, step, weights)
            parent = Parent(folder, f"{self.parent.name}, round {turn}", self.parent.dtype)
            importance = self._importance(parent, f"{place}.importance")
            rest = replace(cut, layers=tuple(range(len(cut.layers))))
        found = prune_tensors(parent, rest, importance, merge=merge)
        self.run.forget("rounds")
        return found

    def kl(self, cut: Cut) -> float:
        """KL(teacher || cut) per token of the scoring text, before any healing."""
        worth = self._worth(f"cuts/{cut}", lambda: self._model(cut, self.weights(cut)))
        return float(worth["kl"])

    def healed_kl(self, cut: Cut) -> float:
        """The same after the light healing."""
        worth = self._worth(
            f"cuts/{cut}.healed",
            lambda: self._model(cut, self.lightly_healed(cut)),
            self.healing_print(LIGHT, cut),
        )
        return float(worth["kl"])

    def drop(self, cut: Cut) -> None:
        """Delete the tensors of a cut that is not kept; what it was worth stays."""
        self.run.forget(f"{LIGHT}/{cut}")

    def lightly_healed(self, cut: Cut) -> Weights:
        """The tensors of a cut after `prune.light` tokens."""
        return self._heal(LIGHT, cut, lambda: self.weights(cut))

    def healed(self, cut: Cut) -> Weights:
        """The tensors of a cut after `heal.tokens` more."""
        return self._heal(FINAL, cut, lambda: self.lightly_healed(cut))

    def _heal(self, stage: str, cut: Cut, start: Callable[[], Weights]) -> Weights:
        """Distil from the teacher; hidden states are compared where they have the same width."""
        course = Course(self.run, f"{stage}/{cut}/healed", self.healing_print(stage, cut))
        if course.done:
            return self.run.load_tensors(course.record)
        tokens = {LIGHT: self.config.prune.light, FINAL: self.config.heal.tokens}[stage]
        changes = {"tokens": tokens, "layers": cut.layers, "correct_tokens": 0}
        if cut.hidden_size != self.parent.shape.hidden_size:
            changes["cosine"] = 0.0
        read = Texts(self.texts["lesson"], self.texts["scoring"])
        options = self.config.heal.model_copy(update=changes)
        return heal(course, self._model(cut, start()), self.teacher, read, options)

    def healing_print(self, stage: str, cut: Cut) -> str:
        """Fingerprint of a healing: the final one goes on from the light one."""
        tokens = self.config.heal.tokens if stage == FINAL else 0
        return fingerprint(self.inputs, str(cut), self.config.prune.light, tokens)

    def _model(self, cut: Cut, weights: Weights) -> PuzzleForCausalLM:
        return model_of(cut.config(self.parent.config), weights)

    def _worth(
        self,
        name: str,
        make: Callable[[], PuzzleForCausalLM],
        inputs: str | None = None,
        asked: int = 0,
    ) -> dict[str, Any]:
        """What a model is worth on the scoring text, beside the teacher."""
        questions = corpus.accuracy_items()[:asked]
        worth: dict[str, Any] = self.run.remember(
            name,
            fingerprint(inputs or self.inputs, name, asked),
            lambda: asdict(
                evaluate(
                    make(),
                    self.reading,
                    tokenizer=self.parent.tokenizer,
                    items=questions,
                )
            ),
        )
        return worth


def partway(whole: Cut, cut: Cut, rounds: int) -> Cut:
    """A cut one of `rounds` even (geometric) steps down; heads and layers go in the first."""

    def between(large: int, small: int) -> int:
        step = round(large * (small / large) ** (1 / rounds))
        return max(small, min(large, -(-step // cut.heads) * cut.heads))

    return replace(
        cut,
        hidden_size=between(whole.hidden_size, cut.hidden_size),
        intermediate_size=between(whole.intermediate_size, cut.intermediate_size),
    )
