"""The shared store: a few exchanges with a Redis or Valkey, each of which ends within a deadline.

All keys begin with the model, so that gateways of several models can use one database; counts have
the profile's fingerprint in their keys, too, because they mean nothing beside another profile.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from trt_mtp.controller.gateway.shared.bounded_connection import connection_class
from trt_mtp.controller.gateway.shared.config import SharedConfig
from trt_mtp.controller.gateway.shared.scripts import HOLD, LEASE, PUBLISH
from trt_mtp.errors import TrtMtpError

if TYPE_CHECKING:
    from redis.asyncio import Redis

CONNECT_S = 1.0
ANSWER_S = 2.0  # between two pieces of an answer
EXCHANGE_S = 5.0  # for all of it
# of what others wrote, which who can write there may have made long
MAX_GATEWAYS = 1_000
MAX_VALUE_BYTES = 1 << 20
NUM_AT_ONCE = 32  # values of an exchange
MAX_READ_BYTES = 1 << 26  # of all values together
MAX_WAIT_S = 3_600.0


class LeaseAsk(NamedTuple):
    """What a gateway asks of a bucket; `owed` was used without a lease, or is given back."""

    bucket: str
    rate_per_s: float
    capacity: float
    owed: float
    wanted: float


class Lease(NamedTuple):
    """What it gets, and how long until there is 1 in the bucket again."""

    granted: float
    wait_s: float


class PlacesAsk(NamedTuple):
    """How many places a gateway wants for a tenant's requests, beside those that run."""

    tenant: str
    running: int
    wanted: int
    limit: int


class RedisStore:
    """One gateway's connection. Exchanges raise TrtMtpError when the store doesn't answer."""

    def __init__(self, config: SharedConfig, model: str, fingerprint: str, name: str) -> None:
        """`name` is this gateway's, like no other's; connects when it is first used."""
        self.name = name
        self._redis = _connection(config)
        whose = hashlib.sha256(fingerprint.encode()).hexdigest()[:16]
        # in braces what one node of a cluster has together
        self._prefix = f"trt-mtp:1:{{{model}}}:"
        self._counts = f"counts:{whose}:"

    async def publish(self, value: bytes, ttl_s: float) -> list[str]:
        """Keep `value` as this gateway's counts; the names of all gateways of the model."""
        keys = (self._key("gateways"), self._key(self._counts + self.name))
        script = self._redis.eval(PUBLISH, 2, *keys, self.name, value, f"{ttl_s * 1000:.0f}")
        return [name.decode(errors="replace") for name in await self._within(script)]

    async def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """The counts of these gateways; left out are those of another profile."""
        if not names:
            return {}
        found: dict[str, bytes] = {}
        for start in range(0, min(len(names), MAX_GATEWAYS), NUM_AT_ONCE):
            some = names[start : start + NUM_AT_ONCE]
            pipe = self._redis.pipeline(transaction=False)
            for name in some:
                pipe.getrange(self._key(self._counts + name), 0, MAX_VALUE_BYTES)
            values = await self._within(pipe.execute(raise_on_error=False))
            # nothing comes of a key that is gone, and an error of one of another type
            pairs = zip(some, values, strict=False)
            found |= {name: value for name, value in pairs if isinstance(value, bytes) and value}
            if sum(map(len, found.values())) > MAX_READ_BYTES:
                raise TrtMtpError(f"the gateways' counts have more than {MAX_READ_BYTES:,} bytes")
        return found

    async def lease(self, asks: Sequence[LeaseAsk]) -> list[Lease]:
        """Of each bucket what there is, in whole units."""
        calls = [(f"bucket:{ask.bucket}", *ask[1:]) for ask in asks]
        answers = await self._within(self._run(LEASE, calls))
        return [
            Lease(_between(float(granted), ask.wanted), _between(float(wait_s), MAX_WAIT_S))
            for ask, (granted, wait_s) in zip(asks, answers, strict=True)
        ]

    async def hold(self, asks: Sequence[PlacesAsk], ttl_s: float) -> list[int]:
        """Of each tenant's places those that this gateway has for `ttl_s`."""
        ttl_ms = f"{ttl_s * 1000:.0f}"
        calls = [(f"places:{ask.tenant}", self.name, *ask[1:], ttl_ms) for ask in asks]
        held = await self._within(self._run(HOLD, calls))
        return [
            int(_between(float(number), max(ask.running, ask.limit)))
            for ask, number in zip(asks, held, strict=True)
        ]

    async def _run(self, script: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call a script for each key with its arguments, all in one go, by the script's hash."""
        from redis.exceptions import NoScriptError

        try:
            return await self._pipeline(script, calls)
        except NoScriptError:  # after a restart: none of them has run
            await self._redis.script_load(script)
            return await self._pipeline(script, calls)

    async def _pipeline(self, script: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        pipe = self._redis.pipeline(transaction=False)
        for key, *arguments in calls:
            pipe.evalsha(digest, 1, self._key(key), *map(str, arguments))
        answers: list[Any] = await pipe.execute()
        return answers

    async def ping(self) -> None:
        """See whether the store answers."""
        await self._within(self._redis.ping())

    async def leave(self) -> None:
        """Take this gateway out; nothing of it stays."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.zrem(self._key("gateways"), self.name)
        pipe.delete(self._key(self._counts + self.name))
        await self._within(pipe.execute())

    async def close(self) -> None:
        """Close the connections."""
        await self._within(self._redis.aclose())

    async def _within(self, exchange: Any) -> Any:
        """The exchange's result; raises TrtMtpError in its place, whatever went wrong.

        The next one then connects anew: after a failover, another server may have the address, and
        the one before only says that it is a replica.
        """
        from redis.exceptions import ClusterDownError, MovedError, RedisError

        try:
            async with asyncio.timeout(EXCHANGE_S):
                return await exchange
        except MovedError as moved:
            error = (
                "it is a node of a cluster that hasn't this model's keys: give --shared the "
                f"address of the one that has, which is {moved.host}:{moved.port} now"
            )
        except ClusterDownError as why:
            error = f"it is a node of a cluster that isn't ready: {why}"
        except TimeoutError:
            error = "it takes too long to answer"
        except (RedisError, OSError, ValueError, TypeError, AttributeError, RecursionError) as why:
            error = str(why) or type(why).__name__
        with contextlib.suppress(RedisError, OSError):
            await self._redis.connection_pool.disconnect(inuse_connections=False)
        raise TrtMtpError(error)

    def _key(self, rest: str) -> str:
        return self._prefix + rest


def _between(number: float, most: float) -> float:
    """`number`, but from 0 to `most`; 0 for what is none."""
    return min(number, most) if number > 0 else 0.0


def _connection(config: SharedConfig) -> "Redis":
    """A client that tries once more at once, as where a server closes idle connections.

    After that Reach says when to try again.
    """
    from redis.asyncio import ConnectionPool, Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    tls: dict[str, Any] = {}
    if config.is_tls:
        ca = None if config.ca is None else str(config.ca)
        tls = {"ssl_ca_certs": ca, "ssl_check_hostname": True}
    pool = ConnectionPool(
        connection_class=connection_class(is_tls=config.is_tls),
        host=config.host,
        port=config.port,
        db=config.database,
        credential_provider=_credentials(config),
        socket_connect_timeout=CONNECT_S,
        socket_timeout=ANSWER_S,
        retry=Retry(NoBackoff(), 1),
        **tls,
    )
    return Redis.from_pool(pool)


def _credentials(config: SharedConfig) -> Any:
    """Who this gateway is, looked up for every connection; None for nobody."""
    from redis.credentials import CredentialProvider

    class Credentials(CredentialProvider):
        """The user, if there is one, and the password as it is now."""

        def get_credentials(self) -> tuple[str] | tuple[str, str]:
            password = config.password() or ""
            return (config.user, password) if config.user else (password,)

    return Credentials() if config.user or config.password() else None
