"""The progress server's certificates:
one authority for ten years in a Secret, and short-lived leaves under it that rotate while serving."""

import asyncio
import base64
import ipaddress
import logging
import ssl
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from mark_crds import names

from mark_operator.cluster import ApiError, Cluster
from mark_operator.seen import Body
from mark_operator.settings import Settings

log = logging.getLogger(__name__)

AUTHORITY_LASTS = timedelta(days=3650)
LEAF_LASTS = timedelta(days=30)
ROTATE_SECONDS = timedelta(days=10).total_seconds()
CLOCK_SKEW = timedelta(hours=1)
KEY_ENTRY = "ca.key"
RETRY_SECONDS = timedelta(hours=1).total_seconds()
PAUSE_SECONDS = 5.0


@dataclass(frozen=True)
class Authority:
    """The certificate that Pods trust, and the key that signs leaves."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @classmethod
    def from_pem(cls, certificate: bytes, key: bytes) -> "Authority":
        loaded = serialization.load_pem_private_key(key, None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        return cls(x509.load_pem_x509_certificate(certificate), loaded)


def new_authority(now: datetime) -> Authority:
    """A self-signed authority that may sign leaves only."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mark-operator progress")])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(name, name, key.public_key(), now, AUTHORITY_LASTS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def new_leaf(authority: Authority, host: str, now: datetime) -> tuple[bytes, bytes]:
    """Certificate and key, PEM, of a server at this host name or address."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mark-operator")])
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    certificate = (
        _builder(subject, authority.certificate.subject, key.public_key(), now, LEAF_LASTS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_general_name(host)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issuer_key, critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key)


async def load_authority(cluster: Cluster, settings: Settings) -> Authority:
    """The authority of the Secret; made and stored by the first replica that finds none. Tries until it works."""
    while True:
        try:
            secret = await cluster.get("Secret", settings.operator_namespace, settings.authority_secret_name)
            return _stored(secret) or await _store(cluster, settings, secret)
        except ApiError as error:
            if not error.is_transient:
                raise
            log.warning("the certificate authority: %s", error)
            await asyncio.sleep(PAUSE_SECONDS)


class ServerContext:
    """A TLS context whose certificate is renewed in place: connections that come later get the new one."""

    def __init__(self, authority: Authority, url: str) -> None:
        self._authority = authority
        self._host = urlsplit(url).hostname or "localhost"
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._renew()

    async def rotate(self) -> None:
        """Renew the leaf from time to time, until cancelled. A full disk is no reason to end the process: the old leaf
        is good for weeks, and the renewal is tried again every hour."""
        pause = ROTATE_SECONDS
        while True:
            await asyncio.sleep(pause)
            try:
                self._renew()
            except OSError as error:
                log.warning("the certificate of the progress server was not renewed: %s", error)
                pause = RETRY_SECONDS
            else:
                log.info("renewed the certificate of the progress server")
                pause = ROTATE_SECONDS

    def _renew(self) -> None:
        certificate, key = new_leaf(self._authority, self._host, datetime.now(UTC))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "leaf.pem"
            path.touch(mode=0o600)
            path.write_bytes(certificate + key)
            self.context.load_cert_chain(path)


def _stored(secret: Body | None) -> Authority | None:
    data = (secret or {}).get("data") or {}
    if not (data.get(names.CA_KEY) and data.get(KEY_ENTRY)):
        return None
    return Authority.from_pem(base64.b64decode(data[names.CA_KEY]), base64.b64decode(data[KEY_ENTRY]))


async def _store(cluster: Cluster, settings: Settings, secret: Body | None) -> Authority:
    """Put a new authority into this very version of the Secret. Another replica that was quicker makes it conflict, so
    that this one reads again: with two authorities, the Pods that trust the lost one could tell no progress."""
    version = {"resourceVersion": secret["metadata"]["resourceVersion"]} if secret else {}
    authority = new_authority(datetime.now(UTC))
    data = {names.CA_KEY: authority.pem.encode(), KEY_ENTRY: _key_pem(authority.key)}
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": settings.authority_secret_name, "namespace": settings.operator_namespace, **version},
        "data": {entry: base64.b64encode(value).decode() for entry, value in data.items()},
    }
    if secret is None:
        await cluster.create(body)
    else:
        await cluster.apply(body)
    log.info("made a certificate authority in Secret %s", settings.authority_secret_name)
    return authority


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, lasts: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + lasts)
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
