"""Tenants: who holds which bearer token, and what each may use.

The file has the tokens' SHA-256 hashes, never the tokens, and is read again when it changes.
"""

import hashlib
import logging
import re
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from trt_mtp.controller.gateway.access.limits import Bucket, Limits
from trt_mtp.controller.gateway.byte_room import ByteRoom
from trt_mtp.controller.gateway.failure import LimitError, UnauthenticatedError
from trt_mtp.controller.request import MAX_NAME_CHARS
from trt_mtp.controller.validation import first_problem
from trt_mtp.errors import InputError, UnreadableError
from trt_mtp.files import FileWatch, read_yaml

log = logging.getLogger(__name__)

BUSY_RETRY_S = 1.0  # for a client that has as many requests in flight as it may
MAX_BYTES = 1 << 23  # of the file: some 50,000 tenants
MAX_WAITING_BYTES = 64 * 1024 * 1024  # of one tenant's messages, in this process
LOOK_S = 0.5  # between looks at the file
BEARER = "bearer "
HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)


def _hash(text: str) -> str:
    if not HASH.fullmatch(text):  # the message doesn't repeat what may be a token
        raise ValueError(
            "expected the SHA-256 of a token as 64 lower-case hex digits, which "
            "`printf %s TOKEN | sha256sum` prints before the file's name"
        )
    return text


class TenantRecord(BaseModel):
    """One tenant as the file has it; limits that are left out don't limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]
    token_sha256: Annotated[list[Annotated[str, AfterValidator(_hash)]], Field(min_length=1)]
    requests_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    concurrent_streams: Annotated[int, Field(ge=1)] | None = None  # requests being answered
    tokens_per_min: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    highest_priority: Annotated[int, Field(ge=1, lt=2**31)] = 1  # Triton's: 1 is the highest


class TenantsFile(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1]
    tenants: list[TenantRecord]

    @model_validator(mode="after")
    def _check(self) -> "TenantsFile":
        names = [tenant.name for tenant in self.tenants]
        hashes = [value for tenant in self.tenants for value in tenant.token_sha256]
        if len(set(names)) < len(names):
            raise ValueError("two tenants have the same name")
        if len(set(hashes)) < len(hashes):
            raise ValueError("a token's hash occurs twice")
        return self


class Tenant:
    """A tenant and what it uses now, through all workers of the gateway or all gateways together.

    Workers take no turns. Where several admit requests in the same moment, each may admit one more
    than a rate allows, which the next ones wait off; or one too few may be in flight.
    """

    def __init__(self, record: TenantRecord, limits: Limits) -> None:
        self.is_removed = False
        self.room = ByteRoom(MAX_WAITING_BYTES)
        self._limits = limits
        self._running = limits.places(record.name)
        self.change(record)

    @property
    def name(self) -> str:
        """As the file has it."""
        return self.record.name

    def holds(self, digest: str) -> bool:
        """Is this the hash of one of its tokens now?"""
        return not self.is_removed and digest in self.record.token_sha256

    def change(self, record: TenantRecord) -> None:
        """Take over limits from the file; a rate that changed starts anew."""
        self.record = record
        rate, per_min = record.requests_per_s, record.tokens_per_min
        # what a second, or a minute, allows may come at once
        self._requests = self._bucket("requests", rate, max(rate, 1.0)) if rate else None
        self._tokens = self._bucket("tokens", per_min / 60, per_min) if per_min else None

    def _bucket(self, what: str, rate_per_s: float, capacity: float) -> Bucket:
        return self._limits.bucket(self.record.name, what, rate_per_s, capacity)

    def begin(self, num_prompt_tokens: int, now_s: float) -> None:
        """Admit a request; raises LimitError. `end` follows."""
        if self.is_removed:
            raise UnauthenticatedError(f"tenant {self.record.name} has been removed")
        self._running.add(+1)  # before it is looked at, so that no other worker takes the place
        try:
            self._check(now_s)
        except LimitError:
            self._running.add(-1)
            raise
        if self._requests:
            self._requests.take(1, now_s)
        self._charge(num_prompt_tokens, now_s)

    def end(self, num_output_tokens: int, now_s: float) -> None:
        """A request that was admitted is over."""
        self._running.add(-1)
        self._charge(num_output_tokens, now_s)

    def _check(self, now_s: float) -> None:
        record = self.record
        if record.concurrent_streams and self._running.is_over(record.concurrent_streams):
            raise LimitError(
                f"tenant {record.name} may have {record.concurrent_streams} requests in flight: "
                f"try again when one is over",
                BUSY_RETRY_S,
            )
        if self._requests and (wait_s := self._requests.wait_s(now_s)):
            self._refuse(f"{record.requests_per_s:g} requests a second", wait_s)
        if self._tokens and (wait_s := self._tokens.wait_s(now_s)):
            self._refuse(f"{record.tokens_per_min:g} tokens a minute", wait_s)

    def _charge(self, num_tokens: int, now_s: float) -> None:
        if self._tokens:
            self._tokens.take(num_tokens, now_s)

    def _refuse(self, limit: str, wait_s: float) -> None:
        raise LimitError(
            f"tenant {self.record.name} may have {limit}: try again in {max(wait_s, 0.1):.1f} s",
            wait_s,
        )


class Tenants:
    """All tenants of a file."""

    def __init__(self, path: Path, limits: Limits) -> None:
        """Raises InputError when the file is missing or wrong."""
        self._path = path
        self._limits = limits
        self._tenants: dict[str, Tenant] = {}
        self._hashes: dict[str, Tenant] = {}
        self._looked_s = time.monotonic()
        self._problem = ""  # with the file, that was logged last
        self._watch = FileWatch(path)
        self._watch.has_changed()  # what comes after this is a change
        self._take_over(read_tenants(path))

    def authenticate(self, authorization: str) -> Tenant:
        """Whose `Bearer TOKEN` this is; raises UnauthenticatedError."""
        self.look()
        if authorization[: len(BEARER)].lower() != BEARER:
            raise UnauthenticatedError(
                "this gateway asks for a token: send `authorization: Bearer <token>`"
            )
        # how long this takes tells nothing of a token: nobody can aim at a hash
        found = self._hashes.get(token_hash(authorization))
        if found is None:
            raise UnauthenticatedError("the bearer token is not known here")
        return found

    def look(self) -> None:
        """Take over the file where it has changed; looks at it every LOOK_S at most."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        if not self._watch.has_changed():
            return
        try:
            self._take_over(read_tenants(self._path))
        except InputError as error:
            if isinstance(error, UnreadableError):  # who was removed may not stay for that
                self._watch.look_again()
            if str(error) != self._problem:
                log.error("the tenants read before stay: %s", error)
            self._problem = str(error)
        else:
            self._problem = ""
            log.info("%s changed: %d tenants", self._path, len(self._tenants))

    def _take_over(self, file: TenantsFile) -> None:
        before, self._tenants = self._tenants, {}
        for record in file.tenants:
            tenant = before.pop(record.name, None) or Tenant(record, self._limits)
            if tenant.record != record:
                tenant.change(record)
            self._tenants[record.name] = tenant
        for tenant in before.values():
            tenant.is_removed = True
        self._hashes = {
            value: tenant
            for tenant in self._tenants.values()
            for value in tenant.record.token_sha256
        }


def token_hash(authorization: str) -> str:
    """The SHA-256 of the token in a `Bearer TOKEN`, as the file has it."""
    token = authorization[len(BEARER) :].strip()
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


def read_tenants(path: Path) -> TenantsFile:
    """The tenants in a YAML or JSON file; raises InputError when it is missing or wrong."""
    value: Any = read_yaml(path, MAX_BYTES)
    if not isinstance(value, dict):
        raise InputError(f"{path} has to be a mapping with the keys schema_version and tenants")
    try:
        return TenantsFile.model_validate(value)
    except ValidationError as error:
        known = TenantsFile.model_fields | TenantRecord.model_fields
        problem = first_problem(error, known, is_secret=True)  # somebody may put a token there
        raise InputError(f"{path}: {problem}") from None
