"""The variants behind a Triton server, as a calibration measures them."""

from collections.abc import Callable, Sequence

from tritonclient.grpc import service_pb2 as pb

from trt_mtp.controller.calibrate.load_client import Batch, LoadClient, request_bytes
from trt_mtp.controller.calibrate.lost_server import Deployment
from trt_mtp.controller.calibrate.rig import RigFacts
from trt_mtp.controller.client import Prompt
from trt_mtp.controller.gateway.servers.backend import CALL_TIMEOUT_S
from trt_mtp.controller.gateway.servers.pool import Pool
from trt_mtp.controller.gateway.servers.replica import Replica
from trt_mtp.controller.profile import differing_parts
from trt_mtp.errors import InputError
from trt_mtp.files import nearest
from trt_mtp.serve.kserve import parse_message

READY_TIMEOUT_S = 60.0


class TritonRig:
    """One server with a variant for each draft length."""

    notes: Sequence[str] = ()

    def __init__(self, deployment: Deployment, facts: RigFacts) -> None:
        self.facts = facts
        self._deployment = deployment
        self._models = {one.draft_length: one.model_name for one in deployment.variants}
        self._client = LoadClient(deployment.url)

    async def answers(
        self, draft_length: int, prompts: Sequence[Prompt], concurrency: int
    ) -> Batch:
        """A whole batch of one draft length; raises ServerLostError if it is lost for good."""
        requests = [request_bytes(self._models[draft_length], prompt) for prompt in prompts]
        return await self._deployment.answers(self._client, requests, concurrency)

    async def close(self) -> None:
        """End the connection."""
        await self._client.close()


async def found_variants(
    url: str, model: str, names: Sequence[str], wait_s: float, say: Callable[[str], None]
) -> TritonRig:
    """The variants of `model` at `url`, those called `names` or all.

    A server that is lost has `wait_s` to come back. Raises as `chosen_variants` does, and
    TrtMtpError where nothing answers.
    """
    pool = Pool(url, model)
    try:
        await pool.wait_ready(READY_TIMEOUT_S)
        variants = chosen_variants(list(pool.variants.values()), names)
        triton = await _triton_version(pool)
    finally:
        await pool.close()
    measured_on = variants[0].measured_on
    known = {key: value for key, value in measured_on.items() if key in ("engine", "device")}
    facts = RigFacts(
        draft_lengths=tuple(sorted(variants)),
        max_concurrency=min(variant.max_batch_size for variant in variants.values()),
        identity={
            "fingerprint": variants[0].fingerprint,
            "variants": [variant.name for variant in variants.values()],
        },
        fingerprint=variants[0].fingerprint,
        measured_on=measured_on,
        environment={"server": url, "triton": triton, **known},
        shared_device=True,  # one Triton hosts them all
    )
    return TritonRig(Deployment(url, model, tuple(variants.values()), wait_s, say), facts)


def chosen_variants(hosted: Sequence[Replica], names: Sequence[str]) -> dict[int, Replica]:
    """The variants to measure, by draft length.

    Raises InputError for a name that isn't hosted, for variants of different models or with a
    schedule, and when there is nothing to compare.
    """
    by_name = {variant.name: variant for variant in hosted}
    for name in names:
        if name not in by_name:
            raise InputError(
                f"--variants: {name!r} is not hosted{nearest(name, by_name)}; hosted are "
                f"{', '.join(by_name)}"
            )
    chosen = [variant for variant in hosted if not names or variant.name in names]
    for other in chosen[1:]:
        if other.fingerprint != chosen[0].fingerprint:
            parts = differing_parts(chosen[0].measured_on, other.measured_on)
            raise InputError(
                f"{chosen[0].name} and {other.name} have different fingerprints{parts}: their "
                f"numbers can't be compared; choose one kind with --variants"
            )
    for variant in chosen:
        if variant.schedule is not None:
            raise InputError(
                f"{variant.name} drafts less than {variant.draft_length} where its batch is large "
                f"(draft_len_schedule), so its times under load would be another length's: build "
                f"it without --draft-len-schedule and --profile to calibrate"
            )
    variants = {variant.draft_length: variant for variant in chosen}
    if 0 not in variants or len(variants) < 2:
        raise InputError(
            "a calibration compares draft lengths with no speculation: it needs the variant at "
            f"draft length 0 and at least one other; there are {', '.join(v.name for v in chosen)}"
        )
    return variants


async def _triton_version(pool: Pool) -> str:
    raw = await pool.call("ServerMetadata", b"", CALL_TIMEOUT_S)
    return str(parse_message(pb.ServerMetadataResponse, raw).version)
