"""The TLS context that the webhook serves with; its certificate can be replaced while connections go on."""

import os
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from admission.certificate import CertificateError


class ServingContext:
    """A context for servers. New connections get the certificate that was loaded last, others keep theirs."""

    def __init__(self) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._loaded: bytes | None = None
        self.loads = 0
        """How often a certificate was loaded that was not the one before."""
        self.expires_s: float | None = None
        """When the certificate ends, s since 1970; None as long as there is none."""

    def load(self, certificate_pem: bytes, key_pem: bytes) -> bool:
        """Serve with this certificate from now on; whether it is another one than before.

        Raises:
            CertificateError: it is none, or the key is not its own. The one before stays.

        """
        pem = key_pem.rstrip() + b"\n" + certificate_pem
        if pem == self._loaded:
            return False
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem)
            key = load_pem_private_key(key_pem, password=None)
        except (ValueError, TypeError) as error:
            raise CertificateError(f"certificate: not one with its key in PEM: {error}") from error
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if certificate.public_key().public_bytes(*form) != key.public_key().public_bytes(*form):
            raise CertificateError("certificate: the key is not that of the certificate")
        # OpenSSL reads files alone; this one is in memory, so that no disk ever holds the key.
        descriptor = os.memfd_create("vcuda-admission-certificate")
        try:
            Path(f"/proc/self/fd/{descriptor}").write_bytes(pem)
            self.context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        except ssl.SSLError as error:
            raise CertificateError(f"certificate: OpenSSL refuses it: {error}") from error
        finally:
            os.close(descriptor)
        self._loaded = pem
        self.loads += 1
        self.expires_s = certificate.not_valid_after_utc.timestamp()
        return True
