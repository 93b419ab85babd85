// One recording: shows how far it is recognised, follows its events, and keeps video, moment and timeline together.

import { Moment } from "./moment.js";
import { Notices } from "./notices.js";
import { Player } from "./player.js";
import { Results } from "./results.js";
import { Recognised } from "./sections.js";
import { Events, address, ask, askJson } from "./server.js";
import { Stage } from "./stage.js";
import { Timeline } from "./timeline.js";
import { $, element, percent, stateSentence } from "./words.js";

const ENDS = ["complete", "partial", "stopped", "failed"];
const REFRESH_MS = 30;
const UNPLAYABLE = "This browser cannot play this kind of video. It is recognised all the same.";
const COMING = "The newest picture appears here.", NOT_KEPT = "Live pictures are not kept.";
const OVER = "These results were removed.";

export class Watch {
  // on: { alert(sentence), removed(sentence): there is nothing to watch any more }.
  constructor(on) {
    this.on = on;
    this.about = null; // of the server, once it is known
    this.id = null;
    this.state = null;
    this.timeline = new Timeline((t) => this.seek(t));
    this.moment = new Moment();
    this.stage = new Stage();
    this.notices = new Notices();
    this.player = new Player({
      moved: (t) => this.moved(t),
      followed: () => this.showButtons(),
      measured: () => this.showLength(),
      unplayable: () => this.stage.show("sentence", UNPLAYABLE),
    });
    this.results = new Results({ gone: () => on.removed(OVER), failed: on.alert });
    $("newest").addEventListener("click", () => {
      this.player.setFollowing(true);
      this.player.follow(this.recognised.end_s);
    });
    $("stop").addEventListener("click", () => this.stop());
    $("remove").addEventListener("click", () => this.removeAll());
    $("compared").addEventListener("change", () => this.choose(this.section));
    document.addEventListener("visibilitychange", () => this.restUnseen());
    addEventListener("pagehide", () => {
      if (this.camera) navigator.sendBeacon(address(this.id, "/stop"));
    });
  }

  get isDone() {
    return this.state !== null && ENDS.includes(this.state.state);
  }

  get isLive() {
    return this.state !== null && this.state.kind !== "file";
  }

  // What is known of it first: the browser may know the length of a video before the server does.
  get length_s() {
    return Math.max(this.state?.total_s ?? 0, this.recognised.end_s, this.isLive ? 0 : this.player.length_s);
  }

  // The same where the whole of it is known; 0 while nobody knows: of what is live, and of files that do not say.
  get whole_s() {
    if (this.isLive) return 0;
    return this.isDone || this.state?.total_s || this.player.length_s ? this.length_s : 0;
  }

  // A file is about to be sent: it can be seen at once.
  prepare(file) {
    this.reset();
    $("title").textContent = file.name;
    this.stage.show("video");
    this.player.open(file);
    this.timeline.begin({ section: this.section, memory_s: this.memory_s, isLive: false });
    this.moved(0);
    this.showButtons();
  }

  showSending(name, share) {
    const sending = `Sending ${name}: ${Math.round(100 * share)} %`;
    $("state").textContent = share < 1 ? sending : `Sent ${name}; the server opens it…`;
    $("progress").hidden = false;
    $("progress").value = share;
  }

  // state: what the server says of it; file: the visitor's own, where it is at hand; camera: the same.
  open(state, { file = null, camera = null } = {}) {
    if (file === null) this.reset();
    this.id = state.id;
    this.state = state;
    this.camera = camera;
    document.title = `${state.name} – memvit`;
    $("title").textContent = state.kind === "camera" ? "Your camera" : state.name;
    this.timeline.begin({ section: this.section, memory_s: this.memory_s, isLive: this.isLive && !this.isDone });
    if (file === null) this.openStage();
    this.choose(this.section);
    this.take(state);
    this.events = new Events(state.id, {
      state: (next) => this.take(next),
      clip: (clip, id) => this.takeClip(clip, id),
      lost: () => this.setLost("events", true),
      found: () => this.setLost("events", false),
      removed: (sentence) => this.on.removed(sentence),
    });
    this.restUnseen();
  }

  // A browser has six connections to a server for all its tabs: one that nobody sees leaves its own to the others. What is live
  // is followed all the same, since the server ends it when nobody does.
  restUnseen() {
    if (!this.isLive) this.events?.setResting(document.hidden);
  }

  // What there is to be seen, other than a file of the visitor's own.
  openStage() {
    const hasVideo = this.state.has_video && !this.isLive;
    if (this.camera) this.stage.show("camera");
    else if (hasVideo) this.stage.show("video");
    else this.stage.show("sentence", this.isLive ? COMING : "The video is not here any more.");
    this.player.open(hasVideo ? address(this.id, "/video") : null);
    this.player.setFollowing(!this.isDone);
  }

  reset() {
    this.close();
    this.recognised = new Recognised(this.about);
    this.section = this.recognised.sections[0];
    this.moment.begin(this.recognised);
    this.announced = "";
    this.notices.clear();
    this.stage.clear();
    $("compared").checked = true;
    this.showTabs();
  }

  // Nothing of it is shown any more. A camera is given back; what the server recognises goes on.
  close() {
    clearTimeout(this.refreshing);
    this.refreshing = null;
    this.events?.close();
    this.events = null;
    if (this.camera) this.endCamera();
    this.player.close();
    this.results.show(null);
    this.id = this.state = null;
    document.title = $("title").textContent = "memvit";
  }

  get memory_s() {
    return this.about.memory ? this.about.reach_s : null;
  }

  get isCompared() {
    return Boolean(this.state?.compare) && $("compared").checked;
  }

  // ---- what the server says -------------------------------------------------------------------------------------------------

  take(state) {
    const isNew = state.state !== this.announced;
    this.state = state;
    this.showProgress();
    if (isNew) {
      this.announced = state.state;
      $("announce").textContent = stateSentence(state);
      if (state.state === "failed" && state.message) this.on.alert(state.message);
    }
    this.notices.setMessage(state.state === "failed" ? "" : state.message ?? "");
    this.notices.setTrouble(this.isDone ? "" : state.trouble ?? "");
    this.closeIfAll();
    if (this.isDone) {
      this.results.show(state);
      if (this.stage.sentence === COMING) this.stage.show("sentence", NOT_KEPT);
      if (this.camera) this.endCamera();
    }
    this.showLength();
    this.moved(this.player.time);
    this.showButtons();
  }

  takeClip(clip, id) {
    if (!this.recognised.add(clip, id)) return;
    this.closeIfAll();
    this.refreshing ??= setTimeout(() => this.refresh(), REFRESH_MS);
  }

  // Shows what came since the last time: of a long video that is opened again, thousands of clips come at once.
  refresh() {
    this.refreshing = null;
    this.showProgress();
    this.showLength();
    this.showAgreement();
    if (this.player.isFollowing) this.player.follow(this.recognised.end_s);
    else this.moved(this.player.time);
    if (this.isLive && !this.camera && !this.isDone) this.stage.takePicture(this.id, this.recognised.newest);
  }

  // After the end there is nothing to wait for, once every clip is here.
  closeIfAll() {
    if (!this.isDone || !this.events || this.recognised.num_clips < this.state.num_clips) return;
    this.events.close();
    this.setLost("events", false);
  }

  setLost(who, isLost) {
    this.notices.setLost(who, isLost, this.camera ? " The newest pictures wait here." : "");
  }

  async stop() {
    $("stop").disabled = true;
    const { id, camera } = this;
    this.camera = null;
    try {
      if (camera) {
        this.stage.show("sentence", "The camera is off.");
        await camera.finish();
      }
      await ask(address(id, "/stop"), { method: "POST" });
    } catch (error) {
      if (![404, 409].includes(error.status)) this.on.alert(error.message);
    }
    $("stop").disabled = false;
  }

  endCamera() {
    this.camera.abandon();
    this.camera = null;
    this.stage.show("sentence", "The camera is off.");
    if (this.isDone) return;
    ask(address(this.id, "/stop"), { method: "POST" }).catch(() => {}); // later, the server ends it by itself
  }

  async removeAll() {
    try {
      await ask(address(this.id), { method: "DELETE" });
      this.on.removed("Everything of it was removed from the server.");
    } catch (error) {
      if (error.status === 404) this.on.removed(error.message);
      else this.on.alert(error.message);
    }
  }

  // ---- what is shown --------------------------------------------------------------------------------------------------------

  seek(t) {
    this.player.seek(t, this.length_s);
  }

  moved(t) {
    this.timeline.move(t, this.player.isFollowing || !this.player.video.paused);
    this.moment.show(t, {
      length_s: this.whole_s,
      end_s: this.recognised.end_s,
      isDone: this.isDone,
      isCompared: this.isCompared,
    });
  }

  repaint() {
    if (!this.recognised) return;
    this.moment.forget();
    this.timeline.redraw();
    this.moved(this.player.time);
  }

  choose(section) {
    this.section = section;
    for (const tab of $("tabs").children) tab.setAttribute("aria-pressed", String(tab.textContent === section.name));
    $("comparedSwitch").hidden = !this.state?.compare;
    this.timeline.show(section, this.isCompared);
    this.showAgreement();
    this.moved(this.player.time);
  }

  showTabs() {
    const { sections } = this.recognised;
    $("tabs").hidden = sections.length < 2;
    $("tabs").replaceChildren(...sections.map((section) => {
      const tab = element("button", "", section.name);
      tab.type = "button";
      tab.addEventListener("click", () => this.choose(section));
      return tab;
    }));
  }

  showAgreement() {
    const share = this.section.agreement;
    $("agreement").hidden = !this.isCompared || share === null;
    $("agreement").textContent = share === null ? "" : `Both agree ${percent(share)} of the time`;
  }

  showProgress() {
    const done_s = Math.max(this.state.done_s, this.recognised.end_s), { whole_s } = this;
    $("state").textContent = stateSentence({ ...this.state, done_s, total_s: whole_s, num_clips: this.recognised.num_clips });
    $("progress").hidden = this.isDone;
    if (this.state.state === "running" && whole_s > done_s) $("progress").value = done_s / whole_s;
    else $("progress").removeAttribute("value");
  }

  showLength() {
    const recognised_s = this.isLive || this.isDone ? Infinity : this.recognised.end_s;
    this.timeline.setLength(this.length_s, recognised_s, !this.isDone && !this.whole_s);
  }

  showButtons() {
    const isRunning = this.state !== null && !this.isDone;
    $("cancel").hidden = this.state !== null;
    $("another").hidden = this.state === null;
    $("stop").hidden = !isRunning;
    $("newest").hidden = !isRunning || this.player.isFollowing || !this.recognised.num_clips;
  }
}

// What there is to watch under an id.
export const stateOf = (id) => askJson(address(id));
