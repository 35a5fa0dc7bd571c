"""Keys of keyed profiles: files in integrity.keys, which only the service can read. Blocks."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from sealsvc.core.errors import Refusal
from sealsvc.integrity import engine
from sealsvc.integrity.profiles import Profile

_MOST = 4096  # bytes of a secret
_RAW = 32  # bytes of either half of an Ed25519 key
_DER = bytes.fromhex("302e020100300506032b657004220420")  # before the private half
_PEM = re.compile(rb"-----BEGIN PRIVATE KEY-----([A-Za-z0-9+/=\s]+)-----END PRIVATE KEY-----")


def read(directory: str, name: str, profile: Profile) -> tuple[bytes, bytes]:
    """What tags are made with, and what they are verified with. An Ed25519 key is a private key in
    PEM (openssl genpkey -algorithm ed25519); any other file is the secret of an HMAC."""
    if not profile.keyed:
        if name:
            raise Refusal("bad-request", f"the profile {profile.name} takes no key")
        return b"", b""
    if not re.fullmatch(r"[\w][\w.-]*", name):
        raise Refusal("bad-request", f"the profile {profile.name} needs the name of a key")
    path = Path(directory, name)
    try:
        secret = path.read_bytes()
    except OSError as error:
        raise Refusal("bad-request", f"the key {path}: {error.strerror}") from None
    if not 0 < len(secret) <= _MOST:
        raise Refusal("bad-request", f"the key {path} is empty, or longer than {_MOST} bytes")
    if profile.checksum != "ed25519":
        return secret, secret
    private = _private_key(secret)
    if private is None:
        raise Refusal("bad-request", f"the key {path} is no Ed25519 private key in PEM")
    return private, engine.public_key(private)


def _private_key(text: bytes) -> bytes | None:
    """The 32 bytes of an Ed25519 private key in PEM (RFC 8410 section 7)."""
    found = _PEM.fullmatch(text.strip())
    try:
        der = base64.b64decode(found[1], validate=False) if found else b""
    except ValueError:
        return None
    return der[len(_DER) :] if der.startswith(_DER) and len(der) == len(_DER) + _RAW else None
