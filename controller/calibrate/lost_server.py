"""A server that is lost during a measurement: wait for it, then repeat the batch."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from trt_mtp.controller.calibrate.load_client import Batch, LoadClient
from trt_mtp.controller.gateway.servers.pool import Pool
from trt_mtp.controller.gateway.servers.replica import Replica
from trt_mtp.errors import TrtMtpError

MAX_LOST = 3  # times that the server may be lost in one batch; then it is the batch
POLL_S = 0.2


class ServerLostError(TrtMtpError):
    """The server was lost for good."""


async def until_whole(
    ask: Callable[[], Awaitable[Batch]], back: Callable[[str], Awaitable[None]], url: str
) -> Batch:
    """The batch that `ask` brings, asked again after `back` has waited for a server that was lost.

    Raises what `back` raises, and ServerLostError if it is lost each time.
    """
    batch = await ask()
    for _ in range(MAX_LOST - 1):
        if not batch.lost:
            return batch
        await back(batch.lost)
        batch = await ask()
    if not batch.lost:
        return batch
    raise ServerLostError(
        f"the server at {url} was lost {MAX_LOST} times in one batch ({batch.lost})"
    )


@dataclass(frozen=True, slots=True)
class Deployment:
    """The deployment under measurement, and the longest wait for it."""

    url: str
    model: str  # the public name of the variants
    variants: Collection[Replica]
    wait_s: float
    say: Callable[[str], None]

    async def answers(
        self, client: LoadClient, requests: Sequence[bytes], concurrency: int
    ) -> Batch:
        """A whole batch, measured again if the server was lost and came back.

        Raises ServerLostError if it does not come back in `wait_s`, comes back with other variants,
        or is lost again each time.
        """
        names = ", ".join(variant.name for variant in self.variants)

        async def back(reason: str) -> None:
            self.say(
                f"the server at {self.url} was lost ({reason}); waiting {self.wait_s:.0f} s at "
                f"most until {names} are ready, then the batch is measured again"
            )
            await self._wait_until_back(reason)

        return await until_whole(lambda: client.answers(requests, concurrency), back, self.url)

    async def _wait_until_back(self, reason: str) -> None:
        deadline = time.monotonic() + self.wait_s
        pool = Pool(self.url, self.model)
        try:
            while missing := await self._not_ready(pool, deadline - time.monotonic()):
                if time.monotonic() > deadline:
                    raise TrtMtpError(f"{', '.join(missing)} are not ready")
                await asyncio.sleep(POLL_S)
        except TrtMtpError as error:
            raise ServerLostError(
                f"the server at {self.url} was lost ({reason}) and not back within "
                f"{self.wait_s:.0f} s: {error}"
            ) from None
        finally:
            await pool.close()
        self._require_same(pool)

    async def _not_ready(self, pool: Pool, timeout_s: float) -> list[str]:
        """The names of variants that are not ready; raises TrtMtpError if none is."""
        await pool.wait_ready(max(timeout_s, 0.0))
        ready = {variant.name for variant in pool.variants.values() if variant.is_ready}
        return [variant.name for variant in self.variants if variant.name not in ready]

    def _require_same(self, pool: Pool) -> None:
        by_name = {variant.name: variant for variant in pool.variants.values()}
        for before in self.variants:
            if by_name[before.name].fingerprint != before.fingerprint:
                raise ServerLostError(
                    f"the server at {self.url} came back with another {before.name}: its numbers "
                    f"can't be compared with those of before"
                )
