"""An answer that several heads give in turn is the answer that one would have given."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_api_gateway.generation.progress import Progress
from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    ChoiceProgress,
    FinishReason,
    GenerateRequest,
    GenerationCompleted,
    GenerationEvent,
    GenerationStarted,
    Sampling,
    TokenLogprob,
)
from paceline_services.errors import UnavailableError
from paceline_services.ids import ModelId, RequestId

NUM_PROMPT_TOKENS, SEED = 7, 2**63 + 5
STARTED = GenerationStarted(RequestId("r"), NUM_PROMPT_TOKENS, SEED)
REQUEST = GenerateRequest(ModelId("demo"), RequestId("r"), text="Hello", sampling=Sampling(temperature=0.8))


@dataclass(frozen=True)
class Token:
    token_id: int
    text: str

    @property
    def logprob(self) -> TokenLogprob:
        return TokenLogprob(self.token_id, self.text, self.text.encode(), -1.0)


Script = tuple[Token, ...]
"""All tokens of one choice, each with the text that becomes certain with it, which may be empty."""


@dataclass
class Client:
    """What a client has heard."""

    num_choices: int
    texts: list[str] = field(init=False)
    tokens: list[list[int]] = field(init=False)
    logprobs: list[list[TokenLogprob]] = field(init=False)
    finished: list[ChoiceFinished] = field(default_factory=list)
    ends: list[GenerationEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.texts = [""] * self.num_choices
        self.tokens = [[] for _ in self.texts]
        self.logprobs = [[] for _ in self.texts]

    def hear(self, event: GenerationEvent | None) -> None:
        match event:
            case ChoiceDelta(index, token_ids, text, first, logprobs):
                assert first == len(self.tokens[index]), "tokens come in order"
                self.texts[index] += text
                self.tokens[index] += token_ids
                self.logprobs[index] += logprobs
            case ChoiceFinished():
                self.finished.append(event)
            case GenerationStarted() | GenerationCompleted():
                self.ends.append(event)


def tell(script: Script, index: int, first: int, sizes: Iterable[int]) -> list[ChoiceDelta | ChoiceFinished]:
    """Events of one choice from a token on, in portions of these sizes."""
    events: list[ChoiceDelta | ChoiceFinished] = []
    for size in sizes:
        part = script[first : first + size]
        if part:
            text, ids = "".join(one.text for one in part), tuple(one.token_id for one in part)
            events.append(ChoiceDelta(index, ids, text, first, tuple(one.logprob for one in part)))
        first += size
    if first < len(script):
        events += tell(script, index, first, [len(script) - first])[:-1]
    return [*events, ChoiceFinished(index, FinishReason.STOP, "!", len(script))]


@st.composite
def weave(
    draw: st.DrawFn, scripts: Sequence[Script], progress: Sequence[ChoiceProgress], is_old: bool = False
) -> list[GenerationEvent]:
    """What a head says that goes on from progress, or an old one that says all again; choices in any order."""
    rest = []
    for index, script in enumerate(scripts):
        done = progress[index] if progress and not is_old else ChoiceProgress()
        if not done.is_finished:
            sizes = draw(st.lists(st.integers(1, 3), max_size=6))
            rest.append(tell(script, index, len(done.token_ids), sizes))
    events: list[GenerationEvent] = [STARTED]
    while any(rest):
        events.append(draw(st.sampled_from([one for one in rest if one])).pop(0))
    return [*events, GenerationCompleted(NUM_PROMPT_TOKENS, 0)]


scripts = st.lists(
    st.lists(st.builds(Token, st.integers(0, 3), st.text("ab", max_size=2)), min_size=1, max_size=8).map(tuple),
    min_size=1,
    max_size=3,
)


@given(scripts, st.lists(st.booleans(), max_size=4), st.data())
def test_any_heads_lost_at_any_event_leave_the_answer_as_it_is(
    answer: list[Script], lost_heads: list[bool], data: st.DataObject
) -> None:
    progress, client = Progress(replace(REQUEST, num_choices=len(answer))), Client(len(answer))
    for is_old in lost_heads:
        events = data.draw(weave(answer, progress.make_request().progress, is_old))
        with suppress(UnavailableError):
            for event in events[: data.draw(st.integers(0, len(events) - 1))]:
                client.hear(progress.take(event))
    if progress.is_finished:
        client.hear(progress.complete())
    else:
        for event in data.draw(weave(answer, progress.make_request().progress)):
            client.hear(progress.take(event))
    assert client.texts == ["".join(token.text for token in script) for script in answer]
    assert client.tokens == [[token.token_id for token in script] for script in answer]
    assert client.logprobs == [[token.logprob for token in script] for script in answer]
    ended = sorted(client.finished, key=lambda one: one.choice_index)
    assert ended == [ChoiceFinished(index, FinishReason.STOP, "!", len(one)) for index, one in enumerate(answer)]
    assert client.ends == [STARTED, GenerationCompleted(NUM_PROMPT_TOKENS, sum(map(len, answer)))]


def take_all(progress: Progress, *events: GenerationEvent) -> list[GenerationEvent | None]:
    return [progress.take(event) for event in events]


def test_request_is_sent_as_it_is_until_a_head_has_begun() -> None:
    assert Progress(REQUEST).make_request() is REQUEST


def test_next_head_is_told_seed_tokens_and_which_choices_are_finished() -> None:
    progress = Progress(replace(REQUEST, num_choices=2))
    take_all(progress, STARTED, ChoiceDelta(0, (5, 6), "ab", 0), ChoiceDelta(1, (7,), "c", 0))
    take_all(progress, ChoiceFinished(1, FinishReason.LENGTH, num_tokens=1))
    asked = progress.make_request()
    assert asked.progress == (ChoiceProgress((5, 6)), ChoiceProgress((7,), is_finished=True))
    assert asked.sampling == Sampling(temperature=0.8, seed=SEED)
    assert replace(asked, progress=(), sampling=REQUEST.sampling, num_choices=1) == REQUEST


def test_answer_that_has_begun_without_a_token_keeps_its_seed_alone() -> None:
    progress = Progress(REQUEST)
    progress.take(STARTED)
    asked = progress.make_request()
    assert asked.sampling.seed == SEED and asked.progress == ()


def test_second_beginning_and_repeated_tokens_are_left_out() -> None:
    progress = Progress(REQUEST)
    delta = ChoiceDelta(0, (5, 6), "ab", 0)
    end = ChoiceFinished(0, FinishReason.STOP, num_tokens=2)
    assert take_all(progress, STARTED, delta, end) == [STARTED, delta, end]
    assert take_all(progress, STARTED, delta, end) == [None, None, None]
    assert progress.finish_reasons == ["stop"]


def test_delta_that_begins_with_known_tokens_is_cut() -> None:
    progress = Progress(REQUEST)
    logprobs = tuple(TokenLogprob(number, "x", b"x", -1.0) for number in (5, 6, 7))
    take_all(progress, STARTED, ChoiceDelta(0, (5,), "a", 0), ChoiceDelta(0, (6,), "", 1))
    assert progress.take(ChoiceDelta(0, (5, 6, 7), "abc", 0, logprobs)) == ChoiceDelta(0, (7,), "bc", 2, logprobs[2:])


@pytest.mark.parametrize(
    "event",
    [
        ChoiceDelta(0, (9,), "z", 3),
        ChoiceDelta(0, (5, 8), "ab", 0),
        ChoiceDelta(0, (6, 7), "bc", 1),
        ChoiceDelta(1, (5,), "a", 0),
        ChoiceFinished(0, FinishReason.STOP, num_tokens=3),
        GenerationCompleted(NUM_PROMPT_TOKENS, 2),
    ],
    ids=["gap", "other tokens", "from amid a delta", "no such choice", "end of more tokens", "end before the choices"],
)
def test_event_that_does_not_follow_is_a_lost_head(event: GenerationEvent) -> None:
    progress = Progress(REQUEST)
    take_all(progress, STARTED, ChoiceDelta(0, (5, 6), "ab", 0))
    with pytest.raises(UnavailableError) as caught:
        progress.take(event)
    assert caught.value.reason == "INSTANCE_BROKEN"
    assert progress.take(ChoiceDelta(0, (7,), "c", 2)), "and nothing of it was taken"


def test_tokens_after_the_end_of_a_choice_are_a_lost_head() -> None:
    progress = Progress(REQUEST)
    take_all(progress, STARTED, ChoiceFinished(0, FinishReason.STOP))
    with pytest.raises(UnavailableError):
        progress.take(ChoiceDelta(0, (1,), "a", 0))
