"""openapi.json: FastAPI's account of the routes, msgspec's of the values, joined."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from sealsvc.exports.info import ExportInfo, ExportList
from sealsvc.protocol import admin, events, history, seals, system
from sealsvc.protocol.copies import CopyTrustReport
from sealsvc.protocol.exports import ExportStopped
from sealsvc_api import integrity, schemas
from sealsvc_api.operations import REF, examples_of_refusals
from sealsvc_api.problems import Problem
from sealsvc_api.sessions import COOKIE
from sealsvc_api.status import API_VERSION

DESCRIPTION = """\
Seals on the extent maps of files. Who asks is known by a bearer token, a client certificate, the
user at the other end of a UNIX socket, or the dashboard's session; `x-sealsvc-action` of a route is
what that principal's role must allow (docs/security.md). HEAD is served wherever GET is, and not
listed. Every refusal is application/problem+json whose `type` and `code` are stable."""

TAGS = {
    "seals": "What is sealed, and asking for it",
    "recalls": "Asking for seals back, and who waits for them",
    "files": "The seals, seen from files and holders",
    "filesystems": "What can be kept where",
    "exports": "Sealed files as block devices",
    "events": "What happens, as it happens",
    "history": "What became of seals, and who did what",
    "integrity": "Protection information: tags of sealed files",
    "jobs": "What takes long",
    "copies": "Copies between files",
    "relocations": "Moving the blocks of a file",
    "policy": "What the service allows",
    "session": "Who asks",
    "status": "The service itself",
    "health": "For supervisors",
}

DOCUMENTED = (
    schemas.GrantBody,
    schemas.ClaimBody,
    schemas.ReturnBody,
    schemas.RenewBody,
    schemas.DowngradeBody,
    schemas.RecallBody,
    schemas.AuditBody,
    schemas.ValidationBody,
    schemas.PolicyBody,
    schemas.JobBody,
    schemas.CopyBody,
    schemas.RelocationBody,
    schemas.LoginBody,
    schemas.SessionInfo,
    schemas.VersionInfo,
    schemas.Health,
    Problem,
    seals.SealInfo,
    seals.SealPage,
    seals.ExtentPage,
    seals.MappingReport,
    seals.RecallReport,
    system.AuditReport,
    system.FilesystemList,
    system.ServiceStatus,
    events.Event,
    admin.FileInfo,
    admin.FilePage,
    admin.HolderInfo,
    admin.HolderPage,
    admin.ConflictPage,
    admin.AlarmInfo,
    admin.AlarmPage,
    admin.MeasuresReport,
    admin.PolicyReport,
    admin.JobInfo,
    admin.JobList,
    CopyTrustReport,
    ExportInfo,
    ExportList,
    ExportStopped,
    admin.CoverageReport,
    admin.ClaimInfo,
    history.SealHistory,
    history.Transitions,
    history.ConflictHistory,
    history.MapDifference,
    history.AuditTrail,
    history.Verification,
    *integrity.DOCUMENTED,
)
_SCHEMES = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A token of the API's principals file",
    },
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": COOKIE,
        "description": "The dashboard's; every change shows X-CSRF-Token besides",
    },
    "certificate": {"type": "mutualTLS", "description": "A client certificate"},
}


class Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = _document(self)
        return self.openapi_schema


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title="sealsvc",
        version=API_VERSION,
        description=DESCRIPTION,
        routes=app.routes,
        license_info={"name": "MIT", "identifier": "MIT"},
        servers=[{"url": "/"}],
        tags=[{"name": name, "description": text} for name, text in TAGS.items()],
    )
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            _drop_automatic_422(operation)
            gated = "x-sealsvc-action" in operation
            operation["security"] = [{name: []} for name in _SCHEMES] if gated else []
            operation["operationId"] = _operation_id(path, method)
    _, schemas = msgspec.json.schema_components(DOCUMENTED, ref_template=REF)
    # Instead of pydantic's: nothing here answers with its validation errors.
    document["components"] = {
        "schemas": schemas,
        "examples": examples_of_refusals(),
        "securitySchemes": _SCHEMES,
    }
    return document


def _drop_automatic_422(operation: dict[str, Any]) -> None:
    """FastAPI adds one to each route with parameters; sealsvc_api.problems turns those into 400."""
    automatic = operation["responses"].get("422", {})
    if "application/json" in automatic.get("content", {}):
        del operation["responses"]["422"]


def _operation_id(path: str, method: str) -> str:
    """Stable, and made for people: get-seals, post-seals-by-seal-renewal."""
    parts = path.removeprefix("/v1").replace("{", "by-").replace("}", "").strip("/").split("/")
    return "-".join([method, *parts])


def rendered(app: FastAPI) -> str:
    return json.dumps(app.openapi(), indent=1, sort_keys=True) + "\n"
