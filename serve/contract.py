"""The tensors of a variant's Triton model: what a request may hold and what an answer brings.

Inputs that TensorRT-LLM's own `llmapi` Triton model has keep its names and types
(github.com/NVIDIA/TensorRT-LLM, triton_backend/all_models/llmapi/tensorrt_llm/config.pbtxt
@0a710573); docs/nvidia.md lists what differs for its clients. `input_ids`, `messages`, `tools`,
`enable_thinking`, `guided_decoding`, `sampling_param_ignore_eos`, `sampling_param_min_tokens`,
`sampling_param_logprobs`, `emitted_ids`, `streaming_interval`, `streaming_interval_ms`,
`return_margin`, `return_grammar_read` and `cancel_request_id` are additions.

A request with `cancel_request_id` asks for nothing else: it ends the request of that id on the same
model, whose last response then has the finish reason "cancelled" (or, if its prompt was not read
yet, is the error CANCELLED), and is told in `cancelled` whether there was one. It is sent on a
stream of its own. A client that has no use for the rest of an answer asks for this and reads its
stream to the end, because Triton 2.51 can abort when a stream with an answer on it is cancelled.
"""

from dataclasses import dataclass
from typing import Literal

DataType = Literal["TYPE_STRING", "TYPE_BOOL", "TYPE_INT32", "TYPE_UINT64", "TYPE_FP32"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output; a dimension of -1 has any length."""

    name: str
    data_type: DataType
    dims: tuple[int, ...] = (1,)


PROMPT_INPUTS = ("text_input", "messages", "input_ids")  # exactly one is given
CANCEL = "cancel_request_id"
EMITTED = "emitted_ids"  # of tokens of this answer that the client already has
STOP = "sampling_param_stop"
SEED = "sampling_param_seed"
REST_OF_CONTEXT = -1  # sampling_param_max_tokens: as many as the variant's context has room for
GUIDED = "guided_decoding"  # what the answer has to be: serve/guided_decoding.py reads it
THINKING = "enable_thinking"  # of the chat template; its own default where it is not given
IGNORE_EOS = "sampling_param_ignore_eos"
MIN_TOKENS = "sampling_param_min_tokens"
NUM_LOGPROBS = "sampling_param_logprobs"  # of the most likely tokens at each place; 0: of its own
NUM_INPUT = "num_input_tokens"
NUM_REASONING = "num_reasoning_tokens"  # of a chat's answer; absent where they can't be told
LOGPROBS = "logprobs"  # JSON: a list with OpenAI's object for each of output_ids
INTERVAL = "streaming_interval"  # tokens of a message; the first one comes at once
INTERVAL_MS = "streaming_interval_ms"  # from one message to the next, about
MAX_HOLD_S = 1.0  # that tokens wait for others to be sent with
CANCELLED_FLAG = "cancelled"
RETURN_MARGIN = "return_margin"
# a message of its own, with IN_FLIGHT alone, when the request's grammar has been read and accepted:
# until then the request has no place in the engine
RETURN_READ = "return_grammar_read"
MARGIN = "margin"
IN_FLIGHT = "requests_in_flight"
# The llmapi model's names of what the counters say; NVIDIA's clients of a variant read them.
LLMAPI_COUNTERS = frozenset(
    {"acceptance_rate", "total_accepted_draft_tokens", "total_draft_tokens"}
)

# Inputs of the llmapi model, with the value at which they change nothing; other values are refused,
# because the answer would not be the one that they ask for.
NEUTRAL: dict[str, bytes | float | bool] = {
    "sampling_param_best_of": 1,
    "sampling_param_logits_post_processor_name": b"",
    "image_url": b"",
    "return_stop_reason": False,
    "return_cumulative_logprob": False,
    "stop": False,
    "lora_id": 0,
    "lora_name": b"",
    "lora_path": b"",
    "lora_ckpt_source": b"",
}

# Between a variant and the gateway, a rollout or a client of its own; the public model has none of
# them. All floats are among them: perf_analyzer 2.50 exports an absent output as whatever its
# memory holds, and its JSON ends at the first NaN.
VARIANT_ONLY = frozenset(
    {
        CANCEL,
        CANCELLED_FLAG,
        RETURN_MARGIN,
        RETURN_READ,
        MARGIN,
        IN_FLIGHT,
        *LLMAPI_COUNTERS,
        *NEUTRAL,
    }
)

INPUTS = (
    TensorSpec("text_input", "TYPE_STRING"),
    TensorSpec("messages", "TYPE_STRING"),  # JSON: a list of chat messages
    TensorSpec("tools", "TYPE_STRING"),  # JSON: a list of tools, for the chat template
    TensorSpec(THINKING, "TYPE_BOOL"),
    TensorSpec(GUIDED, "TYPE_STRING"),  # JSON: an object with one form, a json_schema for example
    TensorSpec("input_ids", "TYPE_INT32", (-1,)),
    TensorSpec(EMITTED, "TYPE_INT32", (-1,)),  # of this answer, which the client has already
    TensorSpec("streaming", "TYPE_BOOL"),
    TensorSpec(INTERVAL, "TYPE_INT32"),
    TensorSpec(INTERVAL_MS, "TYPE_INT32"),
    TensorSpec("sampling_param_max_tokens", "TYPE_INT32"),
    TensorSpec("sampling_param_temperature", "TYPE_FP32"),
    TensorSpec("sampling_param_top_k", "TYPE_INT32"),
    TensorSpec("sampling_param_top_p", "TYPE_FP32"),
    TensorSpec("sampling_param_frequency_penalty", "TYPE_FP32"),
    TensorSpec("sampling_param_presence_penalty", "TYPE_FP32"),
    TensorSpec(SEED, "TYPE_UINT64"),
    TensorSpec(STOP, "TYPE_STRING", (-1,)),
    TensorSpec(IGNORE_EOS, "TYPE_BOOL"),  # only max_tokens and stop texts end the answer
    TensorSpec(MIN_TOKENS, "TYPE_INT32"),  # that no end token is among; a stop text may be
    TensorSpec(NUM_LOGPROBS, "TYPE_INT32"),
    TensorSpec("sampling_param_exclude_input_from_output", "TYPE_BOOL"),
    TensorSpec("sampling_param_return_perf_metrics", "TYPE_BOOL"),
    TensorSpec("return_finish_reason", "TYPE_BOOL"),
    TensorSpec(RETURN_MARGIN, "TYPE_BOOL"),
    TensorSpec(RETURN_READ, "TYPE_BOOL"),  # goes with guided_decoding
    TensorSpec(CANCEL, "TYPE_STRING"),
    TensorSpec("sampling_param_best_of", "TYPE_INT32"),
    TensorSpec("sampling_param_logits_post_processor_name", "TYPE_STRING"),
    TensorSpec("image_url", "TYPE_STRING", (-1,)),
    TensorSpec("return_stop_reason", "TYPE_BOOL"),
    TensorSpec("return_cumulative_logprob", "TYPE_BOOL"),
    TensorSpec("stop", "TYPE_BOOL"),
    TensorSpec("lora_id", "TYPE_UINT64"),
    TensorSpec("lora_name", "TYPE_STRING"),
    TensorSpec("lora_path", "TYPE_STRING"),
    TensorSpec("lora_ckpt_source", "TYPE_STRING"),
)

# The last response brings all that the request asks for (no outputs named: everything);
# those before it bring text_output, output_ids, logprobs and requests_in_flight only, and the first
# one that has text num_input_tokens.
OUTPUTS = (
    TensorSpec("text_output", "TYPE_STRING"),
    TensorSpec("output_ids", "TYPE_INT32", (-1,)),
    TensorSpec(LOGPROBS, "TYPE_STRING"),  # where sampling_param_logprobs asks
    TensorSpec("finish_reason", "TYPE_STRING"),
    TensorSpec(NUM_INPUT, "TYPE_INT32"),
    TensorSpec("num_output_tokens", "TYPE_INT32"),
    TensorSpec(NUM_REASONING, "TYPE_INT32"),
    TensorSpec("num_steps", "TYPE_INT32"),
    TensorSpec("num_draft_tokens", "TYPE_INT32"),
    TensorSpec("num_accepted_draft_tokens", "TYPE_INT32"),
    TensorSpec("accepted_per_position", "TYPE_INT32", (-1,)),  # [draft length]
    # accepted drafts of a last step that the answer's end cut, -1 where it cut none: what came
    # after them is not known
    TensorSpec("cut_after", "TYPE_INT32"),
    TensorSpec("acceptance_rate", "TYPE_FP32"),
    TensorSpec("total_accepted_draft_tokens", "TYPE_INT32"),
    TensorSpec("total_draft_tokens", "TYPE_INT32"),
    # on this variant after this response, running or waiting, whoever sent them
    TensorSpec(IN_FLIGHT, "TYPE_INT32"),
    TensorSpec("seed", "TYPE_UINT64"),  # the request's, or the one that was drawn for it
    # of the first token's two best logits, where return_margin asks and the engine gives logits
    TensorSpec(MARGIN, "TYPE_FP32"),
    TensorSpec(CANCELLED_FLAG, "TYPE_BOOL"),  # the only output for a request that cancels another
)

COUNTERS = frozenset(
    {
        "num_steps",
        "num_draft_tokens",
        "num_accepted_draft_tokens",
        "accepted_per_position",
        "cut_after",
    }
)

# A flag of the llmapi model that, when false, leaves outputs out.
OUTPUT_FLAGS: dict[str, frozenset[str]] = {
    "return_finish_reason": frozenset({"finish_reason"}),
    "sampling_param_return_perf_metrics": COUNTERS | LLMAPI_COUNTERS,
}

# What the message of an error begins with that is the variant's own and not the request's:
# another variant may do better. (An error in a stream loses its code on the way through Triton.)
INTERNAL_ERROR = "internal error: "
# what it goes on with where a grammar lets no token follow: every other variant would be as stuck
STUCK = "guided_decoding can't be followed: "
CANCELLED = "the request was cancelled"  # for its client nobody cares; else the engine was closed

# Request parameters are the gateway's; a variant lets them pass and knows no others.
EXPLAIN = "explain"  # true: the gateway's responses have the decision's REASONS
REASONS = "reasons"
PARAMETERS = ("task", "draft_length", "session_id", "tenant", "latency_class", EXPLAIN)

# What a request may hold beyond its prompt: work that no answer needs is refused.
MAX_STOP_TEXTS = 64
MAX_STOP_BYTES = 1_024  # of each
MAX_EMITTED_IDS = 262_144
MAX_LOGPROBS = 20  # tokens at each place, as OpenAI has it
MAX_GUIDED_BYTES = 65_536  # of guided_decoding; with tool_choice, of tools as well
MAX_CHOICES = 1_024  # texts of which guided_decoding lets the answer be one

# of all inputs, from which on a variant reads a request after others of its kind: a tokenizer reads
# some megabytes per second
LONG_BYTES = 16_384
