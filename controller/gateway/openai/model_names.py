"""The names that requests may give as `model`: the public one, its aliases, and pinned lengths."""

import time
from collections.abc import Sequence
from typing import Any

from trt_mtp.controller.gateway.openai.errors import ParameterError
from trt_mtp.controller.gateway.servers.pool import Pool
from trt_mtp.controller.request import MAX_NAME_CHARS

PIN = ":k"  # qwen_mtp:k3 is qwen_mtp at draft length 3
MAX_LISTED = 20


class ModelNames:
    """What GET /v1/models lists, and what each name stands for."""

    def __init__(self, pool: Pool, aliases: Sequence[str]) -> None:
        self._pool = pool
        self._models = tuple(dict.fromkeys((pool.public_name, *aliases)))
        self._created = int(time.time())

    def pinned_length(self, name: str) -> int | None:
        """The draft length that `name` asks for, None for the gateway's choice.

        Raises ParameterError (404) for a name that does not exist.
        """
        if name in self._models:
            return None
        model, _, length = name.rpartition(PIN)
        if model in self._models and length in self._lengths():
            return int(length)
        listed = ", ".join(self._names()[:MAX_LISTED])
        raise ParameterError(
            f"the model {name[:MAX_NAME_CHARS]!r} does not exist here: {listed} do",
            "model",
            "model_not_found",
            404,
        )

    def entry(self, name: str) -> dict[str, Any]:
        """What is told of a model; raises ParameterError (404) for a name that does not exist."""
        self.pinned_length(name)
        lengths = [replica.max_seq_len for replica in self._pool.variants.values()]
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "trt-mtp",
            "root": self._pool.public_name,
            "parent": None,
            "max_model_len": min(lengths, default=None),
        }

    def listing(self) -> dict[str, Any]:
        """All models, in OpenAI's form of a list."""
        return {"object": "list", "data": [self.entry(name) for name in self._names()]}

    def fingerprint(self) -> str | None:
        """What the answers' `system_fingerprint` is: the checkpoint and engine, not the length."""
        for replica in self._pool.variants.values():
            if replica.fingerprint:
                return f"fp_{replica.fingerprint[:16]}"
        return None

    def _names(self) -> list[str]:
        public = self._pool.public_name
        return [*self._models, *(f"{public}{PIN}{length}" for length in self._lengths())]

    def _lengths(self) -> list[str]:
        return list(dict.fromkeys(str(v.draft_length) for v in self._pool.variants.values()))
