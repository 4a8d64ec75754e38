"""Who is taken to hang: not a variant that has others' grammars or long prompts to read first."""

import time
from dataclasses import replace

import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.lease_fixtures import BackendDouble, StreamDouble, call_of, lease_of
from trt_mtp.controller.decision import CandidateScore
from trt_mtp.controller.gateway.hang_detector import READING_S, HangDetector, StallLimits
from trt_mtp.controller.gateway.lease import Lease
from trt_mtp.controller.gateway.scoreboard import Scoreboard, Seat, scoreboard_memory
from trt_mtp.controller.gateway.servers.upstream import UpstreamLost
from trt_mtp.controller.request import UNBOUNDED_TOKENS
from trt_mtp.serve.contract import LONG_BYTES


class WaitingStream(StreamDouble):
    """A stream that nothing comes on."""

    given_up: UpstreamLost | None = None

    def give_up(self, why: UpstreamLost) -> None:
        """Keep why."""
        self.given_up = why


def overdue(
    lease: Lease, *, waited_s: float, heard_s: float, begun: tuple[float, float] | None = None
) -> bool:
    """Is it given up that long after it was sent, when somebody heard from its variant before?

    The variant has `begun` an answer, so many seconds ago, so many after it was sent that, and
    through another worker.
    """
    now = time.monotonic()
    backend = BackendDouble()
    lease.replica.backend = backend  # type: ignore[assignment]
    stream = WaitingStream(backend, backend.take_stream().script)
    stream.waiting_since = now - waited_s
    lease._upstream = stream  # type: ignore[assignment]
    lease.replica.heard(now - heard_s)
    with scoreboard_memory(2) as memory:
        own, other = (Scoreboard(Seat(memory, worker, 2)) for worker in range(2))
        detector = HangDetector(StallLimits(), own)
        if begun is not None:
            HangDetector(StallLimits(), other).note_answer(lease.replica, now - begun[0], begun[1])
        detector.add(lease)
        detector.look()
    return stream.given_up is not None


def lease(kind: str) -> Lease:
    """A lease of a request that is plain, has a grammar ("guided"), or is long."""
    call = call_of("mine")
    call.features = replace(call.features, is_guided=kind == "guided")
    if kind == "long":
        call.request = call.request._replace(raw=bytes(LONG_BYTES + 1))
    return lease_of(call)


@pytest.mark.parametrize(
    ("kind", "waited_s", "heard_s", "is_overdue"),
    [
        ("plain", 30.0, 0.1, True),
        ("guided", 30.0, 0.1, False),  # it answers others: the grammars before this one are read
        ("guided", 30.0, 29.0, True),  # it answers nobody
        ("guided", READING_S + 1, 0.1, True),
        ("guided", 1.0, 0.1, False),
        ("long", 30.0, 0.1, False),
        ("long", 30.0, 29.0, True),
        ("long", READING_S + 1, 0.1, True),
    ],
)
def test_what_is_read_before_is_waited_for(
    kind: str, waited_s: float, heard_s: float, is_overdue: bool
) -> None:
    """Or a few bad ones would take variants away, and fail who sends a good one."""
    assert overdue(lease(kind), waited_s=waited_s, heard_s=heard_s) is is_overdue


@pytest.mark.parametrize(
    ("waited_s", "begun", "is_overdue"),
    [
        (30.0, (0.5, 31.0), False),  # of one that was sent before: it had its turn
        (30.0, (0.5, 3.0), True),  # of one that was sent after: this one was passed by
        (30.0, (20.0, 31.0), True),  # and of nobody since then: it hangs
        (READING_S + 1, (0.5, READING_S + 1), True),
    ],
)
def test_who_was_sent_before_has_its_turn_first(
    waited_s: float, begun: tuple[float, float], is_overdue: bool
) -> None:
    """Or who sends many long prompts has others' short ones refused."""
    found = overdue(lease("plain"), waited_s=waited_s, heard_s=0.1, begun=begun)
    assert found is is_overdue


@pytest.mark.parametrize("kind", ["plain", "guided", "long"])
def test_the_turn_of_any_kind_of_request_is_seen(kind: str) -> None:
    """Its answer begins now, and it had been sent before one that waits."""
    other, each, detector = lease(kind), lease("plain"), HangDetector(StallLimits())
    stream = WaitingStream(BackendDouble(), BackendDouble().take_stream().script)
    stream.waiting_since = time.monotonic() - 30.0
    each._upstream, each.replica.backend = stream, BackendDouble()  # type: ignore[assignment]
    detector.note_first(other, 31.0)
    detector.add(each)
    detector.look()
    assert stream.given_up is None


@pytest.mark.parametrize(
    ("begun_s", "is_given_up"),
    [(1.0, True), (-1.0, False)],  # the process that it is sent to after that is another one
)
def test_a_death_that_one_worker_hears_of_is_every_worker_s(
    begun_s: float, is_given_up: bool
) -> None:
    """A process that Triton takes for dead may go on and answer a request twice."""
    each, backend = lease("plain"), BackendDouble()
    stream = WaitingStream(backend, backend.take_stream().script)
    each._upstream, each.replica.backend = stream, backend  # type: ignore[assignment]
    each.begun_at = time.monotonic() - begun_s
    with scoreboard_memory(2) as memory:
        one, other = (
            HangDetector(StallLimits(), Scoreboard(Seat(memory, worker, 2))) for worker in range(2)
        )
        other.add(each)
        other.look()
        assert stream.given_up is None
        one.give_up_on(each.replica)
        other.look()
    assert (stream.given_up is not None) is is_given_up


def test_a_wait_for_others_to_be_read_is_no_measure_of_prompts() -> None:
    """Or a hang would be seen minutes later than it can be."""
    for kind, known in (("guided", None), ("long", None), ("plain", 18.0 / 100)):
        assert learned(lease(kind), num_told=100) == known


def test_an_answer_without_a_limit_ends_with_the_context() -> None:
    """Or a single answer of a variant that hangs would be waited for for ever."""
    each = lease("plain")
    each.call.is_streaming = False
    each.call.features = replace(each.call.features, max_tokens=UNBOUNDED_TOKENS)
    each.decision = each.decision._replace(candidates=(CandidateScore("k3", 3, step_s=0.001),))
    assert overdue(each, waited_s=60.0, heard_s=0.1)


def test_a_sender_s_word_is_no_measure_of_prompts() -> None:
    """A short prompt that looks long would have others' long ones taken for hangs."""
    for num_told, known in ((100, 18.0 / 100), (None, None)):
        each = lease("plain")
        each.call.features = replace(each.call.features, num_chars=4_000_000)
        assert learned(each, num_told) == known


def learned(lease: Lease, num_told: int | None) -> float | None:
    """Seconds of a token, after a first message that tells the prompt's tokens and took 18 s."""
    response = pb.ModelStreamInferResponse()
    response.infer_response.id = lease._upstream_id
    if num_told is not None:
        response.infer_response.outputs.add(name="num_input_tokens", datatype="INT32", shape=[1])
        response.infer_response.raw_output_contents.append(num_told.to_bytes(4, "little"))
    lease._rewriter.read(response.SerializeToString(), False)
    HangDetector(StallLimits()).note_first(lease, 18.0)
    return lease.replica.prefill_s_per_token
