// Draws sections on a canvas. Any number of clips costs one pass over them: per row and pixel, the highest score is kept.

import { classColor, colors } from "./theme.js";
import { clock } from "./words.js";

export const AXIS = 20, BAND = 18, DIFFERENCE = 14, GAP = 6, ROW = 24, LANE = 22;
const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];

// Where things stand, in pixels from the top.
export function layout(isCompared, num_rows) {
  const rows = AXIS + (isCompared ? 2 * BAND + DIFFERENCE + GAP : 0);
  return { rows, height: rows + num_rows * ROW + LANE };
}

// plan: { section, rows: labels, isCompared, view: [from, to], recognised_s, duration_s }; the context is width pixels wide.
export function draw(g, width, plan) {
  const places = layout(plan.isCompared, plan.rows.length);
  const scale = width / (plan.view[1] - plan.view[0]);
  const toX = (t) => (t - plan.view[0]) * scale;
  drawPending(g, toX, places, plan);
  drawAxis(g, width, places.height - LANE, plan.view, toX);
  const columns = Math.max(Math.ceil(width), 1), marks = rasterise(columns, toX, plan);
  if (plan.isCompared) drawBands(g, columns, marks, plan.section);
  plan.rows.forEach((label, row) => drawRow(g, columns, marks, row, label, places.rows + row * ROW));
}

function rasterise(columns, toX, { section, rows, isCompared, view }) {
  const place = new Int32Array(section.labels.length).fill(-1);
  rows.forEach((label, row) => { place[label] = row; });
  const marks = {
    level: new Float32Array(rows.length * columns),
    leads: new Uint8Array(rows.length * columns), // it was the best class
    withMemory: new Int32Array(columns).fill(-1), // best classes
    without: new Int32Array(columns).fill(-1),
    differs: new Uint8Array(columns),
  };
  for (let i = 0; i < section.top.length; i++) {
    if (section.to[i] < view[0] || section.from[i] > view[1]) continue;
    const first = Math.max(Math.round(toX(section.from[i])), 0);
    const last = Math.min(Math.max(Math.round(toX(section.to[i])), first + 1), columns);
    const top = section.top[i], without = section.without[i];
    for (let k = 0; k < top.length; k += 2) {
      const row = place[top[k]];
      if (row < 0) continue;
      for (let x = row * columns + first; x < row * columns + last; x++) {
        if (top[k + 1] > marks.level[x]) marks.level[x] = top[k + 1];
        if (k === 0) marks.leads[x] = 1;
      }
    }
    if (!isCompared || !without || !top.length || first >= last) continue;
    marks.withMemory.fill(top[0], first, last);
    marks.without.fill(without[0], first, last);
    if (top[0] !== without[0]) marks.differs.fill(1, first, last); // of several in a pixel, one that differs is enough
  }
  return marks;
}

// Calls show(from, to, index) for every stretch of pixels in which `same` says that neighbours look alike.
function stretches(columns, same, show) {
  for (let x = 0; x < columns;) {
    let end = x + 1;
    while (end < columns && same(x, end)) end++;
    show(x, end);
    x = end;
  }
}

function drawRow(g, columns, { level, leads }, row, label, y) {
  const at = row * columns;
  const same = (x, other) => level[at + x] === level[at + other] && leads[at + x] === leads[at + other];
  stretches(columns, same, (x, end) => {
    const score = level[at + x];
    if (score <= 0) return;
    g.fillStyle = classColor(label, (leads[at + x] ? 0.4 + 0.6 * score : 0.6 * score).toFixed(3));
    const inset = leads[at + x] ? 3 : 7;
    g.fillRect(x, y + inset, end - x, ROW - 2 * inset);
  });
}

function drawBands(g, columns, marks) {
  [marks.withMemory, marks.without].forEach((best, band) => {
    stretches(columns, (x, other) => best[x] === best[other], (x, end) => {
      if (best[x] < 0) return;
      g.fillStyle = classColor(best[x]);
      g.fillRect(x, AXIS + band * BAND + 1, end - x, BAND - 2);
    });
  });
  g.fillStyle = colors.cursor;
  stretches(columns, (x, other) => marks.differs[x] === marks.differs[other], (x, end) => {
    if (marks.differs[x]) g.fillRect(x, AXIS + 2 * BAND + 4, end - x, 5);
  });
}

// What is not recognised yet.
function drawPending(g, toX, { height }, { recognised_s, duration_s }) {
  if (recognised_s >= duration_s) return;
  g.globalAlpha = 0.35;
  g.fillStyle = colors.line;
  g.fillRect(toX(recognised_s), AXIS, toX(duration_s) - toX(recognised_s), height - AXIS - LANE);
  g.globalAlpha = 1;
}

function drawAxis(g, width, height, view, toX) {
  const seconds = view[1] - view[0];
  const step = STEPS.find((s) => (s / seconds) * width >= 64) || 14400;
  g.font = "11px system-ui, sans-serif";
  g.lineWidth = 1;
  for (let n = Math.ceil(view[0] / step); n * step <= view[1]; n++) {
    const x = Math.round(toX(n * step)) + 0.5;
    g.strokeStyle = colors.line;
    g.beginPath();
    g.moveTo(x, AXIS - 4);
    g.lineTo(x, height);
    g.stroke();
    g.fillStyle = colors.dim;
    g.textAlign = x < 20 ? "left" : x > width - 20 ? "right" : "center";
    g.fillText(clock(n * step, step < 1 ? 1 : 0), Math.min(Math.max(x, 1), width - 1), 11);
  }
}
