"""What of a stage the fullest rank holds, from a model's card."""

import pytest

from paceline_services.domain.models import ModelCard, RankShare
from paceline_services.ids import ModelId


def make_card(num_heads: int, num_kv_heads: int) -> ModelCard:
    sizes = {"num_heads": num_heads, "num_kv_heads": num_kv_heads}
    return ModelCard(ModelId("m"), "llama", 1, (1,), 1, 1, 1, 1, 1, **sizes)


@pytest.mark.parametrize(
    ("heads", "size", "share"),
    [
        ((32, 8), 1, RankShare(1.0, 1.0)),
        ((32, 8), 2, RankShare(0.5, 0.5)),
        ((32, 8), 3, RankShare(3 / 8, 3 / 8)),
        ((32, 8), 16, RankShare(1 / 16, 1 / 8)),
        ((9, 3), 2, RankShare(2 / 3, 2 / 3)),
        ((9, 3), 6, RankShare(2 / 9, 1 / 3)),
        ((128, 1), 4, RankShare(1 / 4, 1.0)),
        ((0, 0), 1, RankShare(1.0, 1.0)),
    ],
)
def test_largest_share_of_a_rank(heads: tuple[int, int], size: int, share: RankShare) -> None:
    assert make_card(*heads).largest_share(size) == share
