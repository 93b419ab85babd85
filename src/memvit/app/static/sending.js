// Sends a camera's pictures: one request at a time is on its way, pictures taken meanwhile wait, and the oldest give way.

import { address, ask, pause } from "./server.js";

const MOST_WAITING = 32, PAUSES_S = [1, 2, 4], PATIENCE_S = 60;
const TOO_LATE = "The server could not be reached for a minute, so the camera was stopped.";

// Pictures as the server reads them: time_s float64, length uint32, both little endian, then the JPEG.
export async function packed(pictures) {
  const parts = [];
  for (const { time_s, jpeg } of pictures) {
    const head = new DataView(new ArrayBuffer(12));
    head.setFloat64(0, time_s, true);
    head.setUint32(8, jpeg.size, true);
    parts.push(head.buffer, jpeg);
  }
  return new Blob(parts);
}

export class PictureSender {
  // on: { dropped(count so far), lost(), found(), ended(sentence) }; ended("") where the server has ended it.
  constructor(id, on) {
    this.id = id;
    this.on = on;
    this.waiting = [];
    this.num_dropped = 0;
    this.isClosed = false;
    this.work = null;
  }

  add(time_s, jpeg) {
    if (this.isClosed) return;
    this.waiting.push({ time_s, jpeg });
    if (this.waiting.length > MOST_WAITING) {
      this.waiting.shift();
      this.num_dropped++;
      this.on.dropped(this.num_dropped);
    }
    this.work ??= this.sendAll();
  }

  async sendAll() {
    while (this.waiting.length && !this.isClosed) {
      const pictures = this.waiting.splice(0);
      await this.sendOnce(await packed(pictures));
    }
    this.work = null;
  }

  async sendOnce(body) {
    const began_ms = performance.now();
    for (let attempt = 0; !this.isClosed; attempt++) {
      try {
        await ask(address(this.id, "/frames"), { method: "POST", body });
        if (attempt) this.on.found();
        return;
      } catch (error) {
        const isFinal = error.status >= 400 && error.status < 500 && error.status !== 429;
        const isLate = performance.now() - began_ms > 1000 * PATIENCE_S;
        if (isFinal || isLate) {
          this.close();
          const isKnown = error.status === 409 || error.status === 404; // its events tell
          this.on.ended(isKnown ? "" : isLate ? TOO_LATE : error.message);
          return;
        }
        this.on.lost();
        await pause(PAUSES_S[Math.min(attempt, PAUSES_S.length - 1)]);
      }
    }
  }

  // Sends what waits, for so long at most, and no more after that.
  async finish(limit_s) {
    await Promise.race([this.work, pause(limit_s)]);
    this.close();
  }

  close() {
    this.isClosed = true;
    this.waiting = [];
  }
}
