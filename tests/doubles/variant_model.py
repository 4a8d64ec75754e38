"""A double of a variant's Triton model: answers as the JSON object in the prompt says.

Keys: tokens (default 3), delay_s before each, error_at a token, error_with_final (the error is also
the last message), separate_final (the last message is an empty one of its own), name (touches the
file cancelled-<name> in the folder that the model's parameter `notes` names).
"""

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self.draft_length = int(parameters["draft_length"]["string_value"])
        self.notes = Path(parameters["notes"]["string_value"])
        self.metrics = []  # always 0, so that nobody waits for this server's requests to end
        for name in ("trt_mtp_requests_running", "trt_mtp_requests_waiting"):
            kind = pb_utils.MetricFamily.GAUGE
            family = pb_utils.MetricFamily(name=name, description=name, kind=kind)
            self.metrics += [family, family.Metric(labels={"model": args["model_name"]})]

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            work = (request, request.get_response_sender(), request.requested_output_names())
            threading.Thread(target=self.answer, args=work, daemon=True).start()

    def answer(self, request: Any, sender: Any, wanted: list[str]) -> None:
        def value(name: str, default: Any) -> Any:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            return default if tensor is None else tensor.as_numpy().reshape(-1)[0]

        try:
            script = json.loads(value("text_input", b"{}"))
        except ValueError:
            script = {}
        num_tokens = script.get("tokens", 3)
        for index in range(num_tokens):
            time.sleep(script.get("delay_s", 0))
            if sender.is_cancelled():
                (self.notes / f"cancelled-{script.get('name')}").touch()
                sender.send(flags=FINAL)
                return
            if script.get("error_at") == index:
                self.fail(sender, script.get("error_with_final", False))
                return
            is_last = index == num_tokens - 1
            if is_last or value("streaming", False):
                flags = FINAL if is_last and not script.get("separate_final") else 0
                sender.send(self.response(index, is_last, wanted), flags=flags)
        if script.get("separate_final"):
            sender.send(flags=FINAL)

    def fail(self, sender: Any, with_final: bool) -> None:
        error = pb_utils.InferenceResponse(error=pb_utils.TritonError("the engine broke"))
        sender.send(error, flags=FINAL if with_final else 0)
        if not with_final:
            sender.send(flags=FINAL)

    def response(self, index: int, is_last: bool, wanted: list[str]) -> Any:
        steps, k = index + 1, self.draft_length
        values: dict[str, Any] = {"text_output": np.array([f"w{index}".encode()], np.object_)}
        if is_last:
            values["finish_reason"] = np.array([b"length"], np.object_)
            numbers = {
                "num_output_tokens": [steps],
                "num_steps": [steps],
                "num_draft_tokens": [steps * k],
                "num_accepted_draft_tokens": [k],
                "accepted_per_position": [1] * k,
            }
            values |= {name: np.array(number, np.int32) for name, number in numbers.items()}
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, v) for name, v in values.items() if name in wanted]
        )
