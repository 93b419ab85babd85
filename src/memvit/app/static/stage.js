// The place of the video: the video itself, the visitor's camera, the newest picture of something live, or a sentence.

import { address } from "./server.js";
import { $ } from "./words.js";

const PLACES = { video: "video", camera: "preview", picture: "picture", sentence: "unplayable" };

export class Stage {
  constructor() {
    $("picture").addEventListener("load", () => {
      this.show("picture");
      this.loadNewest();
    });
    $("picture").addEventListener("error", () => {
      this.isLoading = false; // the next clip brings another one
    });
    this.clear();
  }

  // which: "video", "camera", "picture" or "sentence".
  show(which, sentence = "") {
    for (const [kind, id] of Object.entries(PLACES)) $(id).hidden = kind !== which;
    $("unplayable").textContent = sentence;
    $("stage").classList.toggle("empty", which === "sentence");
  }

  clear() {
    this.id = this.newest = this.shown = null;
    this.isLoading = false;
    $("picture").removeAttribute("src");
    this.show("sentence");
  }

  // There is a picture of a newer clip; it is loaded as soon as the one before is there.
  takePicture(id, clip) {
    this.id = id;
    this.newest = clip;
    if (!this.isLoading) this.loadNewest();
  }

  loadNewest() {
    this.isLoading = this.id !== null && this.newest !== this.shown;
    if (!this.isLoading) return;
    this.shown = this.newest;
    $("picture").src = address(this.id, `/picture?clip=${this.newest}`);
  }
}
