"""Names that clients of other models give to inputs and parameters, and what they are here."""

import difflib
from collections.abc import Sequence

from trt_mtp.errors import InputError
from trt_mtp.serve.contract import INPUTS, STOP

PREFIX = "sampling_param_"  # of TensorRT-LLM's llmapi model, before the fields of SamplingParams
MAX_SHOWN_CHARS = 80  # of an unknown name
OTHER_NAMES = {spec.name.removeprefix(PREFIX): spec.name for spec in INPUTS} | {
    "max_completion_tokens": "sampling_param_max_tokens",
    "inputs": "text_input",  # TGI's
    "max_new_tokens": "sampling_param_max_tokens",
    "prompt": "text_input",
    "request_output_len": "sampling_param_max_tokens",
    "stop_words": STOP,
    "stream": "streaming",
}
# of Triton's other LLM models; there is nothing like them here, whatever has a name nearby
WITHOUT_LIKE = (
    "bad_words",
    "end_id",
    "input_lengths",
    "pad_id",
    "repetition_penalty",
    "return_log_probs",
)


def unknown_parameter(name: str, parameters: Sequence[str]) -> InputError:
    """The error for a key that is neither an input nor in `parameters`, with what may be meant.

    >>> str(unknown_parameter("max_tokens", ("task",)))
    "unknown request parameter 'max_tokens'; did you mean sampling_param_max_tokens?"
    """
    known = OTHER_NAMES | {parameter: parameter for parameter in parameters}
    shown = name[:MAX_SHOWN_CHARS]
    matches = difflib.get_close_matches(shown.removeprefix(PREFIX), known, n=1)
    hint = f"; did you mean {known[matches[0]]}?" if matches and name not in WITHOUT_LIKE else ""
    return InputError(f"unknown request parameter {shown!r}{hint}")
