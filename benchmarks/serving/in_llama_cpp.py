"""Continue prompts greedily with llama.cpp; needs llama-cpp-python and numpy, nothing of ours.

python in_llama_cpp.py CHILD.gguf ASKED.json ANSWER.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np


def main(model: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Greedy tokens and their log-probabilities for every prompt, and the text as tokens."""
    cache = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}  # else float16
    engine = llama_cpp.Llama(model, n_ctx=256, n_threads=1, logits_all=True, verbose=False, **cache)
    tokens, logprobs = [], []
    for prompt in asked["prompts"]:
        found, sure = [], []
        engine.reset()
        engine.eval(prompt)
        for _ in range(asked["new_tokens"]):
            logits = np.array(engine.scores[engine.n_tokens - 1], dtype=np.float64)
            found.append(int(logits.argmax()))
            sure.append(float(logits.max() - np.logaddexp.reduce(logits)))
            engine.eval(found[-1:])
        tokens.append(found)
        logprobs.append(sure)
    ids = engine.tokenize(asked["text"].encode(), add_bos=True, special=False)
    return {
        "version": llama_cpp.__version__,
        "tokens": tokens,
        "logprobs": logprobs,
        "text": ids,
    }


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[2]).read_text())
    Path(sys.argv[3]).write_text(json.dumps(main(sys.argv[1], request)))
