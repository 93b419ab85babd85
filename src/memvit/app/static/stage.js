// The place of the video: the video itself, the visitor's camera, the newest picture of something live, or a sentence.

import { address } from "./server.js";
import { $, element } from "./words.js";

const PLACES = { video: "video", camera: "preview", picture: "picture", sentence: "unplayable" };

export class Stage {
  constructor() {
    this.clear();
  }

  // which: "video", "camera", "picture" or "sentence".
  show(which, sentence = "") {
    this.sentence = sentence;
    for (const [kind, id] of Object.entries(PLACES)) $(id).hidden = kind !== which;
    $("unplayable").textContent = sentence;
    $("stage").classList.toggle("empty", which === "sentence");
  }

  clear() {
    this.id = this.newest = this.shown = this.loading = null;
    $("picture").removeAttribute("src");
    this.show("sentence");
  }

  // There is a picture of a newer clip; it is loaded as soon as the one before is there.
  takePicture(id, clip) {
    this.id = id;
    this.newest = clip;
    if (!this.loading) this.loadNewest();
  }

  // The picture before is seen until the next one is there, and stays where there is none.
  loadNewest() {
    this.loading = null;
    if (this.newest === this.shown) return;
    this.shown = this.newest;
    const picture = this.loading = element("img");
    [picture.id, picture.alt] = ["picture", $("picture").alt];
    picture.addEventListener("load", () => {
      if (picture !== this.loading) return; // the visitor is elsewhere by now
      $("picture").replaceWith(picture);
      this.show("picture");
      this.loadNewest();
    });
    picture.addEventListener("error", () => {
      if (picture === this.loading) this.loading = null; // the next clip brings another one
    });
    picture.src = address(this.id, `/picture?clip=${this.newest}`);
  }
}
