"""The Debian package: made, installed, used and removed again, in a root of its own that is thrown
away (an overlay over this machine's)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("dpkg-deb"), reason="needs root on a Debian"
    ),
    pytest.mark.slow,
    pytest.mark.timeout(300),
]


def run(*command: str | Path, **more: object) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=280, **more
    )  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.fixture(scope="module")
def package() -> Path:
    return Path(run(ROOT / "deploy/debian/build").splitlines()[-1])


@pytest.fixture
def chroot() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sealsvc-root-") as name:
        base = Path(name)
        run("mount", "-t", "tmpfs", "tmpfs", base)
        try:
            for part in ("upper", "work", "root"):
                (base / part).mkdir()
            options = f"lowerdir=/,upperdir={base}/upper,workdir={base}/work"
            root = base / "root"
            if subprocess.run(
                ["mount", "-t", "overlay", "overlay", "-o", options, root]
            ).returncode:
                pytest.skip("no overlay can be mounted over this root")
            for part, kind in (("proc", "proc"), ("dev", "devtmpfs"), ("run", "tmpfs")):
                run("mount", "-t", kind, kind, root / part)
            yield root
        finally:
            run("umount", "-R", base)


LIFE = r"""
set -eu
unset SEALSVC_SOCKET PYTHONPATH VIRTUAL_ENV
PATH=/usr/sbin:/usr/bin:/sbin:/bin
cd /
dpkg -i "$1" >/dev/null
getent passwd sealsvc-api >/dev/null
test "$(stat -c '%U:%G %a' /etc/sealsvc/principals.toml)" = "root:sealsvc-api 640"
man -w sealsvc sealctl sealsvc-api sealsvc.toml >/dev/null
bash -n /usr/share/bash-completion/completions/sealctl
systemd-analyze verify /usr/lib/systemd/system/sealsvc*

sealsvc serve --sim --config /etc/sealsvc/sealsvc.toml & service=$!
token=$(sealsvc-api --new-token | awk '/shown once/ {print $NF}')
digest=$(printf %s "$token" | sha256sum | cut -d' ' -f1)
printf '[principal.me]\nrole = "admin"\nscopes = ["/"]\ntokens = ["sha256:%s"]\n' "$digest" \
	>>/etc/sealsvc/principals.toml
for _ in $(seq 100); do
	sealctl status >/dev/null 2>&1 && break
	kill -0 $service
	sleep 0.1
done
# As the unit runs it: as its own user, which the configuration names as an operator.
setpriv --reuid sealsvc-api --regid sealsvc-api --clear-groups --bounding-set=-all --no-new-privs \
	sealsvc-api --port 18377 --principals /etc/sealsvc/principals.toml 2>/run/api.log & api=$!
export SEALSVC_TOKEN=$token
for _ in $(seq 100); do
	sealctl --url http://127.0.0.1:18377 filesystems >/run/told 2>/run/why && break
	sleep 0.1
done
grep -q /sim /run/told || { cat /run/why /run/api.log; exit 1; }
sealctl hold /sim/file -- sealctl --url http://127.0.0.1:18377 ls >/run/told
grep -q /sim/file /run/told
kill $api $service
wait $api $service || true

dpkg -r sealsvc >/dev/null
test ! -e /usr/lib/sealsvc
test -e /etc/sealsvc/sealsvc.toml
dpkg --purge sealsvc >/dev/null
test ! -e /etc/sealsvc
! getent passwd sealsvc-api >/dev/null
echo "lived and gone"
"""


def test_the_package_lives_and_goes(package: Path, chroot: Path) -> None:
    shutil.copy(package, chroot / "run" / "sealsvc.deb")
    # A network namespace of its own: the ports of this machine are others'.
    script = "ip link set lo up 2>/dev/null || true\n" + LIFE
    command = ["unshare", "--net", "chroot", chroot]
    told = run(*command, "sh", "-c", script, "sh", "/run/sealsvc.deb")
    assert told.endswith("lived and gone\n")


def test_it_says_nothing_of_where_it_was_made(package: Path) -> None:
    names = run("dpkg-deb", "-c", package)
    assert "direct_url.json" not in names
    assert "/home/" not in names
    assert "/tests/" not in names
    control = run("dpkg-deb", "-f", package)
    assert "libbpf1" in control or "libc6" in control
    with tempfile.TemporaryDirectory() as directory:
        run("dpkg-deb", "-x", package, directory)
        for path in Path(directory, "usr/bin").iterdir():
            if path.name != "sealsvc-keeper":
                assert path.read_text().startswith("#!/usr/bin/python3 -I\n")
                assert str(ROOT) not in path.read_text()
