"""A variant model on a Triton server, and what it is doing now."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from trt_mtp.controller.batch_schedule import BatchSchedule
from trt_mtp.controller.decision import VariantState
from trt_mtp.controller.gateway.servers.health import Health
from trt_mtp.controller.gateway.servers.load import LoadMeter, MeterReading, OtherLoad, mean_load
from trt_mtp.controller.outcome import MeanLoad
from trt_mtp.serve.chat_format import ChatFormat
from trt_mtp.serve.contract import CANCEL

if TYPE_CHECKING:
    from trt_mtp.controller.gateway.servers.backend import Backend


class LoadReading(NamedTuple):
    """The load of a variant and of its device up to now, and what others have there."""

    variant: MeterReading
    device: MeterReading
    num_others: int
    num_others_on_device: int


@dataclass(slots=True, eq=False)
class Replica:
    """One of them."""

    backend: "Backend"
    key: str  # k3, or k3@HOST:PORT where there is more than one server
    name: str
    model_name: str  # qwen_mtp_k3
    draft_length: int
    max_batch_size: int
    max_seq_len: int
    fingerprint: str
    measured_on: dict[str, str]  # the parts behind the fingerprint
    inputs: frozenset[str]
    outputs: frozenset[str]
    takes_min_tokens: bool = True
    takes_guided: bool = True
    schedule: BatchSchedule | None = None  # of draft lengths by batch
    chat_format: ChatFormat = field(default_factory=ChatFormat)  # how its answers are read
    health: Health = field(default_factory=Health)
    num_running: int = 0
    num_elsewhere: int = 0  # the same through other workers of this gateway
    num_on_trial: int = 0  # of all workers, whose grammars it tries: they have no place yet
    others: OtherLoad = field(default_factory=OtherLoad)
    meter: LoadMeter = field(default_factory=LoadMeter)
    prefill_s_per_token: float | None = None  # until the first token, as it was seen

    @property
    def is_ready(self) -> bool:
        """What its server last said, unless a connection failed since then."""
        return self.health.is_ready

    @property
    def can_continue(self) -> bool:
        """True for one that goes on with an answer which another began."""
        return "emitted_ids" in self.inputs and "output_ids" in self.outputs

    @property
    def can_cancel(self) -> bool:
        """True for one that ends a request when another one asks it to."""
        return CANCEL in self.inputs

    def heard(self, now_s: float) -> None:
        """A message of its came at the monotonic time `now_s`."""
        self.health.heard_at = self.backend.heard_at = now_s

    def note_load(self, num_in_flight: int, now_s: float, num_left: int) -> None:
        """A response says how many requests it has; `num_left` of this gateway's aren't among them.

        Those of the gateway's workers are counted apart.
        """
        num_own = self.num_running + self.num_elsewhere - num_left
        self.others.note(num_in_flight, num_own, now_s)

    def load(self, now_s: float) -> int:
        """Requests that are believed to be in flight on it, whoever sent them."""
        others = self.others
        num_ours = self.num_running + self.num_elsewhere
        return num_ours if now_s > others.until else num_ours + others.num(now_s)

    def count_running(self, change: int, num_tokens: float, now_s: float) -> None:
        """A request of this gateway with so many tokens in its cache begins (1) or ends (-1)."""
        self.num_running += change
        for meter in (self.meter, self.backend.meter):
            meter.change(change, change * num_tokens, now_s)

    def load_reading(self, now_s: float) -> LoadReading:
        """The beginning, or the end, of a time whose mean load is asked for."""
        variants = self.backend.variants.values()
        return LoadReading(
            self.meter.reading(now_s),
            self.backend.meter.reading(now_s),
            self.load(now_s) - self.num_running,
            self.backend.load(now_s) - sum([each.num_running for each in variants]),
        )

    def load_since(
        self, begun: LoadReading, now_s: float
    ) -> tuple[MeanLoad | None, MeanLoad | None]:
        """The mean load of the variant and of its device since then."""
        ended = self.load_reading(now_s)
        others = (begun.num_others + ended.num_others) / 2
        on_device = (begun.num_others_on_device + ended.num_others_on_device) / 2
        return (
            mean_load(begun.variant, ended.variant, others),
            mean_load(begun.device, ended.device, on_device),
        )

    def state(
        self, is_healthy: bool, now_s: float, num_on_device: int | None = None
    ) -> VariantState:
        """What a policy sees of it; `num_on_device` is its server's load, if that is known."""
        num_running = self.load(now_s)
        return VariantState(  # not by keyword, which takes twice as long
            self.key,
            self.draft_length,
            is_healthy,
            num_running,
            self.max_batch_size,
            self.max_seq_len,
            self.backend.target,
            self.backend.load(now_s) if num_on_device is None else num_on_device,
            num_running >= self.max_batch_size,
            "",
            self.takes_min_tokens,
            self.takes_guided,
            self.schedule,
            self.meter.tokens_of(num_running),
        )
