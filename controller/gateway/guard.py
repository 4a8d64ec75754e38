"""What a request has to pass before it is answered: whose it is, and how long its prompt may be."""

import time
from dataclasses import replace

from trt_mtp.controller.gateway.access import AccessConfig
from trt_mtp.controller.gateway.scoreboard import Scoreboard
from trt_mtp.controller.gateway.tenants import Tenant, Tenants
from trt_mtp.controller.policy import CHARS_PER_TOKEN
from trt_mtp.controller.request import RequestFeatures
from trt_mtp.errors import InputError

MAX_METADATA_BYTES = 16 * 1024  # of a gRPC call, which gRPC itself holds to


class Caller:
    """Who made a call, and what the requests on it may be."""

    def __init__(self, tenant: Tenant | None, max_prompt_tokens: int | None) -> None:
        self._tenant = tenant
        self._max_prompt_tokens = max_prompt_tokens

    def admit(self, features: RequestFeatures) -> tuple[RequestFeatures, Tenant | None]:
        """The features under the caller's own tenant, and the tenant, whose `end` follows.

        Raises InputError for a prompt that is too long, and as `Tenant.begin` does.
        """
        num_prompt_tokens = self._checked_prompt(features)
        tenant = self._tenant
        if tenant is None:
            return features, None
        tenant.begin(num_prompt_tokens, time.monotonic())
        return replace(features, tenant=tenant.record.name), tenant

    def _checked_prompt(self, features: RequestFeatures) -> int:
        """The prompt's tokens, estimated where it is text."""
        known = features.num_prompt_tokens
        number = int(features.num_chars / CHARS_PER_TOKEN) if known is None else known
        if self._max_prompt_tokens is not None and number > self._max_prompt_tokens:
            about = "about " if known is None else ""
            raise InputError(
                f"the prompt has {about}{number} tokens: at most {self._max_prompt_tokens} are "
                f"taken here (--max-prompt-tokens)"
            )
        return number


class Guard:
    """Tells callers apart by their tokens, where there are any."""

    def __init__(self, access: AccessConfig, scoreboard: Scoreboard) -> None:
        """Raises InputError when the tenants' file is wrong."""
        self._tenants = Tenants(access.tokens, scoreboard) if access.tokens else None
        self._max_prompt_tokens = access.max_prompt_tokens

    def caller(self, authorization: str) -> Caller:
        """Whose `authorization` header this is, empty for none; raises UnauthenticatedError."""
        tenant = self._tenants.authenticate(authorization) if self._tenants else None
        return Caller(tenant, self._max_prompt_tokens)
