"""The webhook's certificate: made, renewed and rotated without anybody meeting one that they do not trust."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from admission import certificate as certificates
from admission.certificate import BACKDATED, CertificateError, Chain, Plan, Signed, chain_of, renewed
from admission.keeper import ClusterError, FileKeeper, Keeper
from admission.tls import ServingContext

pytestmark = pytest.mark.anyio

NAME = "vcuda-admission.vcuda-system.svc"
PLAN = Plan(
    names=(NAME, "127.0.0.1"),
    serving=dt.timedelta(days=30),
    authority=dt.timedelta(days=365),
    overlap=dt.timedelta(hours=1),
)
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def trusts(bundle: bytes, served: Signed, at: dt.datetime) -> bool:
    """Whether a client that trusts this bundle accepts the certificate at this instant."""
    authorities = x509.load_pem_x509_certificates(bundle)
    verifier = PolicyBuilder().store(Store(authorities)).time(at).build_server_verifier(x509.DNSName(NAME))
    try:
        verifier.verify(served.certificate, [])
    except VerificationError:
        return False
    return True


class FakeCluster:
    """A Secret and a bundle, with the API server's optimistic writes."""

    def __init__(self) -> None:
        self.data: dict[str, str] | None = None
        self.version = 0
        self.bundle = b""
        self.writes = 0
        self.fails: set[str] = set()
        self.before_write: Any = None

    async def read(self) -> tuple[dict[str, str], str] | None:
        self._fail("read")
        return None if self.data is None else (dict(self.data), str(self.version))

    async def write(self, data: dict[str, str], *, version: str | None) -> bool:
        self._fail("write")
        if self.before_write is not None:
            before, self.before_write = self.before_write, None
            await before()
        if version != (None if self.data is None else str(self.version)):
            return False
        self.data, self.version, self.writes = dict(data), self.version + 1, self.writes + 1
        return True

    async def publish(self, bundle: bytes) -> None:
        self._fail("publish")
        self.bundle = bundle

    def _fail(self, what: str) -> None:
        if what in self.fails:
            raise ClusterError(f"Kubernetes: cannot {what}")


class Replica:
    """A keeper with a clock that a test turns."""

    def __init__(self, cluster: FakeCluster, now: dt.datetime = NOW, plan: Plan = PLAN) -> None:
        self.now = now
        self.serving = ServingContext()
        self.keeper = Keeper(cluster, plan=plan, serving=self.serving, clock=lambda: self.now)


def test_first_chain_is_trusted_by_its_own_bundle() -> None:
    chain = renewed(None, PLAN, NOW)
    assert len(chain.authorities) == 1
    assert trusts(chain.bundle, chain.serving, NOW)
    assert trusts(chain.bundle, chain.serving, NOW - BACKDATED)
    assert trusts(chain.bundle, chain.serving, NOW + PLAN.serving)
    assert not trusts(chain.bundle, chain.serving, NOW + PLAN.serving + dt.timedelta(seconds=1))
    assert certificates.names_of(chain.serving.certificate) == {NAME, "127.0.0.1"}


def test_chain_comes_back_from_its_secret() -> None:
    chain = renewed(renewed(None, PLAN, NOW), PLAN, NOW + 300 * DAY)
    assert len(chain.authorities) == 2
    again = chain_of(chain.secret())
    assert again.secret() == chain.secret()
    assert renewed(again, PLAN, NOW + 300 * DAY) is again


def test_nothing_is_renewed_before_its_time() -> None:
    chain = renewed(None, PLAN, NOW)
    for elapsed in (dt.timedelta(0), 2 * HOUR, 20 * DAY):
        assert renewed(chain, PLAN, NOW + elapsed) is chain


def test_serving_certificate_is_renewed_when_a_third_of_its_life_is_left() -> None:
    chain = renewed(None, PLAN, NOW)
    later = NOW + 20 * DAY + HOUR
    after = renewed(chain, PLAN, later)
    assert after.authorities == chain.authorities
    assert after.serving.ends == later + PLAN.serving
    assert after.serving.key_pem != chain.serving.key_pem
    assert trusts(chain.bundle, after.serving, later)


def test_serving_certificate_is_renewed_when_the_names_change() -> None:
    chain = renewed(None, PLAN, NOW)
    plan = Plan(names=("other.svc",), serving=PLAN.serving, authority=PLAN.authority, overlap=PLAN.overlap)
    assert certificates.names_of(renewed(chain, plan, NOW).serving.certificate) == {"other.svc"}


def test_new_authority_is_known_for_the_overlap_before_it_signs_and_the_old_one_after() -> None:
    first = renewed(None, PLAN, NOW)
    at = NOW + 250 * DAY  # less than a third of the authority's life is left
    first = Chain(
        authorities=first.authorities, serving=certificates.new_serving(first.authorities[0], PLAN, at)
    )
    both = renewed(first, PLAN, at)
    assert both.authorities[0] is first.authorities[0]
    assert len(both.authorities) == 2
    assert both.serving is first.serving
    assert renewed(both, PLAN, at + HOUR - dt.timedelta(seconds=1)) is both
    signed = renewed(both, PLAN, at + HOUR)
    assert signed.authorities == both.authorities
    assert signed.issuer is both.authorities[1]
    assert trusts(both.bundle, signed.serving, at + HOUR)
    assert renewed(signed, PLAN, at + 2 * HOUR - dt.timedelta(seconds=1)) is signed
    alone = renewed(signed, PLAN, at + 2 * HOUR)
    assert alone.authorities == signed.authorities[1:]
    assert alone.serving is signed.serving
    assert renewed(alone, PLAN, at + 2 * HOUR) is alone


def test_no_client_that_is_behind_by_less_than_the_overlap_ever_refuses_us() -> None:
    """A month of short lives, looked at every half hour; clients know this look or an earlier."""
    plan = Plan(names=PLAN.names, serving=12 * HOUR, authority=4 * DAY, overlap=HOUR)
    chain = renewed(None, plan, NOW)
    changes = {"authorities": 0, "serving": 0}
    behind: list[Chain] = [chain, chain]
    for step in range(1, 30 * 48):
        now = NOW + step * HOUR / 2
        after = renewed(chain, plan, now)
        changes["authorities"] += after.authorities[0] is not chain.authorities[0]
        changes["serving"] += after.serving is not chain.serving
        chain = after
        for old in behind:
            assert trusts(old.bundle, chain.serving, now)
            assert trusts(chain.bundle, old.serving, now)
        behind = [behind[1], chain]
    assert changes == {"authorities": 11, "serving": 89}


@pytest.mark.parametrize("elapsed", [31 * DAY, 366 * DAY])
def test_after_a_long_sleep_all_is_valid_again(elapsed: dt.timedelta) -> None:
    now = NOW + elapsed
    chain = renewed(renewed(None, PLAN, NOW), PLAN, now)
    assert trusts(chain.bundle, chain.serving, now)


def test_serving_certificate_never_outlives_its_authority() -> None:
    chain = renewed(None, PLAN, NOW)
    late = certificates.new_serving(chain.authorities[0], PLAN, NOW + 360 * DAY)
    assert late.ends == chain.authorities[0].ends


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ()}, "no name to be reached under"),
        ({"overlap": 10 * DAY}, "an overlap of 10 days, 0:00:00: must be above 0 and below 1/3"),
        ({"overlap": dt.timedelta(0)}, "an overlap of 0:00:00: must be above 0"),
        ({"serving": 122 * DAY}, "an authority's life of 365 days, 0:00:00: must be at least 3 times"),
    ],
    ids=str,
)
def test_plan_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    fields = {
        "names": PLAN.names,
        "serving": PLAN.serving,
        "authority": PLAN.authority,
        "overlap": PLAN.overlap,
    }
    with pytest.raises(CertificateError, match=message):
        Plan(**{**fields, **change})


def broken_secrets() -> dict[str, dict[str, str]]:
    whole, other = renewed(None, PLAN, NOW).secret(), renewed(None, PLAN, NOW).secret()
    return {
        "empty": {},
        "no base64": {**whole, "tls.crt": "%"},
        "no PEM": {**whole, "tls.crt": base64.b64encode(b"x").decode()},
        "a part": {name: value for name, value in whole.items() if name != "ca.key"},
        "the key of another": {**whole, "tls.key": other["tls.key"]},
        "the authority's key of another": {**whole, "ca.key": other["ca.key"]},
        "fewer keys than authorities": {**whole, "ca.key": ""},
    }


@pytest.mark.parametrize("case", list(broken_secrets()))
def test_secret_that_is_no_chain_is_told(case: str) -> None:
    with pytest.raises(CertificateError, match="the Secret holds no chain of ours"):
        chain_of(broken_secrets()[case])


@pytest.mark.parametrize("case", list(broken_secrets()))
async def test_secret_that_is_no_chain_is_replaced(case: str) -> None:
    cluster = FakeCluster()
    cluster.data = broken_secrets()[case]
    replica = Replica(cluster)
    chain = await replica.keeper.look()
    assert cluster.data == chain.secret()
    assert cluster.bundle == chain.bundle
    assert replica.serving.loads == 1


async def test_replicas_that_start_at_once_agree() -> None:
    cluster = FakeCluster()
    loser, winner = Replica(cluster), Replica(cluster)
    cluster.before_write = winner.keeper.look
    chain = await loser.keeper.look()
    assert cluster.writes == 1
    assert cluster.data == chain.secret()
    assert loser.serving.expires_s == winner.serving.expires_s == chain.serving.ends.timestamp()


async def test_replica_that_always_loses_waits_for_the_next_look() -> None:
    cluster = FakeCluster()

    async def again() -> None:
        cluster.version += 1
        cluster.data = {}
        cluster.before_write = again

    cluster.before_write = again
    with pytest.raises(ClusterError, match="other replicas were first 5 times"):
        await Replica(cluster).keeper.look()


async def test_replica_picks_up_what_another_renewed() -> None:
    cluster = FakeCluster()
    one, other = Replica(cluster), Replica(cluster)
    await one.keeper.look()
    await other.keeper.look()
    one.now += 21 * DAY
    renewed_chain = await one.keeper.look()
    assert cluster.writes == 2
    await other.keeper.look()
    assert cluster.writes == 2
    assert (one.serving.loads, other.serving.loads) == (2, 2)
    assert other.serving.expires_s == renewed_chain.serving.ends.timestamp()


async def test_nothing_is_written_or_loaded_while_nothing_is_due() -> None:
    cluster = FakeCluster()
    replica = Replica(cluster)
    for _ in range(5):
        await replica.keeper.look()
    assert (cluster.writes, replica.serving.loads) == (1, 1)


async def test_nothing_is_renewed_while_it_cannot_be_published() -> None:
    cluster = FakeCluster()
    replica, starting = Replica(cluster), Replica(cluster)
    await replica.keeper.look()
    cluster.fails = {"publish"}
    for each in (replica, starting):
        each.now += 21 * DAY
        with pytest.raises(ClusterError):
            await each.keeper.look()
    assert cluster.writes == 1
    assert starting.serving.loads == 1, "one that starts serves with what there is"
    cluster.fails = set()
    await replica.keeper.look()
    assert cluster.writes == 2


async def test_bundle_that_somebody_removed_is_published_again() -> None:
    cluster = FakeCluster()
    replica = Replica(cluster)
    chain = await replica.keeper.look()
    cluster.bundle = b""
    await replica.keeper.look()
    assert cluster.bundle == chain.bundle


@pytest.mark.parametrize("fault", ["read", "write"])
async def test_certificate_stays_while_the_api_server_is_away(fault: str) -> None:
    cluster = FakeCluster()
    replica = Replica(cluster)
    await replica.keeper.look()
    expires_s = replica.serving.expires_s
    cluster.fails = {fault}
    replica.now += 21 * DAY
    with pytest.raises(ClusterError):
        await replica.keeper.look()
    assert (replica.serving.loads, replica.serving.expires_s) == (1, expires_s)


async def test_keeper_goes_on_when_the_api_server_was_away() -> None:
    cluster = FakeCluster()
    cluster.fails = {"read"}
    failures = 0
    plan = Plan(names=PLAN.names, serving=DAY, authority=4 * DAY, overlap=dt.timedelta(milliseconds=40))
    replica = Replica(cluster, plan=plan)
    read = cluster.read

    async def twice() -> tuple[dict[str, str], str] | None:
        nonlocal failures
        failures += 1
        if failures > 2:
            cluster.fails = set()
        return await read()

    cluster.read = twice
    keeping = asyncio.create_task(replica.keeper.keep())
    while not replica.serving.loads:
        await asyncio.sleep(0.01)
    keeping.cancel()
    assert failures >= 3
    assert cluster.writes == 1


def pem() -> tuple[bytes, bytes]:
    served = renewed(None, PLAN, NOW).serving
    return served.certificate_pem, served.key_pem


def test_context_refuses_what_is_no_pair_and_keeps_what_it_has() -> None:
    context = ServingContext()
    certificate, key = pem()
    assert context.load(certificate, key)
    assert not context.load(certificate, key)
    for broken_certificate, broken_key in [
        (certificate, pem()[1]),
        (b"x", key),
        (certificate, b"x"),
        (b"", b""),
    ]:
        with pytest.raises(CertificateError):
            context.load(broken_certificate, broken_key)
    assert context.loads == 1


def test_key_leaves_no_file_or_descriptor_behind() -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    ServingContext().load(*pem())
    assert len(sorted(Path("/proc/self/fd").iterdir())) == len(before)


def test_files_are_loaded_again_when_they_change(tmp_path: Path) -> None:
    context = ServingContext()
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    keeper = FileKeeper(certificate=certificate, key=key, serving=context, interval_s=1)
    with pytest.raises(CertificateError, match=r"tls.crt: No such file or directory"):
        keeper.look()
    for count in (1, 2):
        pair = pem()
        certificate.write_bytes(pair[0])
        if count == 2:
            with pytest.raises(CertificateError, match="the key is not that of the certificate"):
                keeper.look()
        key.write_bytes(pair[1])
        keeper.look()
        keeper.look()
        assert context.loads == count


def test_authority_cannot_serve_and_serving_certificate_cannot_sign() -> None:
    chain = renewed(None, PLAN, NOW)
    usages = [
        each.certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        for each in (chain.authorities[0], chain.serving)
    ]
    assert [(usage.key_cert_sign, usage.digital_signature) for usage in usages] == [
        (True, False),
        (False, True),
    ]
    assert isinstance(chain.serving.key, ec.EllipticCurvePrivateKey)
