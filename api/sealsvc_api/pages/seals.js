// The table of seals, with search and what an operator may do; and one seal in full.

import { h, table, state, link, bytes, clock, duration, facts, keyOf, paged } from "./dom.js";
import { get, post, remove, all } from "./rest.js";

const STATES = ["", "granted", "active", "courtesy", "recalled", "fencing", "fence-failed", "orphaned", "lost"];
const filter = { search: "", state: "", kind: "" };

const over = new Set(["returned", "revoked", "expired", "refused"]);

// What comes after the deadline, by the seal's fence.
const FENCES = { none: "nothing is done to it, and what conflicts is refused", signal: "it is sent SIGTERM", kill: "it is killed" };
// Those that no recall moves: who looks after the machine must act.
const STUCK = {
  "fence-failed": (x) => `End process ${x.holder.pid} and whoever maps the file: fuser -v -m FILE`,
  fencing: (x) => `Process ${x.holder.pid} is being fenced`,
  orphaned: (x) => `Process ${x.holder.pid} is gone; end what it left, which maps the file: fuser -v -m FILE`,
  lost: (x) => `The map has changed: process ${x.holder.pid} must not use it; end it`,
};

export const warning = (x) => `${x.holder.comm} (process ${x.holder.pid}, uid ${x.holder.uid}) is asked for seal ${x.id} on ${x.path}. It has ${duration(x.grace)} to give it back; after that ${FENCES[x.fence]}.`;

function actions(seal, app) {
  if (over.has(seal.state)) return "";
  const next = STUCK[seal.state]?.(seal)
    ?? (seal.state === "recalled" && `Asked back; due in ${duration(seal.deadline_in)}, then ${FENCES[seal.fence]}`);
  const may = (action) => app.may(action) || (seal.owner === app.name && app.may("seals.change-own"));
  return [
    next ? h("span", { class: "warn next" }, next) : app.may("recall") && h("button", { type: "button", class: "danger", "aria-label": `Recall seal ${seal.id}`,
      onclick: () => app.asks(warning(seal), "Recall it", `Recalled ${seal.id}.`, () => post("/v1/recalls", { seal: seal.id, reason: "dashboard" })) }, "Recall"),
    " ",
    seal.state !== "orphaned" && may("seals.change") && h("button", { type: "button", "aria-label": `Return seal ${seal.id}`,
      onclick: () => app.does(`Returned ${seal.id}.`, () => remove(`/v1/seals/${seal.id}`)) }, "Return"),
  ];
}

export const rows = (seals, app) => table("Seals",
  [["seal"], ["state"], ["path", "path"], ["range", "number"], ["kind", "optional"], ["holder"], ["deadline", "number optional"], ["actions", "actions"]],
  seals.map((x) => [link(`/seals/${x.id}`, h("span", { class: "id" }, x.id)), state(x.state), link(`/files/${keyOf(x.file)}`, x.path),
    `${bytes(x.range.offset)} + ${bytes(x.range.length)}`, `${x.kind}, ${x.conflict}`,
    link(`/holders/${x.holder.pid}`, `${x.holder.comm} ${x.holder.pid}`), duration(x.deadline_in), actions(x, app)]),
  "No seal matches.");

export async function seals(app) {
  const found = await all("/v1/seals", filter, "seals", 5000);
  const changed = (name) => (event) => { filter[name] = event.target.value; app.refresh(); };
  const choice = (name, label, values) => h("label", {}, label, h("select", { id: `filter-${name}`, onchange: changed(name) },
    values.map((v) => h("option", { value: v, selected: v === filter[name] }, v || "any"))));
  return [
    h("h1", { tabindex: "-1" }, "Seals"),
    h("form", { class: "bar", role: "search", onsubmit: (event) => event.preventDefault() },
      h("label", {}, "Search (id, path, tag, holder)", h("input", { id: "search", type: "search", value: filter.search, oninput: changed("search") })),
      choice("state", "State", STATES), choice("kind", "Kind", ["", "shared", "exclusive"])),
    h("p", { role: "status", id: "count" }, `${found.length}${found.more ? ", and more" : ""} seals`),
    paged("seals", app, found, (some) => rows(some, app)),
  ];
}

export async function seal(app, id) {
  const x = await get(`/v1/seals/${id}`);
  // Not kept everywhere: a service may be without a registry.
  const { transitions: steps } = await get(`/v1/seals/${id}/history`).catch(() => ({ transitions: [] }));
  return [
    h("h1", { tabindex: "-1" }, "Seal ", h("span", { class: "id" }, x.id)),
    facts([
      ["state", state(x.state)], ["seqid", String(x.seqid)], ["file", link(`/files/${keyOf(x.file)}`, x.path)],
      ["range", `${x.range.offset} + ${x.range.length} (${bytes(x.range.length)})`], ["kind", `${x.kind}, ${x.iomode}; conflicts ${x.conflict}`],
      ["holder", link(`/holders/${x.holder.pid}`, `${x.holder.comm} ${x.holder.pid}, uid ${x.holder.uid}`)],
      ["asked for by", x.owner || "–"], ["fence", `${x.fence} (${x.fence_class})`], ["enforcers", x.enforcers.join(", ") || "–"],
      ["accepted risks", x.accepted_risks.join(", ") || "none"], ["extents", String(x.extents)],
      ["granted", new Date(x.granted_at * 1000).toLocaleString()], ["deadline", duration(x.deadline_in)], ["expires", duration(x.expires_in)],
      ["reason", x.reason || "–"], ["tag", x.tag || "–"]]),
    h("p", {}, actions(x, app)),
    steps.length > 0 && [h("h2", {}, "Its life"), h("ol", { class: "timeline", "aria-label": "Steps of its life" },
      steps.map((t) => h("li", {}, h("time", {}, clock(t.time)), h("span", { class: "name" }, t.after), t.reason || (t.before && `from ${t.before}`))))],
    x.ladder.length > 0 && [h("h2", {}, "Recall and fence"), h("ol", { class: "timeline" },
      x.ladder.map((l) => h("li", {}, h("time", {}, clock(l.time)), h("span", { class: "name" }, l.step), l.detail)))],
  ];
}
