"""Certificates of a control plane: one authority, one server, and a client for each component."""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from finetuning_operator.cluster.progress.certificates import general_name, key_usage

_VALID_FOR = dt.timedelta(days=30)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Files of a certificate and its private key."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates with EC P-256 keys and writes them into one folder; clients trust ``pair.certificate``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _subject("finetuning-test-ca")
        certificate = (
            _builder(self._name, issuer=self._name, key=self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.pair = self._write("ca", certificate, key=self._key)

    def server(self, name: str, *, hosts: tuple[str, ...]) -> KeyPair:
        """Make a certificate for host names and addresses."""
        alternatives = x509.SubjectAlternativeName([general_name(host) for host in hosts])
        return self._issue(name, subject=_subject(name), alternatives=alternatives)

    def client(self, name: str, *, user: str, group: str = "") -> KeyPair:
        """Make a certificate that Kubernetes reads as a user and a group."""
        return self._issue(name, subject=_subject(user, group=group))

    def _issue(
        self, name: str, *, subject: x509.Name, alternatives: x509.SubjectAlternativeName | None = None
    ) -> KeyPair:
        key = ec.generate_private_key(ec.SECP256R1())
        use = ExtendedKeyUsageOID.CLIENT_AUTH if alternatives is None else ExtendedKeyUsageOID.SERVER_AUTH
        builder = (
            _builder(subject, issuer=self._name, key=key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            # Python 3.13 refuses certificates that do not name the key of their issuer.
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if alternatives is not None:
            builder = builder.add_extension(alternatives, critical=False)
        return self._write(name, builder.sign(self._key, hashes.SHA256()), key=key)

    def _write(self, name: str, certificate: x509.Certificate, *, key: ec.EllipticCurvePrivateKey) -> KeyPair:
        pair = KeyPair(certificate=self._folder / f"{name}.crt", key=self._folder / f"{name}.key")
        pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        _write_key(pair.key, key)
        return pair


def service_account_key(folder: Path) -> KeyPair:
    """Write the RSA key that service account tokens are signed with, and its public half."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pair = KeyPair(certificate=folder / "service-account.pub", key=folder / "service-account.key")
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    pair.certificate.write_bytes(public)
    _write_key(pair.key, key)
    return pair


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _builder(subject: x509.Name, *, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + _VALID_FOR)
    )


def _subject(user: str, *, group: str = "") -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, user)]
    if group:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
    return x509.Name(attributes)
