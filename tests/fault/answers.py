"""An answer as its client saw it, and what became of it against the same answer undisturbed. Pure.

An answer is LOST when it failed, ended early, or lacks tokens in its middle; DOUBLED when tokens came twice; CHANGED when it is
different in any other way: tokens, text, reasons to end, or the number of tokens that it says it has.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any

Json = dict[str, Any]


class Verdict(StrEnum):
    FINE = "fine"
    LOST = "lost"
    CHANGED = "changed"
    DOUBLED = "doubled"


@dataclass(slots=True)
class Choice:
    """One choice of an answer, as far as it came."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    reason: str = ""
    num_ends: int = 0


@dataclass(slots=True)
class Answer:
    """Read line by line from a stream of server-sent events, or at once; times are seconds of one clock.

    times: when a token came that was not there before, and when the answer was done. A client that asks again (ask_again) gets tokens
    a second time; those are no news. failure: why the answer will not be whole.
    """

    sent: float = 0.0
    times: list[float] = field(default_factory=list)
    choices: dict[int, Choice] = field(default_factory=dict)
    num_counted: int | None = None
    is_done: bool = False
    failure: str = ""
    num_retries: int = 0
    abandoned: list[dict[int, Choice]] = field(default_factory=list)
    _num_most: int = 0

    def note_line(self, line: str, now: float) -> None:
        """A line of the stream."""
        if not line.startswith("data: "):
            return
        if line == "data: [DONE]":
            self.is_done = True
            self.times.append(now)
            return
        event: Json = json.loads(line.removeprefix("data: "))
        if "error" in event:
            self.failure = f"error event: {event['error'].get('message', event['error'])}"
        for choice in event.get("choices", ()):
            self._note_choice(choice)
        if usage := event.get("usage"):
            self.num_counted = usage["completion_tokens"]
        if self.num_tokens > self._num_most:
            self._num_most = self.num_tokens
            self.times.append(now)

    def note_whole(self, body: Json, now: float) -> None:
        """The body of an answer that is not streamed."""
        self.choices = {
            one["index"]: Choice(list(one["token_ids"]), one["message"]["content"], one["finish_reason"], 1)
            for one in body["choices"]
        }
        self.num_counted = body["usage"]["completion_tokens"]
        self.is_done = True
        self.times.append(now)

    def ask_again(self) -> None:
        """The connection died; the whole answer will come anew."""
        self.num_retries += 1
        self.abandoned.append(self.choices)
        self.choices, self.num_counted = {}, None

    @property
    def num_tokens(self) -> int:
        return sum(len(choice.token_ids) for choice in self.choices.values())

    def _note_choice(self, event: Json) -> None:
        choice = self.choices.setdefault(event["index"], Choice())
        choice.token_ids += event.get("token_ids") or ()
        choice.text += event["delta"].get("content") or ""
        if event["finish_reason"]:
            choice.reason = event["finish_reason"]
            choice.num_ends += 1


def judge(answer: Answer, reference: Answer) -> Verdict:
    """What became of an answer. What a dead connection had brought counts too: it must be the beginning of the right answer."""
    whole = [_judge_choice(answer.choices.get(index, Choice()), right) for index, right in reference.choices.items()]
    begun = [
        _judge_beginning(choice, reference.choices.get(index, Choice()))
        for choices in answer.abandoned
        for index, choice in choices.items()
    ]
    if answer.failure or not answer.is_done:
        # What came before the failure may be wrong too, which is worse.
        wrong = [_judge_beginning(one, reference.choices.get(index, Choice())) for index, one in answer.choices.items()]
        return _worst([*wrong, *begun, Verdict.LOST])
    extra = [Verdict.CHANGED] if answer.choices.keys() - reference.choices.keys() else []
    verdict = _worst([*whole, *begun, *extra])
    is_miscounted = verdict is Verdict.FINE and answer.num_counted != reference.num_counted
    return Verdict.CHANGED if is_miscounted else verdict


def find_pause_s(answer: Answer, reference: Answer) -> float | None:
    """Longest time without a new token, less what is usual: the wait for the first against the reference's own, later ones against its
    median gap. None for an answer that failed or never began."""
    if answer.failure or not answer.is_done or not answer.times:
        return None
    first_s = (answer.times[0] - answer.sent) - (reference.times[0] - reference.sent)
    longest_s = max(find_gaps(answer), default=0.0) - statistics.median(find_gaps(reference) or [0.0])
    return max(0.0, first_s, longest_s)


def find_gaps(answer: Answer) -> list[float]:
    """Seconds between neighbouring events that brought something new."""
    return [later - earlier for earlier, later in pairwise(answer.times)]


def _judge_choice(choice: Choice, right: Choice) -> Verdict:
    tokens = _judge_tokens(choice.token_ids, right.token_ids)
    if tokens is not Verdict.FINE:
        return tokens
    if choice.num_ends > 1:
        return Verdict.DOUBLED
    return Verdict.FINE if (choice.text, choice.reason) == (right.text, right.reason) else Verdict.CHANGED


def _judge_beginning(choice: Choice, right: Choice) -> Verdict:
    """Of a choice that need not be whole."""
    if right.token_ids[: len(choice.token_ids)] == choice.token_ids:
        return Verdict.FINE if right.text.startswith(choice.text) else Verdict.CHANGED
    return _judge_tokens(choice.token_ids, right.token_ids)


def _judge_tokens(tokens: Sequence[int], right: Sequence[int]) -> Verdict:
    if tokens == right:
        return Verdict.FINE
    at = next((place for place, pair in enumerate(zip(tokens, right, strict=False)) if pair[0] != pair[1]), None)
    if at is None and len(tokens) < len(right):
        return Verdict.LOST
    if at is None:
        at = len(right)
    if _is_repetition(tokens, right, at):
        return Verdict.DOUBLED
    rest = tokens[at:]
    is_gap = bool(rest) and any(right[begin : begin + len(rest)] == rest for begin in range(at + 1, len(right)))
    return Verdict.LOST if is_gap else Verdict.CHANGED


def _is_repetition(tokens: Sequence[int], right: Sequence[int], at: int) -> bool:
    """Whether what stands from `at` on is a run that came just before, and after it the right answer goes on."""
    for length in range(1, min(at, len(tokens) - at) + 1):
        rest = tokens[at + length :]
        if tokens[at : at + length] == right[at - length : at] and right[at : at + len(rest)] == rest:
            return True
    return False


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    order = (Verdict.DOUBLED, Verdict.CHANGED, Verdict.LOST)
    return next((verdict for verdict in order if verdict in verdicts), Verdict.FINE)
