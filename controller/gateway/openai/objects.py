"""Answers as OpenAI's JSON objects, whole ones and what is common to whole ones and chunks."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from trt_mtp.controller.gateway.call import InferenceCall
from trt_mtp.controller.gateway.openai.answer_reader import Closing
from trt_mtp.controller.gateway.openai.asked import Asked
from trt_mtp.controller.gateway.openai.logprobs import (
    Place,
    TextOffsets,
    chat_logprobs,
    completion_logprobs,
)
from trt_mtp.controller.gateway.openai.reply import Reply, whole_message
from trt_mtp.controller.gateway.openai.vendor import PREFIX
from trt_mtp.serve.contract import NUM_INPUT, NUM_REASONING, REASONS


class Answered(NamedTuple):
    """A choice that is over."""

    text: str
    closing: Closing
    call: InferenceCall
    places: Sequence[Place] = ()


def head(asked: Asked, kind: str) -> dict[str, Any]:
    """What every object of an answer begins with; `kind` is its `object`."""
    return {
        "id": asked.id,
        "object": kind,
        "created": asked.created,
        "model": asked.model,
        "system_fingerprint": asked.fingerprint,
    }


def whole_answer(asked: Asked, answered: Sequence[Answered]) -> dict[str, Any]:
    """The object of a request that is not streamed."""
    kind = "chat.completion" if asked.is_chat else "text_completion"
    return {
        **head(asked, kind),
        "choices": [_choice(asked, number, each) for number, each in enumerate(answered)],
        **totals(asked, answered),
    }


def _choice(asked: Asked, number: int, answered: Answered) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": number}
    reason = answered.closing.finish_reason
    if asked.is_chat:
        reply = Reply(asked, answered.call.chat_format)
        choice["message"] = whole_message(reply, answered.text)
        reason = reply.finish_reason(reason)
    else:
        choice["text"] = answered.text
    logprobs = logprobs_of(asked, answered.places, TextOffsets())
    return {**choice, "logprobs": logprobs, "finish_reason": reason}


def logprobs_of(
    asked: Asked, places: Sequence[Place], offsets: TextOffsets
) -> dict[str, Any] | None:
    """A choice's `logprobs`; `offsets` know the tokens that came before."""
    if not asked.wants_logprobs:
        return None
    return chat_logprobs(places) if asked.is_chat else completion_logprobs(places, offsets)


def totals(asked: Asked, answered: Sequence[Answered]) -> dict[str, Any]:
    """What is told once of all choices: the tokens, what drafting did, the gateway's decisions."""
    values: dict[str, Any] = {"usage": usage(asked, [each.closing for each in answered])}
    if len(answered) == 1:
        speculation = speculative_decoding(answered[0].closing)
        if speculation:
            values["metrics"] = {"speculative_decoding": speculation}
    if asked.wants_decision:
        decisions = [_decision(each) for each in answered]
        values["trt_mtp"] = decisions[0] if len(decisions) == 1 else {"choices": decisions}
    return values


def usage(asked: Asked, closings: Sequence[Closing]) -> dict[str, Any]:
    """The tokens of all choices; a prompt counts once, however many answers it has."""
    per_prompt = max(len(asked.choices) // asked.num_prompts, 1)
    num_prompt = sum(closing.number(NUM_INPUT) for closing in closings[::per_prompt])
    num_output = sum(closing.number("num_output_tokens") for closing in closings)
    values: dict[str, Any] = token_counts(num_prompt, num_output)
    if asked.is_chat and all(NUM_REASONING in closing.numbers for closing in closings):
        num_reasoning = sum(closing.number(NUM_REASONING) for closing in closings)
        values["completion_tokens_details"] = {"reasoning_tokens": num_reasoning}
    return values


def token_counts(num_prompt: int, num_output: int) -> dict[str, int]:
    """A `usage` without details."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_output,
        "total_tokens": num_prompt + num_output,
    }


def speculative_decoding(closing: Closing) -> dict[str, Any] | None:
    """What drafting did, in vLLM's form (github.com/vllm-project/vllm/pull/48915).

    acceptance_histogram[j] is how many steps accepted exactly j drafts. None without drafts, and
    after a failover, when the counters cover the last variant's part only.
    """
    positions = closing.numbers.get("accepted_per_position", ())
    num_steps, num_drafts = closing.number("num_steps"), closing.number("num_draft_tokens")
    if not (positions and num_steps and num_drafts) or closing.failed_over:
        return None
    at_least = (num_steps, *positions, 0)  # steps that accepted j drafts or more
    num_accepted = sum(positions)
    return {
        "mean_acceptance_length": 1 + num_accepted / num_steps,
        "draft_acceptance_rate": num_accepted / num_drafts,
        "acceptance_histogram": [more - fewer for more, fewer in pairwise(at_least)],
        "num_spec_steps": num_steps,
        "num_accepted_draft_tokens": num_accepted,
        "num_draft_tokens": num_drafts,
        "num_spec_tokens": len(positions),
    }


def _decision(answered: Answered) -> dict[str, Any]:
    """How a choice came about."""
    closing = answered.closing
    return {
        **answered.call.parameters,
        "seed": closing.seed,
        **({"failed_over": closing.failed_over} if closing.failed_over else {}),
    }


def decision_headers(asked: Asked, call: InferenceCall) -> Mapping[str, str]:
    """Variant, task and decision of a request with one answer, as headers."""
    if len(asked.choices) > 1:
        return {}
    return {
        PREFIX + name.replace("_", "-"): value
        for name, value in call.parameters.items()
        if name != REASONS  # a sentence, for the body
    }
