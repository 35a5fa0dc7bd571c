// The overview: what is there, what is asked back, what waits, what went wrong, how long it takes.

import { h, table, state, link, clock, duration, keyOf } from "./dom.js";
import { all, get, post } from "./rest.js";
import { histogram } from "./pictures.js";

const card = (name, value, kind) => h("div", { class: `card ${kind ?? ""}` }, h("dt", {}, name), h("dd", {}, String(value)));

// When a seal that is waited for lets go, as far as that is known.
const THEN = { none: "then it is refused (EBUSY)", signal: "then the holder gets SIGTERM", kill: "then the holder is killed" };
const until = (x) => x.deadline_in === null || x.deadline_in <= 0 ? `${x.state}: its holder must act` : `in ${duration(x.deadline_in)}, ${THEN[x.fence]}`;

// What a principal with scopes may not ask for, because it concerns the whole service, is left out.
export async function overview(app) {
  const [status, recalls, waiting, { alarms, open }, measures] = await Promise.all([
    get("/v1/status"), all("/v1/recalls", {}, "seals", 200), get("/v1/conflicts"), get("/v1/alarms"),
    app.may("metrics") ? get("/v1/measures") : null]);
  const count = (name) => measures.counters.events?.[name] ?? 0;
  const states = Object.entries(status.seals);
  const blockers = new Map(recalls.map((x) => [x.id, x]));
  return [
    h("h1", { tabindex: "-1" }, "Overview"),
    h("dl", { class: "cards", id: "cards" },
      card("live seals", states.reduce((sum, [, n]) => sum + n, 0)),
      states.filter(([, n]) => n).map(([name, n]) => card(name, n, ["lost", "fence-failed"].includes(name) ? "bad" : "")),
      card("operations waiting", status.conflicts_waiting),
      measures && [
        card("grants", status.counters.grants ?? 0),
        card("drift", count("drift"), count("drift") ? "bad" : "")],
      card("open alarms", open, open ? "bad" : ""),
      card("up", duration(status.uptime))),
    h("h2", {}, "Waiting"),
    table("Operations that wait", [["operation"], ["process"], ["path", "path"], ["since"], ["for"], ["on"], ["until"]],
      waiting.conflicts.map((c) => {
        const on = c.seals.map((id) => blockers.get(id)).filter(Boolean);
        return [c.operation.name, `${c.operation.comm} ${c.operation.pid}`, c.path, clock(Date.now() / 1000 - c.waits), duration(c.waits),
          on.length ? on.map((x) => h("div", {}, link(`/seals/${x.id}`, x.tag || `…${x.id.slice(-6)}`), " of ", link(`/holders/${x.holder.pid}`, `${x.holder.comm} ${x.holder.pid}`))) : `${c.seals.length} seals`,
          on.length ? on.map((x) => h("div", {}, until(x))) : "–"];
      }),
      "Nothing waits for a seal."),
    waiting.total > waiting.conflicts.length && h("p", { class: "warn" }, `${waiting.total} operations wait; those that have waited longest are shown.`),
    h("h2", {}, "Asked back"),
    table("Recalls in flight", [["seal"], ["state"], ["path", "path"], ["deadline", "number"], ["reason", "optional"]],
      recalls.map((x) => [link(`/seals/${x.id}`, h("span", { class: "id" }, x.id)), state(x.state),
        link(`/files/${keyOf(x.file)}`, x.path), x.deadline_in === null ? "–" : `in ${duration(x.deadline_in)}`, x.reason]),
      "No seal is being recalled."),
    h("h2", {}, "Alarms"),
    table("Alarms", [["last"], ["times", "number"], ["why", "path"], ["path", "path optional"], ["seen by"]],
      alarms.slice(0, 20).map((a) => [clock(a.last), String(a.count), a.reason, a.path, a.acknowledged_by ||
        (app.may("alarms.acknowledge") ? h("button", { type: "button", "aria-label": `Acknowledge: ${a.reason}`,
          onclick: () => app.does("The alarm is acknowledged.", () => post(`/v1/alarms/${a.id}/acknowledgement`, {})) }, "Acknowledge") : "–")]),
      "No alarm since this machine was started."),
    h("h2", {}, "Enforcers"),
    table("Enforcers", [["name"], ["available"], ["reason", "path"]],
      status.enforcers.map((e) => [e.name, h("span", { class: e.available ? "good" : "warn" }, e.available ? "yes" : "no"), e.reason])),
    measures && h("h2", {}, "How long it takes"),
    measures && h("div", { class: "columns" }, Object.entries(measures.latencies).map(([name, found]) => {
      const { picture, label } = histogram(name, found);
      return h("figure", { class: "card" }, picture, h("figcaption", {}, label));
    })),
  ];
}
