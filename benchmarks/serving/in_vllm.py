"""Continue prompts greedily with vLLM; needs vLLM, and nothing of ours with `trust`.

    python in_vllm.py FOLDER ASKED.json ANSWER.json

Without `trust` in what is asked, vLLM knows the folder only by the plugin of an installed Puzzle.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import vllm


def main(folder: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Greedy tokens and their log-probabilities for every prompt, and the text as tokens."""
    engine = vllm.LLM(
        folder,
        dtype="float32",
        trust_remote_code=asked["trust"],
        max_model_len=256,
        enforce_eager=True,
        max_num_seqs=8,
        kv_cache_memory_bytes=1 << 28,
        enable_prefix_caching=False,
    )
    sampling = vllm.SamplingParams(
        temperature=0, max_tokens=asked["new_tokens"], ignore_eos=True, logprobs=1
    )
    prompts = [{"prompt_token_ids": prompt} for prompt in asked["prompts"]]
    made = [each.outputs[0] for each in engine.generate(prompts, sampling)]
    return {
        "version": vllm.__version__,
        "tokens": [list(each.token_ids) for each in made],
        "logprobs": [
            [step[token].logprob for token, step in zip(each.token_ids, each.logprobs)]
            for each in made
        ],
        "text": engine.get_tokenizer()(asked["text"])["input_ids"],
    }


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[2]).read_text())
    Path(sys.argv[3]).write_text(json.dumps(main(sys.argv[1], request)))
