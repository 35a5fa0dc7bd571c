"""The daemon and the file of the service's tests."""

from __future__ import annotations

from tests.service.conftest import client as client
from tests.service.conftest import file as file
from tests.service.conftest import root as root
from tests.service.conftest import socket as socket
