"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const video = $("video"), root = document.documentElement;
const ROW = 24, AXIS = 20, FEW = 12, LIVE_ENTRIES = 6;

// A section is one list of entries: those of a head, the actions of several heads, or what people do.
const sections = data.sections.map((section) => prepare(section));
// The timeline goes on to what is expected after the end of the video.
const duration = Math.max(data.duration, 0.001, ...sections.flatMap(({ about }) => about.slice(-1)));
let section = sections[0];
let view = [0, duration]; // the seconds that the timeline shows
let showsAll = false;
let text = "";

function prepare(source) {
  const n = source.start.length;
  const ahead = source.about.length > 0;
  // Where an entry is drawn: what is coming stands at the time that it is about, which it shares with its neighbours.
  const from = new Float64Array(n), to = new Float64Array(n);
  for (let i = 0; i < n; i++) {
    from[i] = source.start[i];
    to[i] = source.end[i];
    if (ahead) {
      const other = i ? i - 1 : Math.min(1, n - 1);
      const half = Math.max(Math.abs(source.about[i] - source.about[other]) || source.end[i] - source.start[i], 0.02) / 2;
      from[i] = Math.max(source.about[i] - half, 0);
      to[i] = source.about[i] + half;
    }
  }
  const weight = new Float64Array(source.labels.length), best = new Float64Array(source.labels.length);
  source.top.forEach((top, i) => {
    for (let k = 0; k < top.length; k += 2) {
      weight[top[k]] += top[k + 1] * (to[i] - from[i]);
      best[top[k]] = Math.max(best[top[k]], top[k + 1]);
    }
  });
  const order = source.labels.map((_, label) => label).sort((a, b) => weight[b] - weight[a] || a - b);
  const hue = new Float64Array(order.length);
  order.forEach((label, rank) => { hue[label] = (212 + rank * 137.508) % 360; });
  return { ...source, ahead, from, to, order, hue, best, off: new Set(), sort: { key: "time", up: true } };
}

function color(label, alpha = 1) {
  return `hsl(${section.hue[label].toFixed(0)} 68% ${lightness} / ${alpha})`;
}

let lightness, ink, dim, line;
function readTheme() {
  const style = getComputedStyle(root);
  [lightness, ink, dim, line] = ["--lightness", "--ink", "--dim", "--line"].map((name) => style.getPropertyValue(name).trim());
}

function clock(seconds, digits = 1) {
  const unit = 10 ** digits;
  const total = Math.round(Math.max(seconds, 0) * unit);
  const h = Math.floor(total / (3600 * unit)), m = Math.floor(total / (60 * unit)) % 60;
  const s = ((total % (60 * unit)) / unit).toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
  return h ? `${h}:${String(m).padStart(2, "0")}:${s}` : `${m}:${s}`;
}

const percent = (score) => (score > 0 && score < 0.001 ? "<0.1 %" : `${(100 * score).toFixed(score < 0.1 ? 1 : 0)} %`);

function element(tag, className, content) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (content !== undefined) made.textContent = content;
  return made;
}

const isShown = (label) => !section.off.has(label) && matches(label);
const matches = (label) => !text || section.labels[label].toLowerCase().includes(text);

// ---- where we are ---------------------------------------------------------------------------------------------------------

// The last entry whose `times` is not after t; -1 before the first.
function lastAt(times, t) {
  let low = 0, high = times.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] <= t + 1e-4) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

// What is shown at t: the clip around it, what was said last of things to come, or everybody's entry.
function entriesAt(t) {
  if (section.ahead) {
    const i = lastAt(section.end, t);
    return i < 0 ? [] : [i];
  }
  let i = lastAt(section.start, t);
  if (i < 0) return [];
  const found = [];
  for (const start = section.start[i]; i >= 0 && section.start[i] === start; i--) {
    if (t <= section.end[i] + 1e-3) found.unshift(i);
  }
  return found;
}

function seek(t) {
  video.currentTime = Math.min(Math.max(t, 0), isFinite(video.duration) ? video.duration : data.duration);
  follow(video.currentTime);
}

// ---- the moment -----------------------------------------------------------------------------------------------------------

let shownKey = null;
function showMoment(t) {
  $("when").textContent = `${clock(t)} of ${clock(data.duration)}`;
  const entries = entriesAt(t);
  if (section.ahead && entries.length) {
    const left = section.about[entries[0]] - t;
    const when = Math.abs(left) < 0.05 ? "now" : left > 0 ? `in ${left.toFixed(1)} s` : `${(-left).toFixed(1)} s ago`;
    $("ahead").textContent = `Anticipated: expected ${when} (at ${clock(section.about[entries[0]])})`;
  }
  $("ahead").hidden = !(section.ahead && entries.length);
  const key = `${sections.indexOf(section)} ${entries.join()}`;
  if (key === shownKey) return;
  shownKey = key;
  const parts = [];
  for (const i of entries) {
    if (section.who.length && section.name !== "people") parts.push(element("p", "person", `Person ${section.who[i]}`));
    const top = section.top[i];
    let listed = 0;
    for (let k = 0; k < top.length && listed < LIVE_ENTRIES; k += 2) {
      if (!isShown(top[k])) continue;
      parts.push(momentEntry(top[k], top[k + 1]));
      listed++;
    }
  }
  if (!parts.length) {
    const why = entries.length ? "All classes of this moment are filtered out." : "Nothing was recognised at this moment.";
    parts.push(element("p", "", why));
  }
  $("now").replaceChildren(...parts);
  markPlaying(entries);
}

function momentEntry(label, score) {
  const entry = element("div", "entry"), top = element("div", "line"), bar = element("div", "bar"), fill = element("i");
  top.append(element("span", "name", section.labels[label]), element("span", "score", percent(score)));
  fill.style.width = `${100 * Math.min(score, 1)}%`;
  fill.style.background = color(label);
  bar.append(fill);
  entry.append(top, bar);
  return entry;
}

// ---- the timeline ---------------------------------------------------------------------------------------------------------

let rows = [];
function listRows() {
  const wanted = section.order.filter(matches);
  rows = showsAll ? wanted : wanted.slice(0, FEW);
  $("rows").replaceChildren(...rows.map((label) => {
    const row = element("button", "row"), mark = element("i");
    mark.style.background = color(label);
    row.type = "button";
    row.title = section.labels[label];
    row.setAttribute("aria-pressed", String(!section.off.has(label)));
    row.append(mark, element("span", "name", section.labels[label]));
    row.addEventListener("click", () => {
      if (!section.off.delete(label)) section.off.add(label);
      row.setAttribute("aria-pressed", String(!section.off.has(label)));
      filterChanged();
    });
    return row;
  }));
  $("more").hidden = wanted.length <= FEW;
  $("more").textContent = showsAll ? "Fewer classes" : `All ${wanted.length.toLocaleString("en")} classes`;
}

const toX = (t) => ((t - view[0]) / (view[1] - view[0])) * $("plot").clientWidth;
const toTime = (x) => view[0] + (x / Math.max($("plot").clientWidth, 1)) * (view[1] - view[0]);

function drawTimeline() {
  const width = $("plot").clientWidth, height = AXIS + rows.length * ROW, ratio = devicePixelRatio || 1;
  const canvas = $("picture");
  canvas.width = Math.max(Math.round(width * ratio), 1);
  canvas.height = Math.round(height * ratio);
  canvas.style.height = `${height}px`;
  const g = canvas.getContext("2d");
  g.scale(ratio, ratio);
  drawAxis(g, width, height);
  const place = new Int32Array(section.labels.length).fill(-1);
  rows.forEach((label, row) => { if (!section.off.has(label)) place[label] = row; });
  // Per row and pixel the highest score, and whether it was the best class: any number of entries costs one pass.
  const columns = Math.max(Math.ceil(width), 1);
  const level = new Float32Array(rows.length * columns), leads = new Uint8Array(rows.length * columns);
  for (let i = 0; i < section.top.length; i++) {
    if (section.to[i] < view[0] || section.from[i] > view[1]) continue;
    const first = Math.max(Math.round(toX(section.from[i])), 0);
    const last = Math.min(Math.max(Math.round(toX(section.to[i])), first + 1), columns);
    const top = section.top[i];
    for (let k = 0; k < top.length; k += 2) {
      const row = place[top[k]];
      if (row < 0) continue;
      for (let x = row * columns + first; x < row * columns + last; x++) {
        if (top[k + 1] > level[x]) level[x] = top[k + 1];
        if (k === 0) leads[x] = 1;
      }
    }
  }
  rows.forEach((label, row) => {
    for (let x = 0; x < columns;) {
      const at = row * columns + x;
      let end = x + 1;
      while (end < columns && level[row * columns + end] === level[at] && leads[row * columns + end] === leads[at]) end++;
      if (level[at] > 0) {
        g.fillStyle = color(label, (leads[at] ? 0.4 + 0.6 * level[at] : 0.6 * level[at]).toFixed(3));
        const inset = leads[at] ? 3 : 7;
        g.fillRect(x, AXIS + row * ROW + inset, end - x, ROW - 2 * inset);
      }
      x = end;
    }
  });
  moveCursor(video.currentTime);
}

const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];
function drawAxis(g, width, height) {
  const span = view[1] - view[0];
  const step = STEPS.find((s) => (s / span) * width >= 64) || 14400;
  g.font = "11px system-ui, sans-serif";
  g.lineWidth = 1;
  for (let n = Math.ceil(view[0] / step); n * step <= view[1]; n++) {
    const x = Math.round(toX(n * step)) + 0.5;
    g.strokeStyle = line;
    g.beginPath();
    g.moveTo(x, AXIS - 4);
    g.lineTo(x, height);
    g.stroke();
    g.fillStyle = dim;
    g.textAlign = x < 20 ? "left" : x > width - 20 ? "right" : "center";
    g.fillText(clock(n * step, step < 1 ? 1 : 0), Math.min(Math.max(x, 1), width - 1), 11);
  }
}

function moveCursor(t) {
  $("cursor").style.transform = `translateX(${toX(t).toFixed(1)}px)`;
  $("cursor").hidden = t < view[0] || t > view[1];
}

function zoom(factor, around = video.currentTime) {
  const span = Math.min(Math.max((view[1] - view[0]) * factor, Math.min(2, duration)), duration);
  const share = Math.min(Math.max((around - view[0]) / (view[1] - view[0]), 0), 1);
  const start = Math.min(Math.max(around - share * span, 0), duration - span);
  view = [start, start + span];
  drawTimeline();
}

// ---- the table ------------------------------------------------------------------------------------------------------------

let items = []; // of the table: { i, from, to, label, score, who }
let playing = new Set();
const COLUMNS = [
  ["time", "Start", true, (item) => clock(item.start)],
  ["end", "End", true, (item) => clock(item.end)],
  ["about", "About", true, (item) => clock(item.about)],
  ["who", "Person", true, (item) => item.who],
  ["label", "Class", false, (item) => section.labels[item.label]],
  ["score", "Score", true, (item) => percent(item.score)],
];
const visibleColumns = () => COLUMNS.filter(([key]) => (key !== "about" || section.ahead) && (key !== "who" || section.who.length));

function listItems() {
  items = [];
  for (let i = 0; i < section.top.length; i++) {
    const top = section.top[i];
    let k = 0;
    while (k < top.length && !isShown(top[k])) k += 2;
    if (k >= top.length) continue;
    items.push({
      i, last: i, start: section.start[i], end: section.end[i], about: section.about[i], who: section.who[i],
      label: top[k], score: top[k + 1],
    });
  }
  if ($("merge").checked) items = merged(items);
  const { key, up } = section.sort;
  const value = {
    time: (item) => item.start, end: (item) => item.end, about: (item) => item.about, who: (item) => item.who,
    score: (item) => item.score,
  }[key];
  if (key === "label") {
    const names = section.labels.map((_, label) => label).sort((a, b) => section.labels[a].localeCompare(section.labels[b]));
    const rank = new Int32Array(names.length);
    names.forEach((label, place) => { rank[label] = place; });
    items.sort((a, b) => rank[a.label] - rank[b.label] || a.start - b.start);
  } else {
    items.sort((a, b) => value(a) - value(b) || a.start - b.start);
  }
  if (!up) items.reverse();
  const what = $("merge").checked ? "segments" : section.who.length ? "entries" : "clips";
  $("count").textContent = `${items.length.toLocaleString("en")} ${items.length === 1 ? what.replace(/ies$/, "y").replace(/s$/, "") : what}`;
  listHead();
  drawTable(true);
}

// Neighbours in time with the same class, of the same person, become one, with the highest of their scores.
function merged(single) {
  const open = new Map(), done = [];
  for (const item of single) {
    const before = open.get(item.who);
    if (before && before.label === item.label && item.start <= before.end + 0.05) {
      before.end = Math.max(before.end, item.end);
      before.score = Math.max(before.score, item.score);
      before.last = item.i;
    } else {
      const fresh = { ...item };
      open.set(item.who, fresh);
      done.push(fresh);
    }
  }
  return done;
}

function listHead() {
  $("head").replaceChildren(...visibleColumns().map(([key, name, isNumber]) => {
    const cell = element("th", isNumber ? "number" : ""), button = element("button");
    const sorted = section.sort.key === key;
    button.type = "button";
    button.dataset.sort = key;
    button.textContent = name + (sorted ? (section.sort.up ? " ▲" : " ▼") : "");
    cell.setAttribute("aria-sort", sorted ? (section.sort.up ? "ascending" : "descending") : "none");
    button.addEventListener("click", () => {
      section.sort = { key, up: sorted ? !section.sort.up : key !== "score" };
      listItems();
      $("scroll").scrollTop = 0;
      $("head").querySelector(`[data-sort="${key}"]`).focus();
    });
    cell.append(button);
    return cell;
  }));
}

// Only the rows in sight exist, so that any number of them scrolls smoothly.
let drawn = "";
function drawTable(isNew = false) {
  const scroll = $("scroll"), columns = visibleColumns();
  const height = parseFloat(getComputedStyle(root).getPropertyValue("--entry"));
  const first = Math.max(Math.floor(scroll.scrollTop / height) - 10, 0);
  const last = Math.min(first + Math.ceil((scroll.clientHeight || 420) / height) + 20, items.length);
  const key = `${first} ${last}`;
  if (!isNew && key === drawn) return;
  drawn = key;
  const made = [space(first * height, columns.length)];
  for (let n = first; n < last; n++) {
    const item = items[n], row = element("tr", isPlaying(item) ? "playing" : "");
    row.dataset.index = String(n);
    for (const [, , isNumber, show] of columns) {
      const cell = isNumber ? element("td", "number", show(item)) : element("td");
      if (!isNumber) {
        cell.title = show(item);
        cell.append(element("span", "name", cell.title));
      }
      row.append(cell);
    }
    made.push(row);
  }
  made.push(space((items.length - last) * height, columns.length));
  $("body").replaceChildren(...made);
}

function space(height, columns) {
  const row = element("tr", "space"), cell = element("td");
  cell.colSpan = columns;
  cell.style.height = `${height}px`;
  row.append(cell);
  row.hidden = !height;
  return row;
}

function isPlaying(item) {
  for (const i of playing) {
    if (item.i <= i && i <= item.last && item.who === section.who[i]) return true;
  }
  return false;
}

function markPlaying(entries) {
  playing = new Set(entries);
  for (const row of $("body").querySelectorAll("tr[data-index]")) {
    row.classList.toggle("playing", isPlaying(items[Number(row.dataset.index)]));
  }
}

// ---- people ---------------------------------------------------------------------------------------------------------------

const looks = data.boxes.map(([time, persons]) => ({ time, persons: new Map(persons.map(([track, ...box]) => [track, box])) }));
const lookTimes = looks.map((look) => look.time);
const MAX_GAP = 2.05;

// Boxes move straight from one keyframe to the next; who is at one of them only stays for half of the way.
function boxesAt(t) {
  const k = lastAt(lookTimes, t), before = looks[k], after = looks[k + 1], found = new Map();
  const gap = before && after ? after.time - before.time : 1;
  const half = Math.min(gap, 2) / 2;
  if (before) {
    for (const [track, box] of before.persons) {
      const other = gap <= MAX_GAP && after ? after.persons.get(track) : undefined;
      if (other) {
        const share = Math.min(Math.max((t - before.time) / gap, 0), 1);
        found.set(track, { box: box.map((corner, c) => corner + share * (other[c] - corner)), look: share > 0.5 ? k + 1 : k });
      } else if (t - before.time <= half) found.set(track, { box, look: k });
    }
  }
  if (after && after.time - t <= half) {
    for (const [track, box] of after.persons) if (!found.has(track)) found.set(track, { box, look: k + 1 });
  }
  return found;
}

// What a person does at a keyframe: entries of the first section are listed per keyframe and person, in this order.
const doing = looks.map(() => new Map());
if (looks.length) {
  let i = 0;
  looks.forEach((look, k) => { for (const track of look.persons.keys()) doing[k].set(track, i++); });
}

function drawBoxes(t) {
  if (!looks.length) return;
  const canvas = $("boxes"), ratio = devicePixelRatio || 1, width = video.clientWidth, height = video.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
  }
  const g = canvas.getContext("2d");
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  g.clearRect(0, 0, width, height);
  if (!video.videoWidth) return;
  const scale = Math.min(width / video.videoWidth, height / video.videoHeight); // the picture may have bars beside it
  const w = video.videoWidth * scale, h = video.videoHeight * scale, left = (width - w) / 2, top = (height - h) / 2;
  const least = Number($("least").value), actions = sections[0];
  g.font = "600 13px system-ui, sans-serif";
  g.textBaseline = "top";
  for (const [track, { box, look }] of boxesAt(t)) {
    const hue = `hsl(${(45 + track * 137.508) % 360} 90% 60%)`;
    const x = left + box[0] * w, y = top + box[1] * h, bw = (box[2] - box[0]) * w, bh = (box[3] - box[1]) * h;
    g.strokeStyle = hue;
    g.lineWidth = 3;
    g.strokeRect(x, y, bw, bh);
    const lines = [`Person ${track}`], best = actions.top[doing[look].get(track)] || [];
    for (let k = 0; k < best.length && lines.length < 4; k += 2) {
      const isOff = actions.off.has(best[k]) || (section === actions && !matches(best[k]));
      if (best[k + 1] >= least && !isOff) lines.push(`${actions.labels[best[k]]} ${percent(best[k + 1])}`);
    }
    const labelWidth = Math.max(...lines.map((words) => g.measureText(words).width)) + 10, labelHeight = lines.length * 17 + 4;
    const lx = Math.min(Math.max(x, 0), Math.max(width - labelWidth, 0));
    const ly = y - labelHeight >= 0 ? y - labelHeight : Math.min(y, height - labelHeight);
    g.fillStyle = "rgb(14 17 23 / 0.82)";
    g.fillRect(lx, ly, labelWidth, labelHeight);
    lines.forEach((words, n) => {
      g.fillStyle = n ? "#fff" : hue;
      g.fillText(words, lx + 5, ly + 4 + n * 17);
    });
  }
}

// ---- all together ---------------------------------------------------------------------------------------------------------

function follow(t) {
  if (!video.paused && (t > view[1] || t < view[0])) {
    const span = view[1] - view[0];
    const start = Math.min(Math.max(t - 0.1 * span, 0), duration - span);
    view = [start, start + span];
    drawTimeline();
  }
  moveCursor(t);
  showMoment(t);
  drawBoxes(t);
}

function filterChanged() {
  shownKey = null;
  listItems();
  drawTimeline();
  follow(video.currentTime);
}

function choose(next) {
  section = next;
  showsAll = false;
  shownKey = null;
  for (const tab of $("tabs").children) tab.setAttribute("aria-selected", String(sections[Number(tab.dataset.section)] === section));
  listRows();
  filterChanged();
}

function drawEverything() {
  readTheme();
  listRows();
  drawTimeline();
  shownKey = null;
  follow(video.currentTime);
}

const wantsDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : wantsDark.matches);
const THEME = "memvit.theme";
function rememberedTheme() {
  try {
    return localStorage.getItem(THEME);
  } catch {
    return null; // browsers may forbid a page to store anything
  }
}

function chooseTheme(theme) {
  setTheme(theme);
  try {
    localStorage.setItem(THEME, theme);
  } catch {
    // then it holds until the page is left
  }
}

function setTheme(theme) {
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  $("theme").textContent = isDark() ? "Light" : "Dark";
  drawEverything();
}

// Text in the page becomes a file in memory: unlike with a data: address, every browser can then seek in it.
function loadVideo() {
  if (data.address !== null) {
    video.src = data.address;
    return;
  }
  const film = $("film"), source = film.textContent, begin = source.indexOf(",") + 1, parts = [];
  for (let at = begin; at < source.length; at += 4 * 2 ** 18) {
    const binary = atob(source.slice(at, at + 4 * 2 ** 18)), bytes = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
    parts.push(bytes);
  }
  film.remove();
  video.src = URL.createObjectURL(new Blob(parts, { type: data.type }));
}

video.addEventListener("error", () => {
  $("trouble").hidden = false;
  $("trouble").textContent = data.address !== null
    ? `The video is not where this page looks for it (${decodeURIComponent(data.address)}), or this browser cannot play it. The timeline and the table still work.`
    : "This browser cannot play the video. The timeline and the table still work.";
});
for (const event of ["timeupdate", "seeked", "seeking", "loadeddata", "pause"]) {
  video.addEventListener(event, () => follow(video.currentTime));
}
video.addEventListener("play", () => {
  const tick = () => {
    follow(video.currentTime);
    if (!video.paused) requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
});

const timeAt = (event) => toTime(event.clientX - $("plot").getBoundingClientRect().left);
let isDragging = false;
$("plot").addEventListener("pointerdown", (event) => {
  if (event.button) return;
  isDragging = true;
  $("plot").setPointerCapture(event.pointerId);
  seek(timeAt(event));
});
$("plot").addEventListener("pointermove", (event) => {
  if (isDragging) seek(timeAt(event));
  const t = timeAt(event), row = Math.floor((event.clientY - $("plot").getBoundingClientRect().top - AXIS) / ROW);
  const hint = $("hint"), x = toX(t);
  hint.textContent = clock(t) + (row >= 0 && row < rows.length ? `  ${section.labels[rows[row]]}` : "");
  hint.hidden = false;
  hint.style.transform = `translateX(${Math.max(Math.min(x + 8, $("plot").clientWidth - hint.offsetWidth), 0)}px)`;
});
for (const event of ["pointerup", "pointercancel"]) $("plot").addEventListener(event, () => { isDragging = false; });
$("plot").addEventListener("pointerleave", () => { $("hint").hidden = true; });
$("plot").addEventListener("wheel", (event) => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  zoom(event.deltaY > 0 ? 1.25 : 0.8, timeAt(event));
}, { passive: false });
$("closer").addEventListener("click", () => zoom(0.5));
$("wider").addEventListener("click", () => zoom(2));
$("whole").addEventListener("click", () => { view = [0, duration]; drawTimeline(); });

$("filter").addEventListener("input", () => {
  text = $("filter").value.trim().toLowerCase();
  listRows();
  filterChanged();
});
$("all").addEventListener("click", () => { section.order.filter(matches).forEach((label) => section.off.delete(label)); listRows(); filterChanged(); });
$("none").addEventListener("click", () => { section.order.filter(matches).forEach((label) => section.off.add(label)); listRows(); filterChanged(); });
$("more").addEventListener("click", () => { showsAll = !showsAll; listRows(); drawTimeline(); });
$("merge").addEventListener("change", listItems);
$("scroll").addEventListener("scroll", () => drawTable());
$("body").addEventListener("click", (event) => {
  const row = event.target.closest("tr[data-index]");
  if (!row) return;
  const item = items[Number(row.dataset.index)];
  seek(section.ahead ? item.end : item.start); // what is coming was said at the end of a clip
});
$("least").addEventListener("input", () => {
  $("leastValue").textContent = `${Math.round(100 * $("least").value)} %`;
  drawBoxes(video.currentTime);
});
$("theme").addEventListener("click", () => chooseTheme(isDark() ? "light" : "dark"));
wantsDark.addEventListener("change", () => setTheme());
new ResizeObserver(() => { drawTimeline(); drawBoxes(video.currentTime); }).observe($("plot"));
new ResizeObserver(() => drawBoxes(video.currentTime)).observe(video);
matchMedia("(max-width: 760px)").addEventListener("change", () => drawTable(true)); // rows are higher in a narrow window

// The video is left out: its own keys would do the same a second time.
document.addEventListener("keydown", (event) => {
  const isTyping = event.target.closest?.("input, textarea, select");
  if (event.ctrlKey || event.altKey || event.metaKey || isTyping) return;
  if ((event.key === " " || event.key === "Enter") && event.target.closest?.("button")) return;
  const step = event.shiftKey ? 1 : 5, i = lastAt(section.start, video.currentTime);
  const actions = {
    " ": () => (video.paused ? video.play().catch(() => {}) : video.pause()),
    ArrowLeft: () => seek(video.currentTime - step),
    ArrowRight: () => seek(video.currentTime + step),
    Home: () => seek(0),
    End: () => seek(data.duration),
    ",": () => seek(neighbour(i, -1)),
    ".": () => seek(neighbour(i, 1)),
  };
  if (!actions[event.key]) return;
  event.preventDefault();
  event.stopPropagation();
  actions[event.key]();
}, true);

// The start of the next entry that starts at another time.
function neighbour(i, direction) {
  const here = section.start[Math.max(i, 0)];
  let n = Math.max(i, 0);
  if (i < 0 && direction > 0) return section.start[0] ?? 0;
  while (n >= 0 && n < section.start.length && section.start[n] === here) n += direction;
  return section.start[Math.min(Math.max(n, 0), section.start.length - 1)] ?? 0;
}

$("title").textContent = data.video;
$("model").textContent = $("model").title = data.model;
$("notice").hidden = !data.notice;
$("notice").textContent = data.notice && `Untrained model: ${data.notice}.`;
$("notes").hidden = !data.notes.length;
$("notes").replaceChildren(...data.notes.map((note) => element("li", "", note)));
$("boxes").hidden = !looks.length;
$("threshold").hidden = !looks.length;
$("tabs").hidden = sections.length < 2;
$("tabs").replaceChildren(...sections.map((each, number) => {
  const tab = element("button", "", each.name || "classes");
  tab.type = "button";
  tab.setAttribute("role", "tab");
  tab.dataset.section = String(number);
  tab.addEventListener("click", () => choose(each));
  return tab;
}));
readTheme();
setTheme(rememberedTheme());
choose(sections[0]);
loadVideo();
