"""OpenTelemetry: what is traced, where it goes, and that nothing is when nobody asks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from sealsvc.protocol.seals import Grant, Return, Show
from sealsvc.protocol.system import Simulate
from sealsvc_api import examples
from sealsvc_api.settings import Settings, SettingsError, traced
from sealsvc_api.spans import Spans
from tests.api.conftest import Api, write_principals
from tests.api.fake_daemon import FakeDaemon
from tests.api.running import ROOT, front, service
from tests.api.test_api_serve import serving
from tests.support.waiting import PATIENCE, until

OUTER = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{OUTER}-b7ad6b7169203331-01"
GRANT = {"path": "/srv/a", "holder": {"pid": 1}}


@pytest.fixture
def kept() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def http(
    daemon: FakeDaemon, settings: Settings, kept: InMemorySpanExporter
) -> Iterator[httpx.Client]:
    spans = Spans(SimpleSpanProcessor(kept))
    server = Api(settings, spans)
    server.ready()
    with server.client() as client:
        yield client
    server.close()
    spans.close()


def requests(kept: InMemorySpanExporter) -> list[ReadableSpan]:
    """But for those by which the fixture sees that all is well."""
    spans = kept.get_finished_spans()
    return [s for s in spans if s.kind is SpanKind.SERVER and s.name != "GET /readyz"]


def the_two(kept: InMemorySpanExporter) -> tuple[ReadableSpan, ReadableSpan]:
    """The request, and its call of the service. A request's span ends behind its answer."""
    until(lambda: len(requests(kept)) == 1)
    [request] = requests(kept)
    _, number = ids(request)
    spans = kept.get_finished_spans()
    [call] = [s for s in spans if s.parent and f"{s.parent.span_id:016x}" == number]
    return request, call


def named(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def ids(span: ReadableSpan) -> tuple[str, str]:
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def test_a_request_is_a_span_and_its_call_one_below(
    http: httpx.Client, kept: InMemorySpanExporter, daemon: FakeDaemon
) -> None:
    answer = http.post("/v1/seals", json=GRANT, headers={"X-Request-ID": "request-4711"})
    assert answer.status_code == 201
    request, call = the_two(kept)
    assert (request.name, request.kind) == ("POST /v1/seals", SpanKind.SERVER)
    told = named(request)
    assert told["http.route"] == told["url.path"] == "/v1/seals"
    assert told["http.response.status_code"] == 201
    assert told["sealsvc.principal"] == "root"
    assert told["sealsvc.request_id"] == "request-4711"
    assert request.parent is None
    assert (call.name, call.kind) == ("control grant", SpanKind.CLIENT)
    assert named(call) == {"rpc.system": "sealsvc", "rpc.method": "grant"}
    trace, number = ids(call)
    assert trace == ids(request)[0]
    assert daemon.asked(Grant)[-1].trace.startswith(f"00-{trace}-{number}-")


def test_the_trace_of_a_client_goes_on(
    http: httpx.Client, kept: InMemorySpanExporter, daemon: FakeDaemon
) -> None:
    seal = http.post("/v1/seals", json=GRANT).json()["id"]
    the_two(kept)
    kept.clear()
    http.get(f"/v1/seals/{seal}", headers={"traceparent": PARENT}).raise_for_status()
    request, _ = the_two(kept)
    assert ids(request)[0] == OUTER
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == PARENT.split("-")[2]
    assert request.name == "GET /v1/seals/{seal}"
    assert named(request)["sealsvc.seal"] == seal
    assert daemon.asked(Show)[-1].trace.startswith(f"00-{OUTER}-")


def test_what_is_no_traceparent_begins_a_trace(
    http: httpx.Client, kept: InMemorySpanExporter
) -> None:
    for wrong in ("00-0-0-01", "nonsense", f"00-{'0' * 32}-{'0' * 16}-01"):
        http.get("/v1/status", headers={"traceparent": wrong}).raise_for_status()
        assert the_two(kept)[0].parent is None
        kept.clear()


def test_a_refusal_is_an_error_of_the_call_and_not_of_the_api(
    http: httpx.Client, kept: InMemorySpanExporter
) -> None:
    assert http.get(f"/v1/seals/{'0' * 24}").status_code == 404
    request, call = the_two(kept)
    assert call.status.status_code is StatusCode.ERROR
    assert named(call)["error.type"] == "no-such-seal"
    assert request.status.status_code is StatusCode.UNSET
    assert not call.events


def test_a_service_that_is_away_is_an_error(
    http: httpx.Client, kept: InMemorySpanExporter, daemon: FakeDaemon
) -> None:
    daemon.close()
    until(lambda: http.get("/v1/status").status_code == 503)

    def failed() -> list[ReadableSpan]:
        return [s for s in requests(kept) if named(s)["http.response.status_code"] == 503]

    until(lambda: bool(failed()))
    request = failed()[-1]
    assert request.status.status_code is StatusCode.ERROR
    assert named(request)["error.type"] == "503"


def test_head_is_named_so(http: httpx.Client, kept: InMemorySpanExporter) -> None:
    http.head("/v1/status").raise_for_status()
    request, _ = the_two(kept)
    assert request.name == "HEAD /v1/status"
    assert named(request)["sealsvc.principal"] == "root"


def test_what_is_no_route_has_no_name(http: httpx.Client, kept: InMemorySpanExporter) -> None:
    assert http.get("/v1/secret/path").status_code == 404
    until(lambda: len(requests(kept)) == 1)
    [span] = requests(kept)
    assert span.name == "GET"
    assert "http.route" not in named(span)


# Who asks for traces


@pytest.mark.parametrize(
    ("told", "on"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "front"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, False),
    ],
)
def test_the_standard_variables_say_whether(told: dict[str, str], on: bool) -> None:
    assert traced(told) is on


@pytest.mark.parametrize(
    "told",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
def test_what_is_not_to_be_had_is_said(told: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="not to be had"):
        traced(told)


def started(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("missing", ["opentelemetry.sdk", "opentelemetry.exporter"])
def test_without_the_packages_it_says_what_to_install(missing: str) -> None:
    program = (
        f"import sys; sys.modules['{missing}'] = None\n"
        "from sealsvc_api.serve import main; sys.exit(main(['--port', '0']))"
    )
    done = started(program, OTEL_TRACES_EXPORTER="otlp")
    assert done.returncode == 2
    assert missing in done.stderr
    assert "pip install 'sealsvc[trace]', or unset the variables" in done.stderr
    assert done.stderr.count("\n") == 1


def test_who_does_not_trace_has_none_of_it() -> None:
    program = (
        "import sys\n"
        "from sealsvc_api import serve\n"
        "from sealsvc_api.settings import Settings\n"
        "app = serve.build_app(Settings(), serve._spans())\n"
        "print([name for name in sys.modules if 'opentelemetry.sdk' in name])\n"
        "print(type(app.state.connection).__name__, [m.cls.__name__ for m in app.user_middleware])"
    )
    done = started(program)
    assert done.stdout == "[]\nConnection ['Envelope', 'Head']\n", done.stderr


# To a collector


class Collector:
    """An OTLP/HTTP receiver."""

    def __init__(self) -> None:
        self.received: list[ExportTraceServiceRequest] = []
        methods = {"do_POST": self._taking(), "log_message": lambda *_: None}
        handler = type("Handler", (BaseHTTPRequestHandler,), methods)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.base = f"http://127.0.0.1:{self.server.server_port}"

    def _taking(self) -> Callable[[BaseHTTPRequestHandler], None]:
        def take(asked: BaseHTTPRequestHandler) -> None:
            assert asked.path == "/v1/traces"
            data = asked.rfile.read(int(asked.headers["Content-Length"]))
            self.received.append(ExportTraceServiceRequest.FromString(data))
            asked.send_response(200)
            asked.send_header("Content-Type", "application/x-protobuf")
            asked.end_headers()
            asked.wfile.write(ExportTraceServiceResponse().SerializeToString())

        return take

    def spans(self) -> dict[str, list[str]]:
        """Names by trace."""
        found: dict[str, list[str]] = {}
        for message in tuple(self.received):
            for resource in message.resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        found.setdefault(span.trace_id.hex(), []).append(span.name)
        return found

    def services(self) -> set[str]:
        return {
            attribute.value.string_value
            for message in tuple(self.received)
            for resource in message.resource_spans
            for attribute in resource.resource.attributes
            if attribute.key == "service.name"
        }


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.05,))
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@contextmanager
def tracing(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield


def test_from_the_command_line_to_the_audit_trail(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One trace: sealctl, the API, the service's trail; the collector has the API's spans."""
    token = "a token of some length"
    root = {"role": "admin", "scopes": ["/"], "holders": ["*"], "token": token}
    principals = write_principals(tmp_path / "principals.toml", root=root)
    config = tmp_path / "sealsvc.toml"
    config.write_text(f'[registry]\ndirectory = "{tmp_path}/registry"\n')
    with (
        tracing(monkeypatch, collector.base),
        service(tmp_path, "--sim", "--config", str(config)),
        front(tmp_path, principals) as there,
        there.client() as control,
    ):
        control.call(Simulate, action="create", path="/sim/a", size=1 << 20)
        body = {"path": "/sim/a", "holder": {"pid": os.getpid()}}
        with there.http(token) as http:
            made = http.post("/v1/seals", json=body, headers={"traceparent": PARENT})
            seal = made.raise_for_status().json()["id"]
            done = subprocess.run(
                [sys.executable, "-m", "sealsvc.cli.sealctl", "return", seal],
                env={
                    **os.environ,
                    "SEALSVC_URL": there.base,
                    "SEALSVC_TOKEN": token,
                    "TRACEPARENT": PARENT,
                },
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, done.stderr

            def recorded() -> list[str]:
                entries = http.get("/v1/trail").raise_for_status().json()["entries"]
                return [e["kind"] for e in entries if OUTER in str(e)]

            until(lambda: sorted(recorded()) == ["asked", "granted"])
        until(lambda: "control return" in collector.spans().get(OUTER, ()))
        wanted = {"POST /v1/seals", "control grant", "POST /v1/seals/{seal}/return"}
        assert wanted <= set(collector.spans()[OUTER])
    assert collector.services() == {"sealsvc-api"}


def test_what_is_not_sent_yet_is_at_the_end(
    daemon: FakeDaemon, principals: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--socket", str(daemon.path), "--principals", str(principals))
    monkeypatch.setenv("OTEL_SERVICE_NAME", "front")
    with tracing(monkeypatch, collector.base):
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
        with serving(*arguments) as program:
            httpx.get(f"{program.base}/healthz", timeout=PATIENCE).raise_for_status()
            assert not collector.received
            program.process.terminate()
            program.process.wait(PATIENCE)
    assert ["GET /healthz"] in collector.spans().values()
    assert collector.services() == {"front"}


def test_a_collector_that_is_away_hurts_nobody(
    daemon: FakeDaemon, principals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--socket", str(daemon.path), "--principals", str(principals))
    with tracing(monkeypatch, "http://127.0.0.1:9"), serving(*arguments) as program:
        for _ in range(20):
            httpx.get(f"{program.base}/healthz", timeout=PATIENCE).raise_for_status()
        program.process.terminate()
        program.process.wait(PATIENCE)
        assert "Traceback" not in program.said


def test_the_service_takes_no_other_word_for_a_trace(daemon: FakeDaemon) -> None:
    import msgspec

    from sealsvc.protocol.messages import decode_request, encode

    wrong = encode(Return(id=1, seal=examples.ID, trace="$(reboot)"))
    with pytest.raises(msgspec.ValidationError, match="trace"):
        decode_request(wrong)
