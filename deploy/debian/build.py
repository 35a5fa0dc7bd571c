"""Makes build/sealsvc_VERSION_ARCH.deb from this tree and its .venv: `./dev deb`.

The package carries its own Python packages, in the versions that were tested here: those of
Debian are too old. They lie in a private virtual environment at /usr/lib/sealsvc, where nobody is
to install anything: so the packages that traces take are among them.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from email.utils import formatdate
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
HOME = Path("usr/lib/sealsvc")
EXTRAS = {"trace"}
PROGRAMS = ("sealsvc", "sealctl", "sealsvc-api")
DOC = Path("usr/share/doc/sealsvc")


def needed(
    name: str, extras: set[str], found: dict[str, metadata.Distribution]
) -> dict[str, metadata.Distribution]:
    """The distribution and all that it requires with these extras, as installed here."""
    distribution = metadata.distribution(name)
    if distribution.name not in found:
        found[distribution.name] = distribution
        for requirement in map(Requirement, distribution.requires or ()):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in {"", *extras}):
                needed(requirement.name, requirement.extras, found)
    return found


def belongs(path: str) -> bool:
    """Whether an installed file is of use to those who only run it."""
    parts = Path(path).parts
    told_by_pip = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}
    if parts[0].endswith(".dist-info"):
        return parts[-1] not in told_by_pip
    return ".." not in parts and not {"__pycache__", "tests"} & set(parts)


def copy_distributions(stage: Path, distributions: Iterator[metadata.Distribution]) -> None:
    packages = stage / HOME / "lib" / PYTHON / "site-packages"
    for distribution in distributions:
        for file in distribution.files or ():
            if belongs(str(file)):
                put(Path(str(distribution.locate_file(file))), packages / file)


def put(source: Path, target: Path, mode: int = 0o644) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


def write(target: Path, text: str, mode: int = 0o644) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    target.chmod(mode)


def compress(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(gzip.compress(data, mtime=0))
    target.chmod(0o644)


def make_environment(stage: Path) -> None:
    """A virtual environment as venv(1) makes it, for where it will be."""
    programs = stage / HOME / "bin"
    programs.mkdir(parents=True)
    write(stage / HOME / "pyvenv.cfg", "home = /usr/bin\ninclude-system-site-packages = false\n")
    (programs / "python3").symlink_to(f"../../../bin/{PYTHON}")
    scripts = {point.name: point for point in metadata.distribution("sealsvc").entry_points}
    (stage / "usr/bin").mkdir(parents=True)
    for name in PROGRAMS:
        module, function = scripts[name].value.split(":")
        # Isolated: a root service must not import from its caller's directories.
        write(
            programs / name,
            f"#!/{HOME}/bin/python3 -I\nimport sys\nfrom {module} import {function}\n"
            f"sys.exit({function}())\n",
            0o755,
        )
        (stage / "usr/bin" / name).symlink_to(f"../lib/sealsvc/bin/{name}")
    for name in ("sealsvc-keeper", "sealsvc-tcmu", "sealsvc-ublk"):
        put(Path(sys.executable).with_name(name), programs / name, 0o755)


def add_system_files(stage: Path, version: str) -> None:
    units = DEPLOY / "systemd"
    for unit in (*units.glob("*.service"), *units.glob("*.socket")):
        put(unit, stage / "lib/systemd/system" / unit.name)
    put(units / "sealsvc.sysusers", stage / "usr/lib/sysusers.d/sealsvc.conf")
    put(units / "sealsvc.tmpfiles", stage / "usr/lib/tmpfiles.d/sealsvc.conf")
    # The API is to see every seal.
    text, changed = re.subn(
        r"(?m)^operators = .*$",
        'operators = [0, "sealsvc-api"]',
        (DEPLOY / "sealsvc.toml").read_text(),
    )
    assert changed == 1
    write(stage / "etc/sealsvc/sealsvc.toml", text)
    put(DEPLOY / "principals.toml", stage / "etc/sealsvc/principals.toml", 0o640)
    for file in (DEPLOY / "prometheus").iterdir():
        put(file, stage / "usr/share/sealsvc/prometheus" / file.name)
    for page in (DEPLOY / "man").iterdir():
        compress(
            stage / f"usr/share/man/man{page.suffix[1:]}/{page.name}.gz",
            page.read_bytes(),
        )
    for shell, place in (
        ("bash", "bash-completion/completions/sealctl"),
        ("zsh", "zsh/vendor-completions/_sealctl"),
        ("fish", "fish/vendor_completions.d/sealctl.fish"),
    ):
        program = Path(sys.executable).with_name("sealctl")
        write(stage / "usr/share" / place, run(program, "completion", shell))
    put(ROOT / "README.md", stage / DOC / "README.md")
    put(ROOT / "CHANGELOG.md", stage / DOC / "NEWS.md")
    for page in (ROOT / "docs").glob("*.md"):
        put(page, stage / DOC / "docs" / page.name)
    for file in (ROOT / "examples").rglob("*"):
        if file.suffix in {".c", ".h", ".md"} or file.name in {"Makefile", "run-guest"}:
            put(file, stage / DOC / file.relative_to(ROOT), file.stat().st_mode & 0o755)
    entry = f"sealsvc ({version}) stable; urgency=medium\n\n  * See NEWS.md.\n\n"
    compress(stage / DOC / "changelog.gz", f"{entry} -- {maintainer()}  {date()}\n".encode())


def add_libseal(stage: Path) -> None:
    """The library for C programs, with its headers and manual, as meson installs them."""
    triplet = run("dpkg-architecture", "-qDEB_HOST_MULTIARCH").strip()
    build = ROOT / "build/libseal"
    shutil.rmtree(build, ignore_errors=True)
    meson = Path(sys.executable).with_name("meson")
    paths = ("--prefix=/usr", f"--libdir=lib/{triplet}")
    terms = ("--buildtype=debugoptimized", "-Dlibseal_alone=true")
    run(meson, "setup", *paths, *terms, build, ROOT)
    run(meson, "compile", "-C", build)
    run(meson, "install", "-C", build, "--no-rebuild", "--tags=libseal,devel", "--destdir", stage)
    (library,) = stage.glob("usr/lib/*/libseal.so.*.*")
    library.chmod(0o644)
    run("strip", "--strip-debug", *stage.glob("usr/lib/*/libseal.a"))
    for page in (stage / "usr/share/man/man3").iterdir():
        compress(page.with_name(f"{page.name}.gz"), page.read_bytes())
        page.unlink()


def add_copyright(stage: Path, distributions: Iterator[metadata.Distribution]) -> None:
    """The project's licence, and under which the packages are that come with it."""
    text = (ROOT / "LICENSE").read_text()
    text += (
        "\nThe package contains these, each with its whole licence in its .dist-info."
        " /usr/share/common-licenses\nhas Apache-2.0 and MPL-2.0.\n\n"
    )
    for each in distributions:
        if each.name != "sealsvc":
            told = each.metadata.get("License-Expression") or each.metadata.get("License") or ""
            licence = told.split("\n", 1)[0].strip() or "its own licence"
            text += f"  {each.name} {each.version}: {licence}\n"
    write(stage / DOC / "copyright", text)


def maintainer() -> str:
    found = re.search(r"^Maintainer: (.*)$", (DEPLOY / "debian/control").read_text(), re.MULTILINE)
    assert found
    return found[1]


def date() -> str:
    return formatdate(int(os.environ["SOURCE_DATE_EPOCH"]))


def is_elf(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def strip_ours(stage: Path) -> None:
    """What was built here. (What came in wheels is left as it is: some of it does not bear it.)"""
    for path in (*stage.rglob("*sealsvc*"), *stage.rglob("libseal.so*")):
        if is_elf(path):
            run("strip", "--strip-unneeded", "-R", ".comment", path)


def libraries(stage: Path) -> str:
    """The Debian packages of the shared libraries that are used."""
    bundled = {path.parent for path in stage.rglob("*.so*") if path.parent.name.endswith(".libs")}
    with tempfile.TemporaryDirectory() as directory:
        write(
            Path(directory, "debian/control"),
            "Source: sealsvc\n\nPackage: sealsvc\nArchitecture: any\n",
        )
        found = run(
            "dpkg-shlibdeps",
            "-O",
            "--ignore-missing-info",
            *(f"-l{path}" for path in bundled),
            *(f"-e{path}" for path in stage.rglob("*") if is_elf(path)),
            cwd=directory,
        )
    return found.strip().removeprefix("shlibs:Depends=")


def add_control(stage: Path, version: str) -> None:
    directory = stage / "DEBIAN"
    minor = sys.version_info.minor
    control = (DEPLOY / "debian/control").read_text()
    size = sum(path.lstat().st_size for path in stage.rglob("*") if not path.is_dir()) // 1024
    for name, value in {
        "version": version,
        "architecture": run("dpkg", "--print-architecture").strip(),
        "size": str(size),
        "python": f"python3 (>= 3.{minor}~), python3 (<< 3.{minor + 1})",
        "libraries": libraries(stage),
    }.items():
        control = control.replace(f"@{name}@", value)
    write(directory / "control", control)
    for script in ("postinst", "prerm", "postrm"):
        put(DEPLOY / "debian" / script, directory / script, 0o755)
    write(directory / "shlibs", f"libseal 1 sealsvc (>= {version})\n")
    write(directory / "triggers", "activate-noawait ldconfig\n")
    configuration = sorted(path for path in (stage / "etc").rglob("*") if path.is_file())
    write(directory / "conffiles", "".join(f"/{p.relative_to(stage)}\n" for p in configuration))
    put(DEPLOY / "debian/lintian-overrides", stage / "usr/share/lintian/overrides/sealsvc")
    sums = [
        f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(stage)}\n"
        for path in sorted(stage.rglob("*"))
        if path.is_file() and not path.is_symlink() and directory not in path.parents
    ]
    write(directory / "md5sums", "".join(sums))


def run(*command: str | Path, cwd: str | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} failed with status {done.returncode}:\n{done.stderr}")
    return done.stdout


def main() -> None:
    if sysconfig.get_config_var("prefix") != "/usr":
        sys.exit("a package for Debian is built with Debian's python3, not with PYTHON=...")
    os.umask(0o022)
    # meson finds the ninja of the virtual environment by it: a fresh Debian has no other.
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # The same tree makes the same package; one that did not come by git is of no date.
    git = ("git", "-C", ROOT, "log", "-1", "--format=%ct")
    there = shutil.which("git") is not None
    when = subprocess.run(git, capture_output=True, text=True).stdout.strip() if there else ""
    os.environ.setdefault("SOURCE_DATE_EPOCH", when or "0")
    found = needed("sealsvc", EXTRAS, {})
    version = found["sealsvc"].version
    with tempfile.TemporaryDirectory(dir=ROOT / "build", prefix="deb-") as directory:
        stage = Path(directory) / "sealsvc"
        stage.mkdir()
        copy_distributions(stage, iter(found.values()))
        make_environment(stage)
        add_libseal(stage)
        strip_ours(stage)
        add_system_files(stage, version)
        add_copyright(stage, iter(found.values()))
        add_control(stage, version)
        for path in stage.rglob("*"):
            if path.is_dir():
                path.chmod(0o755)
        run("dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build", stage, ROOT / "build")
    print(*(ROOT / "build").glob(f"sealsvc_{version}_*.deb"))


if __name__ == "__main__":
    main()
