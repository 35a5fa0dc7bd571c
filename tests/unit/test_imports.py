"""Only the declared import edges exist between packages; nothing imports against the flow."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Who may import whom, by the first two parts of a module's name.
LEAVES = {
    *("sealsvc.errors", "sealsvc.model", "sealsvc.messages", "sealsvc.states"),
    *("sealsvc.overview", "sealsvc.protocol", "sealsvc.records", "sealsvc.rules"),
}
PURE = LEAVES | {"sealsvc.extents"}
# Beside the client: what any process under systemd has.
SYSTEMD = {"sealsvc.activation", "sealsvc.journald", "sealsvc.display"}
# Of a capability the API imports its messages; of exports the records, which are no requests.
CAPABILITIES = {"sealsvc.copies", "sealsvc.exports", "sealsvc.integrity"}
FILES = {"sealsvc.toml_places"}
TIME = {"sealsvc.even_time"}
API = {"sealsvc.client", "sealsvc.records", "sealsvc", "api"}
API |= CAPABILITIES | FILES | SYSTEMD | TIME | LEAVES


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "sealsvc":
                found |= {f"sealsvc.{name.name}" for name in node.names}
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {".".join(name.split(".")[:2]) for name in found}


def ours(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] in ("sealsvc", "api")}


@pytest.mark.parametrize("path", sorted((ROOT / "api").glob("*.py")), ids=lambda p: p.name)
def test_the_api_knows_the_control_client_alone(path: Path) -> None:
    allowed = {name for name in ours(path) if name.split(".")[0] == "api"} | API
    assert ours(path) - allowed <= {"sealsvc.__version__"} | CAPABILITIES


@pytest.mark.parametrize("name", sorted(name.split(".")[1] for name in PURE))
def test_the_values_know_nothing_above_them(name: str) -> None:
    beside = CAPABILITIES if name == "messages" else set()
    assert ours(ROOT / "sealsvc" / f"{name}.py") <= PURE | {"sealsvc"} | beside


@pytest.mark.parametrize("path", ["copies/requests.py", "integrity/messages.py"])
def test_messages_of_a_capability_are_values(path: str) -> None:
    assert ours(ROOT / "sealsvc" / path) <= PURE | {"sealsvc"} | CAPABILITIES


def test_one_module_imports_the_binding() -> None:
    users = [
        str(path.relative_to(ROOT))
        for package in ("sealsvc", "api")
        for path in (ROOT / package).rglob("*.py")
        if "_sealsvc_native" in {name.split(".")[0] for name in imports(path)}
    ]
    assert users == ["sealsvc/native.py"]


def test_only_the_composition_root_builds_enforcers() -> None:
    for path in (ROOT / "sealsvc").rglob("*.py"):
        if path.name == "daemon.py" or path.parent.name == "enforce":
            continue
        source = path.read_text()
        assert "FanotifyEnforcer(" not in source, path
        assert "LeaseEnforcer(" not in source, path
