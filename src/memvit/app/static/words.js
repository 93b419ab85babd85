// Numbers and times in words, and elements made of text. Labels and names are never read as HTML.

export const $ = (id) => document.getElementById(id);

export function element(tag, className = "", content = undefined) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (content !== undefined) made.textContent = content;
  return made;
}

// 75.25 -> "1:15.3"; an hour and more: "1:02:03.0".
export function clock(seconds, digits = 1) {
  const unit = 10 ** digits;
  const total = Math.round(Math.max(seconds, 0) * unit);
  const h = Math.floor(total / (3600 * unit)), m = Math.floor(total / (60 * unit)) % 60;
  const s = ((total % (60 * unit)) / unit).toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
  return h ? `${h}:${String(m).padStart(2, "0")}:${s}` : `${m}:${s}`;
}

// 2.13 -> "2.1 s", 36.3 -> "36 s", 125 -> "2 min 5 s", 7200 -> "2 h".
export function span(seconds) {
  if (seconds < 9.95) return `${Number(seconds.toFixed(1))} s`;
  const total = Math.round(seconds);
  if (total < 100) return `${total} s`;
  const parts = [[Math.floor(total / 3600), "h"], [Math.floor(total / 60) % 60, "min"], [total < 3600 ? total % 60 : 0, "s"]];
  return parts.filter(([count]) => count).map(([count, unit]) => `${count} ${unit}`).join(" ");
}

export function size(bytes) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  const power = Math.min(Math.floor(Math.log10(Math.max(bytes, 1)) / 3), units.length - 1);
  return `${Number((bytes / 1000 ** power).toPrecision(3))} ${units[power]}`;
}

export const percent = (score) =>
  score > 0 && score < 0.001 ? "<0.1 %" : `${(100 * score).toFixed(score < 0.1 ? 1 : 0)} %`;

export const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

const speedOf = (speed) => `${speed < 9.95 ? Number(speed.toFixed(1)) : Math.round(speed)} times real time`;

// What is said of how far recognition is.
export function stateSentence(state) {
  const isFile = state.kind === "file", what = state.kind === "camera" ? "your camera" : state.name;
  const done = span(state.done_s), clips = count(state.num_clips, "clip");
  const speed = isFile && state.speed ? `, ${speedOf(state.speed)}` : "";
  switch (state.state) {
    case "waiting":
      return state.position > 1 ? `Waiting to begin: number ${state.position} in line` : "Waiting to begin: you are next";
    case "running":
      return `Recognising ${what}: ${done}${state.total_s ? ` of ${span(Math.max(state.total_s, state.done_s))}` : ""}${speed}`;
    case "complete":
      return `Recognised ${what}: ${done} in ${clips}${speed}`;
    case "partial":
      return `Recognised what could be read of ${what}: ${done} in ${clips}${speed}`;
    case "stopped":
      return `Stopped: the first ${done} of ${what} are recognised, ${clips}`;
    default:
      return state.num_clips ? `Recognised only ${done} of ${what}` : `Could not recognise ${what}`;
  }
}
