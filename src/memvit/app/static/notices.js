// What a visitor should know meanwhile: a lost connection, a stream that the server has lost, pictures that were left out, what
// is damaged of a video.

import { $ } from "./words.js";

export class Notices {
  constructor() {
    this.clear();
  }

  clear() {
    this.lost = new Set();
    this.trouble = this.message = this.dropped = "";
    this.show();
  }

  // who: one of several connections; what: more to say of it.
  setLost(who, isLost, what) {
    if (isLost) this.lost.add(who);
    else this.lost.delete(who);
    if (isLost) $("connection").textContent = `The connection to the server is lost; trying again.${what}`;
    this.show();
  }

  setDropped(number) {
    const pictures = number === 1 ? "One picture was" : `${number} pictures were`;
    this.dropped = `${pictures} left out: the connection or the server is too slow for all of them.`;
    this.show();
  }

  // Of what the server reads; "" once all is well.
  setTrouble(trouble) {
    this.trouble = trouble;
    this.show();
  }

  setMessage(message) {
    this.message = message;
    this.show();
  }

  show() {
    const sentences = [this.trouble, this.message, this.dropped].filter(Boolean);
    $("connection").hidden = this.lost.size === 0;
    $("note").hidden = sentences.length === 0;
    $("note").textContent = sentences.join(" ");
  }
}
