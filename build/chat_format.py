"""How a checkpoint's answers have to be read, by its chat template; see serve/chat_format.py."""

from pathlib import Path
from typing import Any

from trt_mtp.build.chat_template import find_templates, read_chat_template
from trt_mtp.extras import is_installed

_MESSAGES = [{"role": "user", "content": "Hello"}]


def read_chat_format(folder: Path) -> dict[str, Any]:
    """The chat format of the checkpoint in `folder`, for a variant's record.

    `tool_calls` is "json" (Qwen3's form) or "xml" (that of Qwen3-Coder and Qwen3.5); `opens` says
    whether a prompt ends inside the reasoning: without enable_thinking, with it true and false.
    Empty without a chat template, and where jinja2 isn't installed, as in a dry run.
    """
    if not is_installed("jinja2"):
        return {}
    try:
        chat = read_chat_template(folder)
        if chat is None:
            return {}
        source = "".join(text for _, _, text in find_templates(folder))
        prompts = [
            chat.render(_MESSAGES),
            chat.render(_MESSAGES, enable_thinking=True),
            chat.render(_MESSAGES, enable_thinking=False),
        ]
    except Exception:  # of whatever kind the template makes of what it is given; `build` says which
        return {}
    return {
        "tool_calls": "xml" if "<function=" in source else "json",
        "can_think": "<think>" in source,
        "opens": [prompt.rstrip().endswith("<think>") for prompt in prompts],
    }
