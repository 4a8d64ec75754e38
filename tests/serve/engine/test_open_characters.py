"""serve/engine/text.py: answers whose characters stay open for many tokens."""

import json
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny_model import make_checkpoint
from trt_mtp.serve.engine.text import BYTE_OF, AnswerText, TextCodec

BYTE_NAMES = {byte: char for char, byte in BYTE_OF.items()}
CROSSING = b"\x92\xe1\x9e"  # ends one character and begins another: Qwen's token 72496


class CountingTokenizer:
    """The tokenizer, and how many tokens it was given to decode."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.num_tokens = 0

    def decode(self, ids: list[int], **options: Any) -> str:
        """As the tokenizer's."""
        self.num_tokens += len(ids)
        return str(self._tokenizer.decode(ids, **options))


@pytest.fixture(scope="module")
def codec(checkpoint: Path) -> TextCodec:
    """The tiny checkpoint's."""
    return TextCodec(checkpoint)


@pytest.fixture(scope="module")
def crossing(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextCodec, int]:
    """A codec with the token CROSSING in place of its last one, and that token."""
    folder = make_checkpoint(tmp_path_factory.mktemp("crossing") / "c")
    stated = json.loads((folder / "tokenizer.json").read_text())
    model = stated["model"]
    last = max(model["vocab"], key=model["vocab"].__getitem__)
    token = model["vocab"].pop(last)
    model["vocab"]["".join(BYTE_NAMES[byte] for byte in CROSSING)] = token
    model["merges"] = [merge for merge in model["merges"] if "".join(merge) != last]
    (folder / "tokenizer.json").write_text(json.dumps(stated))
    codec = TextCodec(folder)
    assert codec.token_bytes(token) == CROSSING
    return codec, token


def streamed(codec: TextCodec, tokens: Sequence[int]) -> str:
    """The text that comes, piece by piece."""
    text = AnswerText(codec, ())
    return "".join(text.push(token)[0] for token in tokens) + text.flush()


def whole(codec: TextCodec, tokens: Sequence[int]) -> str:
    """The text of all tokens at once."""
    return str(codec.tokenizer.decode(tokens, skip_special_tokens=True))


def assert_cheap(codec: TextCodec, tokens: Sequence[int]) -> None:
    """The text is right, and the work for a token doesn't grow with those before it."""
    counted = copy(codec)
    counted.tokenizer = CountingTokenizer(codec.tokenizer)
    assert streamed(counted, tokens) == whole(codec, tokens)
    assert counted.tokenizer.num_tokens < 100 * len(tokens)


@pytest.mark.parametrize("kind", ["bytes that are no character", "special tokens"])
def test_answers_without_a_whole_character_cost_no_more(codec: TextCodec, kind: str) -> None:
    """However long they are."""
    first, second, *_ = codec.encode("é")
    special = min(codec.eos_ids)
    assert_cheap(codec, [first, *[special if kind == "special tokens" else second] * 2_000])


def test_tokens_across_characters_cost_no_more(crossing: tuple[TextCodec, int]) -> None:
    """The same where no token ends with a character."""
    codec, token = crossing
    assert_cheap(codec, [token] * 500)


@given(st.data())
def test_tokens_across_characters_give_the_text_of_the_whole(
    crossing: tuple[TextCodec, int], data: st.DataObject
) -> None:
    """Among any others, such as parts of characters of four bytes."""
    codec, token = crossing
    others = sorted({token, *codec.encode("a🙂é"), *codec.eos_ids})
    tokens = data.draw(st.lists(st.sampled_from([token, token, *others]), max_size=60))
    assert streamed(codec, tokens) == whole(codec, tokens)
