"""A hosted variant as the configuration of its Triton model describes it."""

import json
import re
from typing import Any

from trt_mtp.controller.batch_schedule import BatchSchedule
from trt_mtp.serve.chat_format import CHAT_FORMAT, ChatFormat
from trt_mtp.serve.contract import GUIDED, MIN_TOKENS
from trt_mtp.serve.repository import MEASURED_ON, NO_GUIDED, NO_MIN_TOKENS, SCHEDULE

DEFAULT_MAX_BATCH_SIZE = 8  # of a variant whose configuration doesn't say
DEFAULT_MAX_SEQ_LEN = 2_048


def _length_in(name: str) -> int:
    """The draft length that a variant's name begins with, as in `k3`; 0 where it has none."""
    found = re.match(r"k(\d{1,3})", name)
    return int(found[1]) if found else 0


def described(config: Any, public_name: str) -> dict[str, Any]:
    """What a Replica has of its pb.ModelConfig.

    A parameter that is missing or no number has a default.
    """
    texts = {key: value.string_value for key, value in config.parameters.items()}
    suffix = config.name.removeprefix(f"{public_name}_")
    name = texts.get("variant") or suffix

    def number(key: str, default: int) -> int:
        text = texts.get(key, "")
        return int(text) if re.fullmatch(r"\d{1,9}", text) else default

    return {
        "name": name,
        "model_name": config.name,
        "draft_length": number("draft_length", _length_in(suffix)),
        "max_batch_size": number("max_batch_size", DEFAULT_MAX_BATCH_SIZE),
        "max_seq_len": number("max_seq_len", DEFAULT_MAX_SEQ_LEN),
        "fingerprint": texts.get("fingerprint", ""),
        "measured_on": _measured_on(texts.get(MEASURED_ON, "")),
        "inputs": frozenset(tensor.name for tensor in config.input),
        "outputs": frozenset(tensor.name for tensor in config.output),
        "takes_min_tokens": NO_MIN_TOKENS not in texts
        and any(tensor.name == MIN_TOKENS for tensor in config.input),
        "takes_guided": NO_GUIDED not in texts
        and any(tensor.name == GUIDED for tensor in config.input),
        "schedule": BatchSchedule.from_json(texts.get(SCHEDULE, "")),
        "chat_format": ChatFormat.from_json(texts.get(CHAT_FORMAT, "")),
    }


def _measured_on(text: str) -> dict[str, str]:
    """The parts in a model's parameter; none where it isn't a JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return {str(key): str(part) for key, part in value.items()} if isinstance(value, dict) else {}
