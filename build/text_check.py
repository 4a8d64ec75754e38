"""Tokenizer, end tokens and chat template, tried before anything is built."""

from pathlib import Path
from typing import Any

from trt_mtp.build.chat_template import read_chat_template, try_template
from trt_mtp.build.text_files import read_end_ids
from trt_mtp.errors import InputError
from trt_mtp.files import read_bounded


def load_tokenizer(folder: Path) -> Any:
    """`tokenizers.Tokenizer` from tokenizer.json in `folder`; raises InputError for a damaged one.

    A length at which the file says to cut texts, or to fill them up, is left out.
    """
    from tokenizers import Tokenizer

    content = read_bounded(folder / "tokenizer.json")
    if content.startswith(b"version "):  # as in "version https://git-lfs…"
        raise InputError(
            f"{folder / 'tokenizer.json'} is a Git LFS pointer, not the tokenizer; "
            f"run `git lfs pull`"
        )
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # tokenizers raises plain Exception
        raise InputError(f"{folder / 'tokenizer.json'} can't be read: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def check_text(folder: Path, vocab_size: int) -> None:
    """Raise InputError for a tokenizer with ids that the model lacks, an answer that could never
    end, and a chat template that can't be rendered.
    """
    tokenizer = load_tokenizer(folder)
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= vocab_size:
        raise InputError(
            f"{folder / 'tokenizer.json'} has the token id {largest}, but config.json's "
            f"vocab_size is {vocab_size}"
        )
    if not read_end_ids(folder, tokenizer.token_to_id, vocab_size):
        raise InputError(
            f"{folder} names no token that ends an answer; expected eos_token_id in "
            f"generation_config.json"
        )
    chat = read_chat_template(folder)
    if chat is not None:
        try_template(chat)
