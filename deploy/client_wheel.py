"""Makes the wheel of sealsvc-client: what a Python program needs to hold seals, and nothing more.

    python deploy/client_wheel.py [DIRECTORY]        # build/ is the default

It has what sealsvc.client and sealsvc.client.held import of `sealsvc`, as it is in the tree: pure
Python, with msgspec as the only dependency, no compiler and no daemon. Its files are those of the
whole sealsvc, so an environment has the one or the other.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAME = "sealsvc_client"
FIRST = ("sealsvc.client", "sealsvc.client.held")
TYPED = "sealsvc/py.typed"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same sources make the same wheel


def modules() -> list[Path]:
    """The files, from the root, of all that the first ones import of our own."""
    found: dict[str, Path] = {}
    wanted = ["sealsvc", *FIRST]
    while wanted:
        name = wanted.pop()
        path = _file_of(name)
        if name not in found and path is not None:
            found[name] = path
            wanted += _imports(path)
    return sorted(path.relative_to(ROOT) for path in found.values())


def _file_of(module: str) -> Path | None:
    path = ROOT / Path(*module.split("."))
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.exists():
            return file
    return None


def _imports(path: Path) -> list[str]:
    """What it imports when it runs."""
    names = []
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sealsvc"):
            names += [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
        elif isinstance(node, ast.Import):
            names += [name.name for name in node.names if name.name.startswith("sealsvc")]
    return names


def _metadata() -> tuple[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (msgspec,) = [line for line in project["dependencies"] if line.startswith("msgspec")]
    page = (ROOT / "docs" / "python.md").read_text()
    head = (
        f"Metadata-Version: 2.4\nName: sealsvc-client\nVersion: {project['version']}\n"
        "Summary: Hold revocable extent-map seals of sealsvc from Python\n"
        f"License-Expression: {project['license']}\nLicense-File: LICENSE\n"
        f"Requires-Python: {project['requires-python']}\n"
        f"Requires-Dist: {msgspec}\nDescription-Content-Type: text/markdown\n"
    )
    return project["version"], f"{head}\n{page}"


def build(directory: Path) -> Path:
    """The wheel, in `directory`, which is made."""
    version, metadata = _metadata()
    info = f"{NAME}-{version}.dist-info"
    files = {str(path): (ROOT / path).read_bytes() for path in [*modules(), Path(TYPED)]}
    files[f"{info}/METADATA"] = metadata.encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: sealsvc\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{info}/licenses/LICENSE"] = (ROOT / "LICENSE").read_bytes()
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    directory.mkdir(parents=True, exist_ok=True)
    wheel = directory / f"{NAME}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            out.writestr(entry, data)
    return wheel


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


if __name__ == "__main__":
    print(build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build"))
