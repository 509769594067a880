"""Body of POST /v1/trifurcate."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Body(BaseModel):
    """Numbers must be JSON numbers of the right kind."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class MessageBody(_Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str


class RoleModels(_Body):
    """A model for each role; a role without one has main's."""

    main: str = Field(min_length=1)
    validator: str | None = Field(default=None, min_length=1)
    speculative: str | None = Field(default=None, min_length=1)


class TrifurcateRequest(_Body):
    """One model for all roles, or one for each; messages, or one prompt."""

    model: str | None = Field(None, min_length=1)
    models: RoleModels | None = None
    messages: list[MessageBody] | None = Field(None, min_length=1)
    prompt: str | None = Field(None, min_length=1)
    question: str | None = Field(None, min_length=1, max_length=4096)
    stream: bool = False
    max_tokens: int | None = Field(None, ge=1, le=2**32 - 1)
    speculative_max_tokens: int = Field(64, ge=1, le=2**32 - 1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None

    @model_validator(mode="after")
    def _check_together(self) -> "TrifurcateRequest":
        if (self.model is None) == (self.models is None):
            raise ValueError("exactly one of model and models must be given")
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("exactly one of messages and prompt must be given")
        return self
