"""Whose a request is, how long its prompt may be, and what of the tenant's quota it takes."""

import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

from trt_mtp.controller.gateway.access.client_address import client_network
from trt_mtp.controller.gateway.access.config import AccessConfig
from trt_mtp.controller.gateway.access.limits import Limits
from trt_mtp.controller.gateway.access.tenants import (
    MAX_WAITING_BYTES,
    Tenant,
    Tenants,
    token_hash,
)
from trt_mtp.controller.gateway.byte_room import ByteRoom
from trt_mtp.controller.gateway.failure import UnauthenticatedError
from trt_mtp.controller.request import RequestFeatures
from trt_mtp.errors import InputError

MAX_METADATA_BYTES = 16 * 1024  # of a gRPC call, which gRPC itself holds to
Owner = tuple[bool, str]  # has it a tenant, and its name or where it is


class Caller:
    """Who made a call, and what the requests on it may be."""

    def __init__(
        self,
        tenant: Tenant | None,
        max_prompt_tokens: int | None,
        digest: str = "",
        network: str = "",
        room: ByteRoom | None = None,
    ) -> None:
        """`room` is what all callers of a `network` share, where they have no tenant's."""
        self._tenant = tenant
        self._network = network
        self.room = tenant.room if tenant else room or ByteRoom(MAX_WAITING_BYTES)
        self._max_prompt_tokens = max_prompt_tokens
        self._digest = digest  # of its token

    @property
    def is_known(self) -> bool:
        """False once its token was taken out of the tenants' file."""
        return self._tenant is None or self._tenant.holds(self._digest)

    @property
    def is_limited(self) -> bool:
        """True if there is something that requests past the public model would get around."""
        return self._tenant is not None or self._max_prompt_tokens is not None

    @property
    def highest_priority(self) -> int:
        """The smallest number that its requests' `priority` may have."""
        return self._tenant.record.highest_priority if self._tenant else 1

    def check_known(self) -> None:
        """Raise UnauthenticatedError once `is_known` is false."""
        if not self.is_known:
            raise UnauthenticatedError("the bearer token is no longer known here")

    @property
    def owner(self) -> Owner:
        """Whom to tell it apart by: its tenant, or where it is."""
        return (True, self._tenant.name) if self._tenant else (False, self._network)

    def own(self, features: RequestFeatures) -> RequestFeatures:
        """The features under the caller's own tenant; raises InputError for too long a prompt.

        Its conversations are its own, too: two tenants may give theirs the same name.
        """
        self._check_length(features)
        if self._tenant is None:
            return features
        name, session_id = self._tenant.name, features.session_id
        own_id = f"{name!r}/{session_id}" if session_id else session_id
        return replace(features, tenant=name, session_id=own_id)

    def quota(
        self, features: RequestFeatures, num_output_tokens: Callable[[], int]
    ) -> AbstractContextManager[None]:
        """Held while a request is answered; `num_output_tokens` tells at the end what to charge.

        Entering it raises as `Tenant.begin` does, and as `check_known`.
        """
        self.check_known()
        if self._tenant is None:
            return nullcontext()
        return _quota(self._tenant, features.input_tokens, num_output_tokens)

    def passing_quota(self) -> AbstractContextManager[None]:
        """Held for a request to another model, whose tokens nobody counts."""
        self.check_known()
        return nullcontext() if self._tenant is None else _quota(self._tenant, 0, int)

    def _check_length(self, features: RequestFeatures) -> None:
        number, limit = features.input_tokens, self._max_prompt_tokens
        if limit is not None and number > limit:
            about = "about " if features.num_prompt_tokens is None else ""
            raise InputError(
                f"the prompt has {about}{number} tokens: at most {limit} are taken here "
                f"(--max-prompt-tokens)"
            )


@contextmanager
def _quota(
    tenant: Tenant, num_prompt_tokens: int, num_output_tokens: Callable[[], int]
) -> Iterator[None]:
    tenant.begin(num_prompt_tokens, time.monotonic())
    try:
        yield
    finally:
        tenant.end(num_output_tokens(), time.monotonic())


class Authenticator:
    """Tells callers apart by their tokens, where there are any."""

    def __init__(self, access: AccessConfig, limits: Limits) -> None:
        """Raises InputError when the tenants' file is wrong."""
        self._tenants = Tenants(access.tokens, limits) if access.tokens else None
        self._max_prompt_tokens = access.max_prompt_tokens
        self._rooms: weakref.WeakValueDictionary[str, ByteRoom] = weakref.WeakValueDictionary()

    @property
    def has_tokens(self) -> bool:
        """Whether callers need one."""
        return self._tenants is not None

    def caller(self, authorization: Sequence[str], host: str) -> Caller:
        """Whose `authorization` this is, one header; raises UnauthenticatedError.

        Without tokens callers are told apart by the `host` that they are at.
        """
        if self._tenants is None:
            network = client_network(host)
            room = self._rooms.get(network) or ByteRoom(MAX_WAITING_BYTES)
            self._rooms[network] = room  # as long as anybody has it
            return Caller(None, self._max_prompt_tokens, network=network, room=room)
        if len(authorization) > 1:
            raise UnauthenticatedError("there are several authorization headers: send one")
        only = "".join(authorization)
        return Caller(self._tenants.authenticate(only), self._max_prompt_tokens, token_hash(only))

    def look(self) -> None:
        """Take over the tenants' file where it has changed; call it now and then."""
        if self._tenants is not None:
            self._tenants.look()


def authorization_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> list[str]:
    """The values of a gRPC call's `authorization`."""
    return [str(value) for key, value in metadata or () if key == "authorization"]
