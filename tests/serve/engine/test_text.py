"""serve/engine/text.py: chat templates, and answers that grow token by token."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.engine_fixtures import ASSET
from tests.tiny_model import make_checkpoint
from trt_mtp.errors import InputError
from trt_mtp.serve.engine.text import AnswerText, TextCodec

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find_flights",
            "description": "Flüge <suchen> & finden",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "seats": {"type": "integer"}},
            },
        },
    }
]
CHATS: list[list[dict[str, object]]] = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  Grüße, 世界 🙂\n"}],
    [
        {"role": "user", "content": "1 < 2 & 'x'"},
        {"role": "assistant", "content": '{"a": [1, 2]}'},
        {"role": "user", "content": "<|im_end|> again"},
    ],
]


@pytest.fixture(scope="module")
def codec(checkpoint: Path) -> TextCodec:
    """A byte-level tokenizer in which most characters are several tokens."""
    return TextCodec(checkpoint)


def stream(
    codec: TextCodec, tokens: list[int], stop: tuple[str, ...] = ()
) -> tuple[list[str], bool]:
    """The pieces that come out, flush included, and whether a stop text ended them."""
    answer = AnswerText(codec, stop)
    pieces = []
    for token in tokens:
        piece, is_stopped = answer.push(token)
        pieces.append(piece)
        if is_stopped:
            return [*pieces, answer.flush()], True
    return [*pieces, answer.flush()], False


def cut(text: str, stop: tuple[str, ...]) -> str:
    """`text` up to the first place where any stop text begins."""
    return text[: min((at for at in (text.find(s) for s in stop) if at >= 0), default=len(text))]


@given(tokens=st.lists(st.integers(0, 319), max_size=60))
def test_any_tokens_give_the_text_of_the_whole(codec: TextCodec, tokens: list[int]) -> None:
    """The pieces, joined, are the text of all tokens, invalid UTF-8 included."""
    pieces, is_stopped = stream(codec, tokens)
    assert "".join(pieces) == codec.tokenizer.decode(tokens, skip_special_tokens=True)
    assert not is_stopped


@given(text=st.text(max_size=30))
def test_a_character_is_never_split(codec: TextCodec, text: str) -> None:
    """No piece of valid text ends in a replacement character: characters come whole."""
    pieces, _ = stream(codec, list(codec.tokenizer.encode(text).ids))
    assert "".join(pieces[:-1]) == text.removesuffix("\ufffd")
    assert "".join(pieces) == text


def test_a_character_comes_with_its_last_byte(codec: TextCodec) -> None:
    """A character of several tokens is held until it is whole, and no longer."""
    tokens = list(codec.encode("🙂"))
    assert len(tokens) == 4
    pieces, _ = stream(codec, [*tokens, *codec.encode("!")])
    assert pieces == ["", "", "", "🙂", "!", ""]


@given(
    text=st.text(alphabet="ab🙂", max_size=24),
    stop=st.lists(st.text(alphabet="ab🙂", min_size=1, max_size=4), max_size=3).map(tuple),
)
def test_stop_texts_cut_where_the_first_one_begins(
    codec: TextCodec, text: str, stop: tuple[str, ...]
) -> None:
    """The answer ends before the stop text that is complete first, wherever tokens split it."""
    pieces, is_stopped = stream(codec, list(codec.encode(text)), stop)
    ends = [text.find(s) + len(s) for s in stop if s in text]
    assert is_stopped == bool(ends)
    assert "".join(pieces) == cut(text[: min(ends, default=len(text))], stop)


def test_text_is_held_only_while_it_may_begin_a_stop_text(codec: TextCodec) -> None:
    """What can no longer become a stop text comes with the token that decides it."""
    pieces, is_stopped = stream(codec, list(codec.encode("xENxEND")), ("END",))
    assert pieces == ["x", "", "", "ENx", "", "", "", ""]
    assert is_stopped


def test_special_tokens_are_not_text(codec: TextCodec) -> None:
    """Special tokens appear in no answer, and don't part the bytes around them."""
    first, *rest = codec.encode("é")
    pieces, _ = stream(codec, [0, first, 1, *rest, 2])
    assert "".join(pieces) == "é"


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize("messages", CHATS, ids=["user", "system", "turns"])
@pytest.mark.parametrize("name", ["tiny", "asset"])
def test_chats_are_encoded_as_transformers_does(
    checkpoint: Path, name: str, messages: list[dict[str, Any]], tools: Any
) -> None:
    """encode_chat gives the ids of transformers' apply_chat_template."""
    path = ASSET if name == "asset" else checkpoint
    expected = AutoTokenizer.from_pretrained(path).apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, return_dict=False
    )
    assert TextCodec(path).encode_chat(messages, tools) == tuple(expected)


@pytest.mark.parametrize("thinking", [None, True, False])
def test_thinking_reaches_the_template(tmp_path: Path, thinking: bool | None) -> None:
    """enable_thinking is as in transformers, which leaves it undefined where it isn't given."""
    folder = make_checkpoint(tmp_path / "c")
    (folder / "chat_template.jinja").write_text(
        "{{ messages[0].content }}{% if enable_thinking is not defined %}?"
        "{% elif enable_thinking %}<think>{% else %}<think></think>{% endif %}"
    )
    messages: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
    options: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, **options
    )
    assert TextCodec(folder).encode_chat(messages, enable_thinking=thinking) == tuple(expected)


def test_templates_have_the_filters_of_transformers(tmp_path: Path) -> None:
    """tojson keeps characters and takes its options; raise_exception is one sentence."""
    folder = make_checkpoint(tmp_path / "c")
    (folder / "chat_template.jinja").write_text(
        "{% if messages|length > 1 %}{{ raise_exception('one message only') }}{% endif %}"
        "{{ messages[0].content | tojson(indent=1) }}{{ {'b': 1, 'a': '<é>'} | tojson }}"
    )
    codec = TextCodec(folder)
    ids = codec.encode_chat([{"role": "user", "content": ["ü"]}])
    assert codec.tokenizer.decode(list(ids)) == '[\n "ü"\n]{"b": 1, "a": "<é>"}'
    with pytest.raises(InputError, match="one message only"):
        codec.encode_chat([{"role": "user", "content": "x"}] * 2)


@pytest.mark.parametrize(
    "messages",
    [[{"role": "user"}], [{"role": "user", "content": None}], [{"role": "user", "content": 3}]],
    ids=["no content", "null", "a number"],
)
def test_messages_that_do_not_fit_are_refused(
    codec: TextCodec, messages: list[dict[str, object]]
) -> None:
    """What the template can't render is an InputError in one sentence."""
    with pytest.raises(InputError, match="messages don't fit the chat template"):
        codec.encode_chat(messages)


@pytest.mark.parametrize("role", ["user", "\ud800"])
def test_half_a_surrogate_pair_is_refused(codec: TextCodec, role: str) -> None:
    r"""JSON can say \ud800, and no text can hold it."""
    with pytest.raises(InputError, match="half a surrogate pair"):
        codec.encode_chat([{"role": role, "content": "a\udfff" if role == "user" else "a"}])


def test_the_template_may_lie_in_tokenizer_config(tmp_path: Path) -> None:
    """Without chat_template.jinja the template of tokenizer_config.json counts."""
    folder = make_checkpoint(tmp_path / "c")
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages[0].content }}"}')
    codec = TextCodec(folder)
    assert codec.encode_chat([{"role": "user", "content": "ab"}]) == codec.encode("ab")


def test_a_checkpoint_without_a_template_says_so(tmp_path: Path) -> None:
    """Chat on a model without a template is an InputError that names the alternatives."""
    folder = make_checkpoint(tmp_path / "c")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(
        InputError, match=r"^the model has no chat template .* /v1/completions.* build again"
    ):
        TextCodec(folder).encode_chat([{"role": "user", "content": "x"}])


@pytest.mark.parametrize("content", [None, "{", '{"model": {}}'], ids=["missing", "cut", "other"])
def test_a_damaged_tokenizer_is_named(tmp_path: Path, content: str | None) -> None:
    """A tokenizer that can't be read is an InputError with its path."""
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer\.json (can't be read|does not exist)"):
        TextCodec(tmp_path)


CALL = {"id": "c1", "type": "function", "function": {"name": "weather"}}
TOOL_TEMPLATE = (
    "{% for m in messages %}{{ '[' + m.role + ']' + m.content }}"
    "{% for call in m.tool_calls or [] %}"
    "{% for key, value in call.function.arguments | items %}<{{ key }}={{ value }}>{% endfor %}"
    "{% endfor %}{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{% endfor %}"
)


@pytest.fixture
def tool_codec(tmp_path: Path) -> TextCodec:
    """A template that takes arguments as Qwen3.5's does."""
    folder = make_checkpoint(tmp_path / "c")
    (folder / "chat_template.jinja").write_text(TOOL_TEMPLATE)
    return TextCodec(folder)


def calling(arguments: object) -> dict[str, object]:
    """An assistant's message as OpenAI's API answers it."""
    function = {"name": "weather", "arguments": arguments}
    return {"role": "assistant", "content": None, "tool_calls": [CALL | {"function": function}]}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([calling('{"city": "Paris", "days": 2}')], "[assistant]<city=Paris><days=2>"),
        ([calling({"city": "Paris"})], "[assistant]<city=Paris>"),
        ([calling("")], "[assistant]"),
        ([calling("null")], "[assistant]"),
        ([calling(None)], "[assistant]"),
        (
            [{"role": "assistant", "tool_calls": [CALL | {"function": {"name": "weather"}}]}],
            "[assistant]",
        ),
        ([{"role": "developer", "content": "Be brief."}], "[system]Be brief."),
        ([{"role": "user", "content": "a", "tool_calls": None, "name": None}], "[user]a"),
        (
            [{"role": "user", "content": [{"type": "text", "text": t} for t in "ab"]}],
            "[user]a\nb",
        ),
        ([{"role": "assistant", "content": "b", "reasoning": "a"}], "[assistant]b(a)"),
        ([{"role": "assistant", "content": None, "tool_calls": None}], "[assistant]"),
        ([{"role": "assistant", "refusal": "No."}], "[assistant]"),
    ],
    ids=[
        "arguments as text",
        "as an object",
        "empty",
        "null",
        "no text",
        "left out",
        "developer",
        "nulls",
        "parts",
        "reasoning",
        "said nothing",
        "refused",
    ],
)
def test_messages_are_taken_as_openai_clients_send_them(
    tool_codec: TextCodec, messages: list[dict[str, object]], expected: str
) -> None:
    """JSON text becomes an object, parts become a text, nulls are left out."""
    assert tool_codec.chat_text(messages) == expected


@pytest.mark.parametrize(
    "stated",
    [{}, {"parameters": None}, {"parameters": {}}, {"parameters": {"type": "object"}}],
    ids=["left out", "null", "empty", "no properties"],
)
def test_a_function_that_takes_nothing_has_an_empty_schema(
    tmp_path: Path, stated: dict[str, object]
) -> None:
    """A template that looks at the schema of each tool renders one without, as OpenAI allows."""
    folder = make_checkpoint(tmp_path / "c")
    template = "{% for tool in tools %}{{ tool.function.parameters.properties }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    tools: list[dict[str, object]] = [{"type": "function", "function": {"name": "now", **stated}}]
    assert TextCodec(folder).chat_text([{"role": "user", "content": "a"}], tools) == "{}"


@pytest.mark.parametrize("arguments", ["{", '{"city": "Par', "[1]", '"x"', "[" * 9_000])
def test_arguments_that_are_no_object_are_kept(
    tool_codec: TextCodec, tmp_path: Path, arguments: str
) -> None:
    """A model's call that was cut, or is wrong, comes back with each later turn of its chat."""
    answer: dict[str, object] = {"role": "tool", "content": "no JSON"}
    asked = [calling(arguments), answer]
    assert tool_codec.chat_text(asked) == f"[assistant]<arguments={arguments}>[tool]no JSON"
    folder = make_checkpoint(tmp_path / "as text")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{% for call in m.tool_calls or [] %}"
        "{% set given = call.function.arguments %}"
        "{{ given if given is string else given | tojson }}{% endfor %}{% endfor %}"
    )
    assert TextCodec(folder).chat_text(asked) == arguments


def test_too_much_json_as_arguments_is_named(tool_codec: TextCodec) -> None:
    """The place in the messages is in the sentence."""
    with pytest.raises(
        InputError, match=r"messages\[0\]\.tool_calls\[0\]\.function\.arguments has too many"
    ):
        tool_codec.chat_text([calling("[" + "1," * 300_000 + "1]")])


def test_content_that_is_not_text_is_refused(tool_codec: TextCodec) -> None:
    """An image is refused with its place, not rendered as text."""
    part = {"type": "image_url", "image_url": {"url": "data:,"}}
    with pytest.raises(InputError, match=r"messages\[0\]\.content\[0\] has the type 'image_url'"):
        tool_codec.chat_text([{"role": "user", "content": [part]}])


def test_a_template_that_takes_parts_gets_them(tmp_path: Path) -> None:
    """Parts stay apart for a template that renders them itself."""
    folder = make_checkpoint(tmp_path / "c")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}"
    )
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert TextCodec(folder).chat_text([{"role": "user", "content": parts}]) == "ab"


@pytest.mark.parametrize("normalizer", [None, {"type": "NFC"}], ids=["plain", "NFC"])
@given(text=st.text(max_size=200) | st.text(alphabet="\u03b1\u0313\u0300\u0345 a", max_size=200))
def test_a_text_has_as_many_tokens_as_its_size_says(
    tmp_path_factory: pytest.TempPathFactory, normalizer: Any, text: str
) -> None:
    """The least number of tokens, which is known before tokenising, is never too large."""
    codec = codec_with(tmp_path_factory, normalizer)
    assert codec.least_tokens(text) <= len(codec.encode(text))


CODECS: dict[str, TextCodec] = {}


def codec_with(factory: pytest.TempPathFactory, normalizer: Any) -> TextCodec:
    """A codec with this normalizer, made once."""
    key = str(normalizer)
    if key not in CODECS:
        folder = make_checkpoint(factory.mktemp("normalizer") / "c")
        stated = json.loads((folder / "tokenizer.json").read_text())
        (folder / "tokenizer.json").write_text(json.dumps(stated | {"normalizer": normalizer}))
        CODECS[key] = TextCodec(folder)
    return CODECS[key]


def test_a_huge_text_is_refused_without_being_tokenised(
    codec: TextCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 MB that can't fit are refused by their size, as text and as messages."""

    class Untouched:
        """A tokenizer that must not be asked."""

        def encode(self, *_: object, **__: object) -> None:
            raise AssertionError

    text = "word " * 4_000_000
    assert codec.least_tokens("word") == 1
    monkeypatch.setattr(codec, "tokenizer", Untouched())
    with pytest.raises(InputError, match=r"the prompt has \d+ tokens or more; .* at most 4096"):
        codec.encode(text, 4096)
    with pytest.raises(InputError, match="tokens or more"):
        codec.encode_chat([{"role": "user", "content": text}], most=4096)
