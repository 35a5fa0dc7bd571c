"""OpenTelemetry traces: FastAPI makes a span of each request; here is what we add to it, the span
of each call over the control socket, and where they all go.

Imported only where traces are asked for: the packages are an extra (`sealsvc[trace]`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi.telemetry import TelemetryConfig
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sealsvc.client import Reply
from sealsvc.core.errors import Refusal
from sealsvc.protocol.messages import AnyRequest
from sealsvc_api.connection import PROMPT, Backoff, Connection, Session
from sealsvc_api.envelope import REQUEST_ID, TRACE

_LAST_WORDS = 3.0  # seconds
_W3C = TraceContextTextMapPropagator()


class Spans:
    """Where they go, and how much of them is kept, say the standard variables."""

    def __init__(self, processor: SpanProcessor) -> None:
        # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes before.
        resource = Resource.create({SERVICE_NAME: "sealsvc-api"})
        self.provider = TracerProvider(
            resource=resource.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        self.provider.add_span_processor(processor)
        self._tracer = self.provider.get_tracer("sealsvc.api")

    @property
    def telemetry(self) -> TelemetryConfig:
        """For FastAPI: spans of requests, and nothing else."""
        return {"tracing": True, "tracer_provider": self.provider, "operation_spans": False}

    def install(self, app: Starlette) -> None:
        app.add_middleware(_Named)

    def connection(self, path: str, session: Session, backoff: Backoff) -> Connection:
        return _TracedConnection(path, session, backoff, self)

    @contextmanager
    def call(self, kind: type[AnyRequest]) -> Iterator[str]:
        """A span around a call over the control socket; the traceparent to send along."""
        name = str(kind.__struct_config__.tag)
        with self._tracer.start_as_current_span(
            f"control {name}",
            kind=SpanKind.CLIENT,
            attributes={"rpc.system": "sealsvc", "rpc.method": name},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            carrier: dict[str, str] = {}
            _W3C.inject(carrier)
            try:
                yield carrier.get("traceparent", "")
            except Refusal as refusal:
                # The code alone: the words may name files.
                span.set_attribute("error.type", refusal.code)
                span.set_status(StatusCode.ERROR)
                raise

    def close(self) -> None:
        """What is not sent yet is, if the collector takes it soon."""
        closing = threading.Thread(target=self.provider.shutdown, daemon=True)
        closing.start()
        closing.join(_LAST_WORDS)


def over_http() -> Spans:
    return Spans(BatchSpanProcessor(OTLPSpanExporter()))


class _TracedConnection(Connection):
    def __init__(self, path: str, session: Session, backoff: Backoff, spans: Spans) -> None:
        super().__init__(path, session, backoff)
        self._spans = spans

    async def call(
        self, kind: type[AnyRequest], patience: float = PROMPT, /, **fields: Any
    ) -> Reply:
        with self._spans.call(kind) as trace:
            return await super().call(kind, patience, trace=trace, **fields)


class _Named:
    """ASGI middleware, inside the Envelope: what only we know of a request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        span = get_current_span()
        span.set_attribute("sealsvc.request_id", REQUEST_ID.get())
        scope["state"][TRACE] = f"{span.get_span_context().trace_id:032x}"

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                _name(span, scope)
            await send(message)

        await self.app(scope, receive, sending)


def _name(span: Span, scope: Scope) -> None:
    if caller := scope["state"].get("caller"):
        span.set_attribute("sealsvc.principal", caller.name)
    if seal := scope.get("path_params", {}).get("seal"):
        span.set_attribute("sealsvc.seal", seal)
