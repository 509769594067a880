"""Asks a gateway with OpenAI's client: an answer of a given form, then one that needs a tool, streamed.

    python docs/examples/openai_tools.py http://127.0.0.1:52415/v1 smollm2-135m-instruct

Needs the package openai.
"""

import sys
from typing import Any

from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel


class Place(BaseModel):
    city: str
    country: str


class GetWeather(BaseModel):
    """How warm it is in a city."""

    city: str


def ask_place(client: OpenAI, model: str) -> Place | None:
    """An answer that is parsed into a model; None where the limit of tokens cut it off."""
    answer = client.chat.completions.parse(
        model=model,
        messages=[{"role": "user", "content": "Name a city and its country, as JSON."}],
        response_format=Place,
        max_tokens=100,
    )
    return answer.choices[0].message.parsed


def ask_weather(client: OpenAI, model: str) -> str:
    """The model calls the tool; what the tool says goes back, and the model's answer comes as a stream."""
    messages: list[Any] = [{"role": "user", "content": "How warm is it in Oslo?"}]
    tools: list[Any] = [pydantic_function_tool(GetWeather)]
    asked = client.chat.completions.parse(
        model=model, messages=messages, tools=tools, tool_choice="required", parallel_tool_calls=False, max_tokens=100
    )
    messages.append(asked.choices[0].message)
    calls = asked.choices[0].message.tool_calls or ()
    messages.extend({"role": "tool", "tool_call_id": call.id, "content": "4 degrees"} for call in calls)
    text = ""
    stream = client.chat.completions.create(
        model=model, messages=messages, tools=tools, tool_choice="none", stream=True, max_tokens=100
    )
    for chunk in stream:
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
    return text


def main() -> None:
    url, model = sys.argv[1:3]
    with OpenAI(base_url=url, api_key="none") as client:
        print(ask_place(client, model))
        print(ask_weather(client, model))


if __name__ == "__main__":
    main()
