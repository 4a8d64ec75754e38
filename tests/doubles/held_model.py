"""A double of a variant that loads only while the file `held` is not in the folder `notes`.

Its metrics are always 0, so that nobody waits for this server's requests to end.
"""

import json
import time
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

POLL_S = 0.05


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        held = Path(parameters["notes"]["string_value"]) / "held"
        while held.exists():
            time.sleep(POLL_S)
        self.metrics = []
        for name in ("trt_mtp_requests_running", "trt_mtp_requests_waiting"):
            kind = pb_utils.MetricFamily.GAUGE
            family = pb_utils.MetricFamily(name=name, description=name, kind=kind)
            self.metrics += [family, family.Metric(labels={"model": args["model_name"]})]

    def execute(self, requests: list[Any]) -> list[Any]:
        return [
            pb_utils.InferenceResponse(error=pb_utils.TritonError("nothing to say"))
            for _ in requests
        ]
