"""Check the benchmark parent: tensors, settings, tokenizer, perplexity and a chat.

    pip install gguf accelerate
    python benchmarks/parents/check.py FOLDER TEXT

FOLDER is what `smollm2.py` wrote, TEXT the web.jsonl of `web_text.py`. Compares tensors, settings
and token ids with what transformers reads from the same GGUF file by itself, measures perplexity on
the first 512 tokens of the pages of each source, and lets the model answer a question. Joined texts
would measure something else: windows that change their subject once or more.
"""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from smollm2 import unpack
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from puzzle.parent import open_parent

LENGTH = 512
SETTINGS = (
    "rope_parameters",
    "rms_norm_eps",  # float32 in the file: 1e-05 but for the 8th digit
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
QUESTION = "What is the capital of France, and what is it known for?"


def read_texts(path: Path) -> dict[tuple[str, str], list[str]]:
    """The texts of each source and kind."""
    found: dict[tuple[str, str], list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault((row["source"], row["kind"]), []).append(row["text"])
    return found


@torch.inference_mode()
def perplexity(model: Any, tokenizer: Any, texts: list[str]) -> str:
    """Perplexity over the first LENGTH tokens of every text that is so long, and how many are."""
    rows = [ids[:LENGTH] for ids in tokenizer(texts)["input_ids"] if len(ids) >= LENGTH]
    batches = [torch.tensor([row]) for row in rows]
    losses = [float(model(input_ids=batch, labels=batch).loss) for batch in batches]
    return f"{math.exp(sum(losses) / len(losses)):.2f} over {len(losses)} texts"


@torch.inference_mode()
def answer(model: Any, tokenizer: Any) -> str:
    """The greedy answer to QUESTION under the chat template."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    tokens = model.generate(**prompt, max_new_tokens=60, do_sample=False)[0]
    return str(tokenizer.decode(tokens[prompt["input_ids"].shape[1] :]))


def model_differences(folder: Path, gguf: Path) -> dict[str, Any]:
    """Tensors and settings on which the checkpoint and transformers' own GGUF reader disagree."""
    parent = open_parent(str(folder), "bfloat16")
    theirs = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    tensors = theirs.state_dict()
    tensors.pop("lm_head.weight", None)  # tied
    ours = parent.tensors(tensors)
    pairs = {
        name: (getattr(parent.config, name), getattr(theirs.config, name)) for name in SETTINGS
    }
    return {
        "tensors": len(ours),
        "tensors that differ": [n for n, t in ours.items() if not torch.equal(t, tensors[n])],
        "settings that differ": {name: pair for name, pair in pairs.items() if pair[0] != pair[1]},
    }


def token_differences(folder: Path, gguf: Path, texts: list[str]) -> dict[str, Any]:
    """Texts whose tokens differ from those of transformers' own GGUF reader, or are lossy.

    That reader does not split digits, so that it merges blank lines before them otherwise than the
    published tokenizer: the texts are compared without digits.
    """
    ours = AutoTokenizer.from_pretrained(folder)
    theirs = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    bare = [re.sub(r"\d", "", text) for text in texts]
    pairs = zip(ours(bare)["input_ids"], theirs(bare)["input_ids"], strict=True)
    back = ours.batch_decode(ours(texts)["input_ids"])
    return {
        "texts": len(texts),
        "texts with other tokens": sum(one != other for one, other in pairs),
        "texts that do not come back": sum(one != other for one, other in zip(back, texts)),
        "tokens of 'in 2024'": ours.tokenize("in 2024"),
    }


def main() -> None:
    """Print every check as a line."""
    folder, sources = Path(sys.argv[1]), read_texts(Path(sys.argv[2]))
    with tempfile.TemporaryDirectory() as work:
        gguf = unpack(work)
        report = model_differences(folder, gguf)
        report |= token_differences(folder, gguf, list(chain(*sources.values())))
    for name, value in report.items():
        print(f"{name}: {value}")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for (source, kind), texts in sources.items():
        if kind == "page":
            print(f"perplexity at {LENGTH}, {source}: {perplexity(model, tokenizer, texts)}")
    print(f"{QUESTION}\n{answer(model, tokenizer)}")


if __name__ == "__main__":
    main()
