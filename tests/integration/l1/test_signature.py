"""Nothing is believed that somebody without the key has put into Redis, changed or moved there."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn

import pytest
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from conformance_suite import check_conformance
from glasspoint import CachedPostgresSaver, Settings, create_telemetry, get_checkpointer
from glasspoint.errors import ConfigurationError
from glasspoint.model.scope import Scope, scope_of
from glasspoint.redis.signature import SIZE, Signer
from states import counts, exact, numbered_id, open_saver, open_upstream
from steps import Thread, settled, until

KEY = b"sixteen bytes..!"
OTHER_KEY = b"another sixteen!"
HEAD, WRITE = b"head", f"w:{numbered_id(2)}:task:0".encode()
VALUE, VOID, INLINE = b"c:messages", b"c:branch:to:agent", b"c:turn"

Fields = dict[bytes, bytes]


class Signed:
    """A saver, threads in its cache that are alike but for their names, and what it counted."""

    def __init__(self, saver: CachedPostgresSaver, redis: Redis, registry: CollectorRegistry) -> None:
        self.saver = saver
        self.redis = redis
        self._registry = registry
        self.threads = [Thread("t"), Thread("t", "ns"), Thread("u"), Thread("tn", "s")]
        self.parents: dict[bytes, Fields] = {}

    async def write(self) -> None:
        for thread in self.threads:
            await thread.put(self.saver, other=["other"])
            await settled(self.saver)
            self.parents[self.key(thread)] = await self.entry(thread)
            await thread.put(self.saver, other=["other"])
            await thread.put_writes(self.saver, "pending")
            await thread.put_writes(self.saver, "more", "task2")
        await settled(self.saver)

    def key(self, thread: Thread) -> bytes:
        epoch = self.saver._l1.epoch
        assert epoch is not None
        return epoch.key(scope_of(thread.config))

    async def entry(self, thread: Thread) -> Fields:
        found: Any = await self.redis.hgetall(self.key(thread))
        return dict(found)

    async def plant(self, thread: Thread, fields: Fields) -> None:
        async with self.redis.pipeline() as pipe:
            await pipe.delete(self.key(thread)).hset(self.key(thread), mapping=fields).execute()  # type: ignore[attr-defined]

    async def read(self, thread: Thread) -> tuple[Any, str]:
        """What the saver answers, in a strict form, and what L1 answered to it."""
        before = self.reads
        found = exact(await self.saver.aget_tuple(thread.config))
        (result,) = (self.reads - before).elements()
        return found, result

    @property
    def reads(self) -> Counter[str]:
        return counts(self._registry, "glasspoint_l1_reads_total", "result")

    @property
    def dropped(self) -> Counter[str]:
        return counts(self._registry, "glasspoint_l1_invalidations_total", "source")


@pytest.fixture
async def signed(database: str, redis_url: str) -> AsyncIterator[Signed]:
    registry = CollectorRegistry()
    telemetry = create_telemetry(registry=registry)
    async with (
        open_saver(database, redis_url, telemetry=telemetry, l1_signing_key=KEY) as saver,
        Redis.from_url(redis_url) as redis,
    ):
        each = Signed(saver, redis, registry)
        await each.write()
        yield each


async def test_what_this_key_signed_is_a_hit(signed: Signed, database: str) -> None:
    async with open_upstream(database) as upstream:
        for thread in signed.threads:
            expected = exact(await upstream.aget_tuple(thread.config))
            assert await signed.read(thread) == (expected, "hit")  # as its writes have left it
            await signed.redis.delete(signed.key(thread))
            assert await signed.read(thread) == (expected, "miss")
            assert await signed.read(thread) == (expected, "hit")  # as a warm-up has left it
    assert signed.dropped == {}


def flipped(raw: bytes, at: int) -> bytes:
    at %= len(raw)
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def last_of_text(raw: bytes) -> int:
    return len(raw) - SIZE - 1


# What is done to an entry: its own fields, and those of the entry of another scope, or of its parent.
CHANGES: dict[str, Callable[[Fields, Fields, Fields], Any]] = {
    "a bit of the head's JSON": lambda own, *_: own.update({HEAD: flipped(own[HEAD], 40)}),
    "a bit of its signature": lambda own, *_: own.update({HEAD: flipped(own[HEAD], -1)}),
    "metadata": lambda own, *_: own.update({HEAD: own[HEAD].replace(b'"step": 2', b'"step": 3')}),
    "the head of another scope": lambda own, other, _: own.update({HEAD: other[HEAD]}),
    "the head of the parent": lambda own, _, parent: own.update({HEAD: parent[HEAD]}),
    "an unsigned head": lambda own, *_: own.update({HEAD: own[HEAD][:-SIZE]}),
    "a bit of a value": lambda own, *_: own.update({VALUE: flipped(own[VALUE], last_of_text(own[VALUE]))}),
    "a bit of a value's signature": lambda own, *_: own.update({VALUE: flipped(own[VALUE], -1)}),
    "the value of another channel": lambda own, *_: own.update({VALUE: own[b"c:other"]}),
    "the value of another scope": lambda own, other, _: own.update({VALUE: other[VALUE]}),
    "an older value under the new version": lambda own, _, parent: own.update(
        {VALUE: own[VALUE].split(b"\0")[0] + parent[VALUE][parent[VALUE].index(b"\0") :]}
    ),
    "an unsigned value": lambda own, *_: own.update({VALUE: own[VALUE][:-SIZE]}),
    "a value where there was none": lambda own, *_: own.update({VOID: own[VALUE]}),
    "a value made up where there was none": lambda own, *_: own.update({VOID: own[VOID] + b"x\0y"}),
    "no value where there was one": lambda own, *_: own.update({VALUE: own[VOID]}),
    "no value, unsigned": lambda own, *_: own.update({VALUE: own[VALUE].split(b"\0")[0] + b"\0"}),
    "a version alone": lambda own, *_: own.update({VALUE: own[VALUE].split(b"\0")[0]}),
    "random bytes for a value": lambda own, *_: own.update({VALUE: bytes(range(64))}),
    "nothing for a value": lambda own, *_: own.update({VALUE: b""}),
    "the value of the parent": lambda own, _, parent: own.update({VALUE: parent[VALUE]}),
    "a value for what stands in the head": lambda own, *_: own.update({INLINE: own[VALUE]}),
    "a bit of a pending write": lambda own, *_: own.update(
        {WRITE: flipped(own[WRITE], last_of_text(own[WRITE]))}
    ),
    "the channel of a pending write": lambda own, *_: own.update(
        {WRITE: own[WRITE].replace(b"messages", b"turn")}
    ),
    "a write of another task": lambda own, *_: own.update({WRITE: own[WRITE.replace(b"task", b"task2")]}),
    "the same write as another's": lambda own, *_: own.update({WRITE.replace(b"task", b"task3"): own[WRITE]}),
    "the same write as another number": lambda own, *_: own.update({WRITE[:-1] + b"1": own[WRITE]}),
    "the same write, spelt otherwise": lambda own, *_: own.update({WRITE[:-1] + b"+0": own[WRITE]}),
    "a write of another scope": lambda own, other, _: own.update({WRITE: other[WRITE]}),
    "an unsigned write": lambda own, *_: own.update({WRITE: own[WRITE][:-SIZE]}),
    "a write under a name that is cut elsewhere": lambda own, *_: own.update(
        {WRITE + b"\0messages": own[WRITE].removeprefix(b"messages\0")}
    ),
    "a write that nobody made": lambda own, *_: own.update({WRITE[:-1] + b"7": b"turn\0null\0\0"}),
    "the id of the parent": lambda own, *_: own.update({b"id": numbered_id(1).encode()}),
    "an id that is none": lambda own, *_: own.update({b"id": b"\xff"}),
    "the whole entry of another scope": lambda own, other, _: own.update(other),
    "a channel's field that is gone": lambda own, *_: own.pop(VALUE),
    "the head that is gone": lambda own, *_: own.pop(HEAD),
}
# These need no signature to be refused.
INCOMPLETE = {"a channel's field that is gone", "the head that is gone", "the value of the parent"}


@pytest.mark.parametrize(
    ("own", "other"),
    [(0, 1), (0, 2), (1, 3)],
    ids=["of another namespace", "of another thread", "that joins alike"],
)
async def test_whatever_is_changed_postgres_answers_and_the_entry_is_replaced(
    own: int, other: int, signed: Signed
) -> None:
    thread = signed.threads[own]
    right = await signed.entry(thread)
    foreign, parent = await signed.entry(signed.threads[other]), signed.parents[signed.key(thread)]
    assert {HEAD, WRITE, VALUE, VOID} <= right.keys() == foreign.keys()
    expected, _ = await signed.read(thread)
    for what, change in CHANGES.items():
        fields = dict(right)
        change(fields, foreign, parent)
        assert fields != right, what
        await signed.plant(thread, fields)
        tampered = signed.dropped["tampered"]
        assert await signed.read(thread) == (expected, "incomplete"), what
        assert signed.dropped["tampered"] - tampered == (what not in INCOMPLETE), what
        assert await signed.read(thread) == (expected, "hit"), what


@pytest.mark.parametrize("stored_by", ["put", "warm-up"])
async def test_without_its_field_a_snapshot_of_a_delta_channel_is_not_what_marks_its_place(
    stored_by: str, signed: Signed, database: str
) -> None:
    """The head has `True` where the snapshot belongs; that is no value."""
    thread, name = Thread("delta"), b"c:log"
    await thread.put(signed.saver, log=_DeltaSnapshot(["old"]), flag=True)
    await settled(signed.saver)
    older = await signed.entry(thread)
    await thread.put(signed.saver, log=_DeltaSnapshot(["new"]), flag=True)
    await settled(signed.saver)
    if stored_by == "warm-up":
        await signed.redis.delete(signed.key(thread))
        await signed.read(thread)
    right = await signed.entry(thread)
    async with open_upstream(database) as upstream:
        expected = exact(await upstream.aget_tuple(thread.config))
    assert await signed.read(thread) == (expected, "hit")
    for fields in (
        {each: value for each, value in right.items() if each != name},
        right | {name: older[name]},
    ):
        await signed.plant(thread, fields)
        assert await signed.read(thread) == (expected, "incomplete")
        assert await signed.read(thread) == (expected, "hit")


async def test_what_a_signature_does_not_show(signed: Signed) -> None:
    """As the docs say: that a pending write is gone, and that the entry is as it was before."""
    thread = signed.threads[0]
    right = await signed.entry(thread)
    await signed.plant(thread, {name: value for name, value in right.items() if name != WRITE})
    found = await signed.saver.aget_tuple(thread.config)
    assert found is not None
    assert [task for task, *_ in found.pending_writes or ()] == ["task2"]
    await signed.plant(thread, signed.parents[signed.key(thread)])
    found = await signed.saver.aget_tuple(thread.config)
    assert found is not None
    assert found.checkpoint["id"] == numbered_id(1)
    assert signed.reads.keys() == {"hit"}


@pytest.mark.parametrize("keys", [(None, KEY), (KEY, None), (KEY, OTHER_KEY)], ids=["own", "none", "another"])
async def test_while_the_key_changes_both_sides_are_right_and_keep_away_from_each_other(
    keys: tuple[bytes | None, bytes | None], database: str, redis_url: str
) -> None:
    """In a rolling deployment; they share intents, so that neither reads what the other is replacing."""
    registry = CollectorRegistry()
    telemetry = create_telemetry(registry=registry)
    async with (
        open_saver(database, redis_url, l1_signing_key=keys[0], telemetry=telemetry) as one,
        open_saver(database, redis_url, l1_signing_key=keys[1], telemetry=telemetry) as two,
        open_upstream(database) as upstream,
    ):
        thread = Thread("t")
        for writer, reader in ((one, two), (two, one)) * 2:
            put = thread.next_put(writer)
            # A channel that only the first put brought: its field stays as the other side signed it.
            put[1]["channel_values"]["kept"] = ["kept"]
            put[1]["channel_versions"]["kept"] = "1.5"
            if thread.number == 1:
                put[3]["kept"] = "1.5"
            thread.newest = await writer.aput(*put)
            await settled(writer)
            for saver in (reader, writer, reader):
                await thread.put_writes(saver, "x", f"task {saver is one}")
                await settled(saver)
                for each in (saver, reader, writer):
                    expected = exact(await upstream.aget_tuple(thread.config))
                    assert exact(await each.aget_tuple(thread.config)) == expected
        intent = await one._l1.begin(Scope("t", ""))
        assert (await two._l1.read(Scope("t", ""), None)).result == "busy"
        await one._l1.abort(intent)
    assert counts(registry, "glasspoint_l1_reads_total", "result").keys() >= {"hit", "incomplete"}


async def test_a_flood_of_forgeries_is_no_flood_of_lines(
    signed: Signed, caplog: pytest.LogCaptureFixture
) -> None:
    thread = signed.threads[1]

    async def forge() -> None:
        await signed.redis.hset(signed.key(thread), HEAD, b'{"secret": "hush"}')
        await signed.read(thread)

    for _ in range(5):
        await forge()
    assert len(caplog.records) == 1
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    assert "thread 't', namespace 'ns': the signature of the head is wrong" in line.getMessage()
    assert "(1 refused" in line.getMessage()
    signed.saver._l1._report._tampered_lines.seconds = 0.0
    await forge()
    assert "(5 refused" in caplog.records[1].getMessage()
    assert signed.dropped == {"tampered": 6}
    assert "hush" not in caplog.text


@pytest.mark.parametrize("capability", ["get_tuple", "put", "put_writes"])
@pytest.mark.usefixtures("checkpoint_format")
async def test_conforms_with_signatures(capability: str, database: str, redis_url: str) -> None:
    registry = CollectorRegistry()
    telemetry = create_telemetry(registry=registry)
    await check_conformance(
        capability,
        "signed",
        lambda: open_saver(database, redis_url, telemetry=telemetry, l1_signing_key=KEY),
    )
    reads = counts(registry, "glasspoint_l1_reads_total", "result")
    assert reads["hit"]
    assert reads.keys() <= {"hit", "miss", "absent", "historical", "bypassed"}


# ------------------------------------------------------------------ the key

BAD_KEYS = {
    "": "at least 16 bytes",
    "fifteen bytes..": "at least 16 bytes",
    b"hush": "at least 16 bytes",
    16: "of the type int: it must be at least 16 bytes",
}


@pytest.mark.parametrize("key", BAD_KEYS)
async def test_a_key_that_is_none_is_refused_and_not_repeated(
    key: Any, database: str, redis_url: str
) -> None:
    with pytest.raises(ConfigurationError, match=BAD_KEYS[key]) as caught:
        async with open_saver(database, redis_url, l1_signing_key=key):
            pass
    assert "fifteen" not in str(caught.value)
    assert "hush" not in str(caught.value)


SCOPE = Scope("t", "")
SPLITS = [(b"c:xyz"[:at], b"c:xyz"[at:]) for at in range(6)]


def sign(signer: Signer, name: bytes = b"c:x", value: bytes = b"y", scope: Scope = SCOPE) -> bytes:
    return signer.of(scope).sign(name, value)


def _refuse(error: type[Exception]) -> Callable[..., NoReturn]:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise error

    return refuse


@pytest.fixture(params=["BLAKE2b", "refused", "without a key", "missing"])
def algorithm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With `hashlib.blake2b` as it is, and as Pythons in FIPS mode have it."""
    match request.param:
        case "refused":
            monkeypatch.setattr(hashlib, "blake2b", _refuse(ValueError))
        case "without a key":
            monkeypatch.setattr(hashlib, "blake2b", _refuse(TypeError))
        case "missing":
            monkeypatch.delattr(hashlib, "blake2b")
    return "BLAKE2b" if request.param == "BLAKE2b" else "HMAC-SHA-256"


def test_a_signature_is_what_it_says(algorithm: str) -> None:
    def framed(part: bytes) -> bytes:
        return len(part).to_bytes(8) + part

    key = hmac.digest(KEY, framed(b"glasspoint.l1.entry") + b"generation", "sha256")
    for length in (0, 1, 127, 128, 100_000):
        message = framed(b"thread") + framed(b"ns") + framed(b"c:x") + b"v" * length
        right = (
            hashlib.blake2b(message, key=key, digest_size=16).digest()
            if algorithm == "BLAKE2b"
            else hmac.digest(key, message, "sha256")[:16]
        )
        signer = Signer(KEY, "generation")
        assert sign(signer, b"c:x", b"v" * length, Scope("thread", "ns")) == right
        verified = signer.of(Scope("thread", "ns")).verified
        assert verified(b"c:x", b"v" * length + right) == b"v" * length
        assert verified(b"c:x", b"v" * length + right[:-1]) is None
        assert verified(b"c:y", b"v" * length + right) is None


@pytest.mark.usefixtures("algorithm")
def test_another_secret_or_context_signs_otherwise() -> None:
    signers = [Signer(KEY), Signer(OTHER_KEY), Signer(KEY, "a"), Signer(KEY, "b"), Signer(KEY + b"a")]
    assert len({sign(each) for each in signers}) == len(signers)
    assert sign(Signer(KEY, "a")) == sign(Signer(KEY, "a"))


@pytest.mark.usefixtures("algorithm")
def test_no_two_fields_are_signed_alike() -> None:
    signer = Signer(KEY)
    scopes = [Scope("tn", "s"), Scope("t", "ns"), Scope("tns", ""), Scope("", "tns")]
    signed = {sign(signer, name, value, scope) for scope in scopes for name, value in SPLITS}
    assert len(signed) == len(scopes) * len(SPLITS)


def test_text_and_its_bytes_are_one_key() -> None:
    assert sign(Signer(KEY)) == sign(Signer(KEY.decode()))


async def _is_hit(saver: CachedPostgresSaver) -> bool:
    return (await saver._l1.read(Scope("t", ""), None)).result == "hit"


async def test_the_key_from_the_environment_signs_and_shows_nowhere(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("POSTGRES_URL", database)
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("CHECKPOINT_L1_SIGNING_KEY", KEY.decode())
    settings = Settings.from_environment()
    telemetry = create_telemetry(registry=CollectorRegistry())
    thread = Thread("t")
    async with (
        get_checkpointer(telemetry=telemetry) as chain,
        open_saver(database, redis_url, l1_signing_key=KEY) as same,
        Redis.from_url(redis_url) as redis,
    ):
        await thread.put(chain)
        await until(lambda: _is_hit(same))
        (key,) = await redis.keys("*{t}*")
        await redis.hset(key, HEAD, b"x")
        assert await chain.aget_tuple(thread.config)
        l1 = same._l1
        parts = same, l1, l1.contact, l1._steps, l1._epochs, l1._report
        texts = [repr(same), repr(l1._signer), *(str(vars(part)) for part in parts), caplog.text]
    assert KEY.decode() not in "".join([*texts, str(settings), repr(settings), settings.model_dump_json()])


def test_a_key_in_the_environment_that_is_too_short_is_an_error_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHECKPOINT_L1_SIGNING_KEY", "hush-hush")
    with pytest.raises(ConfigurationError, match="CHECKPOINT_L1_SIGNING_KEY") as caught:
        Settings.from_environment()
    assert "hush" not in str(caught.value)
