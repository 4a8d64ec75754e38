"""Stop texts concern what clients see as the answer, and not the reasoning before it."""

from dataclasses import replace

import pytest

from tests.tiny_model import make_checkpoint, write_tokenizer
from trt_mtp.errors import InputError
from trt_mtp.serve.chat_format import ChatFormat, ChatOptions
from trt_mtp.serve.engine.base import Request, SamplingParams
from trt_mtp.serve.engine.text import TextCodec, begin_answer
from trt_mtp.serve.reasoning import Reasoning

MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
OPEN = ChatFormat("json", True, (True, True, False), (True, True, False))


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    """A tokenizer in which most characters are several tokens, and each mark is one."""
    folder = make_checkpoint(tmp_path_factory.mktemp("marks") / "checkpoint")
    write_tokenizer(folder, MARKS)
    return TextCodec(folder)


def request(codec: TextCodec, stop: str, thinking: bool | None, *, has_tools: bool) -> Request:
    """One for a chat whose prompt ends with <think>, unless `thinking` is False."""
    start = Reasoning(codec.encode, OPEN).start(ChatOptions(thinking, has_tools))
    return Request((5,), SamplingParams(max_tokens=1_000, stop=(stop,)), reasoning=start)


def streamed(codec: TextCodec, wanted: Request, text: str) -> tuple[str, bool, int]:
    """What comes of `text`, whether a stop text ended it, and after how many tokens."""
    answer, got = begin_answer(codec, wanted), ""
    ids = codec.encode(text)[len(wanted.emitted_ids) :]
    for count, token in enumerate(ids, start=1):
        piece, is_stopped = answer.push(token)
        got += piece
        if is_stopped:
            return got, True, count
    return got + answer.flush(), False, len(ids)


CASES = [
    # text, stop, thinking, what comes
    ("a世b\n</think>\n\na世c", "世", None, "a世b\n</think>\n\na"),
    ("a世b", "世", None, "a世b"),  # max_tokens may end it there
    ("\n<think>a世b</think>c世", "世", False, "\n<think>a世b</think>c"),
    ("a世b</think>", "世", False, "a"),  # no reasoning, whatever comes later
    ("a\n\nb</think>\n\nc\n\nd", "\n\n", None, "a\n\nb</think>\n\nc"),
    ("a</think>\n\n", "\n\n", None, "a</think>\n\n"),  # no answer yet
    ("a</think>b", "</think>", None, "a"),  # who wants the reasoning only
    ("a</think>\n\nbX", "</think>bX", None, "a</think>\n\nbX"),
    ("世</think>\n界", "世\n界", None, "世</think>\n界"),  # not across the end
    ("</thi世nk></think>世", "世", None, "</thi世nk></think>"),
]


@pytest.mark.parametrize(("text", "stop", "thinking", "expected"), CASES)
def test_where_a_stop_text_ends_an_answer(
    codec: TextCodec, text: str, stop: str, thinking: bool | None, expected: str
) -> None:
    """The same at every seam, and nothing that was sent is sent again."""
    wanted = request(codec, stop, thinking, has_tools=False)
    got, is_stopped, num_tokens = streamed(codec, wanted, text)
    assert (got, is_stopped) == (expected, expected != text)
    ids = codec.encode(text)
    for seam in range(num_tokens):
        before = begin_answer(codec, wanted)
        sent = "".join(before.push(token)[0] for token in ids[:seam])
        rest = streamed(codec, replace(wanted, emitted_ids=ids[:seam]), text)
        assert (sent + rest[0], rest[1]) == (got, is_stopped)
    if is_stopped:
        with pytest.raises(InputError, match="the answer ended with token"):
            begin_answer(codec, replace(wanted, emitted_ids=ids[:num_tokens]))


def test_a_call_ends_the_reasoning(codec: TextCodec) -> None:
    """Where calls may come: the text that ends the first call does so."""
    text = "a</tool_call>b<tool_call>\n{}\n</tool_call>\n<tool_call>"
    wanted = request(codec, "</tool_call>", None, has_tools=True)
    assert streamed(codec, wanted, text)[0] == "a</tool_call>b<tool_call>\n{}\n"


def test_where_the_reasoning_is_not_known(codec: TextCodec) -> None:
    """A prompt that is no chat: the first stop text ends the answer, wherever it is."""
    wanted = replace(request(codec, "世", None, has_tools=False), reasoning=None)
    assert streamed(codec, wanted, "a世b</think>c世")[0] == "a"
