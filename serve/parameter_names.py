"""Names that clients of other models give to inputs and parameters, and what they are here."""

import difflib
import re
from collections.abc import Sequence

from trt_mtp.errors import InputError
from trt_mtp.serve.contract import INPUTS, SEED, STOP

PREFIX = "sampling_param_"  # of TensorRT-LLM's llmapi model, before the fields of SamplingParams
MAX_SHOWN_CHARS = 80  # of an unknown name
OTHER_NAMES = {spec.name.removeprefix(PREFIX): spec.name for spec in INPUTS} | {
    "max_completion_tokens": "sampling_param_max_tokens",
    "inputs": "text_input",  # TGI's
    "max_new_tokens": "sampling_param_max_tokens",
    "prompt": "text_input",
    "random_seed": SEED,
    "request_output_len": "sampling_param_max_tokens",
    "runtime_top_k": "sampling_param_top_k",
    "runtime_top_p": "sampling_param_top_p",
    "stop_words": STOP,
    "stream": "streaming",
}
# of Triton's other LLM models; there is nothing like them here, whatever has a name nearby
WITHOUT_LIKE = (
    "bad_words",
    "beam_width",
    "end_id",
    "input_lengths",
    "length_penalty",
    "pad_id",
    "repetition_penalty",
    "return_context_logits",
    "return_generation_logits",
    "return_log_probs",
)
# in Triton's words
UNEXPECTED = re.compile(r"unexpected inference input '([^']*)' for model '[^']*'$")


def unknown_parameter(name: str, parameters: Sequence[str]) -> InputError:
    """The error for a key that is neither an input nor in `parameters`, with what may be meant.

    >>> str(unknown_parameter("max_tokens", ("task",)))
    "unknown request parameter 'max_tokens'; did you mean sampling_param_max_tokens?"
    """
    shown = name[:MAX_SHOWN_CHARS]
    return InputError(f"unknown request parameter {shown!r}; {_hint(name, parameters)}")


def explained(refusal: str) -> str:
    """Triton's words for a request; where an input is not the model's, with what may be meant.

    >>> explained("unexpected inference input 'beam_width' for model 'm'")
    "unexpected inference input 'beam_width' for model 'm'; nothing here is like it, leave it out"
    """
    found = UNEXPECTED.search(refusal)
    return f"{refusal}; {_hint(found[1], ())}" if found else refusal


def _hint(name: str, parameters: Sequence[str]) -> str:
    """What to do about a name that is not known."""
    if name in WITHOUT_LIKE:
        return "nothing here is like it, leave it out"
    known = OTHER_NAMES | {parameter: parameter for parameter in parameters}
    matches = difflib.get_close_matches(name[:MAX_SHOWN_CHARS].removeprefix(PREFIX), known, n=1)
    return f"did you mean {known[matches[0]]}?" if matches else "docs/gateway.md has the names"
