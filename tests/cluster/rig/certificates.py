"""The cluster's certificates: one authority for everybody, one for the front proxy, a key for service accounts.

Good for 30 days: a rig is made in seconds, so nothing is ever renewed. A folder that is complete is left as it is.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from rig.errors import RigError

LIFETIME = dt.timedelta(days=30)


@dataclass(frozen=True)
class Leaf:
    """A certificate to be signed: who holds it (user, group), and the names a server answers to."""

    file: str
    user: str
    group: str = ""
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Authority:
    """A certificate authority with its key, able to sign."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls, name: str, now: dt.datetime) -> Authority:
        """A self-signed authority."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, subject, key.public_key(), now)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        return cls(builder.sign(key, hashes.SHA256()), key)

    def sign(self, leaf: Leaf, now: dt.datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """A fresh key and its certificate, for clients and servers alike."""
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, leaf.group)] if leaf.group else []
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, leaf.user))
        builder = _builder(x509.Name(attributes), self.certificate.subject, key.public_key(), now)
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if leaf.names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general_name(name) for name in leaf.names]), critical=False
            )
        return builder.sign(self.key, hashes.SHA256()), key


def ensure(folder: Path, leaves: Sequence[Leaf], front_proxy: Leaf, now: dt.datetime) -> None:
    """Make every certificate of a cluster in this folder, or check that the ones there are still good."""
    marker = folder / "complete"
    if marker.exists():
        _refuse_expired(folder / "ca.crt", now)
        return
    _write_authority(folder, "ca", leaves, now)
    _write_authority(folder, "front-proxy-ca", [front_proxy], now)
    key = ec.generate_private_key(ec.SECP256R1())
    _write(folder / "service-accounts.key", _key_pem(key))
    marker.touch()


def _write_authority(folder: Path, file: str, leaves: Iterable[Leaf], now: dt.datetime) -> None:
    """One authority and all it signs. Its key is never stored: nobody signs after this."""
    authority = Authority.make(f"kubedistill-rig-{file}", now)
    _write(folder / f"{file}.crt", _pem(authority.certificate))
    for leaf in leaves:
        certificate, key = authority.sign(leaf, now)
        _write(folder / f"{leaf.file}.crt", _pem(certificate))
        _write(folder / f"{leaf.file}.key", _key_pem(key))


def _refuse_expired(path: Path, now: dt.datetime) -> None:
    expiry = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    if expiry < now + dt.timedelta(days=1):
        raise RigError(f"the rig's certificates end at {expiry:%Y-%m-%d %H:%M}: take it down, then up")


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # An hour back: the clocks of a machine and its guests differ.
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def _write(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
