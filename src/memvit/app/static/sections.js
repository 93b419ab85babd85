// What was recognised so far, ready to be looked up by time and to be drawn.

// One list of classes over time: of a head, or of the actions that several heads make.
export class Section {
  constructor(name) {
    this.name = name;
    this.labels = [];
    this.places = new Map(); // of labels
    this.weight = []; // of labels: score times seconds
    this.start = [];
    this.end = [];
    this.about = [];
    // Where an entry is drawn: what is coming stands at the time that it is about, half the way to its neighbours.
    this.from = [];
    this.to = [];
    this.top = []; // [label, score, label, score, ...], best first
    this.without = []; // the same without memory; null where that was not asked for
    this.agreed_s = 0;
    this.compared_s = 0;
  }

  add(clip, classes, without) {
    const n = this.top.length, aboutS = clip.about_s;
    this.start.push(clip.start_s);
    this.end.push(clip.end_s);
    this.about.push(aboutS);
    if (aboutS === null) {
      this.from.push(clip.start_s);
      this.to.push(clip.end_s);
    } else {
      const half = Math.max(n ? aboutS - this.about[n - 1] : clip.end_s - clip.start_s, 0.02) / 2;
      this.from.push(Math.max(aboutS - half, 0));
      this.to.push(aboutS + half);
    }
    const seconds = this.to[n] - this.from[n], top = this.flat(classes), other = without && this.flat(without);
    for (let k = 0; k < top.length; k += 2) this.weight[top[k]] += top[k + 1] * seconds;
    this.top.push(top);
    this.without.push(other);
    if (other) {
      this.compared_s += seconds;
      if (other[0] === top[0]) this.agreed_s += seconds;
    }
  }

  flat(classes) {
    const made = [];
    for (const { label, score } of classes) {
      let place = this.places.get(label);
      if (place === undefined) {
        place = this.labels.length;
        this.places.set(label, place);
        this.labels.push(label);
        this.weight.push(0);
      }
      made.push(place, score);
    }
    return made;
  }

  // Labels, those first that had the highest scores for the longest time.
  ranked() {
    return this.labels.map((_, label) => label).sort((a, b) => this.weight[b] - this.weight[a] || a - b);
  }

  get isAhead() {
    return this.about.length > 0 && this.about[0] !== null;
  }

  // The entry that is shown at t: of the clip around it, or what was said last of things to come. -1: none.
  at(t) {
    const i = lastAt(this.isAhead ? this.end : this.start, t);
    return i >= 0 && (this.isAhead || t <= this.end[i] + 1e-3) ? i : -1;
  }

  // The entry that is drawn at t; it differs where something is said of what is coming. -1: none.
  drawnAt(t) {
    const i = lastAt(this.from, t);
    return i >= 0 && t <= this.to[i] + 1e-3 ? i : -1;
  }

  // Share of the time in which the best class is the same with memory and without; null: nothing to compare.
  get agreement() {
    return this.compared_s > 0 ? this.agreed_s / this.compared_s : null;
  }
}

// Everything recognised of one recording. Actions stand first, since they are what heads are made for.
export class Recognised {
  constructor(about) {
    this.heads = about.heads.map((head) => new Section(head.name));
    this.actions = about.actions ? new Section("action") : null;
    this.sections = this.actions ? [this.actions, ...this.heads] : this.heads;
    this.newest = 0; // id of the event that brought the newest clip
    this.end_s = 0;
  }

  // False where the clip is known already: after a lost connection some come twice.
  add(clip, id) {
    if (id <= this.newest) return false;
    this.newest = id;
    this.end_s = Math.max(this.end_s, clip.end_s);
    this.heads.forEach((head, h) => head.add(clip, clip.topk[h], clip.without && clip.without.topk[h]));
    if (this.actions) this.actions.add(clip, clip.actions, clip.without && clip.without.actions);
    return true;
  }

  get num_clips() {
    return this.sections[0].top.length;
  }
}

// The last of the increasing `times` that is not after t; -1 before the first.
export function lastAt(times, t) {
  let low = 0, high = times.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] <= t + 1e-4) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}
