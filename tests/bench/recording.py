"""What the registry costs a grant and a return: the same service with it and without it."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from sealsvc.client import Client
from sealsvc.protocol.seals import Return
from tests.bench.figures import Bench, Figure, alternate
from tests.support.service import RISKS, serving


def registry(bench: Bench, rounds: int) -> Figure:
    with ExitStack() as stack:

        def service(enabled: str) -> Client:
            made = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sealsvc-bench-")))
            more = f"{RISKS}[registry]\nenabled = {enabled}\n"
            socket = stack.enter_context(serving(made, [bench.root], more))
            return stack.enter_context(Client(socket))

        def cycles(client: Client, path: Path) -> list[float]:
            samples = []
            for _ in range(100):
                fd = os.open(path, os.O_RDWR)
                begun = time.perf_counter()
                reply = client.grant(fds=[fd], kind="shared")
                os.close(fd)
                client.call(Return, seal=reply.seal.id)
                samples.append((time.perf_counter() - begun) * 1e6)
            time.sleep(0.05)  # what is written behind it is not of the other's time
            return samples

        on, off = service("true"), service("false")
        # Of one file the other service's gate would hear, too.
        own, other = bench.file("recorded"), bench.file("unrecorded")
        return alternate(
            "registry-on", "the same with registry.enabled = false", 1.05,
            lambda: cycles(on, own), lambda: cycles(off, other), 3 * rounds,
        )  # fmt: skip
