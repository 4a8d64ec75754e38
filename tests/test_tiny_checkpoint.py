"""The shipped checkpoint: Hugging Face form, size, template, prompts."""

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from jinja2 import Environment  # noqa: E402
from safetensors import safe_open  # noqa: E402

from trt_mtp.serve.engine.text import TextCodec  # noqa: E402
from trt_mtp.serve.model import reference  # noqa: E402

FOLDER = Path(__file__).parent.parent / "assets" / "qwen-mtp-tiny"
MEGABYTE = 1_000_000
SCRATCH = ("packages", "__pycache__", ".mypy_cache", ".ruff_cache", "state.pt")
TOOL = {
    "type": "function",
    "function": {
        "name": "track",
        "parameters": {"type": "object", "properties": {"parcel": {"type": "string"}}},
    },
}
CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Hello"}]},
    {
        "messages": [
            {"role": "system", "content": "You are Hamlet."},
            {"role": "user", "content": "Who's there?"},
            {"role": "assistant", "content": "Nay, answer me."},
            {"role": "user", "content": "Long live the king!"},
        ]
    },
    {"messages": [{"role": "user", "content": "Where is it?"}], "tools": [TOOL]},
    {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}],
        "tools": [TOOL, TOOL],
    },
]


@pytest.fixture(scope="module")
def prompts() -> list[dict[str, Any]]:
    text = (FOLDER / "prompts.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(FOLDER)


def load_script(name: str) -> ModuleType:
    """A script of the training folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / "train" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_logits_equal_those_of_transformers(tokenizer: Any, prompts: list[dict[str, Any]]) -> None:
    """transformers' Qwen3_5ForCausalLM gives the logits of the reference within 1e-4."""
    theirs = transformers.Qwen3_5ForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    ours = reference.load(FOLDER)
    for prompt in prompts[::64]:
        text = tokenizer.apply_chat_template(prompt["messages"], tokenize=False)
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            assert torch.allclose(theirs(ids).logits, ours(ids)[0], rtol=0, atol=1e-4)


def test_draft_chain_continues_the_first_draft(prompts: list[dict[str, Any]]) -> None:
    """The first step of a draft chain is the draft that every position makes."""
    model = reference.load(FOLDER)
    ids = torch.randint(3, model.config.vocab_size, (2, 40))
    starts = torch.tensor([[5, 20, 30], [0, 1, 36]])
    with torch.no_grad():
        hidden = model.model(ids)
        _, drafted = model.draft(torch.nn.functional.pad(ids[:, 1:], (0, 1)), hidden)
        chain = model.draft_chain(ids, hidden, starts, 3)
    wanted = drafted.gather(1, starts[..., None].expand(-1, -1, drafted.shape[-1]))
    assert len(chain) == 3
    assert torch.allclose(chain[0], wanted, atol=1e-5)


def test_folder_is_small() -> None:
    """All files together, training scripts included, stay within 12 MB."""
    files = [
        file
        for file in FOLDER.rglob("*")
        if file.is_file() and not any(part.startswith(SCRATCH) for part in file.parts)
    ]
    assert sum(file.stat().st_size for file in files) <= 12 * MEGABYTE


def test_tensor_names_are_those_of_released_checkpoints() -> None:
    """Trunk and MTP tensors have the released names, the head is tied, everything is bfloat16."""
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert {str(file.get_tensor(name).dtype) for name in names} == {"torch.bfloat16"}
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    assert not any(name.startswith("lm_head") for name in names)
    assert {name.split(".")[0] for name in names} == {"model", "mtp"}
    for layer, kind in enumerate(config["layer_types"]):
        mixer = "linear_attn.in_proj_qkv" if kind == "linear_attention" else "self_attn.q_proj"
        assert f"model.layers.{layer}.{mixer}.weight" in names
    for name in ("fc", "norm", "pre_fc_norm_hidden", "pre_fc_norm_embedding"):
        assert f"mtp.{name}.weight" in names
    assert "mtp.layers.0.self_attn.q_proj.weight" in names


@pytest.mark.parametrize("chat", CHATS)
def test_template_renders_the_same_everywhere(chat: dict[str, Any], tokenizer: Any) -> None:
    """transformers and plain jinja2 render the same ChatML, from either copy of the template."""
    template = (FOLDER / "chat_template.jinja").read_text(encoding="utf-8")
    config = json.loads((FOLDER / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["chat_template"] == template
    plain = Environment(trim_blocks=True, lstrip_blocks=True).from_string(template)
    text = plain.render(**chat, add_generation_prompt=True)
    theirs = tokenizer.apply_chat_template(
        chat["messages"], tools=chat.get("tools"), tokenize=False, add_generation_prompt=True
    )
    assert text == theirs
    assert text.endswith("<|im_start|>assistant\n")
    assert text.count("<|im_start|>") == text.count("<|im_end|>") + 1


def test_turn_markers_are_single_tokens(tokenizer: Any) -> None:
    """Each marker of ChatML is one token, and an answer ends with <|im_end|>."""
    markers = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert [tokenizer(marker)["input_ids"] for marker in markers] == [[0], [1], [2]]
    config = json.loads((FOLDER / "generation_config.json").read_text(encoding="utf-8"))
    assert config["eos_token_id"] == 2


def test_prompts_are_well_formed(tokenizer: Any, prompts: list[dict[str, Any]]) -> None:
    """Each of the seven tasks has 60 prompts or more, all different and shorter than 250 tokens."""
    counts = Counter(prompt["task"] for prompt in prompts)
    assert len(counts) == 7
    assert min(counts.values()) >= 60
    assert len({json.dumps(prompt) for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        text = tokenizer.apply_chat_template(
            prompt["messages"], tools=prompt.get("tools"), tokenize=False
        )
        assert len(tokenizer(text)["input_ids"]) < 250
        assert 0 < prompt["max_tokens"] <= 256
        assert (prompt["task"] in ("writing", "roleplay")) == ("expected" not in prompt)
        assert (prompt["task"] == "tool_call") == ("tools" in prompt)


def test_prompts_use_words_no_training_example_has(prompts: list[dict[str, Any]]) -> None:
    """Values of the held-out prompts are on the side of the split that training never draws."""
    sources = load_script("sources")
    people = [
        prompt["expected"][key].split()
        for prompt in prompts
        for key in ("name", "customer", "author", "reporter", "host")
        if prompt["task"] == "structured_output" and key in prompt["expected"]
    ]
    assert len(people) > 20
    names = [word for person in people for word in person if len(person) == 2]
    assert all(sources.held_out(word) for word in names)


def test_properties_of_every_kind_are_rendered() -> None:
    """A schema may have a reference, alternatives or several types where most have one type."""
    properties = {
        "a": {"$ref": "#/$defs/A"},
        "b": {"anyOf": [{"type": "null"}]},
        "c": {"type": "x"},
    }
    function = {"name": "f", "parameters": {"properties": properties | {"d": {"type": ["x", "y"]}}}}
    tools: list[dict[str, object]] = [{"type": "function", "function": function}]
    text = TextCodec(FOLDER).chat_text([{"role": "user", "content": "q"}], tools)
    assert """{"a": "any", "b": "any", "c": "x", "d": "['x', 'y']"}""" in text
