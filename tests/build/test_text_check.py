"""Tokenizer, end tokens and chat template are tried at build, as transformers resolves them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.conftest import CliResult
from tests.tiny_model import CHAT_TEMPLATE, make_checkpoint, write_json
from trt_mtp.build.chat_template import read_chat_template
from trt_mtp.build.text_check import check_text
from trt_mtp.errors import InputError
from trt_mtp.serve.engine.text import TextCodec

Cli = Callable[..., CliResult]

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS: Any = [{"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}]
USER: dict[str, Any] = {"role": "user", "content": "Hello"}
GENERATION = (
    "{% for m in messages %}{{ m.role }}: {% generation %}{% set x = m.content %}{{ x }}"
    "{% endgeneration %}{{ eos_token }}{% endfor %}{{ bos_token }}|{{ x }}"
)
NAMED = [
    {"name": "default", "template": "plain {{ messages[-1].content }}"},
    {"name": "tool_use", "template": "tools {{ tools | length }}"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of one test's own."""
    return make_checkpoint(tmp_path / "c")


def put_template(folder: Path, place: str, template: Any) -> None:
    """The only chat template of `folder`."""
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    file = folder / place
    if place.endswith(".jinja"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(template)
        return
    stated = json.loads(file.read_text()) if file.is_file() else {}
    write_json(file, stated | {"chat_template": template})


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize(
    ("place", "template"),
    [
        ("chat_template.jinja", GENERATION),
        ("tokenizer_config.json", GENERATION),
        ("tokenizer_config.json", NAMED),
        ("tokenizer_config.json", CHAT_TEMPLATE),
    ],
    ids=["a file", "a key", "named ones", "the usual one"],
)
def test_templates_are_resolved_as_transformers_does(
    folder: Path, place: str, template: Any, tools: Any
) -> None:
    """Wherever the template lies, the ids are those of apply_chat_template."""
    put_template(folder, place, template)
    check_text(folder, 320)
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [USER], tools=tools, add_generation_prompt=True, return_dict=False
    )
    assert TextCodec(folder).encode_chat([USER], tools) == tuple(expected)


def test_named_files_count_as_transformers_has_them(folder: Path) -> None:
    """additional_chat_templates/tool_use.jinja is the one for requests with tools."""
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("t {{ tools | length }}")
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [USER], tools=TOOLS, return_dict=False
    )
    assert TextCodec(folder).encode_chat([USER], TOOLS) == tuple(expected)
    assert TextCodec(folder).chat_text([USER]).startswith("<|im_start|>user")


def test_hidden_files_are_no_templates(folder: Path) -> None:
    """What macOS leaves beside a file that it copies is passed over."""
    put_template(folder, "additional_chat_templates/tool_use.jinja", CHAT_TEMPLATE)
    put_template(folder, "chat_template.jinja", CHAT_TEMPLATE)
    (folder / "additional_chat_templates" / "._tool_use.jinja").write_bytes(b"\0\5\x16\7\xff")
    chat = read_chat_template(folder)
    assert chat is not None
    assert set(chat.sources) == {"default", "tool_use"}
    check_text(folder, 320)


def test_chat_template_json_is_read_where_the_tokenizer_has_none(folder: Path) -> None:
    """Models that take images keep theirs in chat_template.json."""
    put_template(folder, "chat_template.json", "json {{ messages[0].content }}")
    assert TextCodec(folder).chat_text([USER]) == "json Hello"


BROKEN = {
    "{% for m in messages %}{{ m.content }}": "line 1: Unexpected end of template",
    "{{ messages[0].content": "line 1:",
    "{% unknown %}": "unknown tag 'unknown'",
    "{{ messages[0].content | nofilter }}": "No filter named 'nofilter'",
    "{{ undefined_thing.x }}": "can't render a question (UndefinedError",
    "{{ raise_exception('not today') }}": "can't render a question (not today)",
    "{% if enable_thinking is defined and not enable_thinking %}{{ x.y }}{% endif %}{{ messages }}":
    "can't render a question with enable_thinking False",
    "{% if tools %}{{ tools[0].nothing.name }}{% endif %}{{ messages[0].content }}":
    "can't render tools (UndefinedError",
    "{{ messages[0].content }}{{ messages[0]['__class__'].mro() }}": "can't render a question (",
    "": "can't render a question (it leaves out what the user says)",
}  # fmt: skip


@pytest.mark.parametrize("source", BROKEN)
def test_a_broken_template_is_refused_at_build(
    cli: Cli, folder: Path, tmp_path: Path, source: str
) -> None:
    """One sentence with the file, what was tried and the reason; nothing is built."""
    put_template(folder, "chat_template.jinja", source)
    result = cli("build", folder, "--engine", "cpu", "-o", tmp_path / "engines")
    assert result.code == 2
    assert f"{folder / 'chat_template.jinja'}: its chat template can't" in result.err
    assert BROKEN[source] in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "engines" / "k0").exists()


def test_a_template_may_refuse_tools_and_system_messages(folder: Path) -> None:
    """What a template refuses with a sentence of its own is not an error of the template."""
    put_template(
        folder,
        "chat_template.jinja",
        "{% if tools or messages[0].role == 'system' %}{{ raise_exception('users only') }}"
        "{% endif %}{{ messages[0].content }}",
    )
    check_text(folder, 320)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (3, "chat_template is 3, expected a text or a list"),
        ([{"name": "a"}], "expected objects with name and template"),
        ([{"name": "rag", "template": "x"}], "has the chat templates rag, but none named default"),
    ],
)
def test_malformed_named_templates_are_refused(folder: Path, stated: Any, message: str) -> None:
    """A list without names, sources or a default is refused with the file."""
    put_template(folder, "tokenizer_config.json", stated)
    with pytest.raises(InputError, match=message):
        check_text(folder, 320)


@pytest.mark.parametrize(
    ("generation", "config", "tokenizer", "expected"),
    [
        ({"eos_token_id": 0}, 0, "<|im_end|>", {0, 2}),  # the turn's end is the tokenizer's
        (None, 0, "<|im_end|>", {0, 2}),
        (None, None, "<|im_end|>", {2}),
        (None, None, {"content": "<|im_end|>", "special": True}, {2}),
        ({"eos_token_id": [2, 0]}, 1, None, {0, 2}),
        ({}, 1, None, {1}),
    ],
)
def test_an_answer_ends_where_the_turn_does(
    folder: Path, generation: Any, config: Any, tokenizer: Any, expected: set[int]
) -> None:
    """The ids of generate, and the tokenizer's eos_token, which chat models end turns with."""
    (folder / "generation_config.json").unlink()
    if generation is not None:
        write_json(folder / "generation_config.json", generation)
    stated = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", stated | {"eos_token_id": config})
    write_json(folder / "tokenizer_config.json", {"eos_token": tokenizer})
    check_text(folder, 320)
    assert TextCodec(folder, 320).eos_ids == expected


@pytest.mark.parametrize("value", ["2", 320, -1, [2, None], True, {"id": 2}])
def test_an_end_token_has_to_be_an_id(folder: Path, value: Any) -> None:
    """What is no id below the vocabulary's size is refused with file, key and value."""
    write_json(folder / "generation_config.json", {"eos_token_id": value})
    with pytest.raises(InputError, match=r"generation_config\.json: eos_token_id has .*0 to 319"):
        check_text(folder, 320)


def test_a_model_whose_answers_never_end_is_refused(folder: Path) -> None:
    """No end token in any file would mean answers up to max_tokens, always."""
    (folder / "generation_config.json").unlink()
    stated = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", stated | {"eos_token_id": None})
    write_json(folder / "tokenizer_config.json", {})
    with pytest.raises(InputError, match="names no token that ends an answer"):
        check_text(folder, 320)


def test_a_tokenizer_of_another_vocabulary_is_refused(folder: Path) -> None:
    """Ids that the embedding doesn't have would be refused one request at a time."""
    with pytest.raises(InputError, match=r"token id 319, but config\.json's vocab_size is 300"):
        check_text(folder, 300)


def test_a_tokenizer_that_git_lfs_has_not_fetched_is_named(folder: Path) -> None:
    """A clone without Git LFS has pointers: large tokenizers are in it as the weights are."""
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match=r"tokenizer\.json is a Git LFS pointer"):
        check_text(folder, 320)


def test_a_length_in_the_tokenizer_cuts_no_prompt(folder: Path) -> None:
    """tokenizer.json of a fine-tune may say to cut texts; prompts are refused or read whole."""
    stated = json.loads((folder / "tokenizer.json").read_text())
    stated["truncation"] = {
        "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0
    }  # fmt: skip
    write_json(folder / "tokenizer.json", stated)
    assert len(TextCodec(folder).encode("a b c d e f g h")) > 4


ADDED = {"content": "<|sep|>", "lstrip": False, "rstrip": False, "special": True}
FILES = ("tokenizer_config.json", "added_tokens.json")


def put_token(folder: Path, name: str, token_id: int) -> None:
    """A token that tokenizer.json lacks."""
    file = folder / name
    stated = json.loads(file.read_text()) if file.is_file() else {}
    added: Any = {"added_tokens_decoder": {str(token_id): ADDED}}
    write_json(file, stated | (added if name == FILES[0] else {"<|sep|>": token_id}))


@pytest.mark.parametrize("name", FILES)
def test_tokens_beside_the_tokenizer_are_added_as_transformers_does(
    folder: Path, name: str
) -> None:
    """A token in a fine-tune's other files is one token, and one that the model must have."""
    put_token(folder, name, 320)
    expected = AutoTokenizer.from_pretrained(folder)("a<|sep|>b")["input_ids"]
    assert 320 in expected
    assert TextCodec(folder).encode("a<|sep|>b") == tuple(expected)
    with pytest.raises(InputError, match="token id 320"):
        check_text(folder, 320)
    check_text(folder, 324)


@pytest.mark.parametrize("name", FILES)
def test_an_added_token_with_another_id_is_refused(folder: Path, name: str) -> None:
    """It would be another token than in training."""
    put_token(folder, name, 322)
    with pytest.raises(InputError, match=r"'<\|sep\|>' with the id 322, but by .* have 320"):
        check_text(folder, 324)


@pytest.mark.parametrize("stated", [{"x": {"content": "<s>"}}, {"5": {}}, {"5": 5}])
def test_an_added_token_without_id_or_text_is_refused(folder: Path, stated: Any) -> None:
    """The file and the entry are named."""
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": stated})
    with pytest.raises(InputError, match=r"tokenizer_config\.json: the added token"):
        check_text(folder, 320)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("tokenizer_config.json", "eos_token", "<|done|>"),
        ("tokenizer_config.json", "extra_special_tokens", ["<|im_end|>", "<|done|>"]),
        ("tokenizer_config.json", "extra_special_tokens", {"end": "<|done|>"}),
        ("tokenizer_config.json", "additional_special_tokens", [{"content": "<|done|>"}]),
        ("special_tokens_map.json", "pad_token", {"content": "<|done|>"}),
    ],
)
def test_a_special_token_that_the_tokenizer_lacks_is_refused(
    folder: Path, name: str, key: str, value: Any
) -> None:
    """Its text would come in pieces, and an answer would not end at it."""
    file = folder / name
    stated = json.loads(file.read_text()) if file.is_file() else {}
    write_json(file, stated | {key: value})
    with pytest.raises(InputError, match=rf"{name}: {key} names the token '<\|done\|>', which"):
        check_text(folder, 340)


def test_special_tokens_that_are_no_list_name_none(folder: Path) -> None:
    """A number, say."""
    write_json(folder / "special_tokens_map.json", {"additional_special_tokens": 5})
    check_text(folder, 320)


def test_a_special_token_of_the_vocabulary_is_one_token(folder: Path) -> None:
    """Also where tokenizer.json doesn't list it among its added tokens, as for transformers."""
    file = folder / "tokenizer.json"
    saved = json.loads(file.read_text())
    saved["added_tokens"] = [one for one in saved["added_tokens"] if one["content"] != "<|im_end|>"]
    write_json(file, saved)
    expected = AutoTokenizer.from_pretrained(folder)("a<|im_end|>b")["input_ids"]
    assert len(expected) == 3
    assert TextCodec(folder).encode("a<|im_end|>b") == tuple(expected)


@pytest.mark.parametrize("has_template", [True, False])
def test_a_build_says_that_there_is_no_chat_template(
    cli: Cli, folder: Path, tmp_path: Path, has_template: bool
) -> None:
    """It goes on: a base model answers texts."""
    if not has_template:
        (folder / "chat_template.jinja").unlink()
    where = ("-o", tmp_path / "engines", "--draft-lengths", "0")
    result = cli("build", folder, "--engine", "cpu", "--no-verify", *where)
    assert result.code == 0, result.err
    assert ("has no chat template: its variants will take texts" in result.err) != has_template
