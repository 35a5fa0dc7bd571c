"""Print the description: `python -m api.openapi > api/openapi.json`."""

from __future__ import annotations

from api.app import build_app
from api.description import rendered
from api.settings import Settings

if __name__ == "__main__":
    print(rendered(build_app(Settings())), end="")
