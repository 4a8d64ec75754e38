"""Parameters of OpenAI and other servers that can't be followed: refused by name."""

from collections.abc import Mapping
from typing import Any

from trt_mtp.controller.gateway.openai.errors import ParameterError

# name -> the values that change nothing, beside null
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "prompt_logprobs": (),
    "min_p": (0,),
    "use_beam_search": (False,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "response_prefix": ("",),  # TabbyAPI's
    "chat_template": (),
    "documents": ([],),
    "guided_grammar": (),
    "guided_whitespace_pattern": (),
    "allowed_token_ids": (),
    "logprob_token_ids": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "structural_tag": (),
    "grammar": ("",),  # llama.cpp's, as is json_schema
    "json_schema": (),
    "ebnf": (),  # SGLang's, as is regex
    "regex": (),
    "modalities": (["text"],),
    "audio": (),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "web_search_options": (),
    "verbosity": ("medium",),
    "suffix": ("",),
}
# what there is in place of some of them
_INSTEAD = {"functions": "tools", "function_call": "tool_choice"}
_COMPLETION_ONLY = {"messages", "tools", "tool_choice"}  # are a chat's


def check_refused(values: Mapping[str, Any]) -> None:
    """Raise ParameterError for the first value that the answer could not follow."""
    for name, neutral in _NEUTRAL.items():
        value = values.get(name)
        if value is None or any(_is_same(value, each) for each in neutral):
            continue
        expected = " or ".join(["no such parameter", *(_shown(each) for each in neutral)])
        instead = f"; send {_INSTEAD[name]} in its place" if name in _INSTEAD else ""
        raise ParameterError(
            f"{name} is not supported here: expected {expected}{instead}",
            name,
            "unsupported_parameter",
        )


def check_completion(values: Mapping[str, Any]) -> None:
    """Raise ParameterError for what a chat has and a completion has not."""
    for name in sorted(_COMPLETION_ONLY):
        if values.get(name) is not None:
            raise ParameterError(f"{name} goes to /v1/chat/completions", name)


def _is_same(value: Any, neutral: Any) -> bool:
    """Equal, and both truth values or neither; to Python, 0 is false."""
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)


def _shown(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
