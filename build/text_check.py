"""Tokenizer, end tokens and chat template, tried before anything is built."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trt_mtp.build.chat_template import read_chat_template, try_template
from trt_mtp.build.text_files import read_end_ids, read_settings, special_tokens
from trt_mtp.errors import InputError, is_panic
from trt_mtp.files import read_bounded

MAX_GROWTH = 64  # characters that a text's, or a token's, may become
MAX_STEPS = 64  # of a part of a tokenizer, each of which reads all of a text
# characters that Unicode makes of one at most (UAX #15); composing makes of most texts none more
UNICODE_GROWTH = {"NFD": 4, "NFKD": 18, "NFKC": 18}


def load_tokenizer(folder: Path) -> Any:
    """`tokenizers.Tokenizer` from tokenizer.json in `folder`; raises InputError for a damaged one.

    A length at which the file says to cut texts, or to fill them up, is left out. Tokens that only
    the files beside it have are added, as transformers does it.
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
    except BaseException as error:  # tokenizers raises plain Exception, or gives up
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise InputError(f"{folder / 'tokenizer.json'} can't be read: {error}") from None
    check_growth(folder / "tokenizer.json", tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    add_tokens(tokenizer, folder)
    add_special_tokens(tokenizer, folder)
    return tokenizer


def check_growth(file: Path, tokenizer: Any) -> None:
    """Raise InputError for a part that makes much of little, or reads a text too often.

    Three replacements make gigabytes.
    """
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        steps = _steps_of(getattr(tokenizer, name))
        if len(steps) > MAX_STEPS:
            raise InputError(f"{file}: its {name} has {len(steps):,} steps, more than {MAX_STEPS}")
        if any(step.get("type") == "Precompiled" for step in steps):  # which may hold any text
            raise InputError(f"{file}: its {name} is Precompiled, which no Qwen tokenizer has")
        if growth_by(getattr(tokenizer, name)) > MAX_GROWTH:
            raise InputError(
                f"{file}: its {name} can make a text more than {MAX_GROWTH} times as long"
            )


def growth_by(part: Any) -> int:
    """How many characters a part of a tokenizer can make of one."""
    growth = 1
    for step in _steps_of(part):
        kind = step.get("type")
        growth *= UNICODE_GROWTH.get(str(kind), 1)
        if kind in ("Replace", "Prepend"):
            growth *= max(len(step["content" if kind == "Replace" else "prepend"]), 1)
    return growth


def _steps_of(part: Any) -> list[dict[str, Any]]:
    """What it does, one after the other."""
    found = _steps(json.loads(part.__getstate__())) if part else ()
    return [step for step in found if "type" in step]


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """A part of tokenizer.json, and the parts in it."""
    if isinstance(part, dict):
        yield part
    for inner in part.values() if isinstance(part, dict) else part:
        if isinstance(inner, dict | list):
            yield from _steps(inner)


def add_tokens(tokenizer: Any, folder: Path) -> None:
    """Add what tokenizer.json lacks of `stated_tokens`; raises InputError for another id."""
    from tokenizers import AddedToken

    file, stated = stated_tokens(folder)
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    added = [(i, flags) for i, flags in sorted(stated.items()) if flags["content"] not in known]
    # all at once: after each call the tokenizer makes its search for all of them again
    tokenizer.add_tokens([AddedToken(**flags) for _, flags in added])
    for token_id, flags in added:
        text = flags["content"]
        found = tokenizer.token_to_id(text)
        if found != token_id:
            raise InputError(
                f"{file} has the token {text!r:.60} with the id {token_id}, but by "
                f"{folder / 'tokenizer.json'} it would have {found}; save the tokenizer again"
            )


def add_special_tokens(tokenizer: Any, folder: Path) -> None:
    """Have special tokens that the files beside tokenizer.json name taken whole in texts.

    Raises InputError for one that tokenizer.json lacks: which id transformers would give it depends
    on its version and the order of all of them.
    """
    from tokenizers import AddedToken

    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    added = []
    for file, key, text in special_tokens(folder):
        if text in known:
            continue
        if tokenizer.token_to_id(text) is None:
            raise InputError(
                f"{file}: {key} names the token {text!r:.60}, which {folder / 'tokenizer.json'} "
                f"lacks; remove it, or save the tokenizer again with transformers, which adds it"
            )
        added.append(AddedToken(text, special=True, normalized=False))
    tokenizer.add_special_tokens(added)  # all at once, as above


def stated_tokens(folder: Path) -> tuple[Path, dict[int, dict[str, Any]]]:
    """A file beside tokenizer.json, and its added tokens by id, as AddedToken's arguments.

    Raises InputError for a token without an id or a text.
    """
    file = folder / "tokenizer_config.json"
    stated = read_settings(file).get("added_tokens_decoder") if file.is_file() else None
    if isinstance(stated, dict):
        pairs = list(stated.items())
    else:
        file = folder / "added_tokens.json"  # of older versions of transformers
        pairs = [(i, text) for text, i in read_settings(file).items()] if file.is_file() else []
    return file, {_token_id(file, i, token): _flags(token) for i, token in pairs}


def _token_id(file: Path, stated: Any, token: Any) -> int:
    text = token.get("content") if isinstance(token, dict) else token
    if isinstance(text, str) and text and str(stated).isdecimal():
        return int(stated)
    raise InputError(f"{file}: the added token {stated!r:.40}: {token!r:.60} has no id or no text")


def _flags(token: Any) -> dict[str, Any]:
    """AddedToken's arguments; a token without flags is a plain one, as in added_tokens.json."""
    if not isinstance(token, dict):
        return {"content": token, "normalized": False}
    names = ("lstrip", "normalized", "rstrip", "single_word", "special")
    return {
        "content": token["content"],
        **{name: token[name] for name in names if isinstance(token.get(name), bool)},
    }


def check_text(folder: Path, vocab_size: int) -> None:
    """Raise InputError for a tokenizer with ids that the model lacks, an answer that could never
    end, and a chat template that can't be rendered.
    """
    tokenizer = load_tokenizer(folder)
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= vocab_size:
        raise InputError(
            f"the tokenizer in {folder} has the token id {largest}, but config.json's vocab_size "
            f"is {vocab_size}"
        )
    if not read_end_ids(folder, tokenizer.token_to_id, vocab_size):
        raise InputError(
            f"{folder} names no token that ends an answer; expected eos_token_id in "
            f"generation_config.json"
        )
    chat = read_chat_template(folder)
    if chat is not None:
        try_template(chat)
