"""The chat template of a checkpoint: found, compiled and rendered as transformers does it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_mtp.build.template_process import RENDERERS, RefusalError, TemplateError
from trt_mtp.build.text_files import SPECIAL_TOKENS, named_templates, read_settings
from trt_mtp.errors import InputError, TrtMtpError
from trt_mtp.files import SMALL, read_text

Message = Mapping[str, object]

DEFAULT, TOOL_USE = "default", "tool_use"


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The templates of one checkpoint, and the special tokens that they see."""

    files: Mapping[str, str]  # by name
    sources: Mapping[str, str]  # by name
    special_tokens: Mapping[str, str]

    def chosen(self, *, with_tools: bool) -> str:
        """The name of the template for a request."""
        return TOOL_USE if with_tools and TOOL_USE in self.sources else DEFAULT

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message] | None = None,
        **options: object,
    ) -> str:
        """The text before the answer; `options` are the template's own, enable_thinking say.

        Raises TemplateError for what the template makes of them, and TemplateLimitError.
        """
        values = {
            **self.special_tokens,
            "messages": list(messages),
            "tools": None if tools is None else list(tools),
            "documents": None,
            "add_generation_prompt": True,
            **options,
        }
        return RENDERERS.render(self.sources[self.chosen(with_tools=tools is not None)], values)


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """The chat template in `folder`, None where there is none.

    Raises InputError for one that can't be compiled, and for named ones without a default.
    """
    found = {name: (file, source) for name, file, source in find_templates(folder)}
    if not found:
        return None
    if DEFAULT not in found:
        file = next(iter(found.values()))[0]
        raise InputError(
            f"{file} has the chat templates {', '.join(sorted(found))}, but none named {DEFAULT}"
        )
    for file, source in found.values():
        check_compiles(file, source)
    files = {name: str(file) for name, (file, _) in found.items()}
    sources = {name: source for name, (_, source) in found.items()}
    return ChatTemplate(files, sources, special_tokens_of(folder))


def check_compiles(file: Path, source: str) -> None:
    """Raise InputError with line and reason for a template that has an error."""
    try:
        RENDERERS.render(source, None)
    except TrtMtpError:  # no process for it
        raise
    except Exception as error:  # a recursion without end, say
        raise InputError(
            f"{file}: its chat template can't be compiled ({one_line(str(error))})"
        ) from None


def find_templates(folder: Path) -> Iterator[tuple[str, Path, str]]:
    """Name, file and source of each template.

    Files of their own come first, then tokenizer_config.json (one, or a list of named ones), then
    chat_template.json, which transformers reads for models that take images.
    """
    own = folder / "chat_template.jinja"
    named = named_templates(folder)
    if own.is_file() or named:
        for file in ([own] if own.is_file() else []) + named:
            yield DEFAULT if file == own else file.stem, file, read_text(file, SMALL)
        return
    for file in (folder / "tokenizer_config.json", folder / "chat_template.json"):
        stated = read_settings(file).get("chat_template") if file.is_file() else None
        if stated is not None:
            yield from stated_templates(file, stated)
            return


def stated_templates(file: Path, stated: Any) -> Iterator[tuple[str, Path, str]]:
    """The templates that a JSON file's key chat_template holds."""
    entries = stated
    if isinstance(stated, str):
        entries = [{"name": DEFAULT, "template": stated}]
    elif isinstance(stated, dict):
        entries = [{"name": name, "template": source} for name, source in stated.items()]
    if not isinstance(entries, list):
        raise InputError(f"{file}: chat_template is {stated!r:.60}, expected a text or a list")
    for entry in entries:
        name = entry.get("name") if isinstance(entry, dict) else None
        source = entry.get("template") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not isinstance(source, str):
            raise InputError(
                f"{file}: chat_template has {entry!r:.60}, expected objects with name and template"
            )
        yield name, file, source


def special_tokens_of(folder: Path) -> dict[str, str]:
    """The special tokens by name, as tokenizer_config.json or special_tokens_map.json has them."""
    tokens: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        stated = read_settings(folder / name) if (folder / name).is_file() else {}
        for key in SPECIAL_TOKENS:
            value = stated.get(key)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                tokens[key] = text
    return tokens


def one_line(text: str) -> str:
    """`text` with its line breaks as spaces, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:197]}..."


USER = {"role": "user", "content": "What is the weather in Paris?"}
SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "It is sunny.", "reasoning_content": "The user asks."}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "weather", "arguments": {"city": "Paris"}},
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": "call_1", "name": "weather", "content": "sunny"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Where."}},
                "required": ["city"],
            },
        },
    }
]
THINKING: Sequence[Message] = ({}, {"enable_thinking": True}, {"enable_thinking": False})
Trial = tuple[str, Sequence[Message], Sequence[Message] | None]
TRIALS: Sequence[Trial] = (
    ("a question", [USER], None),
    ("a conversation", [USER, ANSWER, USER], None),
    ("a system message", [SYSTEM, USER], None),
    ("tools", [USER], TOOLS),
    ("a tool's result", [USER, CALL, RESULT], TOOLS),
)
PLAIN = 2  # trials that every template has to take; it may refuse the others, but not fail


def try_template(chat: ChatTemplate) -> None:
    """Render trial messages with and without tools and thinking; raises InputError if one fails.

    A template may refuse system messages and tools with a sentence of its own.
    """
    for thinking in THINKING:
        for number, (what, messages, tools) in enumerate(TRIALS):
            try:
                text = chat.render(messages, tools, **thinking)
                text.encode()
                if number or USER["content"] in text:
                    continue
                reason = "it leaves out what the user says"
            except RefusalError as error:
                if number >= PLAIN:
                    continue
                reason = str(error)
            except TemplateError as error:
                reason = f"{error.kind}: {error}"
            except TrtMtpError:
                raise
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
            file = chat.files[chat.chosen(with_tools=tools is not None)]
            options = "".join(f" with {key} {value}" for key, value in thinking.items())
            raise InputError(
                f"{file}: its chat template can't render {what}{options} ({one_line(reason)})"
            )
