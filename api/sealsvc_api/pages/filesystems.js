// File systems: what can be kept there, as declared and as the doctor measured it.

import { h, table, facts, bytes } from "./dom.js";
import { get, post } from "./rest.js";

async function rowsOf(path) {
  const report = await get("/v1/coverage", { path });
  const rows = [...report.rows];
  for (let next = report.next; next;) {
    const page = await get("/v1/coverage", { path, start: next });
    rows.push(...page.rows);
    next = page.next;
  }
  return { ...report, rows };
}

const COLUMNS = ["exclusive wait", "exclusive refuse", "shared wait", "shared refuse"];

function heatMap({ rows, measured_at }) {
  if (!rows.length) return h("p", { class: "empty" }, "Not measured in this run of the service: let the doctor look.");
  const operations = new Map();
  for (const row of rows) {
    const cells = operations.get(row.operation) ?? {};
    cells[`${row.kind} ${row.conflict}`] = row;
    operations.set(row.operation, cells);
  }
  const caption = `Measured ${new Date(measured_at * 1000).toLocaleString()}: what each operation meets at a seal`;
  return table(caption, [["operation"], ...COLUMNS.map((name) => [name])],
    [...operations].map(([name, cells]) => [name, ...COLUMNS.map((column) => {
      const cell = cells[column];
      return h("td", { class: `heat ${cell?.result ?? ""}`, "data-name": column, title: cell ? `${cell.enforcer} ${cell.errno ?? ""} ${cell.note}` : "" },
        cell ? cell.result.replace("not-applicable", "n/a").replace("not-covered", "NOT COVERED") : "");
    })]));
}

export async function filesystems(app) {
  const [{ filesystems: found }, { jobs }] = await Promise.all([
    get("/v1/filesystems"), app.may("jobs.read") ? get("/v1/jobs") : { jobs: [] }]);
  const coverage = await Promise.all(found.map((f) => rowsOf(f.mount)));
  const running = jobs.find((job) => job.kind === "doctor" && job.state === "running");
  return [h("h1", { tabindex: "-1" }, "File systems"),
    running && h("p", { role: "status" }, h("progress", { max: running.total || 1, value: running.done, "aria-label": "Progress of the doctor" }), ` ${running.step}`),
    found.map((f, i) => h("section", { "aria-label": f.mount },
      h("h2", {}, f.mount),
      facts([["type", f.type], ["device", f.device], ["block size", String(f.block_size)], ["DAX", f.dax ? "yes" : "no"],
        ["persistent memory", f.pmem ? `${bytes(f.pmem.length)} at 0x${f.pmem.start.toString(16)}` : "no"],
        ["shared extents", f.reflink ? "possible" : "no"], ["enforcers", f.enforcers.join(", ") || "–"],
        ["seals", String(f.seals)], ["can be kept", f.supported ? "yes" : f.reason],
        ["gaps", f.gaps.map((g) => `${g.risk} (${g.kinds.join(", ")})`).join("; ") || "none"]]),
      app.may("jobs.run") && h("p", {}, h("button", { type: "button", disabled: Boolean(running),
        onclick: () => app.does("The doctor has begun.", () => post("/v1/jobs", { kind: "doctor", path: f.mount })) }, "Measure the coverage here")),
      heatMap(coverage[i])))];
}
