"""A double of a variant's Triton model: answers as the JSON object in the prompt says, which is
text_input or else the content of the last message.

Token number i has the id i and the text "<word><i>"; tokens that the request brings as emitted_ids
are not sent again. Keys: texts (of the tokens, in place of tokens and word), finish (the finish
reason, default length), tokens (default 3), word (default "w"; with echo, the request as it came,
as JSON), times (that the word is repeated), delay_s before each,
separate_final (the last message is an empty one of its own), name (in the folder that the model's
parameter `notes` names touches the file begun-<name>, cancelled-<name> when another request cancels
this one, dropped-<name> when its stream is cancelled). Faults, each before the
token that it names (in an object: names for each draft length), of the draft lengths in `faulty`
(default: all): error_at (error_with_final: the error is also the last message), hang_at (no further
message until the request is cancelled, in band or by Triton; where `deaf`, by Triton alone), die_at
(the process ends). A separate last message counts as one token more.
"""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
POLL_S = 0.01
BROKEN = "internal error: the engine broke"


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self.draft_length = int(parameters["draft_length"]["string_value"])
        self.notes = Path(parameters["notes"]["string_value"])
        held = self.notes / f"held-{args['model_name']}"  # loading never ends, this once
        if held.exists():
            held.unlink()
            threading.Event().wait()
        self.running: dict[str, Any] = {}  # by request id: its sender
        self.cancelled: set[Any] = set()  # senders of requests that were cancelled in band
        # a process that dies while it asks Triton something may take Triton 2.51 with it
        self.asking = threading.Lock()
        self.metrics = []  # always 0, so that nobody waits for this server's requests to end
        for name in ("trt_mtp_requests_running", "trt_mtp_requests_waiting"):
            kind = pb_utils.MetricFamily.GAUGE
            family = pb_utils.MetricFamily(name=name, description=name, kind=kind)
            self.metrics += [family, family.Metric(labels={"model": args["model_name"]})]

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            target = pb_utils.get_input_tensor_by_name(request, "cancel_request_id")
            if target is not None:
                self.cancel(target.as_numpy()[0].decode(), sender)
                continue
            self.running[request.request_id()] = sender
            # read now: Triton takes a request's memory back once this has returned
            work = (Asked(request), sender)
            threading.Thread(target=self.run, args=work, daemon=True).start()

    def cancel(self, request_id: str, sender: Any) -> None:
        found = self.running.get(request_id)
        if found is not None:
            self.cancelled.add(found)
        told = pb_utils.Tensor("cancelled", np.array([found is not None]))
        sender.send(pb_utils.InferenceResponse([told]), flags=FINAL)

    def run(self, asked: "Asked", sender: Any) -> None:
        try:
            self.answer(asked, sender)
        finally:
            self.running.pop(asked.request_id, None)
            self.cancelled.discard(sender)

    def is_cancelled(self, sender: Any) -> bool:
        return sender in self.cancelled or self.is_dropped(sender)

    def is_dropped(self, sender: Any) -> bool:
        with self.asking:
            return bool(sender.is_cancelled())

    def answer(self, asked: "Asked", sender: Any) -> None:
        script, num_emitted = asked.script, asked.num_emitted
        if "name" in script:
            (self.notes / f"begun-{script['name']}").touch()
        texts = script.get("texts")
        num_tokens = script.get("tokens", 3) if texts is None else len(texts)
        if num_emitted and num_emitted >= num_tokens:
            self.fail(sender, "the answer is complete")
            return
        for index in range(num_emitted, num_tokens):
            time.sleep(script.get("delay_s", 0))
            self.hang_or_die(script, sender, index)
            if self.is_cancelled(sender):
                how = "dropped" if self.is_dropped(sender) else "cancelled"
                (self.notes / f"{how}-{script.get('name')}").touch()
                sender.send(flags=FINAL)
                return
            if self.is_due(script, "error_at", index):
                self.fail(sender, BROKEN, script.get("error_with_final", False))
                return
            is_last = index == num_tokens - 1
            if is_last or asked.is_streaming:
                flags = FINAL if is_last and not script.get("separate_final") else 0
                text = f"{script.get('word', 'w') * script.get('times', 1)}{index}"
                if texts is not None:
                    text = texts[index] if asked.is_streaming else "".join(texts)
                reason = script.get("finish", "length")
                response = self.response(text, index, asked, is_last and reason)
                sender.send(response, flags=flags)
        if script.get("separate_final"):
            self.hang_or_die(script, sender, num_tokens)
            sender.send(flags=FINAL)

    def is_due(self, script: dict[str, Any], fault: str, index: int) -> bool:
        at = script.get(fault)
        if isinstance(at, dict):
            at = at.get(str(self.draft_length))
        return at == index and self.draft_length in script.get("faulty", [self.draft_length])

    def hang_or_die(self, script: dict[str, Any], sender: Any, index: int) -> None:
        if self.is_due(script, "hang_at", index):
            is_over = self.is_dropped if script.get("deaf") else self.is_cancelled
            while not is_over(sender):
                time.sleep(POLL_S)
        if self.is_due(script, "die_at", index):
            with self.asking:
                os._exit(1)

    def fail(self, sender: Any, message: str, with_final: bool = False) -> None:
        error = pb_utils.InferenceResponse(error=pb_utils.TritonError(message))
        sender.send(error, flags=FINAL if with_final else 0)
        if not with_final:
            sender.send(flags=FINAL)

    def response(self, text: str, index: int, asked: "Asked", finish: str | bool) -> Any:
        steps, k = index + 1 - asked.num_emitted, self.draft_length
        values: dict[str, Any] = {
            "text_output": np.array([text.encode()], np.object_),
            "output_ids": np.array([index], np.int32),
            "requests_in_flight": np.array([len(self.running) - bool(finish)], np.int32),
        }
        if index == asked.num_emitted:
            values["num_input_tokens"] = np.array([7], np.int32)
        if finish:
            values["finish_reason"] = np.array([str(finish).encode()], np.object_)
            numbers = {
                "num_input_tokens": [7],
                "num_output_tokens": [index + 1],
                "num_reasoning_tokens": [2],
                "num_steps": [steps],
                "num_draft_tokens": [steps * k],
                "num_accepted_draft_tokens": [k],
                "accepted_per_position": [1] * k,
            }
            values |= {name: np.array(number, np.int32) for name, number in numbers.items()}
            values["seed"] = np.array([2**63 + 1], np.uint64)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, v) for name, v in values.items() if name in asked.wanted]
        )


class Asked:
    """What a request asks for."""

    def __init__(self, request: Any) -> None:
        def value(name: str, default: Any) -> Any:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            return default if tensor is None else tensor.as_numpy().reshape(-1)[0]

        emitted = pb_utils.get_input_tensor_by_name(request, "emitted_ids")
        self.request_id = request.request_id()
        self.wanted = request.requested_output_names()
        self.num_emitted = 0 if emitted is None else emitted.as_numpy().size
        self.is_streaming = bool(value("streaming", False))
        self.script = script_in(value("text_input", b""), value("messages", b""))
        if self.script.get("echo"):
            self.script["word"] = received(request)


def script_in(text: bytes, messages: bytes) -> dict[str, Any]:
    """What the prompt says; nothing where it is no JSON object."""
    try:
        script = json.loads(text or json.loads(messages)[-1]["content"])
    except (ValueError, TypeError, KeyError, IndexError):
        return {}
    return script if isinstance(script, dict) else {}


def received(request: Any) -> str:
    """The inputs of a request, with shapes and types, and its parameters."""
    inputs = {}
    for tensor in request.inputs():
        array = tensor.as_numpy()
        values = [v.decode() if isinstance(v, bytes) else v for v in array.reshape(-1).tolist()]
        inputs[tensor.name()] = [str(array.dtype), list(array.shape), values]
    parameters = json.loads(request.parameters() or "{}")
    return json.dumps({"inputs": inputs, "parameters": parameters}, sort_keys=True)
