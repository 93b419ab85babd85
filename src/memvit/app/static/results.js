// What is left once recognition has ended: files to take along, and when, or at whose wish, all of it is removed.

import { address, ask } from "./server.js";
import { $, element, span } from "./words.js";

const NAMES = {
  "report.html": "Report, a page to keep and to show",
  "predictions.csv": "Table (CSV)",
  "predictions.jsonl": "Clip by clip (JSON lines)",
  "timeline.png": "Timeline (picture)",
  "summary.json": "Summary (JSON)",
};
const MADE_WHEN_ASKED = "report.html";

export class Results {
  // gone(): their time is over; failed(sentence).
  constructor({ gone, failed }) {
    this.on = { gone, failed };
  }

  show(state) {
    clearInterval(this.timer);
    $("results").hidden = state === null;
    $("making").hidden = true;
    if (state === null) return;
    const order = Object.keys(NAMES), place = (name) => (order.indexOf(name) + 1 || order.length + 1);
    const names = [...state.files].sort((a, b) => place(a) - place(b));
    $("files").replaceChildren(...names.map((name) => this.entry(state, name)));
    $("remove").textContent = state.kind === "file" ? "Remove my video and results" : "Remove the results";
    this.countDown(state.expires_s);
  }

  entry(state, name) {
    const entry = element("li");
    if (name === MADE_WHEN_ASKED) {
      const button = element("button", "", NAMES[name]);
      button.type = "button";
      button.addEventListener("click", () => this.make(state, name, button));
      entry.append(button);
      return entry;
    }
    const link = element("a", "", NAMES[name] ?? name);
    link.href = address(state.id, `/files/${encodeURIComponent(name)}`);
    link.download = name;
    entry.append(link);
    return entry;
  }

  // A file that the server makes now, which can take a while.
  async make(state, name, button) {
    button.disabled = true;
    $("making").hidden = false;
    $("making").textContent = "Making the report; it is saved as soon as it is ready…";
    try {
      const response = await ask(address(state.id, `/files/${encodeURIComponent(name)}`), { isLong: true });
      const link = element("a"), blob = URL.createObjectURL(await response.blob());
      link.href = blob;
      link.download = `${state.name.replace(/\.[^.]*$/, "")} ${name}`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(blob), 60_000);
    } catch (error) {
      this.on.failed(error.message);
    }
    button.disabled = false;
    $("making").hidden = true;
  }

  countDown(expires_s) {
    $("expiry").textContent = "";
    if (expires_s === null) return;
    const end_ms = performance.now() + 1000 * expires_s;
    const tick = () => {
      const left_s = (end_ms - performance.now()) / 1000;
      const words = left_s >= 100 ? span(60 * Math.round(left_s / 60)) : span(Math.max(Math.round(left_s), 0));
      $("expiry").textContent = `Otherwise the server removes them in ${words}.`;
      if (left_s < -1) {
        clearInterval(this.timer);
        this.on.gone();
      }
    };
    this.timer = setInterval(tick, 1000);
    tick();
  }
}
