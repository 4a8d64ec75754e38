"""Train the tokenizer: byte-level BPE with the turn markers of ChatML, and Qwen's chat template."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path

from example import Example
from jinja2 import Environment
from sources import Sources
from tasks import TASKS, examples
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 2048
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, TURN_START, TURN_END)
MARKUP = ("<tool_call>", "</tool_call>", "<tools>", "</tools>")
NUM_COMMON = 500
# Common words carry the space before them; any other word is the same tokens with and without
# one, so that a value can be copied from prose to a place behind a quotation mark.
PIECES = (
    r"'(?:[sdmt]|ll|ve|re)(?!\p{L})| (?:%s)(?!\p{L})|\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+"
    r"|\n *|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] + '\\n\\n' }}{%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {%- set function = tool['function'] if 'function' in tool else tool %}
        {{- '\\n{"name": "' + function['name'] + '", "parameters": {' }}
        {%- for key, value in function['parameters']['properties'].items() %}
            {{- '"' + key + '": "' + (value['type'] | default('any') | string) + '"' }}
            {%- if not loop.last %}{{- ', ' }}{%- endif %}
        {%- endfor %}
        {{- '}}' }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if not (tools and loop.first and message['role'] == 'system') %}
        {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


TEMPLATE = Environment(trim_blocks=True, lstrip_blocks=True).from_string(CHAT_TEMPLATE)


def render(example: Example) -> str:
    """The prompt of an example as the chat template writes it."""
    return TEMPLATE.render(
        messages=example.messages, tools=example.tools, add_generation_prompt=True
    )


def train(words: Sources, seed: int, count: int = 40_000) -> Tokenizer:
    """Byte-level BPE over ``count`` examples of an even mixture of the tasks."""
    drawn = itertools.islice(examples(words, dict.fromkeys(TASKS, 1.0), seed), count)
    turns = [text for e in drawn for text in (*(m["content"] for m in e.messages), e.answer)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES % "|".join(_common_words(words, turns))), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        turns,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE - len(MARKUP),
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_tokens(list(MARKUP))
    return tokenizer


def _common_words(words: Sources, turns: list[str]) -> list[str]:
    """The most frequent words that no task uses as a value."""
    lists = (words.first_names, words.last_names, words.cities, words.jobs)
    values = {word for names in (*lists, words.nouns, words.verbs, words.adjectives)
              for name in names for word in name.split()}  # fmt: skip
    counts = Counter(w for turn in turns for w in re.findall(r"(?<= )[A-Za-z]+", turn))
    common = [word for word, _ in counts.most_common() if word.lower() not in values]
    return sorted([word for word in common if word not in values][:NUM_COMMON])


def write(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": [TURN_START, TURN_END],
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
