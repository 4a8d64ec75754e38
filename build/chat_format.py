"""How a checkpoint's answers have to be read, by its chat template; see serve/chat_format.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trt_mtp.build.chat_template import (
    THINKING,
    TOOLS,
    USER,
    ChatTemplate,
    Message,
    find_templates,
    read_chat_template,
)
from trt_mtp.build.template_process import RefusalError, TemplateError
from trt_mtp.extras import is_installed


def read_chat_format(folder: Path) -> dict[str, Any]:
    """The chat format of the checkpoint in `folder`, for a variant's record.

    `tool_calls` is "json" (Qwen3's form) or "xml" (that of Qwen3-Coder and Qwen3.5); `opens` says
    whether a prompt ends inside the reasoning: without enable_thinking, with it true and false;
    `opens_with_tools` says the same of a prompt with tools, for which a template may have another.
    Empty without a chat template, and where jinja2 isn't installed, as in a dry run.
    """
    if not is_installed("jinja2"):
        return {}
    try:
        chat = read_chat_template(folder)
        if chat is None:
            return {}
        source = "".join(text for _, _, text in find_templates(folder))
        opens = _opens(chat, None)
    except Exception:  # of whatever kind the template makes of what it is given; `build` says which
        return {}
    try:
        with_tools = _opens(chat, TOOLS)
    except (RefusalError, TemplateError):  # no request with tools is answered
        with_tools = opens
    return {
        "tool_calls": "xml" if "<function=" in source else "json",
        "can_think": "<think>" in source,
        "opens": opens,
        "opens_with_tools": with_tools,
    }


def _opens(chat: ChatTemplate, tools: Sequence[Message] | None) -> list[bool]:
    prompts = [chat.render([USER], tools, **thinking) for thinking in THINKING]
    return [prompt.rstrip().endswith("<think>") for prompt in prompts]
