"""Tiny random models of the real transformers classes, as checkpoints a user would give."""

from __future__ import annotations

import torch
import transformers

SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 16,
}
FAMILIES = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama-tied": (
        "Llama",
        {
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": LLAMA3_ROPE,
        },
    ),
    "mistral": ("Mistral", {"sliding_window": 8}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "nemotron": ("Nemotron", {"head_dim": 24}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "head_dim": 32,
            "mlp_only_layers": [1],
        },
    ),
    "gpt_oss": (
        "GptOss",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 16,
            "sliding_window": 8,
            "rope_parameters": YARN,
        },
    ),
}
MIXTURES = {"mixtral", "qwen3_moe", "gpt_oss"}  # families whose first layer holds experts

# of a search that takes seconds
SETTINGS = [
    "sequence_length=32",
    "tokens.calibration=1024",
    "tokens.scoring=256",
    "tokens.evaluation=256",
    "score.samples=2",
    "distill.tokens=512",
    "distill.batch_tokens=256",
    "heal.tokens=512",
    "heal.batch_tokens=256",
    "evaluate.items=8",
]


def tiny_model(family: str) -> torch.nn.Module:
    """A random model of the family's own transformers class; norms are not left at one."""
    prefix, extra = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{prefix}Config")(**SIZES, **extra)
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.1)
        elif parameter.dim() >= 2 or name.endswith(("bias", "sinks")):
            torch.nn.init.normal_(parameter, std=0.1)
    return model
