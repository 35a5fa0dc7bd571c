// What happened, newest first.

import { h, clock, link } from "./dom.js";
import { seen } from "./stream.js";

let only = "";

function told(event) {
  const d = event.data;
  switch (event.name) {
    case "state": return `${d.from} → ${d.to}${d.reason ? ` (${d.reason})` : ""}`;
    case "conflict": return `${d.operation.name} by ${d.operation.comm} ${d.operation.pid}: ${d.verdict}`;
    case "conflict-ended": return `${d.operation.name} waited ${d.waited.toFixed(3)} s`;
    case "job": return `${d.job.kind}: ${d.job.state} ${d.job.done}/${d.job.total}`;
    case "integrity": return `${d.error.kind}: block ${d.error.block} of ${d.error.path}`;
    default: return d.reason ?? d.message ?? "";
  }
}

export async function timeline(app) {
  const names = ["", ...new Set(seen.map((e) => e.name))];
  const shown = seen.filter((e) => !only || e.name === only).slice(0, 200);
  return [h("h1", { tabindex: "-1" }, "Events"),
    h("form", { class: "bar", onsubmit: (event) => event.preventDefault() }, h("label", {}, "Only",
      h("select", { id: "only", onchange: (event) => { only = event.target.value; app.refresh(); } },
        names.map((n) => h("option", { value: n, selected: n === only }, n || "everything"))))),
    shown.length ? h("ol", { class: "timeline scroll", tabindex: "0", "aria-label": "Events, the newest first" }, shown.map((e) => h("li", {},
      h("time", { datetime: new Date(e.time * 1000).toISOString() }, clock(e.time)), h("span", { class: "name" }, e.name),
      e.seal && [link(`/seals/${e.seal}`, h("span", { class: "id" }, e.seal)), " "], e.path && `${e.path} `, told(e))))
      : h("p", { class: "empty" }, "Nothing yet.")];
}
