"""Where a checkpoint keeps the tensors of a mixture of experts.

In memory the matrices of all experts are one tensor, [E, ...]. Published checkpoints of Mixtral and
Qwen3-MoE hold one matrix an expert, as `save_pretrained` writes them too; Mixtral's under names of
its own.

>>> stored("model.layers.0.mlp.gate.weight", {"model.layers.0.block_sparse_moe.gate.weight"}, 2)
[['model.layers.0.block_sparse_moe.gate.weight']]
>>> stored("mlp.experts.gate_up_proj", {"mlp.experts.0.up_proj.weight"}, 2)
[['mlp.experts.0.gate_proj.weight', 'mlp.experts.0.up_proj.weight'], \
['mlp.experts.1.gate_proj.weight', 'mlp.experts.1.up_proj.weight']]
"""

from __future__ import annotations

from collections.abc import Container

# a tensor of all experts -> what its rows are called where every expert has its own
PARTS = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}


def stored(name: str, held: Container[str], experts: int) -> list[list[str]]:
    """The tensors that make up `name`: one list for it all, or one an expert, rows in order.

    A tensor that is nowhere comes back as itself.
    """
    for place in (name, name.replace("mlp.", "block_sparse_moe.")):
        if place in held:
            return [[place]]
        stem, _, last = place.rpartition(".")
        for parts in PARTS.get(last, ()):
            rows = [[f"{stem}.{e}.{part}.weight" for part in parts] for e in range(experts)]
            if any(part in held for part in rows[0]):
                return rows
    return [[name]]
