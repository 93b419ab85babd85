// The timeline: a row per class, the cursor, how far memory reaches back, and going to another moment.

import { AXIS, BAND, DIFFERENCE, ROW, draw, layout } from "./drawing.js";
import { classColor } from "./theme.js";
import { $, clock, count, element, percent, span } from "./words.js";

const FEW = 12, LIVE_SPAN_S = 120, REORDER_MS = 1000;

export class Timeline {
  // seek(t): the visitor wants to go there.
  constructor(seek) {
    this.seek = seek;
    this.plot = $("plot");
    this.section = null;
    this.t = 0;
    this.width = 1;
    this.nextDraw_ms = 0;
    this.wirePointer();
    $("closer").addEventListener("click", () => this.zoom(0.5));
    $("wider").addEventListener("click", () => this.zoom(2));
    $("whole").addEventListener("click", () => {
      this.isZoomed = false;
      this.isLive = false;
      this.changed();
    });
    $("more").addEventListener("click", () => {
      this.showsAll = !this.showsAll;
      this.redraw();
    });
    new ResizeObserver(() => this.redraw()).observe(this.plot);
  }

  // memory_s: how far memory reaches back; null: there is none.
  begin({ section, memory_s, isLive }) {
    this.section = section;
    this.memory_s = memory_s;
    this.isLive = isLive;
    this.isZoomed = this.showsAll = this.isCompared = false;
    this.length_s = this.recognised_s = 0;
    this.isGrowing = false;
    this.view = [0, 1];
    this.rows = null;
    this.t = 0;
    $("whole").textContent = isLive ? "From the beginning" : "Whole video";
    $("reach").textContent = memory_s === null ? "this model has no memory" : `memory reaches ${span(memory_s)} back`;
    $("reach").classList.toggle("none", memory_s === null);
    this.redraw();
  }

  show(section, isCompared) {
    if (section === this.section && isCompared === this.isCompared) return;
    this.section = section;
    this.isCompared = isCompared;
    this.redraw();
  }

  // length_s: as far as it is known; recognised_s: what is after it will follow; isGrowing: nobody knows how long it will be.
  setLength(length_s, recognised_s, isGrowing) {
    this.length_s = length_s;
    this.recognised_s = recognised_s;
    this.isGrowing = isGrowing;
    this.changed();
  }

  get duration_s() {
    const last = this.section && this.section.to.length ? this.section.to[this.section.to.length - 1] : 0;
    return Math.max(this.length_s, last, 1);
  }

  toX(t) {
    return ((t - this.view[0]) / (this.view[1] - this.view[0])) * this.width;
  }

  timeAt(event) {
    const x = event.clientX - this.plot.getBoundingClientRect().left;
    return this.view[0] + (x / this.width) * (this.view[1] - this.view[0]);
  }

  // Everything is drawn anew, soon: of many changes once, and at most a fifth of the time.
  changed() {
    this.drawing ??= setTimeout(
      () => requestAnimationFrame(() => this.redraw(true)),
      Math.max(this.nextDraw_ms - performance.now(), 0),
    );
  }

  redraw(mayKeepRows = false) {
    clearTimeout(this.drawing);
    this.drawing = null;
    if (!this.section || !this.plot.clientWidth) return;
    const began_ms = performance.now();
    this.listRows(mayKeepRows);
    this.width = this.plot.clientWidth;
    if (!this.isZoomed) this.showUsual();
    const { height } = layout(this.isCompared, this.rows.length), ratio = devicePixelRatio || 1, canvas = $("drawing");
    canvas.width = Math.max(Math.round(this.width * ratio), 1);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
    const g = canvas.getContext("2d");
    g.scale(ratio, ratio);
    draw(g, this.width, {
      section: this.section, rows: this.rows, isCompared: this.isCompared, view: this.view,
      recognised_s: this.recognised_s, duration_s: this.duration_s,
    });
    this.move(this.t);
    const now_ms = performance.now();
    this.nextDraw_ms = now_ms + Math.max(4 * (now_ms - began_ms), 50);
  }

  // All of a video; of what is live, the newest two minutes.
  showUsual() {
    const end_s = this.isLive || this.isGrowing ? Math.max(this.duration_s, 20) : this.duration_s;
    this.view = [this.isLive ? Math.max(end_s - LIVE_SPAN_S, 0) : 0, end_s];
  }

  // Rows keep their places for a second, so that they can be read while clips come.
  listRows(mayKeep) {
    const now_ms = performance.now();
    if (mayKeep && this.rows?.length && now_ms < this.listed_ms + REORDER_MS) {
      this.ordering ??= setTimeout(() => this.redraw(), this.listed_ms + REORDER_MS - now_ms);
      return;
    }
    clearTimeout(this.ordering);
    this.ordering = null;
    this.listed_ms = now_ms;
    const ranked = this.section.ranked();
    this.rows = this.showsAll ? ranked : ranked.slice(0, FEW);
    $("more").hidden = ranked.length <= FEW;
    $("more").textContent = this.showsAll ? "Fewer classes" : `All ${count(ranked.length, "class", "classes")}`;
    const made = this.rows.map((label) => {
      const row = element("div", "row"), mark = element("i");
      mark.style.background = classColor(label);
      row.title = this.section.labels[label];
      row.append(mark, element("span", "name", this.section.labels[label]));
      return row;
    });
    if (this.isCompared) {
      for (const [name, kind] of [["they differ", "difference"], ["without memory", "band"], ["with memory", "band"]]) {
        const row = element("div", `row ${kind}`);
        row.append(element("span", "name", name));
        made.unshift(row);
      }
    }
    $("rows").replaceChildren(...made);
  }

  // The moment that is shown. While it plays, what is zoomed in moves on with it.
  move(t, mayTurn = false) {
    this.t = t;
    if (!this.section) return;
    if (mayTurn && this.isZoomed && (t > this.view[1] || t < this.view[0])) {
      const seconds = this.view[1] - this.view[0], start = Math.min(Math.max(t - 0.1 * seconds, 0), this.duration_s - seconds);
      this.view = [start, start + seconds];
      this.redraw();
      return;
    }
    const x = this.toX(t);
    $("cursor").style.transform = `translateX(${x.toFixed(1)}px)`;
    $("cursor").hidden = t < this.view[0] || t > this.view[1];
    this.showReach(t, x);
    const [now, end] = [t, this.duration_s].map((seconds) => String(Math.round(10 * seconds) / 10));
    if (this.plot.getAttribute("aria-valuenow") !== now) {
      this.plot.setAttribute("aria-valuenow", now);
      this.plot.setAttribute("aria-valuemax", end);
      this.plot.setAttribute("aria-valuetext", this.words(t, this.section.at(t)));
    }
  }

  showReach(t, x) {
    const reach = $("reach"), memory = $("memory");
    memory.hidden = this.memory_s === null;
    if (this.memory_s !== null) {
      const from = this.toX(Math.max(t - this.memory_s, 0));
      memory.style.transform = `translateX(${from.toFixed(1)}px)`;
      memory.style.width = `${Math.max(x - from, 0).toFixed(1)}px`;
    }
    // At the cursor's left where there is room, else at its right, and always in sight.
    const words = reach.offsetWidth, left = x - words - 6 >= 0 ? x - words - 6 : x + 6;
    reach.style.transform = `translateX(${Math.max(Math.min(left, this.width - words - 4), 0).toFixed(1)}px)`;
  }

  // An entry in words: of a class its score, or of all classes the best.
  words(t, i, label = null) {
    const top = i < 0 ? [] : this.section.top[i];
    let k = 0;
    while (label !== null && k < top.length && top[k] !== label) k += 2;
    if (k < top.length) return `${clock(t)}  ${this.section.labels[top[k]]} ${percent(top[k + 1])}`;
    return label === null ? clock(t) : `${clock(t)}  ${this.section.labels[label]}`;
  }

  zoom(factor, around = this.t) {
    if (!this.section) return;
    const duration_s = this.duration_s;
    const seconds = Math.min(Math.max((this.view[1] - this.view[0]) * factor, Math.min(2, duration_s)), duration_s);
    const share = Math.min(Math.max((around - this.view[0]) / (this.view[1] - this.view[0]), 0), 1);
    const start = Math.min(Math.max(around - share * seconds, 0), duration_s - seconds);
    this.view = [start, start + seconds];
    this.isZoomed = seconds < duration_s;
    this.redraw();
  }

  wirePointer() {
    let isDragging = false;
    const plot = this.plot, hint = $("hint");
    plot.addEventListener("pointerdown", (event) => {
      if (event.button || !this.section) return;
      isDragging = true;
      plot.setPointerCapture(event.pointerId);
      this.seek(this.timeAt(event));
    });
    plot.addEventListener("pointermove", (event) => {
      if (!this.section) return;
      const t = Math.min(Math.max(this.timeAt(event), 0), this.duration_s);
      if (isDragging) this.seek(t);
      hint.textContent = this.hintAt(t, event.clientY - plot.getBoundingClientRect().top);
      hint.hidden = false;
      const left = Math.max(Math.min(this.toX(t) + 8, this.width - hint.offsetWidth), 0);
      hint.style.transform = `translateX(${left}px)`;
    });
    for (const event of ["pointerup", "pointercancel"]) plot.addEventListener(event, () => { isDragging = false; });
    plot.addEventListener("pointerleave", () => { hint.hidden = true; });
    plot.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      this.zoom(event.deltaY > 0 ? 1.25 : 0.8, this.timeAt(event));
    }, { passive: false });
  }

  hintAt(t, y) {
    const i = this.section.drawnAt(t), row = Math.floor((y - layout(this.isCompared, 0).rows) / ROW);
    if (row >= 0 && row < this.rows.length) return this.words(t, i, this.rows[row]);
    const without = i < 0 ? null : this.section.without[i];
    const isWithout = this.isCompared && y >= AXIS + BAND && y < AXIS + 2 * BAND + DIFFERENCE;
    if (isWithout && without?.length) return `${clock(t)}  ${this.section.labels[without[0]]} ${percent(without[1])}`;
    return this.words(t, i);
  }
}
