"""The proxy does to connections what it says: otherwise the chaos tests would test fair weather."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from chaos.proxy import Mode, Proxy

MESSAGE = b"0123456789"


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1000):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    the_proxy = Proxy(("127.0.0.1", server.sockets[0].getsockname()[1]))
    await the_proxy.open()
    yield the_proxy
    await the_proxy.close()
    server.close()


class Client:
    def __init__(self, proxy: Proxy) -> None:
        self.port = proxy.port

    async def __aenter__(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    async def ask(self, seconds: float = 5) -> bytes:
        async with asyncio.timeout(seconds):
            self.writer.write(MESSAGE)
            await self.writer.drain()
            return await self.reader.readexactly(len(MESSAGE))


async def test_it_passes_everything_on(proxy: Proxy) -> None:
    async with Client(proxy) as client:
        assert await client.ask() == await client.ask() == MESSAGE


async def test_delayed_data_arrives(proxy: Proxy) -> None:
    async with Client(proxy) as client:
        await proxy.switch("delay")
        assert await client.ask() == MESSAGE


@pytest.mark.parametrize("mode", ["reset", "refuse"])
async def test_connections_are_lost_and_come_back(proxy: Proxy, mode: Mode) -> None:
    async with Client(proxy) as client:
        assert await client.ask() == MESSAGE
        await proxy.switch(mode)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await client.ask()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            async with Client(proxy) as another:
                await another.ask()
    await proxy.switch("pass")
    async with Client(proxy) as client:
        assert await client.ask() == MESSAGE


async def test_a_message_is_cut_in_the_middle(proxy: Proxy) -> None:
    async with Client(proxy) as client:
        await proxy.switch("truncate")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await client.ask()


async def test_what_falls_into_a_black_hole_is_neither_answered_nor_answered_later(proxy: Proxy) -> None:
    async with Client(proxy) as before:
        await proxy.switch("blackhole")
        async with Client(proxy) as during:
            for client in (before, during):
                with pytest.raises(TimeoutError):
                    await client.ask(seconds=0.1)
            await proxy.switch("pass")
            for client in (before, during):
                with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                    await client.ask()
