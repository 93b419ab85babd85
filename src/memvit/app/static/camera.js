// The visitor's camera: asks for it, shows it, and takes pictures of it.

import { PictureSender } from "./sending.js";
import { Refusal } from "./server.js";
import { $ } from "./words.js";

const QUALITY = 0.85;

// The stream of a camera.
export async function openCamera(height) {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Refusal(
      "Browsers lend a camera only to pages with an https address, and to those on the same machine (localhost). " +
      "Ask whoever runs this server for an https address.", 0,
    );
  }
  try {
    return await navigator.mediaDevices.getUserMedia({ video: { height: { ideal: Math.max(height, 480) } }, audio: false });
  } catch (error) {
    const sentences = {
      NotAllowedError: "The camera is not allowed for this page. Allow it beside the browser's address bar, then try again.",
      NotFoundError: "No camera was found on your machine.",
      NotReadableError: "The camera cannot be opened. Is another program using it?",
    };
    throw new Refusal(sentences[error.name] ?? `The camera cannot be opened (${error.name}).`, 0);
  }
}

export class Camera {
  // stream: of openCamera; camera: { fps, height } of the pictures; on: as of PictureSender.
  constructor(stream, id, camera, on) {
    this.stream = stream;
    this.height = camera.height;
    this.sender = new PictureSender(id, { ...on, ended: (sentence) => { this.release(); on.ended(sentence); } });
    this.preview = $("preview");
    this.canvas = document.createElement("canvas");
    this.isTaking = false;
    this.began_ms = null;
    this.preview.srcObject = stream;
    this.preview.play().catch(() => {}); // it is muted, which every browser plays
    stream.getVideoTracks()[0].addEventListener("ended", () => on.ended("The camera was switched off."));
    this.timer = setInterval(() => this.take(), 1000 / camera.fps);
  }

  take() {
    const { videoWidth: width, videoHeight: height } = this.preview;
    if (!width || this.isTaking) return;
    const now_ms = performance.now();
    this.began_ms ??= now_ms;
    this.canvas.height = Math.min(this.height, height);
    this.canvas.width = Math.max(Math.round((width * this.canvas.height) / height), 1);
    this.canvas.getContext("2d").drawImage(this.preview, 0, 0, this.canvas.width, this.canvas.height);
    this.isTaking = true;
    this.canvas.toBlob((jpeg) => {
      this.isTaking = false;
      if (jpeg) this.sender.add((now_ms - this.began_ms) / 1000, jpeg);
    }, "image/jpeg", QUALITY);
  }

  // Gives the camera back; nothing more is taken.
  release() {
    clearInterval(this.timer);
    for (const track of this.stream.getTracks()) track.stop();
    this.preview.srcObject = null;
  }

  // The same, and sends what was taken.
  async finish() {
    this.release();
    await this.sender.finish(2);
  }

  // The same, and sends nothing.
  abandon() {
    this.release();
    this.sender.close();
  }
}
