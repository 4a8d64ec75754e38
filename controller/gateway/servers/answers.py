"""What a Triton server says of itself and its models, which may be anything."""

import logging
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from trt_mtp.controller.gateway.servers.model_config import described
from trt_mtp.errors import InputError
from trt_mtp.serve.kserve import parse_message

log = logging.getLogger(__name__)

MAX_TOLD = 16  # complaints of one server


class Answers:
    """Reads one server's answers; what can't be used counts as not there, and is logged once."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._told: set[str] = set()  # that was logged

    def is_live(self, raw: bytes) -> bool:
        """What a ServerLiveResponse says."""
        return self._says(pb.ServerLiveResponse, "live", raw)

    def is_ready(self, raw: bytes) -> bool:
        """What a ModelReadyResponse says."""
        return self._says(pb.ModelReadyResponse, "ready", raw)

    def described(self, raw: bytes, model_name: str, public_name: str) -> dict[str, Any] | None:
        """What a Replica has of a model, by its ModelConfigResponse."""
        try:
            return described(raw, model_name, public_name)
        except InputError as error:
            self._complain(error)
            return None

    def _says(self, kind: Any, field: str, raw: bytes) -> bool:
        try:
            return bool(getattr(parse_message(kind, raw), field))
        except InputError as error:
            self._complain(error)
            return False

    def _complain(self, error: InputError) -> None:
        if str(error) not in self._told and len(self._told) < MAX_TOLD:
            self._told.add(str(error))
            log.warning("what Triton at %s says can't be used: %s", self._target, error)
