"""What signing the entries costs, and why they are signed with BLAKE2b.

    python benchmarks/signing.py [--smoke] [--rounds N] [--json FILE]

For the states of 10 and 100 messages (see `realistic.py`), with one pending write:

- Algorithms: to verify all fields of the entry, the way of `redis/signature.py` against others, in turns, in
  a shuffled order; the median of the rounds, in microseconds. A way begins from the key and the scope, once
  an entry, where it can.
- A hit and a put: how much of this process's processor time is signing. Servers: embedded ones; what they
  take is not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import json
import random
import statistics
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any, Final

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.l1.entry import Changes
from glasspoint.model import codec
from glasspoint.model.codec import EncodedPut
from glasspoint.model.scope import Scope
from glasspoint.redis.signature import SIZE, Signer
from realistic import Chat, messages

SEED: Final = 20
SCOPE: Final = Scope("signing", "")
KEY: Final = b"k" * 32
SIZES: Final = (10, 100)
ROW: Final = "{:<44}{:>12}{:>18}"

Fields = list[tuple[bytes, bytes]]
Verify = Callable[[Fields], list[bool]]


def ours(fields: Fields) -> list[bool]:
    """As `decode_image` does it."""
    verified = _SIGNER.of(SCOPE).verified
    return [verified(name, value) is not None for name, value in fields]


def blake2b_at_once(fields: Fields) -> list[bool]:
    """Nothing is taken along from one field to the next."""
    return [
        hmac.compare_digest(
            hashlib.blake2b(_all_of(each), key=KEY, digest_size=SIZE).digest(), each[1][-SIZE:]
        )
        for each in fields
    ]


def hmac_digest(fields: Fields) -> list[bool]:
    """The same with HMAC-SHA-256, by the function that is made for that."""
    return [
        hmac.compare_digest(hmac.digest(KEY, _all_of(each), "sha256")[:SIZE], each[1][-SIZE:])
        for each in fields
    ]


def hmac_copied(fields: Fields) -> list[bool]:
    """As ours, with HMAC-SHA-256: what is signed with where there is no BLAKE2b."""
    begun = _HMAC.copy()
    begun.update(_PREFIX)
    found = []
    for name, signed in fields:
        each = begun.copy()
        each.update(len(name).to_bytes(8) + name)
        each.update(signed[:-SIZE])
        found.append(hmac.compare_digest(each.digest()[:SIZE], signed[-SIZE:]))
    return found


def _all_of(field: tuple[bytes, bytes]) -> bytes:
    name, signed = field
    return b"%b%b%b%b" % (_PREFIX, len(name).to_bytes(8), name, signed[:-SIZE])


_SIGNER = Signer(KEY)
_HMAC = hmac.new(KEY, digestmod="sha256")
_PREFIX = b"".join(len(part).to_bytes(8) + part.encode() for part in SCOPE)
WAYS: Final[dict[str, Verify]] = {
    "keyed BLAKE2b, copied (ours)": ours,
    "keyed BLAKE2b, at once": blake2b_at_once,
    "HMAC-SHA-256, copied": hmac_copied,
    "HMAC-SHA-256, hmac.digest": hmac_digest,
}


def put_of(chat: Chat, size: int) -> EncodedPut:
    """A put of so many messages, encoded."""
    config, checkpoint, metadata, versions = chat.next_put(messages(size, random.Random(SEED)))
    return codec.encode_put(JsonPlusSerializer(), config, None, checkpoint, metadata, versions)


def fields_of(put: EncodedPut) -> Fields:
    """The fields that it makes, by the names that they are signed with, and a pending write's."""
    changes = Changes()
    changes.put(put, is_as_sent=True, known_writes=())
    made = changes.fields(SCOPE, _SIGNER)
    parts = [part.encode() if isinstance(part, str) else part for part in made]
    named = dict(zip(parts[::2], parts[1::2], strict=True))
    head = named.pop(b"head")
    write = b"messages\0msgpack\0\0" + 500 * b"v"
    name = f"w:{put.checkpoint_id}:{'0' * 32}:0".encode()
    return [
        (b"head:" + put.checkpoint_id.encode(), head),
        *named.items(),
        (name, write + _SIGNER.of(SCOPE).sign(name, write)),
    ]


def compared(calls: dict[str, Callable[[], Any]], rounds: int, repeats: int) -> dict[str, list[float]]:
    """Return microseconds of processor time of each call, in each round."""
    dice, taken = random.Random(SEED), {name: list[float]() for name in calls}
    for _ in range(rounds):
        for name, call in dice.sample(list(calls.items()), len(calls)):
            started = process_time()
            for _ in range(repeats):
                call()
            taken[name].append(1e6 * (process_time() - started) / repeats)
    return taken


async def hit_and_put(
    saver: CachedPostgresSaver, redis: Redis, size: int, rounds: int
) -> dict[str, list[float]]:
    """Return microseconds of processor time of a hit, and of a put that is a burst, in each round."""
    chat, said = Chat(f"{size}"), messages(size, random.Random(SEED))
    await redis.flushdb()

    async def put() -> None:
        await saver.aput(*chat.next_put(said))
        await saver._bursts.end_all()  # what it says to Redis is signed then

    async def hit() -> None:
        assert await saver.aget_tuple(chat.config)

    calls: dict[str, Callable[[], Awaitable[None]]] = {"put": put, "hit": hit}
    taken: dict[str, list[float]] = {"put": [], "hit": []}
    for number in range(rounds + 1):
        for name, call in calls.items():
            started = process_time()
            for _ in range(10):
                await call()
            if number:  # the first warms up
                taken[name].append(1e6 * (process_time() - started) / 10)
    return taken


async def run(postgres_url: str, redis_url: str, rounds: int) -> list[dict[str, Any]]:
    """Measure and print."""
    rows: list[dict[str, Any]] = []

    def report(size: int, what: str, taken: list[float], of: float | None = None) -> float:
        low, median, high = statistics.quantiles(taken, n=4)
        share = "" if of is None else f"{100 * median / of:>10.1f} %"
        print(ROW.format(f"  {what}", f"{median:.1f} µs", share or f"{low:.1f}-{high:.1f}"), flush=True)
        rows.append({"messages": size, "what": what, "us": median, "of": of})
        return median

    telemetry = create_telemetry(registry=CollectorRegistry())
    async with (
        CachedPostgresSaver.from_conn_string(postgres_url, redis_url=redis_url, telemetry=telemetry) as saver,
        Redis.from_url(redis_url) as redis,
    ):
        await saver.setup()
        for size in SIZES:
            put = put_of(Chat(SCOPE.thread_id), size)
            fields = fields_of(put)
            print(f"{size} messages: {len(fields)} fields, {sum(len(value) for _, value in fields)} bytes")
            assert all(ours(fields))
            for name, taken in compared(
                {name: partial(way, fields) for name, way in WAYS.items()}, rounds, 2000 // size
            ).items():
                report(size, name, taken)
            own = compared({"verified": partial(ours, fields), "signed": partial(sign, fields)}, rounds, 20)
            calls = await hit_and_put(saver, redis, size, rounds)
            hit, put_ = (report(size, f"a {name}", calls[name]) for name in ("hit", "put"))
            report(size, "a hit: verifying, of the processor's time", own["verified"], hit)
            report(size, "a put: signing, of the processor's time", own["signed"], put_)
    return rows


def sign(fields: Fields) -> None:
    """As the COMMIT of a put does it: all but the pending write."""
    signer = _SIGNER.of(SCOPE).sign
    for name, signed in fields[:-1]:
        signer(name, signed[:-SIZE])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--smoke", action="store_true", help="only whether it runs: two rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE as well")
    arguments = parser.parse_args()
    rounds = 2 if arguments.smoke else arguments.rounds
    with EmbeddedPostgres() as postgres, EmbeddedRedis() as redis:
        rows = asyncio.run(run(postgres.create_database("signing"), redis.url, rounds))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
