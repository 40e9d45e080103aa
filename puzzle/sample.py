"""Sample: text that a model writes itself, to calibrate on where there is none of its kind.

What a model learned from is what it writes (data-free distillation: LLM-QAT, arXiv 2305.17888). It
writes from the end of a text on, one token after another at temperature 1, so that the KL of a
child on such text is that of whole continuations, `E_parent sum_t KL_t`. The text goes to a JSONL
file, which is a source like any other.

Legend: S sequences, T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from puzzle.device import current, placed, seeded
from puzzle.errors import PuzzleError
from puzzle.export.register import load_checkpoint
from puzzle.generation import continued
from puzzle.parent import checkpoint_folder, checkpoint_print, load_tokenizer
from puzzle.progress import track
from puzzle.shape import Shape

TOGETHER, MOST = 64, 1024  # sequences that are written at the same time, on a GPU at most
LENGTH = 256  # tokens of one
APART = 2_654_435_761  # what two seeds draw by; of a seed the CPU's generator heeds 32 bits


@placed
def sample(model: str, out: Path, tokens: int, *, seed: int = 0) -> int:
    """Write about so many tokens of the model's own text to a JSONL file; how many there are.

    A row holds `text`, a document or the beginning of one, its number of `tokens`, how many had
    been `drawn` with its batch, and the fingerprint of the `model`. A file that holds some already
    is gone on with.

    Args:
        seed: another one writes other text.

    Raises:
        PuzzleError: the file is another model's, or the model does not say where a text ends.
    """
    folder = checkpoint_folder(model)
    tokenizer = load_tokenizer(folder, model)
    end, own = tokenizer.eos_token_id, checkpoint_print(folder, torch.float32)
    rows = _known(out, model, own)
    if end is None:
        raise PuzzleError("the tokenizer has no end-of-text token; set eos_token in its config")
    before = rows[-1]["drawn"] if rows else 0
    if before < tokens:
        writer = load_checkpoint(folder, torch.float32)
        length = min(LENGTH, getattr(writer.config, "max_position_embeddings", LENGTH) - 1)
        size = _together(writer, length)
        out.parent.mkdir(parents=True, exist_ok=True)
        batches = range(before, tokens, size * length)
        for drawn in track(batches, "sample", len(batches)):
            ids_ST = draw(writer, end, size, length, seed=(seed * APART + drawn) % 2**32)
            for document in _documents(ids_ST, end):
                said = {"tokens": len(document), "drawn": drawn + ids_ST.numel(), "model": own}
                rows.append({"text": tokenizer.decode(document), **said})
            _save(out, rows)
    return sum(row["tokens"] for row in rows)


def _together(writer: PreTrainedModel, length: int) -> int:
    """How many sequences at the same time: on a GPU as many as half its free memory caches."""
    if current().type != "cuda":
        return TOGETHER
    shape = Shape.from_config(writer.config.to_dict())
    cached = sum(block.attention.cached_heads for block in shape.blocks)
    each = 2 * 4 * length * shape.head_dim * cached  # keys and values in float32
    free, _ = torch.cuda.mem_get_info()
    return max(TOGETHER, min(MOST, free // 2 // max(1, each)))


def draw(
    model: PreTrainedModel, start: int, sequences: int, length: int, *, seed: int
) -> torch.Tensor:
    """Token ids [S, T] drawn from the model one after another behind `start`.

    An end of text is a token like others: the next text follows it, as where texts are packed.
    """
    asked = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=length, pad_token_id=0
    )
    with seeded(seed):
        return continued(model, torch.full((sequences, 1), start), asked)[:, 1:]


def _documents(ids_ST: torch.Tensor, end: int) -> Iterator[list[int]]:
    """The texts of each sequence, without their ends."""
    for ids in ids_ST.tolist():
        while ids:
            stop = ids.index(end) if end in ids else len(ids)
            if stop:
                yield ids[:stop]
            ids = ids[stop + 1 :]


def _known(out: Path, model: str, own: str) -> list[dict[str, Any]]:
    """The rows of a file that this model wrote, by its fingerprint; none where there is no file."""
    if not out.exists():
        return []
    if out.is_dir():
        raise PuzzleError(f"{out} is a folder; name the JSONL file to write")
    try:
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        known = all(row["model"] == own and row["tokens"] <= row["drawn"] for row in rows)
    except (ValueError, TypeError, KeyError):
        known = False
    if not known:
        raise PuzzleError(f"{out} holds something else than text that {model} wrote; name another")
    return rows


def _save(out: Path, rows: list[dict[str, Any]]) -> None:
    """All rows at once, so that a killed process leaves the batches before."""
    written = out.with_suffix(".part")
    written.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    written.replace(out)
