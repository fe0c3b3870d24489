"""Certificates of the endpoint: read again when their files change, or made where an installation has none."""

import datetime as dt
import ipaddress
import logging
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LOG = logging.getLogger(__name__)
_BACKDATED = dt.timedelta(days=1)
_VALID = dt.timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate, with its chain, and its private key, both in PEM."""

    certificate: bytes
    key: bytes

    @classmethod
    def read(cls, certificate: Path, key: Path) -> "KeyPair":
        """Read both files. Raises OSError."""
        return cls(certificate.read_bytes(), key.read_bytes())

    def load_into(self, context: ssl.SSLContext) -> None:
        """Serve this pair on new connections. Raises ssl.SSLError where the two do not belong together."""
        # The ssl module loads from files only. These live for a moment, in a folder that only this user can enter.
        with TemporaryDirectory(prefix="progress-") as folder:
            certificate, key = Path(folder, "tls.crt"), Path(folder, "tls.key")
            certificate.write_bytes(self.certificate)
            key.write_bytes(self.key)
            context.load_cert_chain(certificate, key)


class ReloadingContext:
    """A server's TLS context that follows its files; Kubernetes exchanges the files of a mounted Secret."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises OSError (ssl.SSLError is one) where the files cannot be served."""
        self._files = (certificate, key)
        self._served = KeyPair.read(certificate, key)
        self.context = _new_context()
        self._served.load_into(self.context)

    def refresh(self) -> bool:
        """Serve what the files hold now and return whether that is new. Where they do not fit, the old pair stays."""
        try:
            found = KeyPair.read(*self._files)
            if found == self._served:
                return False
            # Tried apart first: a certificate without its key would spoil the context that serves.
            found.load_into(_new_context())
        except OSError as error:
            _LOG.warning(
                "the progress endpoint keeps its old certificate: %s cannot be served: %s", self._files[0], error
            )
            return False
        found.load_into(self.context)
        self._served = found
        _LOG.info("the progress endpoint serves the new certificate of %s", self._files[0])
        return True


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@dataclass(frozen=True, slots=True)
class SelfSigned:
    """A certificate that was made here, and the authority to verify it with."""

    pair: KeyPair
    ca: str
    """PEM text, handed to pods."""

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write certificate and key into a folder of this process's own and return their paths."""
        certificate, key = folder / "tls.crt", folder / "tls.key"
        certificate.write_bytes(self.pair.certificate)
        key.touch(mode=0o600)
        key.write_bytes(self.pair.key)
        return certificate, key


def self_signed(host_names: Sequence[str], *, now: dt.datetime) -> SelfSigned:
    """Make an authority and a certificate for these host names or addresses. The authority's key is kept nowhere.

    Every process makes others: pods that were started before a restart cannot verify, and so not report, afterwards.
    """
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority_name, name = _name("finetuning progress authority"), _name("finetuning progress")
    authority = (
        _builder(subject=authority_name, issuer=authority_name, key=authority_key.public_key(), now=now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(signs_certificates=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    certificate = (
        _builder(subject=name, issuer=authority_name, key=key.public_key(), now=now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([general_name(host) for host in host_names]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return SelfSigned(KeyPair(certificate.public_bytes(pem), private), authority.public_bytes(pem).decode())


def _builder(
    *, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """Return what a key may do: sign certificates, or prove who somebody is."""
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


def general_name(host: str) -> x509.GeneralName:
    """Return a host name or an address as certificates hold it."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
