"""The prompt told back, with the log probability of each of its tokens where that was asked for.

Those are the logits of the chunks in which the prompt is computed: the first choice's sequence computes it whole, whatever is kept.
"""

from collections.abc import Sequence

from paceline_services.domain.generation import GenerateRequest, PromptEchoed, TokenLogprob
from paceline_worker.engine.sampling import Logits
from paceline_worker.pipeline.choice import describe, name_token
from paceline_worker.pipeline.vocabulary import Vocabulary


class Echo:
    """Of one request's prompt. Rows are taken on the compute thread, before any token of the answer is drawn."""

    def __init__(self, request: GenerateRequest, tokens: Sequence[int], vocabulary: Vocabulary) -> None:
        self._tokens = tokens
        self._num_top = request.num_top_logprobs
        self._vocabulary = vocabulary
        self.wants_logits = request.logprobs
        self._found: dict[int, TokenLogprob] = {}

    @property
    def is_complete(self) -> bool:
        """Whether everything is known that is to be told."""
        return not self.wants_logits or len(self._found) >= len(self._tokens) - 1

    def take_rows(self, start_position: int, rows: Logits) -> None:
        """Logits [tokens, vocab] of a chunk of the prompt: each tells of the token that follows."""
        for position, logits in enumerate(rows, start_position + 1):
            self._found[position] = describe(self._tokens[position], logits, self._num_top, self._vocabulary)

    def make_event(self) -> PromptEchoed:
        """The prompt; without log probabilities where they were not computed."""
        text = self._vocabulary.decode(self._tokens)
        if not (self.wants_logits and self.is_complete):
            return PromptEchoed(text)
        first = name_token(self._tokens[0], 0.0, self._vocabulary)
        return PromptEchoed(text, (first, *(self._found[position] for position in range(1, len(self._tokens)))))
