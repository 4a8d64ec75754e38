"""How answers have to be read, as a checkpoint's chat template says it."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.tiny_model import CHAT_TEMPLATE
from tests.variants import make_variant
from trt_mtp.build.chat_format import read_chat_format
from trt_mtp.serve.chat_format import CHAT_FORMAT, ChatFormat
from trt_mtp.serve.repository import variant_config

OPENING = "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
QWEN3 = "{%- if enable_thinking is defined and enable_thinking is false %}" + (
    "{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
QWEN35 = QWEN3.replace("{%- endif %}{%- endif %}", "") + (
    "{%- else %}{{ '<think>\\n' }}{%- endif %}{%- endif %}"
)
CALLS = "{%- for message in messages %}{{ message.content }}{%- endfor %}"
XML = CALLS + "{%- if tools %}{{ '<tool_call>\\n<function=name>' }}{%- endif %}"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHAT_TEMPLATE, ChatFormat()),
        (CALLS + OPENING + QWEN3, ChatFormat("json", True)),
        (XML + OPENING + QWEN35, ChatFormat("xml", True, (True, True, False))),
        (XML, ChatFormat("xml")),
    ],
)
def test_a_template_says_it(tmp_path: Path, template: str, expected: ChatFormat) -> None:
    """The form of calls, and whether a prompt ends inside the reasoning."""
    (tmp_path / "chat_template.jinja").write_text(template)
    variant = make_variant(tmp_path / "engines", 3)
    record = replace(variant.record, chat_format=read_chat_format(tmp_path))
    parameter = variant_config(replace(variant, record=record)).parameters[CHAT_FORMAT]
    assert ChatFormat.from_json(parameter) == expected


def test_a_checkpoint_without_a_template_says_nothing(tmp_path: Path) -> None:
    """Then there are no chats to read."""
    assert read_chat_format(tmp_path) == {}
    assert CHAT_FORMAT not in variant_config(make_variant(tmp_path / "engines", 3)).parameters


@pytest.mark.parametrize("text", ["", "x", "[]", "{}", '{"opens": 3}', '{"opens": [1, 2]}'])
def test_another_servers_parameter_is_nothing(text: str) -> None:
    """A repository may be older, or not ours."""
    assert ChatFormat.from_json(text) == ChatFormat()
