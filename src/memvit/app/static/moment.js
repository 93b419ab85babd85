// What is said of one moment: the best classes with bars, of everything that the model recognises.

import { classColor } from "./theme.js";
import { $, clock, element, percent } from "./words.js";

const ENTRIES = 6, ENTRIES_OF_SEVERAL = 4;

export class Moment {
  begin(recognised) {
    this.recognised = recognised;
    this.shownKey = null;
    this.isCompared = false;
  }

  // end_s: so far it is recognised; isDone: no more will come.
  show(t, { length_s, end_s, isDone, isCompared }) {
    $("when").textContent = length_s ? `${clock(t)} of ${clock(length_s)}` : clock(t);
    const [first] = this.recognised.sections, i = first.at(t);
    $("ahead").hidden = !(first.isAhead && i >= 0);
    if (first.isAhead && i >= 0) {
      const left_s = first.about[i] - t;
      const when = Math.abs(left_s) < 0.05 ? "now" : left_s > 0 ? `in ${left_s.toFixed(1)} s` : `${(-left_s).toFixed(1)} s ago`;
      $("ahead").textContent = `Expected ${when}, at ${clock(first.about[i])}`;
    }
    const isPending = !isDone && t >= end_s - 1e-3;
    const key = `${i} ${isPending} ${isCompared}`;
    if (key === this.shownKey) return;
    this.shownKey = key;
    if (i < 0) {
      const why = isPending ? "Not recognised yet." : "Nothing was recognised at this moment.";
      $("now").replaceChildren(element("p", "dim", why));
      return;
    }
    $("now").replaceChildren(...this.recognised.sections.flatMap((section) => this.group(section, i, isCompared)));
  }

  // Colours have changed.
  forget() {
    this.shownKey = null;
  }

  group(section, i, isCompared) {
    const made = [], isOne = this.recognised.sections.length === 1, without = section.without[i];
    const length = isOne ? ENTRIES : ENTRIES_OF_SEVERAL;
    if (!isOne) made.push(element("h3", "", section.name));
    if (!isCompared || !without) return [...made, ...entries(section, section.top[i], length)];
    const two = element("div", "two");
    for (const [title, top] of [["with memory", section.top[i]], ["without memory", without]]) {
      const side = element("div");
      if (section === this.recognised.sections[0]) side.append(element("h4", "", title));
      side.append(...entries(section, top, length));
      two.append(side);
    }
    made.push(two);
    if (section.top[i][0] !== without[0]) made.push(element("p", "differs", "Without memory, the answer is a different one."));
    return made;
  }
}

function entries(section, top, length) {
  const made = [];
  for (let k = 0; k < Math.min(top.length, 2 * length); k += 2) {
    const entry = element("div", k ? "entry" : "entry best"), line = element("div", "line");
    const bar = element("div", "bar"), fill = element("i");
    line.append(element("span", "name", section.labels[top[k]]), element("span", "score", percent(top[k + 1])));
    fill.style.width = `${100 * Math.min(top[k + 1], 1)}%`;
    fill.style.background = classColor(top[k]);
    bar.append(fill);
    entry.append(line, bar);
    made.push(entry);
  }
  return made;
}
