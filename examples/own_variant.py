"""A search with a variant of your own: an FFN squeezed through a few channels."""

from dataclasses import dataclass
from tempfile import mkdtemp

from torch import linalg, nn

import puzzle
from puzzle.blocks.sizes import Matrix


@dataclass(frozen=True)
class LowRank(puzzle.OwnVariant):
    rank: int
    half, pattern, examples = "ffn", r"lowrank([1-9]\d*)", ("lowrank64",)

    def __str__(self):
        return f"lowrank{self.rank}"

    def matrices(self, sizes):
        return Matrix(sizes.hidden_size, self.rank), Matrix(self.rank, sizes.hidden_size)

    def module(self, config):
        down = nn.Linear(config.hidden_size, self.rank, bias=False)
        return nn.Sequential(down, nn.Linear(self.rank, config.hidden_size, bias=False))

    def initial(self, parent):  # the best approximation of the FFN without its nonlinearity
        u, s, v = linalg.svd(parent["mlp.down_proj.weight"] @ parent["mlp.up_proj.weight"])
        return {"0.weight": v[: self.rank], "1.weight": u[:, : self.rank] * s[: self.rank]}


puzzle.add_variant(LowRank)
space = ["space.attention=[100%]", "space.ffn=[100%, lowrank64]", "choose.finalists=2"]
tokens = ["tokens.calibration=4096", "tokens.scoring=2048", "tokens.evaluation=2048"]
short = ["distill.tokens=4096", "heal.tokens=2048", "evaluate.items=16", "target=hf"]
found = puzzle.search(budget="cpu-laptop", out=mkdtemp(), settings=[*space, *tokens, *short])
print(found.architecture, found.formatted(), sep="\n")
