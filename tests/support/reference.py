"""Plain mlx-lm in one process: what every cluster's tokens are compared with. Nothing of Paceline is used.

python reference.py FOLDER: one JSON request a line in, one JSON answer a line out; a request is {"messages" | "token_ids",
"max_tokens", "ignore_eos"}, an answer {"token_ids", "prompt_tokens", "first_token_s", "total_s"}. Weights are cast to float32, as
Paceline does on CPUs.
"""

import json
import sys
import time
from typing import Any

import mlx.core as mx
import mlx_lm
from mlx.utils import tree_map
from mlx_lm.generate import generate_step


def load(folder: str) -> tuple[Any, Any]:
    model, tokenizer = mlx_lm.load(folder)[:2]

    def widen(weight: mx.array) -> mx.array:
        return weight.astype(mx.float32) if mx.issubdtype(weight.dtype, mx.floating) else weight

    model.update(tree_map(widen, model.parameters()))
    mx.eval(model.parameters())
    return model, tokenizer


def answer(model: Any, tokenizer: Any, request: dict[str, Any]) -> dict[str, Any]:
    prompt = request.get("token_ids")
    if prompt is None:
        prompt = tokenizer.apply_chat_template(request["messages"], add_generation_prompt=True)
    started = time.perf_counter()
    first = 0.0
    tokens: list[int] = []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=request["max_tokens"]):
        first = first or time.perf_counter() - started
        tokens.append(int(token))
        if token in tokenizer.eos_token_ids and not request.get("ignore_eos"):
            break
    return {
        "token_ids": tokens,
        "prompt_tokens": len(prompt),
        "first_token_s": first,
        "total_s": time.perf_counter() - started,
    }


def main() -> None:
    """Answers one JSON request a line, one JSON answer a line; ends at end of file."""
    model, tokenizer = load(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(answer(model, tokenizer, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
