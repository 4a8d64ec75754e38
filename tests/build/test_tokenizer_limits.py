"""What a checkpoint's tokenizer may take: of time and memory, for itself and for each text."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.tiny_model import make_checkpoint, write_json
from trt_mtp.build.text_check import add_special_tokens, add_tokens, check_text
from trt_mtp.errors import InputError
from trt_mtp.serve.engine.text import TextCodec

Json = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of one test's own."""
    return make_checkpoint(tmp_path / "c")


def change_tokenizer(folder: Path, **parts: Any) -> None:
    """Change parts of the tokenizer."""
    file = folder / "tokenizer.json"
    write_json(file, json.loads(file.read_text()) | parts)


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
@pytest.mark.parametrize(("length", "is_read"), [(8, True), (9, False)])
def test_a_tokenizer_makes_no_more_than_some_of_a_character(
    folder: Path, part: str, length: int, is_read: bool
) -> None:
    """Replacements one after the other make gigabytes of a word."""
    step = {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * length}
    change_tokenizer(folder, **{part: {"type": "Sequence", f"{part}s": [step, step]}})
    if is_read:
        check_text(folder, 320)
        return
    with pytest.raises(InputError, match=f"tokenizer.json: its {part} can make a text more than"):
        check_text(folder, 320)


NFC = {"type": "NFC"}
LONG = {"type": "Replace", "pattern": {"String": "e"}, "content": "\ufdfa" * 8}


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([LONG, {"type": "NFKD"}], "can make a text more than 64 times as long"),
        ([{"type": "Prepend", "prepend": "e" * 65}], "can make a text more than 64 times"),
        ([NFC] * 70, "has 71 steps, more than 64"),
    ],
    ids=["decomposed", "put before", "read often"],
)
def test_a_normalizer_with_much_work_is_refused(
    folder: Path, steps: list[Json], message: str
) -> None:
    """Whatever makes the text longer: ten thousand characters became four gigabytes."""
    change_tokenizer(folder, normalizer={"type": "Sequence", "normalizers": steps})
    with pytest.raises(InputError, match=f"tokenizer.json: its normalizer {message}"):
        check_text(folder, 320)


def test_a_long_text_that_would_grow_is_refused(folder: Path) -> None:
    """Before any work; one that the tokenizer leaves as long as it is may have any length."""
    change_tokenizer(folder, normalizer=LONG)
    codec = TextCodec(folder)
    assert codec.encode("e" * 100)
    with pytest.raises(InputError, match=r"the text has 600000 characters, and .* 524288 at most"):
        codec.encode("e" * 600_000)
    change_tokenizer(folder, normalizer=NFC)
    assert TextCodec(folder).encode("e" * 600_000)


def test_a_tokenizer_that_its_library_gives_up_is_refused(folder: Path) -> None:
    """What Rust raises then is no Exception."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    merges = {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    change_tokenizer(folder, model=model | merges | {"continuing_subword_prefix": "x" * 100})
    with pytest.raises(InputError, match=r"tokenizer\.json can't be read: range"):
        check_text(folder, 320)


def test_a_text_that_the_tokenizer_gives_up_is_refused(folder: Path) -> None:
    """As its regular expression does for some; what it raises then is no Exception."""
    pattern = {"Regex": "(x+x+)+y"}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    change_tokenizer(folder, pre_tokenizer=split)
    with pytest.raises(InputError, match="the tokenizer can't read the text: "):
        TextCodec(folder).encode("x" * 60)


class Counted:
    """A tokenizer that counts how often tokens are added to it."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.num_calls = 0

    def __getattr__(self, name: str) -> Any:
        self.num_calls += name in ("add_tokens", "add_special_tokens")
        return getattr(self._tokenizer, name)


def test_tokens_are_added_all_at_once(folder: Path) -> None:
    """Each call takes as long as there are tokens: forty thousand took minutes one by one."""
    added = {str(320 + i): {"content": f"<|{i}|>"} for i in range(50)}
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    names = [token for token in vocabulary if len(token) > 1][:20]
    assert len(names) > 1
    stated = {"added_tokens_decoder": added, "extra_special_tokens": names}
    write_json(folder / "tokenizer_config.json", stated)
    tokenizer = Counted(folder)
    add_tokens(tokenizer, folder)
    add_special_tokens(tokenizer, folder)
    assert tokenizer.num_calls == 2
    assert tokenizer.token_to_id("<|49|>") == 369
