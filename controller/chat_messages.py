"""The texts of chat messages, and what else a request in OpenAI's form says."""

from collections.abc import Mapping, Sequence


def is_format(value: object) -> bool:
    """Whether a response format asks for more than text, which is what there is without one."""
    return bool(value) and value not in ("text", {"type": "text"})


def joined(messages: Sequence[Mapping[str, object]]) -> str:
    """The texts of chat messages, a line break between them."""
    return "\n".join(content_text(message) for message in messages)


def content_text(message: Mapping[str, object]) -> str:
    """The text of a chat message, whose content may be a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""
