// Files and holders: what is sealed, and by whom. A file's page draws its extent map.

import { h, table, link, bytes, facts } from "./dom.js";
import { get, all, post } from "./rest.js";
import { extentMap } from "./pictures.js";
import { rows } from "./seals.js";

const counts = (states) => Object.entries(states).map(([name, n]) => `${n} ${name}`).join(", ");

export async function files() {
  const found = await all("/v1/files", {}, "files", 1000);
  return [h("h1", { tabindex: "-1" }, "Files"),
    table("Sealed files", [["path", "path"], ["file system", "optional"], ["seals", "number"], ["sealed", "number"], ["states"]],
      found.map((f) => [link(`/files/${f.key}`, f.path), `${f.filesystem} ${f.mount}`, String(f.seals), bytes(f.sealed_bytes), counts(f.states)]),
      "No file is sealed.")];
}

async function extents(seal, now) {
  const found = [];
  let start = 0;
  do {
    const page = await get(`/v1/seals/${seal.id}/extents`, { start, limit: 400, now: now || undefined });
    found.push(...page.extents);
    start = page.next;
  } while (start && found.length < 4000);
  return found;
}

export async function file(app, key) {
  const found = await get(`/v1/files/${key}`);
  const own = await all("/v1/seals", { path: found.path }, "seals", 200);
  const drawn = own.slice(0, 20);
  const recorded = (await Promise.all(drawn.map((x) => extents(x, false)))).flat();
  const now = await Promise.allSettled(drawn.map((x) => extents(x, true)));
  const present = now.filter((r) => r.status === "fulfilled").flatMap((r) => r.value);
  const unreadable = now.filter((r) => r.status === "rejected").length;
  const map = recorded.length ? extentMap(recorded, present, drawn) : null;
  const driftedAt = new Set((map?.drifted ?? []).map((e) => e.logical));
  return [
    h("h1", { tabindex: "-1" }, found.path),
    facts([["file system", `${found.filesystem} at ${found.mount}`], ["inode", `${found.file.inode}, generation ${found.file.generation}`],
      ["seals", `${found.seals}, ${bytes(found.sealed_bytes)} sealed`]]),
    h("h2", {}, "Extent map"),
    map && map.drifted.length > 0 && h("p", { class: "bad", id: "drift" }, `Not where they were sealed: ${map.drifted.length} of ${recorded.length} extents.`),
    unreadable > 0 && h("p", { class: "warn" }, `The present map of ${unreadable} seals cannot be read.`),
    map?.picture,
    app.may("recall") && h("p", {}, h("button", { type: "button", class: "danger",
      onclick: () => app.does("Recalled all seals of the file.", () => post("/v1/recalls", { path: found.path, reason: "dashboard" })) }, "Recall every seal of this file")),
    h("h2", {}, "Seals"), rows(own, app),
    h("h2", {}, "Extents"),
    table("Recorded extents", [["logical", "number"], ["physical", "number"], ["length", "number"], ["flags"], ["now"]],
      recorded.slice(0, 500).map((e) => [String(e.logical), String(e.physical), bytes(e.length), e.flags.join(", ") || "–",
        driftedAt.has(e.logical) ? h("span", { class: "bad" }, "drifted") : h("span", { class: "good" }, "as sealed")])),
  ];
}

export async function holders() {
  const found = await all("/v1/holders", {}, "holders", 1000);
  return [h("h1", { tabindex: "-1" }, "Holders"),
    table("Processes that hold seals", [["pid", "number"], ["name"], ["user", "number"], ["seals", "number"], ["sealed", "number"], ["states"], ["process"]],
      found.map((x) => [link(`/holders/${x.pid}`, String(x.pid)), x.comm, String(x.uid), String(x.seals), bytes(x.sealed_bytes), counts(x.states),
        h("span", { class: x.alive ? "good" : "bad" }, x.alive ? "alive" : "gone")]), "Nobody holds a seal.")];
}

export async function holder(app, pid) {
  const found = await get(`/v1/holders/${pid}`);
  const own = await all("/v1/seals", { pid }, "seals", 400);
  return [h("h1", { tabindex: "-1" }, `Holder ${found.comm} ${found.pid}`),
    facts([["process", found.alive ? "alive" : "gone"], ["user", String(found.uid)], ["started", `${found.start_time} ticks after boot`],
      ["seals", `${found.seals}, ${bytes(found.sealed_bytes)}`], ["states", counts(found.states)]]),
    app.may("recall.wide") && h("p", {}, h("button", { type: "button", class: "danger",
      onclick: () => app.does("Recalled all seals of the holder.", () => post("/v1/recalls", { pid: found.pid, reason: "dashboard" })) }, "Recall every seal of this holder")),
    h("h2", {}, "Seals"), rows(own, app)];
}
