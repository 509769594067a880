"""A draft model's guesses are what the model says greedily, whatever happened to the sequence before."""

from pathlib import Path

import mlx.core as mx
import pytest

from paceline_services.ids import SequenceId
from paceline_worker.engine.draft_model import MOST_SEQUENCES, DraftModel
from paceline_worker.model.ranges import ShardRange
from paceline_worker.model.shard import load_shard
from paceline_worker.model.stage import Part, StageModel
from support.models import VOCAB_SIZE, make_tiny_model

PROMPT = [(index * 37) % VOCAB_SIZE for index in range(30)]
IDS = [SequenceId(number) for number in range(8)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> StageModel:
    folder: Path = tmp_path_factory.mktemp("tiny") / "llama"
    config = make_tiny_model("llama", folder, seed=3)
    return load_shard(folder, ShardRange(0, 1, 0, config["num_hidden_layers"]), lambda part: None).model


def say(model: StageModel, tokens: list[int], count: int) -> list[int]:
    """What the model says greedily after some tokens, computed anew for each."""
    said: list[int] = []
    for _ in range(count):
        whole = [*tokens, *said]
        logits = model.forward(mx.array(whole), [Part(model.make_cache(), len(whole), num_logits=1)])
        said.append(int(mx.argmax(logits[0])))
    return said


def test_guesses_are_what_the_model_says(model: StageModel) -> None:
    draft = DraftModel(model, 4096)
    guesses = draft.guess({IDS[0]: (PROMPT, 5), IDS[1]: (PROMPT[:7], 2)}, IDS)
    assert guesses == {IDS[0]: say(model, PROMPT, 5), IDS[1]: say(model, PROMPT[:7], 2)}


def test_wrong_guesses_are_cut_off(model: StageModel) -> None:
    draft = DraftModel(model, 4096)
    first = draft.guess({IDS[0]: (PROMPT, 4)}, IDS)[IDS[0]]
    truth = [*PROMPT, first[0], (first[1] + 1) % VOCAB_SIZE, 9]
    assert draft.guess({IDS[0]: (truth, 3)}, IDS)[IDS[0]] == say(model, truth, 3)


def test_long_prompt_is_caught_up_in_pieces(model: StageModel) -> None:
    prompt = [(index * 13) % VOCAB_SIZE for index in range(1100)]
    assert DraftModel(model, 4096).guess({IDS[0]: (prompt, 2)}, IDS)[IDS[0]] == say(model, prompt, 2)


def test_few_caches_are_kept_and_none_of_the_dead(model: StageModel) -> None:
    draft = DraftModel(model, 4096)
    for one in IDS:
        draft.guess({one: (PROMPT, 1)}, IDS)
    assert len(draft._drafts) == MOST_SEQUENCES
    draft.guess({IDS[-1]: (PROMPT, 1)}, IDS[-1:])
    assert list(draft._drafts) == IDS[-1:]


def test_caches_share_their_room(model: StageModel) -> None:
    draft = DraftModel(model, 70)
    for one in IDS[:4]:
        draft.guess({one: (PROMPT, 1)}, IDS)
    assert list(draft._drafts) == IDS[2:4]
