"""Items of reasoning: what the model thought, shown as text, as a summary, or as what OpenAI calls encrypted content. Pure.

Nothing is encrypted here: clients that keep no state pass encrypted_content back as it came, and it holds the thinking itself.
"""

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode

from paceline_api_gateway.protocols.openai.responses.schema import Json
from paceline_services.errors import InvalidRequestError

_MARK = "paceline-1."


def seal(text: str) -> str:
    """encrypted_content that holds the text."""
    return _MARK + urlsafe_b64encode(text.encode()).decode()


def read_reasoning_text(item: Json, where: str) -> str:
    """What was thought. Raises InvalidRequestError for encrypted content of someone else, where there is nothing else to read."""
    parts = item.get("content") or item.get("summary") or ()
    if text := "\n\n".join(part["text"] for part in parts):
        return text
    sealed = item.get("encrypted_content")
    return _unseal(sealed, f"{where}.encrypted_content") if sealed else ""


def _unseal(sealed: str, where: str) -> str:
    try:
        if not sealed.startswith(_MARK):
            raise ValueError
        return urlsafe_b64decode(sealed.removeprefix(_MARK)).decode()
    except (ValueError, binascii.Error):
        raise InvalidRequestError(
            f"{where}: it was not made here: leave the reasoning item out, or send its content",
            reason="INVALID_ENCRYPTED_CONTENT",
            param=where,
        ) from None
