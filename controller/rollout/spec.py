"""The YAML file of a rollout: what to roll out, where and how; checked when it is read."""

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trt_mtp.controller.validation import first_problem
from trt_mtp.errors import InputError
from trt_mtp.files import read_yaml

Percent = Annotated[float, Field(gt=0, le=100)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class What(_Part):
    """A variant that replaces a hosted one, or a profile that replaces the gateway's."""

    variant: Path | None = None  # its folder
    replaces: str | None = None  # name of the hosted variant, k3 for example
    profile: Path | None = None

    @model_validator(mode="after")
    def _one_thing(self) -> "What":
        if (self.variant is None) == (self.profile is None):
            raise ValueError("name one thing, variant or profile")
        if (self.variant is None) != (self.replaces is None):
            raise ValueError("replaces goes with variant: the hosted one whose place it takes")
        return self


class Tls(_Part):
    """How a server is reached over TLS; without `ca`, by the authorities that gRPC brings."""

    ca: Path | None = None
    cert: Path | None = None  # this side's, where the server asks for one
    key: Path | None = None


class Server(_Part):
    """A Triton server that hosts the variant; the first one in the list is the canary's."""

    grpc: Annotated[str, Field(pattern=r"^.+:\d+$")]
    admin_key_file: Path
    tls: Tls | None = None  # None: in clear, the admin key too
    repository: Path
    memory_gb: Annotated[float, Field(gt=0)] | None = None  # for variants; None: not planned with
    metrics: Annotated[str, Field(pattern=r"^.+:\d+$")] | None = None  # None: memory is not gated


class GatewayFiles(_Part):
    """A gateway's options --traffic and --decision-log."""

    traffic: Path
    decision_log: Path


class Where(_Part):
    """The servers, the gateways in front of them, and the rollout's state file."""

    model: str = "qwen_mtp"
    state: Path
    gateways: Annotated[tuple[GatewayFiles, ...], Field(min_length=1)]
    servers: tuple[Server, ...] = ()


class Step(_Part):
    """One of: shadow (percent of live requests copied), set_weight (percent), pause.

    A step ends after `at_least_s`, when the canary has answered enough requests. It is
    inconclusive if that takes longer than `at_most_s`. set_weight: 100 is the soak.
    """

    shadow: Percent | None = None
    set_weight: Percent | None = None
    pause: Literal[True] | None = None
    at_least_s: Seconds = 60.0
    at_most_s: Seconds = 3600.0

    @model_validator(mode="after")
    def _one_verb(self) -> "Step":
        if sum(v is not None for v in (self.shadow, self.set_weight, self.pause)) != 1:
            raise ValueError("a step is one of shadow, set_weight, pause")
        if self.at_most_s < self.at_least_s:
            raise ValueError("at_most_s is less than at_least_s")
        return self

    @property
    def name(self) -> str:
        """`set_weight 5`, for the record."""
        if self.pause:
            return "pause"
        verb = "shadow" if self.shadow else "set_weight"
        return f"{verb} {self.shadow or self.set_weight:g}"


class Gates(_Part):
    """Limits for a canary, against the running variant in the same minutes."""

    alpha: Annotated[float, Field(gt=0, le=0.5)] = 0.01  # chance that a good one is aborted
    tolerance: Share = 0.02  # relative loss of speed or acceptance length that is no failure
    error_tolerance: Share = 0.005  # errors more, as a share of requests
    min_requests: Annotated[int, Field(ge=1)] = 50  # of the canary's, in every step
    window_s: Annotated[float, Field(gt=0)] = 60.0  # "the same minutes"
    max_divergences: Annotated[int, Field(ge=0)] = 0  # greedy answers that may differ
    failure_limit: Annotated[int, Field(ge=1)] = 3  # failed probes of the canary in a row
    max_memory_share: Annotated[float, Field(gt=0, le=1)] = 0.95  # of a GPU, or of the host
    probe_timeout_s: Annotated[float, Field(gt=0)] = 20.0


DEFAULT_STEPS = (
    Step(shadow=10),
    Step(set_weight=1),
    Step(set_weight=5),
    Step(set_weight=25),
    Step(set_weight=100),
)


class How(_Part):
    """Steps and gates."""

    steps: Annotated[tuple[Step, ...], Field(min_length=1)] = DEFAULT_STEPS
    gates: Gates = Gates()

    @model_validator(mode="after")
    def _grows(self) -> "How":
        weights = [step.set_weight for step in self.steps if step.set_weight is not None]
        if weights != sorted(weights):
            raise ValueError("steps: set_weight may only grow; abort takes it back")
        if weights and any(step.shadow for step in self.steps[_first_weight(self.steps) :]):
            raise ValueError("steps: shadow comes before the first set_weight")
        return self


def _first_weight(steps: tuple[Step, ...]) -> int:
    return next(i for i, step in enumerate(steps) if step.set_weight is not None)


class RolloutSpec(_Part):
    """The content of a rollout's file; relative paths were resolved against its directory."""

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")]
    what: What
    where: Where
    how: How = How()

    @model_validator(mode="after")
    def _has_servers(self) -> "RolloutSpec":
        if self.what.variant is not None and not self.where.servers:
            raise ValueError("where.servers: a variant needs a server to run on")
        if self.what.profile is not None and any(step.shadow for step in self.how.steps):
            raise ValueError("how.steps: a profile has no answers of its own to shadow")
        return self

    @property
    def digest(self) -> str:
        """A short hash of the whole content."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]


def read_spec(path: Path) -> RolloutSpec:
    """The rollout in the YAML file `path`; raises InputError that names the wrong key."""
    return parse_spec(read_yaml(path), path)


def parse_spec(value: Any, path: Path) -> RolloutSpec:
    """The rollout in a YAML value from `path`; raises InputError that names the wrong key."""
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a mapping with the keys {', '.join(_fields(RolloutSpec))}")
    try:
        spec = RolloutSpec.model_validate(value)
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error, _all_fields())}") from None
    absolute: RolloutSpec = _absolute(spec, path.resolve().parent)
    return absolute


def _fields(part: type[BaseModel]) -> list[str]:
    return list(part.model_fields)


def _all_fields() -> list[str]:
    parts = (RolloutSpec, What, Where, How, Server, Tls, GatewayFiles, Step, Gates)
    return sorted({name for part in parts for name in _fields(part)})


def _absolute(value: Any, folder: Path) -> Any:
    """`value` with absolute paths."""
    if isinstance(value, Path):
        return folder / value
    if isinstance(value, tuple):
        return tuple(_absolute(item, folder) for item in value)
    if isinstance(value, BaseModel):
        changes = {name: _absolute(getattr(value, name), folder) for name in _fields(type(value))}
        return value.model_copy(update=changes)
    return value
