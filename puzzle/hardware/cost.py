"""What a block costs: the additive value that every source of costs gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Size and time of a part of a model at one workload and batch; parts add up with `+`.

    kv_bytes is the cache of the whole batch at its full length, prompt and new tokens.
    prefill_s reads the prompts of the whole batch; decode_s makes all its new tokens.
    """

    params: int = 0
    weight_bytes: int = 0
    kv_bytes: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.params + other.params,
            self.weight_bytes + other.weight_bytes,
            self.kv_bytes + other.kv_bytes,
            self.prefill_s + other.prefill_s,
            self.decode_s + other.decode_s,
        )

    @property
    def total_s(self) -> float:
        """Seconds from the batch's arrival to its last token."""
        return self.prefill_s + self.decode_s

    @property
    def memory_bytes(self) -> int:
        """Weights and cache."""
        return self.weight_bytes + self.kv_bytes


NOTHING = Cost()
