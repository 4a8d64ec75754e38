"""Text in, text out: the tokenizer, the chat template, and answers that grow token by token."""

from functools import cached_property
from pathlib import Path

from trt_mtp.build.chat_template import read_chat_template
from trt_mtp.build.text_check import growth_by, load_tokenizer
from trt_mtp.build.text_files import read_end_ids
from trt_mtp.errors import InputError, is_panic
from trt_mtp.serve.engine.base import Request
from trt_mtp.serve.engine.messages import Takes, template_messages, template_tools
from trt_mtp.serve.engine.stop_search import StopSearch
from trt_mtp.serve.reasoning import ReasoningCounter

MAX_GROWN = 1 << 22  # characters of a text that a tokenizer makes longer; each takes some 140 bytes
NFC_SHRINKS = 4  # characters that Unicode composes into one, at most
REPLACEMENT = "\ufffd"  # what an incomplete UTF-8 sequence decodes to
ARGUMENTS = "cut off: {"  # no JSON
MAX_OPEN_TOKENS = 8  # since the last whole character; more can't be one character's
MAX_CHARACTER_BYTES = 4  # in UTF-8; a token has one or more


def _byte_of() -> dict[str, int]:
    """The byte that a character of a byte-level token's name stands for.

    Source: the GPT-2 tokenizer (github.com/openai/gpt-2, src/encoder.py): visible characters stand
    for themselves, the other bytes for those from 256 on, in order.
    """
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): b for i, b in enumerate(others)}


BYTE_OF = _byte_of()


class TextCodec:
    """The tokenizer, end tokens and chat template of one checkpoint."""

    def __init__(self, folder: Path, vocab_size: int = 2**31) -> None:
        """Read the tokenizer and what it needs in `folder`.

        Raises InputError for a tokenizer or a chat template that can't be used, and for end tokens
        that are no ids below `vocab_size`.
        """
        self.tokenizer = load_tokenizer(folder)
        self.eos_ids = read_end_ids(folder, self.tokenizer.token_to_id, vocab_size)
        self._chat = read_chat_template(folder)

    def encode(self, text: str, most: int | None = None) -> tuple[int, ...]:
        """`text` as token ids; special tokens written in it are recognised.

        Raises InputError, before any work, for a text that is more than `most` tokens by its size.
        """
        least = self.least_tokens(text)
        if most is not None and least > most:
            raise InputError(
                f"the prompt has {least} tokens or more; "
                f"with its answer it may have at most {most} for this variant"
            )
        if self._growth > 1 and len(text) * self._growth > MAX_GROWN:
            raise InputError(
                f"the text has {len(text)} characters, and the tokenizer can make {self._growth} "
                f"of each; expected {MAX_GROWN // self._growth} at most"
            )
        # encode() itself holds the GIL to its end, which stalls an engine in the same process
        try:
            [encoding] = self.tokenizer.encode_batch_fast([text], add_special_tokens=False)
        except BaseException as error:
            if not is_panic(error):
                raise
            raise InputError(f"the tokenizer can't read the text: {error}") from None
        return tuple(encoding.ids)

    def encode_chat(
        self,
        messages: list[dict[str, object]],
        tools: list[dict[str, object]] | None = None,
        *,
        enable_thinking: bool | None = None,
        most: int | None = None,
    ) -> tuple[int, ...]:
        """`messages` through the chat template, ready for the answer.

        Raises InputError when the template refuses them, and as `encode` does.
        """
        return self.encode(self.chat_text(messages, tools, enable_thinking=enable_thinking), most)

    def least_tokens(self, text: str) -> int:
        """How many tokens `text` has at least, by its size alone; 0 where nothing is known."""
        return -(-len(text) // self._most_characters) if self._most_characters else 0

    @cached_property
    def _growth(self) -> int:
        """How many characters the tokenizer can make of one before it reads them."""
        return growth_by(self.tokenizer.normalizer)

    @cached_property
    def _most_characters(self) -> int:
        """How many characters of a text one token can stand for; 0 where nothing bounds it."""
        normalizer, decoder = self.tokenizer.normalizer, self.tokenizer.decoder
        added = self.tokenizer.get_added_tokens_decoder().values()
        if (
            type(normalizer).__name__ not in ("NoneType", "NFC")
            or type(decoder).__name__ != "ByteLevel"
            or any(token.lstrip or token.rstrip for token in added)
        ):
            return 0
        longest = max(map(len, self.tokenizer.get_vocab(with_added_tokens=True)))
        return longest if normalizer is None else longest * NFC_SHRINKS

    def token_bytes(self, token: int) -> bytes:
        """What a token stands for by itself, which may be a part of a character."""
        if token in self._added:
            return self._added[token].encode()
        if type(self.tokenizer.decoder).__name__ != "ByteLevel":
            return str(self.tokenizer.decode([token], skip_special_tokens=False)).encode()
        name = self.tokenizer.id_to_token(token) or ""  # an id past the vocabulary is nothing
        return bytes(BYTE_OF[char] for char in name)

    @cached_property
    def _added(self) -> dict[int, str]:
        added = self.tokenizer.get_added_tokens_decoder()
        return {token: one.content for token, one in added.items()}

    def chat_text(
        self,
        messages: list[dict[str, object]],
        tools: list[dict[str, object]] | None = None,
        *,
        enable_thinking: bool | None = None,
    ) -> str:
        """What encode_chat encodes."""
        if self._chat is None:
            raise InputError(
                "the model has no chat template for messages; send a text or token ids instead "
                "(text_input or input_ids, with OpenAI's API a prompt to /v1/completions), or add "
                "chat_template.jinja to the checkpoint and build again"
            )
        taken = template_messages(messages, self._takes)
        options = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        offered = None if tools is None else template_tools(tools)
        try:
            text = self._chat.render(taken, offered, **options)
            text.encode()
        except UnicodeEncodeError:  # JSON can say \\ud800
            raise InputError("messages or tools have half a surrogate pair in them") from None
        except Exception as error:  # of whatever kind the template makes of what it is given
            raise InputError(f"messages don't fit the chat template: {error}") from None
        return text

    @cached_property
    def _takes(self) -> Takes:
        """What the template renders, tried with messages that have it."""
        asked: dict[str, object] = {"role": "user", "content": "text"}
        parts = self._rendered({**asked, "content": [{"type": "text", "text": "text"}]})
        call = {"type": "function", "function": {"name": "name", "arguments": ARGUMENTS}}
        called = self._rendered(asked, {"role": "assistant", "content": "", "tool_calls": [call]})
        return Takes(parts == self._rendered(asked) != "", ARGUMENTS in called)

    def _rendered(self, *messages: dict[str, object]) -> str:
        """What the template makes of them; nothing where it doesn't take them."""
        assert self._chat is not None
        try:
            return self._chat.render(messages)
        except Exception:  # of whatever kind
            return ""


class TextEngine:
    """The part of an engine that makes token ids of texts and chats; see Engine in base.py."""

    codec: TextCodec
    max_seq_len: int

    def encode(self, text: str) -> tuple[int, ...]:
        """`text` as token ids, without special tokens added."""
        return self.codec.encode(text, self.max_seq_len)

    def encode_chat(
        self,
        messages: list[dict[str, object]],
        tools: list[dict[str, object]] | None = None,
        enable_thinking: bool | None = None,
    ) -> tuple[int, ...]:
        """The token ids of the checkpoint's chat template over `messages`."""
        return self.codec.encode_chat(
            messages, tools, enable_thinking=enable_thinking, most=self.max_seq_len
        )


class AnswerText:
    """The text of an answer as its tokens arrive; holds back what may still change or be cut."""

    def __init__(
        self, codec: TextCodec, stop: tuple[str, ...], reasoning: ReasoningCounter | None = None
    ) -> None:
        """`stop`: texts that end the answer, but not in its `reasoning`."""
        self._tokenizer = codec.tokenizer
        self._search = StopSearch(stop) if stop else None
        self._ids: list[int] = []  # the last tokens; they begin and end between two characters
        self._context = 0  # how many of these are there only because decoding needs them
        self._num_sent = 0  # characters of their text that were released
        self._held = ""  # may be the start of a stop text
        self._reasoning = reasoning if stop else None
        self._is_behind_mark = False  # of the reasoning's end, but for line breaks

    def push(self, token: int) -> tuple[str, bool]:
        """The text that `token` makes final, and whether a stop text was completed."""
        if self._search is None or self._reasoning is None:
            return self._release(self._whole_characters(token))
        was_inside = self._reasoning.is_inside
        self._reasoning.push((token,))
        text = self._whole_characters(token)
        if self._reasoning.is_inside:
            return self._unsearched(text), False
        piece, is_stopped = self._release(text)
        if was_inside and not is_stopped:
            self._is_behind_mark = True
            piece += self._unsearched("")
        return piece, is_stopped

    def _whole_characters(self, token: int) -> str:
        """The characters that `token` completes."""
        self._ids.append(token)
        text = self._decode(self._ids)
        is_incomplete = text.endswith(REPLACEMENT)  # only its last character can still change
        end = len(text) - is_incomplete
        piece = text[self._num_sent : end]
        self._num_sent = end
        if not is_incomplete:
            self._ids = self._ids[self._context :]
            self._context, self._num_sent = len(self._ids), len(self._decode(self._ids))
        elif len(self._ids) - self._context > MAX_OPEN_TOKENS:
            self._shorten(text)
        return piece

    def _shorten(self, text: str) -> None:
        """Forget tokens of `text` before its last characters, which are no text and stay none.

        Tokens are parted where that changes no character; those without text are left out. There is
        no such place where each token ends one character and begins another: then the last ones
        are kept, whose bytes say how the text goes on, whatever comes before.
        """
        ids = [token for token in self._ids if self._decode([token])]
        if self._decode(ids) == text:
            self._ids, self._context = ids, 0
            for at in range(len(ids) - 1, 0, -1):
                before = self._decode(ids[:at])
                if before + self._decode(ids[at:]) == text:
                    self._ids = ids[at:]
                    self._num_sent -= len(before)
                    return
        last, unsent = self._ids[-MAX_CHARACTER_BYTES:], text[self._num_sent :]
        if (end := self._decode(last)).endswith(unsent):
            self._ids, self._context, self._num_sent = last, 0, len(end) - len(unsent)

    def flush(self) -> str:
        """What was held back, when the answer ends without a stop text."""
        rest = self._held + self._decode(self._ids)[self._num_sent :]
        self._reset()
        return rest

    def _reset(self) -> None:
        self._ids, self._context, self._num_sent, self._held = [], 0, 0, ""

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True) if ids else ""
        return text

    def _unsearched(self, text: str) -> str:
        """All that is held and `text`, in which no stop text begins."""
        if self._search is not None:
            self._search.restart()
        text, self._held = self._held + text, ""
        return text

    def _release(self, text: str) -> tuple[str, bool]:
        if self._search is None:
            return text, False
        if self._is_behind_mark:
            rest = text.lstrip("\n")  # what clients don't see can't end the answer
            if not rest:
                return text, False
            self._is_behind_mark = False
            piece, is_stopped = self._release(rest)
            return text[: len(text) - len(rest)] + piece, is_stopped
        for at, char in enumerate(text, start=len(self._held) + 1):
            size = self._search.push(char)
            if size:
                whole = self._held + text
                self._reset()
                return whole[: at - size], True
        text = self._held + text
        end = len(text) - self._search.num_open
        self._held = text[end:]
        return text[:end], False


def begin_answer(codec: TextCodec, request: Request) -> AnswerText:
    """The text of the answer to `request`, where its emitted tokens left it.

    Raises InputError when the answer ended with one of them.
    """
    reasoning = None if request.reasoning is None else request.reasoning.counter()
    text = AnswerText(codec, request.sampling.stop, reasoning)
    ends = frozenset[int]() if request.sampling.ignore_eos else codec.eos_ids
    for count, token in enumerate(request.emitted_ids, start=1):
        if token in ends or text.push(token)[1]:
            raise InputError(f"the answer ended with token {count} of emitted_ids; it is complete")
    return text
