"""Figures of interleaved rounds by name: ratios are taken within a round, then their median over the rounds."""

import statistics
from dataclasses import dataclass, field


@dataclass(slots=True)
class Figures:
    """Numbers by name and round. What was not measured is not there."""

    rounds: dict[str, dict[int, float]] = field(default_factory=dict)

    def add(self, name: str, number: int, value: float | None) -> None:
        """None: could not be measured in this round."""
        if value is not None:
            self.rounds.setdefault(name, {})[number] = value

    def median(self, name: str) -> float | None:
        return statistics.median(self.rounds[name].values()) if name in self.rounds else None

    def worst(self, name: str) -> float | None:
        """The largest over the rounds."""
        return max(self.rounds[name].values()) if name in self.rounds else None

    def ratio(self, name: str, base: str) -> float | None:
        """Median over common rounds of one figure over another; None without such a round."""
        mine, theirs = self.rounds.get(name, {}), self.rounds.get(base, {})
        common = mine.keys() & theirs.keys()
        return statistics.median(mine[number] / theirs[number] for number in common) if common else None

    def to_json(self) -> dict[str, list[float]]:
        """Each name's values in the order of the rounds."""
        return {name: [values[number] for number in sorted(values)] for name, values in self.rounds.items()}
