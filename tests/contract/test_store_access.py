"""Showing oneself to etcd: TLS with client certificates, users with roles, tokens that expire or are forgotten."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from paceline_control_plane.store.etcd import EtcdSettings, EtcdStore, make_etcd_store
from paceline_control_plane.store.interface import Put, StoreUnavailableError
from paceline_services.errors import ConfigurationError
from paceline_services.ids import Revision
from support.certificates import make_tls_files
from support.etcd import EtcdCluster, enable_auth, running_etcd

WAIT_S = 20.0
USER, PASSWORD = "paceline", "a secret"


@asynccontextmanager
async def open_store(settings: EtcdSettings) -> AsyncIterator[EtcdStore]:
    store = make_etcd_store(settings)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture(scope="module")
def tls_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    folder = tmp_path_factory.mktemp("tls")
    with running_etcd(folder / "etcd", tls=make_tls_files(folder / "certificates")) as running:
        yield running


@pytest.fixture
async def auth_cluster(tmp_path: Path) -> AsyncIterator[EtcdCluster]:
    with running_etcd(tmp_path, flags=["--auth-token-ttl=2", "--bcrypt-cost=4"]) as running:
        await enable_auth(running.settings(), USER, PASSWORD, "/ours/")
        yield running


async def test_calls_and_watches_work_over_mutual_tls(tls_cluster: EtcdCluster) -> None:
    async with open_store(tls_cluster.settings()) as store, asyncio.timeout(WAIT_S):
        outcome = await store.transact([], [Put("/a", b"1")])
        await store.renew_lease(await store.grant_lease(10))
        async with aclosing(store.watch("/a", Revision(0))) as batches:
            assert (await anext(batches)).revision == outcome.revision


async def test_client_without_certificate_is_refused(tls_cluster: EtcdCluster) -> None:
    settings = replace(tls_cluster.settings(), cert_file=None, key_file=None)
    async with open_store(settings) as store:
        with pytest.raises(StoreUnavailableError):
            await store.get("/a")


async def test_server_of_another_authority_is_refused(tls_cluster: EtcdCluster, tmp_path: Path) -> None:
    stranger = make_tls_files(tmp_path)
    async with open_store(replace(tls_cluster.settings(), ca_file=stranger.ca_file)) as store:
        with pytest.raises(StoreUnavailableError, match=r"(?i)certificate"):
            await store.get("/a")


async def test_user_reaches_what_its_role_grants_and_nothing_else(auth_cluster: EtcdCluster) -> None:
    async with open_store(auth_cluster.settings(USER, PASSWORD)) as store, asyncio.timeout(WAIT_S):
        lease = await store.grant_lease(10)
        await store.transact([], [Put("/ours/a", b"", lease)])
        await store.renew_lease(lease)
        assert len((await store.list("/ours/")).entries) == 1
        with pytest.raises(ConfigurationError, match="does not let this user"):
            await store.get("/theirs/a")
        with pytest.raises(ConfigurationError, match="does not let this user"):
            await store.transact([], [Put("/theirs/a", b"")])
        async with aclosing(store.watch("/theirs/", Revision(0))) as batches:
            with pytest.raises(ConfigurationError, match="does not let this user"):
                await anext(batches)


@pytest.mark.parametrize(("username", "password"), [(USER, "wrong"), ("stranger", PASSWORD)])
async def test_wrong_login_is_told_at_once(auth_cluster: EtcdCluster, username: str, password: str) -> None:
    async with open_store(auth_cluster.settings(username, password)) as store:
        with pytest.raises(ConfigurationError, match="user name or password"):
            await store.get("/ours/a")


async def test_missing_login_is_told_at_once(auth_cluster: EtcdCluster) -> None:
    async with open_store(auth_cluster.settings()) as store:
        with pytest.raises(ConfigurationError, match="asks for a user"):
            await store.get("/ours/a")
        async with aclosing(store.watch("/ours/", Revision(0))) as batches:
            with pytest.raises(ConfigurationError, match="asks for a user"):
                await anext(batches)


async def test_login_is_repeated_when_the_token_has_expired(auth_cluster: EtcdCluster) -> None:
    async with open_store(auth_cluster.settings(USER, PASSWORD)) as store, asyncio.timeout(WAIT_S):
        # Tokens live for 2 s without use; a lease of 5 s tells when that is surely over.
        outcome = await store.transact([], [Put("/ours/clock", b"", await store.grant_lease(5))])
        async with aclosing(store.watch("/ours/", outcome.revision)) as batches:
            (event,) = (await anext(batches)).events
            assert event.entry is None
            retries = num_retries("Range")
            assert await store.get("/ours/clock") is None
            assert num_retries("Range") == retries + 1


async def test_login_is_repeated_for_calls_and_watches_after_a_restart(auth_cluster: EtcdCluster) -> None:
    async with open_store(auth_cluster.settings(USER, PASSWORD)) as store, asyncio.timeout(WAIT_S):
        first = await store.transact([], [Put("/ours/a", b"1")])
        async with aclosing(store.watch("/ours/", Revision(first.revision - 1))) as batches:
            assert (await anext(batches)).revision == first.revision
            auth_cluster.kill(0)
            await asyncio.to_thread(auth_cluster.restart, 0)
            watching = asyncio.ensure_future(anext(batches))
            second = await store.transact([], [Put("/ours/a", b"2")])
            assert (await watching).revision == second.revision


async def test_login_is_not_needed_where_etcd_has_no_users(tls_cluster: EtcdCluster) -> None:
    settings = replace(tls_cluster.settings(), username=USER, password=PASSWORD)
    async with open_store(settings) as store:
        assert await store.get("/nothing") is None


def num_retries(method: str) -> float:
    return REGISTRY.get_sample_value("paceline_control_plane_store_retries_total", {"method": method}) or 0.0
