"""Which URLs of Redis there are, in each mode; what is wrong with a URL is said without its password."""

from __future__ import annotations

from typing import Any

import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.sentinel import Sentinel, SentinelManagedSSLConnection

from glasspoint.errors import ConfigurationError
from glasspoint.model.option_types import RedisMode
from glasspoint.redis.client import address_of, check_redis, database_of, look_again, open_redis
from glasspoint.redis.location import locate
from glasspoint.redis.sentinels import SentinelPool

SECRET = "hush"
HOSTS = (("h1", 26379), ("h2", 7), ("::1", 26379))


def pool_of(redis: object) -> SentinelPool:
    assert isinstance(redis, Redis)
    assert isinstance(redis.connection_pool, SentinelPool)
    return redis.connection_pool


def sentinel_options(redis: object) -> list[dict[str, Any]]:
    return [each.connection_pool.connection_kwargs for each in pool_of(redis).sentinel_manager.sentinels]


def test_a_url_names_sentinels_their_service_and_a_database() -> None:
    redis = open_redis("redis+sentinel://app:p%40ss@h1,h2:7,[::1]/main/3", timeout_seconds=2)
    pool = pool_of(redis)
    assert (pool.service_name, pool.max_connections) == ("main", 64)
    assert pool.connection_kwargs["username"] == "app"
    assert pool.connection_kwargs["password"] == "p@ss"
    assert pool.connection_kwargs["socket_connect_timeout"] == 2
    assert pool.connection_kwargs["socket_timeout"] is None
    assert database_of(redis) == 3
    assert tuple((each["host"], each["port"]) for each in sentinel_options(redis)) == HOSTS
    assert not any(each.get("password") for each in sentinel_options(redis)), (
        "those of the URL are the master's"
    )


def test_the_sentinels_have_options_of_their_own() -> None:
    url = "redis+sentinel://:p@h1,h2/main?sentinel_username=s&sentinel_password=q%26&health_check_interval=3"
    redis = open_redis(url, timeout_seconds=2, step_seconds=0.5)
    for each in sentinel_options(redis):
        assert (each["username"], each["password"]) == ("s", "q&")
        assert each["socket_timeout"] == each["socket_connect_timeout"] == 0.25, "half a step at most"
        assert not each.get("health_check_interval")
    assert pool_of(redis).connection_kwargs["password"] == "p"
    assert pool_of(redis).connection_kwargs["health_check_interval"] == 3


def test_tls_is_for_the_master_and_for_the_sentinels() -> None:
    url = "rediss+sentinel://h1/main?ssl_ca_certs=/ca&ssl_check_hostname=no&sentinel_ssl_ca_certs=/other"
    redis = open_redis(url, timeout_seconds=2)
    pool = pool_of(redis)
    assert pool.connection_class is SentinelManagedSSLConnection
    assert pool.connection_kwargs["ssl_ca_certs"] == "/ca"
    [sentinel] = pool.sentinel_manager.sentinels
    assert sentinel.connection_pool.connection_class is SSLConnection
    assert sentinel.connection_pool.connection_kwargs["ssl_ca_certs"] == "/other"
    assert sentinel.connection_pool.connection_kwargs["ssl_check_hostname"] is False


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
async def test_a_url_names_nodes_of_a_cluster(scheme: str) -> None:
    redis = open_redis(f"{scheme}+cluster://app:p@h1:7000,h2/0?health_check_interval=3", timeout_seconds=2)
    assert isinstance(redis, RedisCluster)
    assert [(each.host, each.port) for each in redis.startup_nodes] == [("h1", 7000), ("h2", 6379)]
    assert address_of(redis) == ("h1", 7000)
    options = redis.connection_kwargs
    assert (options["username"], options["password"], options["health_check_interval"]) == ("app", "p", 3)
    assert (options["socket_connect_timeout"], options["socket_timeout"]) == (2, None)
    assert options["max_connections"] == 64
    assert options["connection_class"] is (SSLConnection if scheme == "rediss" else Connection)


@pytest.mark.parametrize(
    ("url", "mode", "kind"),
    [
        ("redis://h", "auto", "single"),
        ("unix:///socket", "auto", "single"),
        ("redis://h/2", "single", "single"),
        ("unix:///socket", "single", "single"),
        ("redis://h1,h2:7/main/3", "sentinel", "sentinel"),
        ("redis+sentinel://h1,h2:7/main/3", "sentinel", "sentinel"),
        ("redis://h1:1,h2:2", "cluster", "cluster"),
        ("redis+cluster://h1:1,h2:2", "cluster", "cluster"),
        ("REDIS+SENTINEL://h1/main", "auto", "sentinel"),
    ],
)
def test_a_mode_is_what_a_plain_url_is_read_as(url: str, mode: RedisMode, kind: str) -> None:
    assert locate(url, mode).kind == kind
    if kind == "sentinel":
        assert locate(url, mode).hosts[0] == ("h1", 26379)
        assert locate(url, mode).service == "main"


@pytest.mark.parametrize(
    ("scheme", "mode"),
    [
        ("redis+sentinel", "single"),
        ("rediss+sentinel", "cluster"),
        ("redis+cluster", "single"),
        ("rediss+cluster", "sentinel"),
        ("unix", "cluster"),
        ("unix", "sentinel"),
    ],
)
def test_a_url_that_contradicts_the_mode_is_refused_by_both_names(scheme: str, mode: RedisMode) -> None:
    with pytest.raises(ConfigurationError, match="CHECKPOINT_REDIS_MODE") as caught:
        locate(f"{scheme}://:{SECRET}@h/main", mode)
    assert f"{scheme}://" in str(caught.value)
    assert f"is {mode}" in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis+sentinel://:{secret}@h", "does not name the service"),
        ("redis+sentinel://:{secret}@h/", "does not name the service"),
        ("redis+sentinel://:{secret}@h/0", "does not name the service"),
        ("redis+sentinel://:{secret}@h/main/x", "must be a whole number"),
        ("redis+sentinel://:{secret}@h/main/0/0", "must be a whole number"),
        ("redis+sentinel://:{secret}@h:port/main", "cannot be understood"),
        ("redis+sentinel://:{secret}@/main", "names no host"),
        ("redis+sentinel://:{secret}@h,/main", "names no host"),
        ("redis+sentinel://user:{secret}#x@h/main", "percent-encoded"),
        ("redis+sentinel://:{secret}@h/main?none=1", "no options in its query but those of redis-py"),
        ("redis+sentinel://h/main?password={secret}&sentinel_none=1", "no options in its query but"),
        ("redis+sentinel://h/main?sentinel_password={secret}&max_connections=many", "no options in its"),
        ("redis+cluster://:{secret}@h/3", "has only 0"),
        ("redis+cluster://:{secret}@h?db=3", "has only 0"),
        ("redis+cluster://:{secret}@h?none=1", "no options in its query"),
        ("redis://:{secret}@h1,h2/0", r"several hosts.*redis\+sentinel://.*redis\+cluster://"),
        ("redis://:{secret}@h/main", r"must be a whole number.*redis\+sentinel://"),
        ("redis-sentinel://:{secret}@h/main", r"must begin with one of .*redis\+sentinel://"),
    ],
)
def test_a_url_that_cannot_be_used_is_said_without_the_password(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"Redis URL.*{said}") as caught:
        open_redis(url.format(secret=SECRET), timeout_seconds=1)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_location_shows_no_password() -> None:
    location = locate(f"redis+sentinel://u:{SECRET}@h/main?sentinel_password={SECRET}")
    assert SECRET not in repr(location)


async def test_a_client_of_redis_py_s_own_sentinels_is_followed_by_reconnecting() -> None:
    """Of a client that the caller brings. Its pool names the master when it has connected."""
    redis = Sentinel([("127.0.0.1", 1)]).master_for("mine")
    assert address_of(redis) == (None, None)
    redis.connection_pool.master_address = ("redis-0", 6379)
    assert address_of(redis) == ("redis-0", 6379)
    assert await look_again(redis)


def test_what_is_no_asynchronous_client_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"must be a redis\.asyncio\.Redis .*, not redis\.client"):
        check_redis(SyncRedis())
