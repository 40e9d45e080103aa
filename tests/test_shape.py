"""Parameter counts equal those of the real transformers modules, for every family."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from puzzle.blocks.variant import FFN, GQA, Block, LinearMap, MoE, NoOp
from puzzle.errors import PuzzleError
from puzzle.shape import Shape

SIZES = {
    "num_hidden_layers": 3,
    "hidden_size": 48,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 112,
    "vocab_size": 101,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "llama": {"model_type": "llama"},
    "llama-biased": {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "llama-wide-heads": {"model_type": "llama", "head_dim": 16},
    "mistral": {"model_type": "mistral", "head_dim": 16},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "qwen3-default-head": {"model_type": "qwen3"},
    "nemotron": {"model_type": "nemotron", "head_dim": 12},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3-moe": {
        "model_type": "qwen3_moe",
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 40,
        "head_dim": 16,
    },
    "gpt-oss": {
        "model_type": "gpt_oss",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 16,
    },
    "nemotron-biased": {"model_type": "nemotron", "attention_bias": True, "mlp_bias": True},
}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return SIZES | CONFIGS[request.param]


def meta_model(config: dict[str, Any]) -> torch.nn.Module:
    own = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **own))


def count(*modules: torch.nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_counts_equal_the_real_modules(config):
    shape, model = Shape.from_config(config), meta_model(config)
    layer, block = model.model.layers[0], shape.blocks[-1]
    attention = count(layer.self_attn, layer.input_layernorm)
    ffn = count(layer.mlp, layer.post_attention_layernorm)
    assert shape.attention_params(block.attention) == attention
    assert shape.ffn_params(block.ffn) == ffn
    assert shape.block_params(block) == count(layer) == attention + ffn
    assert shape.outside_params() == count(model) - 3 * count(layer)
    assert shape.model_params(shape.blocks) == count(model)


def test_a_smaller_block_counts_as_a_smaller_model(config):
    shape = Shape.from_config(config)
    experts = "num_experts" if "num_experts" in config else "num_local_experts"
    less = {experts: 3} if shape.experts else {"intermediate_size": 64}
    layer = meta_model(config | {"num_key_value_heads": 1} | less).model.layers[0]
    ffn = MoE(3) if shape.experts else FFN(64)
    assert shape.block_params(Block(GQA(1), ffn)) == count(layer)


def test_linear_has_its_norm_and_one_matrix_and_noop_nothing(config):
    shape, layer = Shape.from_config(config), meta_model(config).model.layers[0]
    linear = 48 * 48 + count(layer.input_layernorm)
    assert shape.block_params(Block(LinearMap(), NoOp())) == linear
    assert shape.block_params(Block(NoOp(), LinearMap())) == linear
    assert shape.block_params(Block(NoOp(), NoOp())) == 0


def test_transformers_own_dictionary_reads_the_same(config):
    own = {key: value for key, value in config.items() if key != "model_type"}
    full = AutoConfig.for_model(config["model_type"], **own).to_dict()
    assert Shape.from_config(full) == Shape.from_config(full | config)
    assert Shape.from_config(full).head_dim == Shape.from_config(config).head_dim


@pytest.mark.parametrize(
    ("config", "params"),
    [
        (
            {
                "model_type": "llama",
                "num_hidden_layers": 30,
                "hidden_size": 576,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "intermediate_size": 1536,
                "vocab_size": 49152,
                "tie_word_embeddings": True,
            },
            134_515_008,  # SmolLM2-135M
        ),
        (
            {
                "model_type": "qwen3_moe",
                "num_hidden_layers": 48,
                "hidden_size": 2048,
                "num_attention_heads": 32,
                "num_key_value_heads": 4,
                "head_dim": 128,
                "intermediate_size": 6144,
                "moe_intermediate_size": 768,
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "vocab_size": 151936,
            },
            30_532_122_624,  # Qwen3-30B-A3B
        ),
        (
            {
                "model_type": "gpt_oss",
                "num_hidden_layers": 24,
                "hidden_size": 2880,
                "num_attention_heads": 64,
                "num_key_value_heads": 8,
                "head_dim": 64,
                "intermediate_size": 2880,
                "num_local_experts": 32,
                "num_experts_per_tok": 4,
                "vocab_size": 201088,
            },
            20_914_757_184,  # gpt-oss-20b
        ),
    ],
)
def test_published_models_have_their_parameters(config, params):
    shape = Shape.from_config(config)
    assert shape.model_params(shape.blocks) == params


@pytest.mark.parametrize(
    ("extra", "windows"),
    [
        ({"model_type": "mistral", "sliding_window": 8}, [8, 8, 8]),
        ({"model_type": "mistral", "sliding_window": None}, [None] * 3),
        ({"model_type": "qwen2", "sliding_window": 8}, [None] * 3),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 8,
                "use_sliding_window": True,
                "max_window_layers": 1,
            },
            [None, 8, 8],
        ),
        (
            {"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2},
            [128, None, 128],
        ),
        (
            {
                "model_type": "gpt_oss",
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
                "sliding_window": 8,
            },
            [None, 8, None],
        ),
        ({"model_type": "llama", "sliding_window": 8}, [None] * 3),
    ],
)
def test_windows_are_those_of_the_family(extra, windows):
    blocks = Shape.from_config(SIZES | extra).blocks
    assert [block.attention.window for block in blocks] == windows


def test_qwen3_moe_may_have_dense_layers():
    sizes = SIZES | {
        "model_type": "qwen3_moe",
        "num_hidden_layers": 5,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 40,
        "mlp_only_layers": [3],
        "decoder_sparse_step": 2,
    }
    shape = Shape.from_config(sizes)
    model = meta_model(sizes)
    assert [str(b.ffn) for b in shape.blocks] == ["ffn112", "moe6", "ffn112", "ffn112", "ffn112"]
    assert shape.model_params(shape.blocks) == count(model)


def test_an_unknown_family_names_the_known_ones():
    expected = (
        "model type 'bert' is not supported; the families are llama, mistral, qwen2, qwen3, "
        "nemotron, mixtral, qwen3_moe, gpt_oss"
    )
    with pytest.raises(PuzzleError) as error:
        Shape.from_config({"model_type": "bert"})
    assert str(error.value) == expected


def test_a_missing_size_is_named():
    with pytest.raises(PuzzleError, match="hidden_size = None; expected a whole number"):
        Shape.from_config({"model_type": "llama"})


def test_wider_is_never_smaller():
    shape = Shape.from_config(SIZES | {"model_type": "qwen3"})
    for counts in (
        [shape.ffn_params(FFN(width)) for width in range(1, 200)],
        [shape.attention_params(GQA(heads)) for heads in range(1, 7)],
    ):
        assert counts == sorted(set(counts))
