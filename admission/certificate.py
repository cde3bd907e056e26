"""The webhook's own authority and serving certificate: made, renewed, rotated. Pure, but for random keys.

A chain holds all authorities that the API servers should trust, oldest first, and the certificate that the
webhook serves with. `renewed` says what a chain should become now: a new authority is trusted for `overlap`
before anything is signed with it, and an old one for `overlap` after its last certificate was replaced. So
neither an API server nor a replica that is behind by less meets a certificate that it does not know.
"""

import base64
import datetime as dt
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vcuda.errors import VcudaError

BACKDATED = dt.timedelta(minutes=5)
"""How much earlier than now certificates begin, for clocks that are behind ours."""
_RENEWED_AT = 3
"""When less than 1/3 of a certificate's life is left, it is renewed."""


class CertificateError(VcudaError):
    """What should be a chain, or a certificate with its key, is none."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What certificates are to be.

    Raises:
        CertificateError: the times contradict each other.

    """

    names: tuple[str, ...]
    """DNS names and IP addresses under which the webhook is reached."""
    serving: dt.timedelta
    """How long a serving certificate lives."""
    authority: dt.timedelta
    """How long an authority lives."""
    overlap: dt.timedelta
    """How long an authority is trusted before it signs, and after its last certificate was replaced."""

    def __post_init__(self) -> None:
        if not self.names:
            raise CertificateError("certificate: no name to be reached under; set service and namespace")
        if self.overlap * _RENEWED_AT >= self.serving or self.overlap <= dt.timedelta(0):
            raise CertificateError(
                f"certificate: an overlap of {self.overlap}: must be above 0 and below 1/{_RENEWED_AT} of a "
                f"certificate's life, {self.serving}"
            )
        if self.serving * _RENEWED_AT > self.authority:
            raise CertificateError(
                f"certificate: an authority's life of {self.authority}: must be at least {_RENEWED_AT} "
                f"times a certificate's, {self.serving}"
            )


@dataclass(frozen=True, kw_only=True)
class Signed:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def began(self) -> dt.datetime:
        """When it was made."""
        return self.certificate.not_valid_before_utc + BACKDATED

    @property
    def ends(self) -> dt.datetime:
        """When nobody accepts it any more."""
        return self.certificate.not_valid_after_utc

    @property
    def certificate_pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The key, not encrypted."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@dataclass(frozen=True, kw_only=True)
class Chain:
    """All that replicas share, in a Secret."""

    authorities: tuple[Signed, ...]
    """Oldest first; at least one."""
    serving: Signed

    @property
    def bundle(self) -> bytes:
        """The authorities' certificates, PEM: what API servers are to trust."""
        return b"".join(each.certificate_pem for each in self.authorities)

    @property
    def issuer(self) -> Signed | None:
        """The authority that signed the serving certificate; None if it is not among them."""
        return next((each for each in self.authorities if _signed_by(self.serving, each)), None)

    def secret(self) -> dict[str, str]:
        """The data of the Secret."""
        data = {
            "ca.crt": self.bundle,
            "ca.key": b"".join(each.key_pem for each in self.authorities),
            "tls.crt": self.serving.certificate_pem,
            "tls.key": self.serving.key_pem,
        }
        return {name: base64.b64encode(value).decode() for name, value in data.items()}


def chain_of(data: Mapping[str, str]) -> Chain:
    """The chain that the data of a Secret hold.

    Raises:
        CertificateError: they hold none.

    """
    try:
        found = {name: base64.b64decode(value, validate=True) for name, value in data.items()}
        authorities = tuple(
            _pair(certificate, key)
            for certificate, key in zip(
                x509.load_pem_x509_certificates(found["ca.crt"]), _pem_parts(found["ca.key"]), strict=True
            )
        )
        serving = _pair(x509.load_pem_x509_certificate(found["tls.crt"]), found["tls.key"])
    except (ValueError, TypeError, KeyError) as error:
        raise CertificateError(f"certificate: the Secret holds no chain of ours: {error!r}") from error
    return Chain(authorities=authorities, serving=serving)


def renewed(chain: Chain | None, plan: Plan, now: dt.datetime) -> Chain:
    """What the chain should be now: the same object, if nothing is due."""
    living = () if chain is None else tuple(each for each in chain.authorities if each.ends > now)
    if not living or chain is None:
        authority = new_authority(plan, now)
        return Chain(authorities=(authority,), serving=new_serving(authority, plan, now))
    authorities = living
    if _due(authorities[-1], plan.authority, now):
        authorities = (*authorities, new_authority(plan, now))
    issuer = _signing(authorities, plan, now)
    serving = chain.serving
    if (
        _due(serving, plan.serving, now)
        or not _signed_by(serving, issuer)
        or names_of(serving.certificate) != set(plan.names)
    ):
        serving = new_serving(issuer, plan, now)
    elif now - serving.began >= plan.overlap:
        authorities = authorities[authorities.index(issuer) :]
    if authorities == chain.authorities and serving is chain.serving:
        return chain
    return replace(chain, authorities=authorities, serving=serving)


def new_authority(plan: Plan, now: dt.datetime) -> Signed:
    """A new authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "vcuda-admission authority"),
            # Each authority has its own name, so that who holds two of them looks for the issuer once.
            x509.NameAttribute(NameOID.SERIAL_NUMBER, f"{x509.random_serial_number():x}"),
        ]
    )
    certificate = (
        _builder(name, name, key.public_key(), now, now + plan.authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Signed(certificate=certificate, key=key)


def new_serving(issuer: Signed, plan: Plan, now: dt.datetime) -> Signed:
    """A new serving certificate, signed by an authority; it ends no later than that."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vcuda-admission")])
    ends = min(now + plan.serving, issuer.ends)
    certificate = (
        _builder(name, issuer.certificate.subject, key.public_key(), now, ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([_general_name(each) for each in plan.names]), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False
        )
        .sign(issuer.key, hashes.SHA256())
    )
    return Signed(certificate=certificate, key=key)


def names_of(certificate: x509.Certificate) -> set[str]:
    """The DNS names and IP addresses that a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {str(name.value) for name in names}


def _due(signed: Signed, life: dt.timedelta, now: dt.datetime) -> bool:
    return signed.ends - now < life / _RENEWED_AT


def _signing(authorities: Sequence[Signed], plan: Plan, now: dt.datetime) -> Signed:
    """The newest authority that everybody knows by now; of none such, the oldest."""
    known = [each for each in authorities if now - each.began >= plan.overlap]
    return known[-1] if known else authorities[0]


def _signed_by(signed: Signed, issuer: Signed) -> bool:
    try:
        signed.certificate.verify_directly_issued_by(issuer.certificate)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _pair(certificate: x509.Certificate, key_pem: bytes) -> Signed:
    key = load_pem_private_key(key_pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ValueError("a key is not that of its certificate")
    return Signed(certificate=certificate, key=key)


def _pem_parts(pem: bytes) -> list[bytes]:
    """The keys of one PEM file."""
    end = b"-----END PRIVATE KEY-----\n"
    return [part + end for part in pem.split(end) if part.strip()]


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: dt.datetime,
    ends: dt.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
