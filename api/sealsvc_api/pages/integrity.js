// Integrity: files with tags, what was found wrong with them, and looking again.

import { h, s, table, state, link, bytes, clock, facts, paged } from "./dom.js";
import { get, post, Refused } from "./rest.js";

const BEGIN = ["No file has tags. Begin with ", h("code", {}, "sealctl pi attach SEAL --profile crc32c-4k"), ", of a seal that you hold."];
const KEPT = 4096, SHOWN = 200; // errors that this page and the service keep; marks in one picture
const WORST = { corrupt: "bad", unreadable: "bad", changed: "warn", suspect: "warn", unstable: "warn", open: "warn" };

const counts = (blocks) => Object.entries(blocks).filter(([, n]) => n).map(([name, n], i) => [i > 0 && ", ",
  h("span", { class: WORST[name] ?? "" }, `${n} ${name}`)]);
const range = (r) => `${bytes(r.offset)} + ${bytes(r.length)}`;
const reports = new Map(); // what the last verification from here said, by attachment

// The queue of errors, followed from where it was read last. A service that lost its queue begins anew.
const queue = { errors: [], after: 0, lost: 0, whose: null };

async function follow(app) {
  if (queue.whose !== app.name) Object.assign(queue, { errors: [], after: 0, lost: 0, whose: app.name });
  for (;;) {
    const page = await get("/v1/integrity/errors", { after: queue.after || undefined, limit: 1000 });
    if (page.next < queue.after) Object.assign(queue, { errors: [], after: 0, lost: 0 });
    else if (page.next === queue.after) break;
    else {
      queue.errors.unshift(...page.errors.reverse());
      queue.errors.length = Math.min(queue.errors.length, KEPT);
      queue.lost += page.lost;
      queue.after = page.next;
    }
  }
  return queue.errors;
}

async function attachments() {
  const found = [];
  let after;
  do {
    const page = await get("/v1/integrity/attachments", { after });
    found.push(...page.attachments);
    after = page.next;
  } while (after && found.length < 5000);
  found.more = Boolean(after);
  return found;
}

function scrubbed({ scrub: x, path }) {
  if (!x) return "never";
  if (x.running) return [h("progress", { max: x.total || 1, value: x.done, "aria-label": `Progress of the scrub of ${path}` }), ` ${bytes(x.done)} of ${bytes(x.total)}`];
  const how = x.done >= x.total ? "all of it" : `stopped at ${bytes(x.done)} of ${bytes(x.total)}`;
  return [`${new Date(x.started * 1000).toLocaleString()}: ${how}, `, h("span", { class: x.errors ? "bad" : "good" }, `${x.errors} errors`)];
}

function actions(x, app) {
  if (!app.may("seals.change")) return "–";
  const at = `/v1/integrity/attachments/${x.id}`;
  const button = (label, done, work) => h("button", { type: "button", "aria-label": `${label} ${x.path} (${x.profile})`, onclick: () => app.does(done, work) }, label);
  return [
    x.scrub?.running
      ? button("Stop the scrub of", "The scrub is stopped; the next goes on from there.", () => post(`${at}/scrub`, { stop: true }))
      : button("Scrub", "The scrub has begun.", () => post(`${at}/scrub`)), " ",
    button("Verify", () => `${x.path}: ${reports.get(x.id).verdict}.`, async () => {
      reports.set(x.id, { ...await post(`${at}/verification`), time: Date.now() / 1000 });
    })];
}

const place = (e) => e.length ? `block ${e.block}: ${e.offset} + ${e.length}` : "–";
const evidence = (e) => e.expected || e.found
  ? [e.field && `${e.field}: `, "expected ", h("code", {}, e.expected || "?"), ", found ", h("code", {}, e.found || "?")]
  : e.errno ? `${e.field} (errno ${e.errno})` : e.field || "–";
const times = (e) => e.last_good === null ? "never seen right" : `last right ${new Date(e.last_good * 1000).toLocaleString()}`;

const errorRows = (errors, empty) => table("What was found, the newest first",
  [["number", "number"], ["found"], ["kind"], ["file", "path"], ["where"], ["evidence", "path"], ["on the device", "number optional"], ["seal", "optional"], ["before"]],
  errors.map((e) => [String(e.seq), `${clock(e.time)} at ${e.at}${e.checker && ` by the ${e.checker}`}`, h("span", { class: WORST[e.kind] ?? "bad" }, e.kind + (e.more ? `, and ${e.more} more` : "")),
    link(`/integrity/${e.attachment}`, e.path), place(e), evidence(e), e.physical === null ? "–" : String(e.physical),
    e.seal ? link(`/seals/${e.seal}`, h("span", { class: "id" }, `…${e.seal.slice(-6)}`)) : "–", times(e)]), empty);

const lost = () => queue.lost > 0 && h("p", { class: "warn" }, `${queue.lost} earlier errors are not in the queue any more; the audit trail has them: sealctl trail.`);

export async function integrity(app) {
  let found, errors;
  try {
    [found, errors] = await Promise.all([attachments(), follow(app)]);
  } catch (error) {
    if (!(error instanceof Refused) || error.code !== "unknown-operation") throw error;
    return [h("h1", { tabindex: "-1" }, "Integrity"), h("p", { class: "empty" }, "This service keeps no tags: it runs on a simulated system, or their disk did not answer when it was started.")];
  }
  return [h("h1", { tabindex: "-1" }, "Integrity"),
    h("p", { role: "status", id: "count" }, `${found.length}${found.more ? ", and more" : ""} attachments, ${errors.length} errors`),
    paged("attachments", app, found, (some) => table("Files with tags",
      [["file", "path"], ["profile"], ["covers", "number"], ["blocks"], ["last scrub"], ["actions", "actions"]],
      some.map((x) => [link(`/integrity/${x.id}`, x.path), x.profile, range(x.range), counts(x.blocks), scrubbed(x), actions(x, app)]), BEGIN)),
    h("h2", {}, "Errors"), lost(),
    paged("errors", app, errors, (some) => errorRows(some, "Nothing was found wrong."))];
}

// Where in the attachment's range something was found.
function blockMap(x, errors) {
  const W = 900, H = 60;
  const at = (offset) => ((offset - x.range.offset) / (x.range.length || 1)) * W;
  const shown = errors.filter((e) => e.length).slice(0, SHOWN);
  const label = shown.length ? `Blocks of the attachment: something was found in ${shown.length} places` : "Blocks of the attachment: nothing was found";
  return s("svg", { class: "picture", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label },
    s("rect", { class: "sealed", x: 0, y: 10, width: W, height: 20 }),
    shown.map((e) => s("rect", { class: "wrong", x: Math.min(at(e.offset), W - 3), y: 6, width: Math.max(3, at(e.offset + e.length) - at(e.offset)), height: 28 },
      s("title", {}, `${e.kind}: ${place(e)}`))),
    s("text", { x: 2, y: H - 8 }, bytes(x.range.offset)),
    s("text", { x: W - 2, y: H - 8, "text-anchor": "end" }, bytes(x.range.offset + x.range.length)));
}

export async function attachment(app, id) {
  const [x, every] = await Promise.all([get(`/v1/integrity/attachments/${id}`), follow(app)]);
  const errors = every.filter((e) => e.attachment === id);
  const said = reports.get(id);
  return [
    h("h1", { tabindex: "-1" }, x.path),
    facts([["profile", x.profile], ["covers", `${range(x.range)}${x.uncovered ? `; ${bytes(x.uncovered)} after it are no whole block` : ""}`],
      ["blocks", counts(x.blocks)], ["writes", x.writes === "any" ? "any: every block is open while a writable seal lives" : "declared by the holder"],
      ["checked at a grant", x.at_grant ? "yes" : "no"], ["last scrub", scrubbed(x)], ["attachment", h("span", { class: "id" }, x.id)]]),
    x.blocks.suspect > 0 && h("p", { class: "warn" }, "A writer ended in the middle of suspect blocks. If what they hold now is good: ", h("code", {}, `sealctl pi bless ${x.id}`), "."),
    h("p", {}, actions(x, app)),
    said && h("p", { id: "report" }, `Verified ${clock(said.time)} (read ${said.read}): `, state(said.verdict), " ", counts(said.blocks)),
    h("h2", {}, "Blocks"), blockMap(x, errors),
    h("h2", {}, "Errors"), lost(),
    paged("errors of the file", app, errors, (some) => errorRows(some, "Nothing was found wrong.")),
  ];
}
