"""Of the double: how a configuration file becomes arguments."""

from typing import Any

from trt_mtp.build.trtllm_fields import problems
from trt_mtp.build.trtllm_version import parse_version


def update_llm_args_with_extra_dict(
    llm_args: dict[str, Any], llm_args_dict: dict[str, Any]
) -> dict[str, Any]:
    """Both merged; what the version does not know is refused, as pydantic does in the real one."""
    import tensorrt_llm

    merged = {**llm_args, **llm_args_dict}
    found = problems(merged, parse_version(tensorrt_llm.__version__))
    if found:
        raise ValueError("; ".join(found))
    return merged
