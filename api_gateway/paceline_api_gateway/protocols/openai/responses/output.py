"""Output items while they grow: the events that each kind sends, and how it is shown. Pure.

Events lack their sequence_number, which the writer sets.
"""

from typing import Protocol

from paceline_api_gateway.protocols.openai.responses.reasoning import seal
from paceline_api_gateway.protocols.openai.responses.schema import Json


class OpenItem(Protocol):
    """An item that grows."""

    @property
    def kind(self) -> str: ...

    def begin(self, output_index: int) -> list[Json]:
        """It is added at that place of the output."""

    def add(self, text: str) -> Json:
        """More of it."""

    def end(self, status: str) -> list[Json]:
        """It is done."""

    def show(self, status: str) -> Json:
        """The item as it is now."""


class _Item:
    """What every kind has."""

    def __init__(self, item_id: str) -> None:
        self.item_id = item_id
        self.text = ""
        self._output_index = 0

    def _tell(self, kind: str, **facts: object) -> Json:
        return {"type": f"response.{kind}", "item_id": self.item_id, "output_index": self._output_index, **facts}

    def _tell_item(self, kind: str, item: Json) -> Json:
        return {"type": f"response.output_item.{kind}", "output_index": self._output_index, "item": item}


class Message(_Item):
    kind = "message"

    def __init__(self, item_id: str, *, has_logprobs: bool) -> None:
        super().__init__(item_id)
        self.logprobs: list[Json] = []
        self._has_logprobs = has_logprobs

    def begin(self, output_index: int) -> list[Json]:
        self._output_index = output_index
        added = self._tell_item("added", self.show("in_progress") | {"content": []})
        return [added, self._tell("content_part.added", content_index=0, part=self._show_part())]

    def add(self, text: str, logprobs: list[Json] | None = None) -> Json:
        self.text += text
        told = logprobs if logprobs and self._has_logprobs else []
        self.logprobs += told
        return self._tell("output_text.delta", content_index=0, delta=text, logprobs=told)

    def end(self, status: str) -> list[Json]:
        return [
            self._tell("output_text.done", content_index=0, text=self.text, logprobs=self.logprobs),
            self._tell("content_part.done", content_index=0, part=self._show_part()),
            self._tell_item("done", self.show(status)),
        ]

    def show(self, status: str) -> Json:
        return {
            "id": self.item_id,
            "type": "message",
            "status": status,
            "content": [self._show_part()],
            "role": "assistant",
        }

    def _show_part(self) -> Json:
        return {"type": "output_text", "annotations": [], "logprobs": list(self.logprobs), "text": self.text}


class FunctionCall(_Item):
    kind = "function_call"

    def __init__(self, item_id: str, call_id: str, name: str) -> None:
        super().__init__(item_id)
        self._call_id = call_id
        self._name = name

    def begin(self, output_index: int) -> list[Json]:
        self._output_index = output_index
        return [self._tell_item("added", self.show("in_progress"))]

    def add(self, text: str) -> Json:
        self.text += text
        return self._tell("function_call_arguments.delta", delta=text)

    def end(self, status: str) -> list[Json]:
        done = self._tell("function_call_arguments.done", arguments=self.text, name=self._name)
        return [done, self._tell_item("done", self.show(status))]

    def show(self, status: str) -> Json:
        return {
            "id": self.item_id,
            "type": "function_call",
            "status": status,
            "arguments": self.text,
            "call_id": self._call_id,
            "name": self._name,
        }


class Reasoning(_Item):
    """As reasoning_text, or where a summary was asked for, as the one part of that."""

    kind = "reasoning"

    def __init__(self, item_id: str, *, has_summary: bool, has_encrypted: bool) -> None:
        super().__init__(item_id)
        self._has_summary = has_summary
        self._has_encrypted = has_encrypted

    def begin(self, output_index: int) -> list[Json]:
        self._output_index = output_index
        empty = self.show("in_progress") | {"summary": []} | ({} if self._has_summary else {"content": []})
        return [self._tell_item("added", empty), self._tell_part("added")]

    def add(self, text: str) -> Json:
        self.text += text
        return self._tell_text("delta", delta=text)

    def end(self, status: str) -> list[Json]:
        done = [self._tell_text("done", text=self.text), self._tell_part("done")]
        return [*done, self._tell_item("done", self.show(status))]

    def show(self, status: str) -> Json:
        part = self._show_part()
        shown = {
            "id": self.item_id,
            "type": "reasoning",
            "status": status,
            "summary": [part] if self._has_summary else [],
        }
        content = {} if self._has_summary else {"content": [part]}
        return shown | content | ({"encrypted_content": seal(self.text)} if self._has_encrypted else {})

    def _tell_text(self, moment: str, **facts: object) -> Json:
        if self._has_summary:
            return self._tell(f"reasoning_summary_text.{moment}", summary_index=0, **facts)
        return self._tell(f"reasoning_text.{moment}", content_index=0, **facts)

    def _tell_part(self, moment: str) -> Json:
        if self._has_summary:
            return self._tell(f"reasoning_summary_part.{moment}", summary_index=0, part=self._show_part())
        return self._tell(f"content_part.{moment}", content_index=0, part=self._show_part())

    def _show_part(self) -> Json:
        return {"type": "summary_text" if self._has_summary else "reasoning_text", "text": self.text}
