"""Who is who in a cluster: an authority, the servers' certificates, keys, tokens and kubeconfigs.

Made anew for each cluster, valid for a day, of elliptic curve keys, which take milliseconds.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

MASTERS = "system:masters"


class Identity:
    """Certificates and tokens below `directory`. `tokens` maps each user's short name to its bearer token."""

    def __init__(self, directory: Path, *, server: str, addresses: Sequence[str], node: str) -> None:
        directory.mkdir(mode=0o700)
        self._directory = directory
        self._server = server
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vcuda test cluster")])
        self._users: dict[str, tuple[str, Sequence[str]]] = {}
        self.tokens: dict[str, str] = {}
        authority = self._sign(self._name, self._key, authority=True)
        self.authority = self._write("ca.crt", authority.public_bytes(serialization.Encoding.PEM))
        self.authority_key = self._write("ca.key", _pem(self._key))
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"]
        self.server = self.pair("apiserver", names=[*names, *addresses])
        self.kubelet = self.pair("kubelet", names=[node, *addresses])
        self.kubelet_client = self.pair(
            "kubelet-client", user="kube-apiserver-kubelet-client", groups=[MASTERS]
        )
        account = ec.generate_private_key(ec.SECP256R1())
        self.account_key = self._write("service-account.key", _pem(account))
        public = account.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.account_public = self._write("service-account.pub", public)
        self.token_file = directory / "tokens.csv"
        self.add_static("admin", "admin", [MASTERS])
        self.add_static("node", f"system:node:{node}", ["system:nodes"])
        self.add_static("scheduler", "system:kube-scheduler", [])

    def add_static(self, user: str, name: str, groups: Sequence[str]) -> None:
        """User `name` of the API, called `user` here. Before the API server starts: it reads them once."""
        self._users[user] = (name, groups)
        self.add(user, secrets.token_urlsafe(24))
        rows = [
            f'{self.tokens[each]},{its_name},{its_name},"{",".join(its_groups)}"'
            for each, (its_name, its_groups) in self._users.items()
        ]
        self._write("tokens.csv", "\n".join(rows).encode())

    def add(self, user: str, token: str) -> Path:
        """Call the holder of `token` `user` here; the file with which that user speaks to the API."""
        self.tokens[user] = token
        cluster: Mapping[str, str] = {"server": self._server, "certificate-authority": str(self.authority)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
            "current-context": "test",
        }
        return self._write(f"{user}.kubeconfig", yaml.safe_dump(config).encode())

    def kubeconfig(self, user: str) -> Path:
        return self._directory / f"{user}.kubeconfig"

    def pair(
        self, file: str, *, names: Sequence[str] = (), user: str = "", groups: Sequence[str] = ()
    ) -> tuple[Path, Path]:
        """A certificate by the cluster's authority and its key: a server's of `names`, or a user's."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, each) for each in groups]
        subject.append(x509.NameAttribute(NameOID.COMMON_NAME, user or file))
        certificate = self._sign(x509.Name(subject), key, names=names)
        return (
            self._write(f"{file}.crt", certificate.public_bytes(serialization.Encoding.PEM)),
            self._write(f"{file}.key", _pem(key)),
        )

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        names: Sequence[str] = (),
        authority: bool = False,
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if not authority:
            usage = ExtendedKeyUsageOID.SERVER_AUTH if names else ExtendedKeyUsageOID.CLIENT_AUTH
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_alternative(each) for each in names]), critical=False
            )
        return builder.sign(self._key, hashes.SHA256())

    def _write(self, name: str, content: bytes) -> Path:
        path = self._directory / name
        path.touch(mode=0o600)
        path.write_bytes(content)
        return path


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
