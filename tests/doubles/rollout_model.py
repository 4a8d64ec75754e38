"""A double of a variant's Triton model whose manners its variant folder tells, in double.json.

Keys: load_s (how long loading takes), fails (loading fails with this message), tokens (of an
answer), delay_s before each, first_token and fifth_token (their ids, where answers should differ
from others'; answers have 4 tokens unless asked for more). The prompt's JSON, where it is some,
may give tokens and delay_s too. Every answer begins with the model's name, so that a client knows
who answered, and a double that isn't loaded completely answers "half-loaded".
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
        self.name, self.is_loaded = args["model_name"], False
        self.draft_length = int(parameters["draft_length"]["string_value"])
        file = Path(parameters["variant_folder"]["string_value"]) / "double.json"
        self.manners = json.loads(file.read_text()) if file.exists() else {}
        time.sleep(self.manners.get("load_s", 0))
        if "fails" in self.manners:
            raise pb_utils.TritonModelException(self.manners["fails"])
        self.metrics = []  # always 0, so that nobody waits for this server's requests to end
        for name in ("trt_mtp_requests_running", "trt_mtp_requests_waiting"):
            kind = pb_utils.MetricFamily.GAUGE
            family = pb_utils.MetricFamily(name=name, description=name, kind=kind)
            self.metrics += [family, family.Metric(labels={"model": self.name})]
        self.is_loaded = True

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            # the prompt now: Triton takes a request's memory back once this has returned
            sender, wanted = request.get_response_sender(), request.requested_output_names()
            work = (prompt_of(request), sender, wanted)
            threading.Thread(target=self.answer, args=work, daemon=True).start()

    def answer(self, script: dict[str, Any], sender: Any, wanted: list[str]) -> None:
        num_tokens = script.get("tokens", self.manners.get("tokens", 4))
        for index in range(num_tokens):
            time.sleep(script.get("delay_s", self.manners.get("delay_s", 0)))
            if sender.is_cancelled():
                sender.send(flags=FINAL)
                return
            is_last = index == num_tokens - 1
            sender.send(self.response(index, is_last, wanted), flags=FINAL if is_last else 0)

    def response(self, index: int, is_last: bool, wanted: list[str]) -> Any:
        steps, k = index + 1, self.draft_length
        text = f"{self.name if self.is_loaded else 'half-loaded'} " if index == 0 else f"w{index} "
        ids = {0: self.manners.get("first_token", 7), 4: self.manners.get("fifth_token", 104)}
        values: dict[str, Any] = {
            "text_output": np.array([text.encode()], np.object_),
            "output_ids": np.array([ids.get(index, 100 + index)], np.int32),
        }
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


def prompt_of(request: Any) -> dict[str, Any]:
    """The JSON object that the prompt is, or nothing."""
    tensor = pb_utils.get_input_tensor_by_name(request, "text_input")
    try:
        value = json.loads(tensor.as_numpy().reshape(-1)[0]) if tensor is not None else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
