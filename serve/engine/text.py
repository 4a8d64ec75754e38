"""Text in, text out: the tokenizer, the chat template, and answers that grow token by token."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from trt_mtp.errors import InputError
from trt_mtp.files import read_json
from trt_mtp.serve.engine.base import Request

REPLACEMENT = "\ufffd"  # what an incomplete UTF-8 sequence decodes to


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def compile_template(source: str) -> jinja2.Template:
    """A chat template with the filters and functions that Hugging Face gives it."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment.from_string(source)


def read_template(folder: Path) -> str:
    """The chat template of a checkpoint; raises InputError when it has none."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    source = read_json(settings).get("chat_template") if settings.exists() else None
    if not isinstance(source, str):
        raise InputError(f"{folder} has no chat template; send text_input or input_ids instead")
    return source


def read_eos_ids(folder: Path) -> frozenset[int]:
    """The token ids that end an answer, from generation_config.json or config.json."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).exists():
            config: dict[str, Any] = read_json(folder / name)
            for part in (config, config.get("text_config") or {}):
                value = part.get("eos_token_id")
                if value is not None:
                    return frozenset(value if isinstance(value, list) else [value])
    return frozenset()


class TextCodec:
    """The tokenizer, end tokens and chat template of one checkpoint."""

    def __init__(self, folder: Path) -> None:
        """Read tokenizer.json in `folder`; the chat template is read when it is first needed."""
        try:
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises plain Exception
            raise InputError(f"{folder / 'tokenizer.json'} can't be read: {error}") from None
        self.eos_ids = read_eos_ids(folder)
        self._folder = folder
        self._template: jinja2.Template | None = None

    def encode(self, text: str) -> tuple[int, ...]:
        """`text` as token ids; special tokens written in it are recognised."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_chat(
        self, messages: list[dict[str, object]], tools: list[dict[str, object]] | None = None
    ) -> tuple[int, ...]:
        """`messages` through the chat template, ready for the answer.

        Raises InputError when the template refuses them.
        """
        if self._template is None:
            self._template = compile_template(read_template(self._folder))
        try:
            text = self._template.render(messages=messages, tools=tools, add_generation_prompt=True)
            text.encode()
        except UnicodeEncodeError:  # JSON can say \\ud800
            raise InputError("messages or tools have half a surrogate pair in them") from None
        except Exception as error:  # of whatever kind the template makes of what it is given
            raise InputError(f"messages don't fit the chat template: {error}") from None
        return self.encode(text)


class AnswerText:
    """The text of an answer as its tokens arrive; holds back what may still change or be cut."""

    def __init__(self, codec: TextCodec, stop: tuple[str, ...]) -> None:
        """`stop`: texts that end the answer."""
        self._tokenizer = codec.tokenizer
        self._stop = stop
        self._ids: list[int] = []  # the last tokens; they begin and end between two characters
        self._context = 0  # how many of these are there only because decoding needs them
        self._num_sent = 0  # characters of their text that were released
        self._held = ""  # may be the start of a stop text

    def push(self, token: int) -> tuple[str, bool]:
        """The text that `token` makes final, and whether a stop text was completed."""
        self._ids.append(token)
        text = self._decode(self._ids)
        is_incomplete = text.endswith(REPLACEMENT)  # only its last character can still change
        end = len(text) - is_incomplete
        piece = text[self._num_sent : end]
        self._num_sent = end
        if not is_incomplete:
            self._ids = self._ids[self._context :]
            self._context, self._num_sent = len(self._ids), len(self._decode(self._ids))
        return self._release(piece)

    def flush(self) -> str:
        """What was held back, when the answer ends without a stop text."""
        rest = self._held + self._decode(self._ids)[self._num_sent :]
        self._reset()
        return rest

    def _reset(self) -> None:
        self._ids, self._context, self._num_sent, self._held = [], 0, 0, ""

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True) if ids else ""

    def _release(self, text: str) -> tuple[str, bool]:
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self._reset()
            return text[: min(found)], True
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False


def begin_answer(codec: TextCodec, request: Request) -> AnswerText:
    """The text of the answer to `request`, where its emitted tokens left it.

    Raises InputError when the answer ended with one of them.
    """
    text = AnswerText(codec, request.sampling.stop)
    ends = frozenset[int]() if request.sampling.ignore_eos else codec.eos_ids
    for count, token in enumerate(request.emitted_ids, start=1):
        if token in ends or text.push(token)[1]:
            raise InputError(f"the answer ended with token {count} of emitted_ids; it is complete")
    return text


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of `text` may begin `stop`.

    >>> _overlap("an EN", "END")
    2
    """
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-size:]):
            return size
    return 0
