"""What is run against the OpenAI API: where its tests come from, and why some of them fail."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.conformance.environment import sdist

Expected = tuple[tuple[re.Pattern[str], str], ...]

LLAMA_CPP = "0.3.36"  # of llama-cpp-python, whose source distribution has llama.cpp
MODELS = re.compile(r'model="([\w.-]+)"')
VLLM_FILES = (
    "tests/entrypoints/openai/chat_completion/test_chat.py",
    "tests/entrypoints/openai/completion/test_completion.py",
    "tests/entrypoints/serve/instrumentator/test_basic.py",
)
OPENAI_FILES = (
    "tests/api_resources/chat/test_completions.py",
    "tests/api_resources/test_completions.py",
    "tests/api_resources/test_models.py",
)


@dataclass(frozen=True, slots=True)
class Suite:
    """Tests of another project, the options that run them, and names -> why they fail."""

    name: str
    folder: Path  # where pytest is run
    files: tuple[str, ...]
    needs: tuple[str, ...]  # packages
    models: tuple[str, ...]  # that its tests ask for
    expected: Expected
    options: tuple[str, ...] = ()
    environment: Callable[[str], Mapping[str, str]] = field(default=lambda _: {})


def openai_suite(version: str) -> Suite:
    """The `openai` package's own tests, at the version that our tests use."""
    folder = sdist("openai", version)
    texts = [(folder / file).read_text(encoding="utf-8") for file in OPENAI_FILES]
    names = {name for text in texts for name in MODELS.findall(text)}
    return Suite(
        f"openai {version}",
        folder,
        OPENAI_FILES,
        (
            f"openai=={version}", "pytest-asyncio", "respx", "dirty-equals", "inline-snapshot",
            "time-machine", "nest_asyncio", "rich", "httpx-aiohttp",
        ),
        tuple(sorted(names | {"model"})),
        (
            (re.compile("test_method_create_with_all_params"), "all parameters at once, and audio"),
            (re.compile("chat.*_(retrieve|update|list|list_with_all_params)$"), "stored answers"),
            (re.compile("_delete$"), "deletion of answers and models"),
        ),
        ("-o", "addopts="),
        lambda url: {"TEST_API_BASE_URL": f"http://{url}/v1"},
    )  # fmt: skip


def llama_cpp_suite() -> Suite:
    """The tests of llama.cpp's server for chats and tool calls, without those of large models."""
    folder = sdist("llama-cpp-python", LLAMA_CPP) / "vendor/llama.cpp/tools/server/tests"
    return Suite(
        f"llama.cpp (llama-cpp-python {LLAMA_CPP})",
        folder,
        ("unit/test_chat_completion.py", "unit/test_tool_call.py"),
        ("openai", "requests", "filelock", "wget", "numpy"),
        ("gpt-3.5-turbo-instruct", "codellama70b", "llama-test-model"),
        LLAMA_CPP_EXPECTED,
        ("-p", "llama_cpp_plugin", "-m", "not slow"),
        lambda url: {"DEBUG_EXTERNAL": "1", "PORT": url.rpartition(":")[2]},
    )


def vllm_suite(folder: Path) -> Suite:
    """Those of vLLM's entry-point tests that ask a server, from a checkout."""
    return Suite(
        f"vLLM ({folder.name})",
        folder,
        VLLM_FILES,
        ("openai", "pytest-asyncio", "requests", "regex", "jsonschema"),
        ("HuggingFaceH4/zephyr-7b-beta", "zephyr-lora", "facebook/opt-125m", "Qwen/Qwen3-0.6B"),
        VLLM_EXPECTED,
        (
            "--noconftest", "-p", "vllm_plugin", "-p",
            "tests.entrypoints.conftest", "-o", "addopts=",
        ),
        lambda url: {"DOOR": url},
    )  # fmt: skip


def _expected(names: Mapping[str, str]) -> Expected:
    return tuple((re.compile(f"{name}$"), why) for name, why in names.items())


OTHER_NUMBERS = "their model's numbers of tokens"
SMALL = "what the small checkpoint answers"
OWN = "keys and paths of their own"
REFUSED = "refused by name"
SEPARATE_END = "the end comes in a chunk of its own, as OpenAI has it"
LLAMA_CPP_EXPECTED = _expected(
    {
        "test_chat_completion": OTHER_NUMBERS,
        "test_chat_completion_stream": OTHER_NUMBERS,
        "test_chat_completion_cached_tokens": OTHER_NUMBERS,
        "test_chat_completion_with_openai_library": "a fingerprint that is a build of llama.cpp's",
        "test_chat_template.*": OWN,
        "test_apply_chat_template": OWN,
        "test_verbose_debug": OWN,
        "test_return_progress": OWN,
        "test_chat_completion_with_timings_per_token": OWN,
        "test_chat_completions_token_count": OWN,
        "test_context_size_exceeded.*": OWN,
        "test_completion_with_(grammar|json_schema)": REFUSED,
        "test_logit_bias": REFUSED,
        "test_invalid_chat_completion_req": "two assistant messages in a row, which are taken",
        "test_logprobs_stream": "the first chunk has the first token, with the role",
        "test_chat_completions_multiple_choices": SMALL,
        "test_completion_with_response_format": SMALL,
    }
)
VLLM_EXPECTED = _expected(
    {
        "test_.*prompt_logprobs.*": REFUSED,
        "test_completion_truncation_side.*": REFUSED,
        "test_logprob_token_ids.*": REFUSED,
        "test_batch_completions": REFUSED,
        "test_echo_logprob_completion": REFUSED,
        "test_custom_role": REFUSED,
        "test_(single_chat_session|single_completion)": OTHER_NUMBERS,
        "test_(chat|completion)_streaming": SEPARATE_END,
        "test_chat_completion_stream_options": SEPARATE_END,
        "test_structured_outputs_(json|choice)_chat": SMALL,
        "test_response_format_json_(object|schema)": SMALL,
        "test_complex_message_content": SMALL,
        "test_parallel_(no_)?streaming": SMALL,
        "test_long_seed": "seeds of 64 bits, and other sentences",
        "test_(invocations|show_version|server_load)": OWN,
        "test_request_cancellation": "more tokens than the small checkpoint's context has",
    }
)
