"""Train the embedded parent: a small Llama with its own tokenizer, on the embedded corpus.

    python benchmarks/embedded/train_parent.py WORK [--steps N]

WORK keeps the token stream and the checkpoint; a killed training goes on where it was. Only the
calibration split is trained on; the validation loss is measured on the evaluation split. Writes
`puzzle/data/parent/` at the end and at every checkpoint, and the loss curve to
`benchmarks/results/embedded_parent.json`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from puzzle.corpus import documents, split_of

sys.path.insert(0, str(Path(__file__).parents[1]))
import record

PARENT = Path(__file__).parents[2] / "puzzle" / "data" / "parent"
END = "<|endoftext|>"
SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "intermediate_size": 1024,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
BATCH, LENGTH = 32, 256
LONG_EVERY = 8  # every so many steps sequences of 512, so that all positions are trained
MUON_RATE, ADAM_RATE = 0.02, 3e-3
WARMUP, COOLDOWN = 50, 0.4  # steps; share of the steps in which the rate falls to zero
CHECK_EVERY = 100


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 4096 tokens, trained on the training split."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE["vocab_size"],
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (d for d in documents("embedded") if split_of(d) == "calibration")
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, model_max_length=512
    )


def streams(work: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and validation token streams, tokenized once."""
    found = []
    for split in ("calibration", "evaluation"):
        path = work / f"{split}.npy"
        if not path.exists():
            texts = [d for d in documents("embedded") if split_of(d) == split]
            rows = tokenizer(texts)["input_ids"]
            flat = [token for row in rows for token in (*row, tokenizer.eos_token_id)]
            np.save(path, np.array(flat, dtype=np.uint16))
        found.append(torch.from_numpy(np.load(path).astype(np.int64)))
    return found[0], found[1]


def batch(stream: torch.Tensor, step: int) -> torch.Tensor:
    """Random windows, a function of the step."""
    length = 2 * LENGTH if step % LONG_EVERY == 0 else LENGTH
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(len(stream) - length, (BATCH * LENGTH // length,), generator=generator)
    return torch.stack([stream[start : start + length] for start in starts])


@torch.no_grad()
def validate(model: LlamaForCausalLM, stream: torch.Tensor) -> float:
    """Mean loss on the first 64 validation windows."""
    windows = stream[: 64 * LENGTH].reshape(64, LENGTH)
    return float(torch.stack([model(w, labels=w).loss for w in windows.split(16)]).mean())


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embedding and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    ids = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in ids]
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.01, adjust_lr_fn="original"),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate(step: int, steps: int) -> float:
    """Warm-up, constant, linear to zero."""
    return min((step + 1) / WARMUP, 1.0, (steps - step) / (COOLDOWN * steps))


def save(work: Path, state: dict[str, object]) -> None:
    torch.save(state, work / "checkpoint.new")
    (work / "checkpoint.new").rename(work / "checkpoint.pt")


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write the parent as a Hugging Face folder in bfloat16."""
    weights = {name: p.detach().bfloat16() for name, p in model.state_dict().items()}
    copy = LlamaForCausalLM(model.config).bfloat16()
    copy.load_state_dict(weights)
    copy.save_pretrained(PARENT)
    tokenizer.save_pretrained(PARENT)


def main() -> None:
    """Train, or go on training."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=1800)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    kept = options.work / "checkpoint.pt"
    if (options.work / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(options.work)
    else:
        tokenizer = make_tokenizer()
        tokenizer.save_pretrained(options.work)
    train, validation = streams(options.work, tokenizer)
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, bos_token_id=end, eos_token_id=end))
    makers, rows, first, spent = optimizers(model), [], 0, 0.0
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        model.load_state_dict(state["model"])
        for maker, past in zip(makers, state["optimizers"]):
            maker.load_state_dict(past)
        rows, first, spent = state["rows"], state["step"], state["seconds"]
    begin = time.perf_counter() - spent
    for step in range(first, options.steps):
        for maker, base in zip(makers, (MUON_RATE, ADAM_RATE)):
            for group in maker.param_groups:
                group["lr"] = base * rate(step, options.steps)
        tokens = batch(train, step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for maker in makers:
            maker.step()
        model.zero_grad()
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == options.steps:
            seconds = time.perf_counter() - begin
            row = {
                "step": step + 1,
                "tokens": (step + 1) * BATCH * LENGTH,
                "loss": float(loss.detach()),
                "validation_loss": validate(model, validation),
                "seconds": seconds,
            }
            rows.append(row)
            print(row, flush=True)
            save(
                options.work,
                {
                    "model": model.state_dict(),
                    "optimizers": [maker.state_dict() for maker in makers],
                    "rows": rows,
                    "step": step + 1,
                    "seconds": seconds,
                },
            )
            export(model, tokenizer)
    record.write(
        "embedded_parent",
        {
            "parameters": model.num_parameters(),
            "tokens": rows[-1]["tokens"],
            "validation_loss": rows[-1]["validation_loss"],
            "train_s": rows[-1]["seconds"],
        },
        rows,
    )


if __name__ == "__main__":
    main()
