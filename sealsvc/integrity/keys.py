"""Keys of keyed profiles: files in integrity.keys, which only the service can read. Blocks."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from sealsvc.errors import Refusal
from sealsvc.integrity.profiles import Profile

_MOST = 4096  # bytes of a secret
_RAW = 32  # bytes of either half of an Ed25519 key: the end of its DER form (RFC 8410)


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
    return _half(path), _half(path, "-pubout")


def _half(path: Path, *more: str) -> bytes:
    done = subprocess.run(
        ["openssl", "pkey", "-in", str(path), "-outform", "DER", *more],
        capture_output=True,
        check=False,
    )
    if done.returncode or len(done.stdout) < _RAW:
        raise Refusal("bad-request", f"the key {path} is no Ed25519 private key in PEM")
    return done.stdout[-_RAW:]
