// Exports: sealed files that are served as block devices; and one of them in full.

import { h, table, state, link, bytes, duration, facts, paged } from "./dom.js";
import { get, remove } from "./rest.js";
import { histogram } from "./pictures.js";

const BEGIN = ["No file is exported. Begin with ", h("code", {}, "sealctl export create --type nbd NAME FILE"), "."];

const times = (found) => found?.count
  ? `${found.count}: half within ${duration(found.p50 / 1000)}, 99 % within ${duration(found.p99 / 1000)}, longest ${duration(found.longest / 1000)}`
  : "none";
const requests = (x) => Object.values(x.latency).reduce((count, found) => count + found.count, 0);
const where = (x) => `/exports/${encodeURIComponent(x.name)}`;

// What must be done where the export does not go on by itself.
function next(x) {
  if (x.state === "dead") return `Its process has ended and requests wait: sealctl export recover ${x.name}`;
  if (x.state === "paused") return `Requests are held since ${duration(x.paused_for)}${x.why ? `: ${x.why}` : ""}`;
  return x.why;
}

const stopped = (x) => `Export ${x.name} (${x.driver}) of ${x.file} is ended: process ${x.pid} gets SIGTERM, ${x.device || "its device"} is removed and its seal is returned. It is refused while the device is known to be in use.`;
const forced = (x) => `Export ${x.name} (${x.driver}) of ${x.file} is ended even while it is in use: ${x.device || "its device"} is removed, and requests of whoever uses it fail.`;

function stop(x, app, force) {
  if (!app.may("exports.stop")) return null;
  const label = force ? "Stop by force" : "Stop";
  return h("button", { type: "button", class: "danger", "aria-label": `${label} export ${x.name}`,
    onclick: () => app.asks(force ? forced(x) : stopped(x), "Stop it", `Stopped export ${x.name}.`, async () => {
      await remove(`/v1${where(x)}${force ? "?force=true" : ""}`);
      location.hash = "#/exports";
    }) }, label);
}

const seal = (x) => x.seal ? link(`/seals/${x.seal}`, h("span", { class: "id" }, x.seal)) : "–";

// In a row: the end of the id, which every command takes.
const shortSeal = (x) => x.seal ? h("a", { href: `#/seals/${x.seal}`, "aria-label": x.seal }, h("span", { class: "id" }, `…${x.seal.slice(-6)}`)) : "–";

export async function exportsList(app) {
  const { exports: found } = await get("/v1/exports");
  return [h("h1", { tabindex: "-1" }, "Exports"),
    h("p", { role: "status", id: "count" }, `${found.length} exports`),
    paged("exports", app, found, (some) => table("Exports",
      [["name"], ["type"], ["state"], ["device", "path"], ["file", "path"], ["seal", "optional"], ["requests", "number"], ["errors", "number"], ["pauses"], ["actions", "actions"]],
      some.map((x) => [link(where(x), x.name), x.driver, [state(x.state), next(x) && h("div", { class: "warn" }, next(x))],
        x.device || "–", x.file, shortSeal(x), String(requests(x)), String(x.counters?.errors ?? 0), times(x.pauses), stop(x, app, false) ?? "–"]),
      BEGIN))];
}

// Buckets of powers of two nanoseconds, as the distributions of the overview have them.
const distribution = (found) => ({ counts: found.buckets, bounds: found.buckets.slice(0, -1).map((_, n) => 2 ** n / 1e9) });

export async function exported(app, name) {
  const x = await get(`/v1/exports/${encodeURIComponent(name)}`);
  const t = x.timeouts, served = x.counters;
  return [
    h("h1", { tabindex: "-1" }, `Export ${x.name}`),
    next(x) && h("p", { class: "warn" }, next(x)),
    facts([
      ["type", x.driver], ["state", state(x.state)], ["device", x.device || "–"], ["file", x.file], ["process", String(x.pid)], ["seal", seal(x)],
      ["size", served ? bytes(served.device_size) : "–"], ["in flight", served ? String(served.in_flight) : "–"],
      ["errors", served ? String(served.errors) : "–"], ["seals so far", served ? String(served.seals) : "–"],
      ["read, written", served ? `${bytes(served.bytes.read ?? 0)}, ${bytes(served.bytes.write ?? 0)}` : "–"],
      ["pauses", times(x.pauses)],
      ["time-outs", `a recall leaves ${duration(t.recall)}; the initiator (${t.whose}) waits ${duration(t.initiator)}; requests wait ${t.patience ? duration(t.patience) : "for ever"}`],
      ...Object.entries(x.details).map(([key, value]) => [key, String(value)])]),
    h("p", {}, stop(x, app, false), " ", stop(x, app, true)),
    served && [h("h2", {}, "How long requests and pauses take"),
      h("div", { class: "columns" }, Object.entries({ ...served.latency, pauses: served.pauses }).filter(([, found]) => found.count).map(([op, found]) => {
        const { picture, label } = histogram(op, distribution(found));
        return h("figure", { class: "card" }, picture, h("figcaption", {}, label));
      })),
      requests(x) === 0 && h("p", { class: "empty" }, "No request yet.")],
  ];
}
