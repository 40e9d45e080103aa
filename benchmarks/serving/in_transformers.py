"""Continue prompts greedily with transformers and the folder's own code; nothing of ours.

python in_transformers.py FOLDER ASKED.json ANSWER.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers


@torch.no_grad()
def main(folder: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Greedy tokens and their log-probabilities for every prompt, and the text as tokens."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=True
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    tokens, logprobs = [], []
    for prompt in asked["prompts"]:
        made = model.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=asked["new_tokens"],
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        tokens.append(made.sequences[0, len(prompt) :].tolist())
        logprobs.append([float(step[0].log_softmax(-1).max()) for step in made.logits])
    return {
        "version": transformers.__version__,
        "tokens": tokens,
        "logprobs": logprobs,
        "text": tokenizer(asked["text"])["input_ids"],
    }


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[2]).read_text())
    Path(sys.argv[3]).write_text(json.dumps(main(sys.argv[1], request)))
