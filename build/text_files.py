"""The files of a checkpoint beside its tensors, and which of their tokens end an answer."""

from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trt_mtp.errors import InputError
from trt_mtp.files import open_regular, read_json

NAMED_TEMPLATES = "additional_chat_templates"
SPECIAL_TOKENS = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
MORE_TOKENS = ("extra_special_tokens", "additional_special_tokens")
# each counts only where it is there
TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "hf_quant_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)

TokenToId = Callable[[str], int | None]


def named_templates(folder: Path) -> list[Path]:
    """The files of named chat templates; hidden ones are left out, such as macOS's `._` files."""
    found = (folder / NAMED_TEMPLATES).glob("*.jinja")
    return sorted(file for file in found if not file.name.startswith("."))


def text_files(folder: Path) -> list[str]:
    """The names of the files in `folder` that decide what text an engine reads and writes."""
    named = named_templates(folder)
    names = [*TEXT_FILES, *(f"{NAMED_TEMPLATES}/{file.name}" for file in named)]
    return [name for name in names if (folder / name).is_file()]


def check_marks(folder: Path) -> None:
    """Raise InputError for a JSON file that begins with a byte order mark, as Windows' editors
    write it: transformers and the engines that read it with their own programs refuse the file.
    """
    for name in text_files(folder):
        if not name.endswith(".json"):
            continue
        with open_regular(folder / name) as file:
            if file.read(len(BOM_UTF8)) == BOM_UTF8:
                raise InputError(
                    f"{folder / name} begins with a byte order mark; save it as UTF-8 without one"
                )


def read_settings(file: Path) -> dict[str, Any]:
    """A JSON object; raises InputError for anything else."""
    value = read_json(file)
    if not isinstance(value, dict):
        raise InputError(f"{file} is not a JSON object")
    return value


def read_end_ids(folder: Path, token_to_id: TokenToId, vocab_size: int) -> frozenset[int]:
    """The token ids that end an answer.

    Those of generation_config.json, or else of config.json, as transformers' generate takes them,
    and the tokenizer's eos_token, which ends a turn where a file names only the end of a text.
    Raises InputError for an id that is none.
    """
    stated = frozenset(stated_end_ids(folder, vocab_size))
    name = end_token(folder)
    own = None if name is None else token_to_id(name)
    return stated if own is None else stated | {own}


def stated_end_ids(folder: Path, vocab_size: int) -> list[int]:
    """The ids in the first file, and its first part, that states any."""
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        config = read_settings(file) if file.is_file() else {}
        for part in (config, config.get("text_config")):
            value = part.get("eos_token_id") if isinstance(part, dict) else None
            if value is not None:
                return checked_ids(file, value, vocab_size)
    return []


def checked_ids(file: Path, value: Any, vocab_size: int) -> list[int]:
    """eos_token_id as a list; raises InputError unless it is an id or a list of ids."""
    ids = value if isinstance(value, list) else [value]
    for token in ids:
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocab_size:
            raise InputError(
                f"{file}: eos_token_id has {token!r:.60}, expected ids from 0 to {vocab_size - 1}"
            )
    return ids


def special_tokens(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """File, key and text of each special token that the files beside tokenizer.json name."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = folder / name
        stated = read_settings(file) if file.is_file() else {}
        for key in (*SPECIAL_TOKENS, *MORE_TOKENS):
            value = stated.get(key)
            if key in SPECIAL_TOKENS:
                value = [value]
            if isinstance(value, dict):
                value = list(value.values())
            for each in value if isinstance(value, list) else ():
                text = each.get("content") if isinstance(each, dict) else each
                if isinstance(text, str) and text:
                    yield file, key, text


def end_token(folder: Path) -> str | None:
    """The tokenizer's eos_token, as text."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = folder / name
        value = read_settings(file).get("eos_token") if file.is_file() else None
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            return text
    return None
