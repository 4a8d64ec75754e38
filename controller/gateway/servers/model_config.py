"""A hosted variant as the configuration of its Triton model describes it.

It is a server's word, which may be anything: what can't be is left out, or the whole variant is.
"""

import json
import re
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from trt_mtp.controller.batch_schedule import BatchSchedule
from trt_mtp.errors import InputError
from trt_mtp.serve.chat_format import CHAT_FORMAT, ChatFormat
from trt_mtp.serve.contract import GUIDED, MIN_TOKENS
from trt_mtp.serve.kserve import parse_message
from trt_mtp.serve.repository import MEASURED_ON, NO_GUIDED, NO_MIN_TOKENS, SCHEDULE

DEFAULT_MAX_BATCH_SIZE = 8  # of a variant whose configuration doesn't say
DEFAULT_MAX_SEQ_LEN = 2_048
MAX_TENSORS = 1_024  # inputs and outputs
# it is a label, and a value in headers
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def _length_in(name: str) -> int:
    """The draft length that a variant's name begins with, as in `k3`; 0 where it has none."""
    found = re.match(r"k(\d{1,3})", name)
    return int(found[1]) if found else 0


def described(raw: bytes, model_name: str, public_name: str) -> dict[str, Any]:
    """What a Replica has of the model `model_name`, by a server's ModelConfigResponse.

    A parameter that is missing or can't be has a default. Raises InputError for an answer that is
    none, or of another model.
    """
    config = parse_message(pb.ModelConfigResponse, raw).config
    if config.name != model_name or len(config.input) + len(config.output) > MAX_TENSORS:
        raise InputError(f"the configuration of {model_name} is not one of a variant")
    texts = {key: value.string_value for key, value in config.parameters.items()}
    suffix = model_name.removeprefix(f"{public_name}_")
    name = texts.get("variant") or suffix
    if not NAME.fullmatch(name):
        raise InputError(f"{model_name} says that it is {name!r:.80}, which no variant is called")

    def number(key: str, default: int, least: int = 1) -> int:
        text = texts.get(key, "")
        found = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else default
        return found if found >= least else default

    return {
        "name": name,
        "model_name": model_name,
        "draft_length": number("draft_length", _length_in(suffix), 0),
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
    except (ValueError, RecursionError):
        return {}
    return {str(key): str(part) for key, part in value.items()} if isinstance(value, dict) else {}
