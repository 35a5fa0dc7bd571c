// Drawings: extent maps and distributions. Each has a text beside it that says the same.

import { s, bytes, duration } from "./dom.js";

const LEFT = 80, RIGHT = 20;

// `recorded` and `present` are extents; where they differ the present one is drawn as drift.
export function extentMap(recorded, present, seals) {
  // Narrower on a phone, where what is written would be too small to read.
  const W = matchMedia("(max-width: 640px)").matches ? 420 : 900, H = 260, TOP = 40, BOTTOM = 30;
  const every = [...recorded, ...present];
  const start = Math.min(...every.map((e) => e.logical), ...seals.map((x) => x.effective.offset));
  const end = Math.max(...every.map((e) => e.logical + e.length), ...seals.map((x) => x.effective.offset + x.effective.length));
  const low = Math.min(...every.map((e) => e.physical)), high = Math.max(...every.map((e) => e.physical + e.length));
  const x = (at) => LEFT + ((at - start) / (end - start || 1)) * (W - LEFT - RIGHT);
  const y = (at) => H - BOTTOM - ((at - low) / (high - low || 1)) * (H - TOP - BOTTOM);
  const known = new Set(recorded.map(signature));
  const drifted = present.filter((e) => !known.has(signature(e)));
  const segment = (e, kind) => s("line", {
    class: `extent ${kind}`, x1: x(e.logical), x2: Math.max(x(e.logical + e.length), x(e.logical) + 2),
    y1: y(e.physical), y2: y(e.physical + e.length),
  }, s("title", {}, `${bytes(e.length)} at ${e.logical}, on the device at ${e.physical}${e.flags.length ? `: ${e.flags.join(", ")}` : ""}`));
  const picture = s("svg", { class: "picture", viewBox: `0 0 ${W} ${H}`, role: "img",
    "aria-label": `Extent map: ${recorded.length} extents, ${seals.length} sealed ranges, ${drifted.length} extents drifted` },
    s("line", { class: "axis", x1: LEFT, x2: W - RIGHT, y1: H - BOTTOM, y2: H - BOTTOM }),
    s("line", { class: "axis", x1: LEFT, x2: LEFT, y1: TOP, y2: H - BOTTOM }),
    s("text", { x: LEFT, y: H - 10 }, `file offset ${bytes(start)}`),
    s("text", { x: W - RIGHT, y: H - 10, "text-anchor": "end" }, bytes(end)),
    s("text", { x: LEFT - 6, y: H - BOTTOM, "text-anchor": "end" }, bytes(low)),
    s("text", { x: LEFT - 6, y: TOP + 8, "text-anchor": "end" }, bytes(high)),
    s("text", { x: LEFT - 6, y: 22, "text-anchor": "end" }, "sealed"),
    seals.map((seal) => s("rect", { class: `sealed ${seal.state}`, x: x(seal.effective.offset), y: 12,
      width: Math.max(2, x(seal.effective.offset + seal.effective.length) - x(seal.effective.offset)), height: 12 },
      s("title", {}, `seal ${seal.id}, ${seal.state}`))),
    recorded.map((e, i) => segment(e, i % 2 ? "odd" : "")),
    drifted.map((e) => segment(e, "drift")));
  return { picture, drifted };
}

const signature = (e) => `${e.logical}:${e.physical}:${e.length}`;

export function histogram(title, found) {
  const total = found.counts.reduce((a, b) => a + b, 0);
  // Only the bounds between which something was seen, and one on either side: bars wide enough to read.
  const seen = found.counts.flatMap((count, i) => count ? [i] : []);
  const from = Math.max(0, (seen[0] ?? 0) - 1), to = Math.min(found.counts.length, (seen.at(-1) ?? 4) + 2);
  const counts = found.counts.slice(from, to), bounds = found.bounds.slice(from, to);
  const W = 300, H = 130, TOP = 18, BOTTOM = 24;
  const high = Math.max(1, ...counts), step = W / counts.length, every = Math.ceil(counts.length / 5);
  const label = total
    ? `${title}: ${total} in all, half within ${duration(quantile(found, 0.5))}, 99 % within ${duration(quantile(found, 0.99))}`
    : `${title}: none yet`;
  const picture = s("svg", { class: "picture", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label },
    counts.map((count, i) => [s("rect", { class: "bar", x: i * step + 2, width: step - 4,
      y: H - BOTTOM - (count / high) * (H - TOP - BOTTOM), height: (count / high) * (H - TOP - BOTTOM) },
      s("title", {}, `${count} within ${i < bounds.length ? duration(bounds[i]) : "more"}`)),
    count > 0 && s("text", { x: (i + 0.5) * step, y: H - BOTTOM - (count / high) * (H - TOP - BOTTOM) - 4, "text-anchor": "middle" }, String(count))]),
    bounds.map((bound, i) => i % every === 0 && s("text", { x: (i + 0.5) * step, y: H - 8, "text-anchor": "middle" }, `≤ ${duration(bound)}`)));
  return { picture, label };
}

function quantile(found, share) {
  const wanted = found.counts.reduce((a, b) => a + b, 0) * share;
  let sum = 0;
  for (const [i, count] of found.counts.entries()) {
    sum += count;
    if (sum >= wanted) return found.bounds[i] ?? Infinity;
  }
  return Infinity;
}
