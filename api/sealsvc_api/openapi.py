"""Print the description: `python -m sealsvc_api.openapi > api/openapi.json`."""

from __future__ import annotations

from sealsvc_api.app import build_app
from sealsvc_api.description import rendered
from sealsvc_api.settings import Settings

if __name__ == "__main__":
    print(rendered(build_app(Settings())), end="")
