"""Guessing ahead where answers repeat what they are about: the same requests with guesses and without, token for token.

Guesses must not change an answer, so a difference counts for more than any speed. The demo model is small: what it is told to edit it
mostly writes again as it was, which is said of every task. A random model follows no instructions; prompts are used whose greedy
continuation falls into a loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.editing_texts import EDITS
from bench.figures import Figures
from bench.pinned import PinnedCluster
from bench.rounds import in_turn, say
from bench.streams import Stream, ask, make_chat, make_request, share_predictable, share_repeated
from bench.tables import ABSENT
from paceline_services.domain.generation import GenerateRequest

REPEATING = 0.5
"""Share of an answer that must repeat what came before for the task to be one of repetition."""
NUM_CANDIDATES = 8
NUM_LOOPS = 3
LOOP_PROMPT_TOKENS = 32
SETTLING_TOKENS = 256
"""After so many tokens a random model should have fallen into a loop, if it does."""
LAST_TOKENS = 64
ALL_TASKS = "all tasks"


@dataclass(slots=True)
class Task:
    """A request, how much of its answer repeats what came before, and what the answers of all rounds told.

    outcome: whether the model did what it was told, where that can be seen.
    """

    title: str
    request: GenerateRequest
    repeated: float = 0.0
    outcome: str = ABSENT
    answer: list[int] = field(default_factory=list)
    num_drafted: int = 0
    num_accepted: int = 0
    num_different: int = 0

    @property
    def acceptance(self) -> float | None:
        return self.num_accepted / self.num_drafted if self.num_drafted else None

    def note(self, stream: Stream) -> None:
        self.answer = self.answer or stream.token_ids
        self.num_different += stream.token_ids != self.answer
        if stream.completed:
            self.num_drafted += stream.completed.num_drafted_tokens
            self.num_accepted += stream.completed.num_accepted_tokens


def editing_name(task: str, cluster: str) -> str:
    return f"editing tokens/s, {task}, {cluster}"


async def measure_editing(
    clusters: Sequence[PinnedCluster], tasks: Sequence[Task], number: int, figures: Figures
) -> None:
    """Every task on every cluster: tokens per second after the first token, of each and of all together."""
    for cluster in in_turn(clusters, number):
        total_tokens, total_s = 0, 0.0
        for task in tasks:
            stream = await ask(cluster.client, task.request)
            task.note(stream)
            num_tokens = len(stream.token_ids) - stream.counts[0]
            figures.add(editing_name(task.title, cluster.name), number, num_tokens / stream.decode_s)
            total_tokens, total_s = total_tokens + num_tokens, total_s + stream.decode_s
        figures.add(editing_name(ALL_TASKS, cluster.name), number, total_tokens / total_s)


async def list_editing(cluster: PinnedCluster) -> list[Task]:
    """A text with an instruction each; asked once to see what the model makes of it."""
    tasks = []
    for edit in EDITS:
        request = make_chat(cluster.model.model_id, f"{edit.instruction}\n\n{edit.text}", edit.max_tokens)
        answer = (await ask(cluster.client, request)).text
        task = Task(edit.title, request, share_repeated(edit.text, answer), edit.describe(answer))
        say(f"{task.title}: {task.repeated:.0%} of the answer's words repeat the text")
        tasks.append(task)
    return tasks


async def find_loops(cluster: PinnedCluster, num_tokens: int) -> list[Task]:
    """Prompts without meaning, followed by what the model made of them until it repeated itself."""
    prompts = [cluster.draw_prompt(f"loop {number}", LOOP_PROMPT_TOKENS) for number in range(NUM_CANDIDATES)]
    streams = await cluster.ask_together(prompts, SETTLING_TOKENS)
    tasks: list[Task] = []
    for number, (prompt, stream) in enumerate(zip(prompts, streams, strict=True)):
        settled = [*prompt, *stream.token_ids[:-LAST_TOKENS]]
        repeated = share_predictable(settled, stream.token_ids[-LAST_TOKENS:])
        say(f"prompt {number}: {repeated:.0%} of the last {LAST_TOKENS} of {SETTLING_TOKENS} tokens repeat")
        if repeated >= REPEATING:
            request = make_request(cluster.model.model_id, settled, num_tokens)
            tasks.append(Task(f"loop {len(tasks) + 1}", request, repeated))
    return tasks[:NUM_LOOPS]
