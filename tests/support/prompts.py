"""Six prompts of different length for the model-truth tests; the last has over 1,000 tokens."""

from itertools import cycle, islice

_FACTS = (
    "A paceline is a group of riders who take turns at the front.",
    "The first rider breaks the wind and the others follow close behind.",
    "When the leader tires, the next one takes over without a pause.",
    "Together they travel further and faster than any of them alone.",
    "A gap in the line costs everyone behind it strength and time.",
    "Signals are passed back by hand, so that nobody brakes in surprise.",
    "On a climb the group thins out and waits for the last at the top.",
)

PROMPTS = (
    "Hello",
    "What is the capital of France?",
    "Write a Python function that implements binary search. Include docstring and type hints.",
    "Explain to a child, in three short sentences, why the sky is blue in the day and red in the evening.",
    "Summarize this in one sentence: " + " ".join(islice(cycle(_FACTS), 14)),
    "Which of these statements is about climbing? " + " ".join(islice(cycle(_FACTS), 75)),
)
