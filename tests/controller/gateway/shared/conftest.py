"""A Redis for the tests of what gateways share."""

from collections.abc import Iterator

import pytest

from tests.redis_server import RedisServer, redis_server


@pytest.fixture(scope="module")
def running_redis() -> Iterator[RedisServer]:
    """One for all tests of a module that leave it running."""
    with redis_server() as server:
        yield server


@pytest.fixture
def redis(running_redis: RedisServer) -> RedisServer:
    """It, with nothing in it."""
    running_redis.command("FLUSHALL")
    return running_redis
