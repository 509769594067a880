"""Which layers a stage holds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ShardRange:
    """A stage and its layers [start_layer, end_layer)."""

    stage: int
    num_stages: int
    start_layer: int
    end_layer: int

    @property
    def is_first(self) -> bool:
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        return self.stage == self.num_stages - 1

    def has_same_parts(self, other: "ShardRange") -> bool:
        """Whether the same of a model is held, however many stages there are."""
        return (self.start_layer, self.end_layer, self.is_first, self.is_last) == (
            *(other.start_layer, other.end_layer, other.is_first, other.is_last),
        )

    def holds(self, layer: int) -> bool:
        return self.start_layer <= layer < self.end_layer
