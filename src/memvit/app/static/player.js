// Which moment is shown, and the video at that moment, where there is a video that this browser can play.

import { $ } from "./words.js";

// While the newest moment is followed, the video jumps no more often than this: less where motion is not wanted.
const JUMP_MS = matchMedia("(prefers-reduced-motion: reduce)").matches ? 1000 : 250;

export class Player {
  // moved(t), followed(isFollowing): they have changed; measured(): the length of the video is known; unplayable(): the browser
  // cannot show the video.
  constructor({ moved, followed, measured, unplayable }) {
    this.on = { moved, followed, measured, unplayable };
    this.video = $("video");
    this.time = 0;
    this.isFollowing = false;
    this.canPlay = false;
    this.blob = "";
    this.wire();
  }

  // Of the video; 0 where the browser does not know.
  get length_s() {
    return this.canPlay && isFinite(this.video.duration) ? this.video.duration : 0;
  }

  // A visitor's own file, the address of a video, or null: there is nothing to play.
  open(source) {
    this.close();
    this.time = 0;
    this.setFollowing(true);
    if (source === null) return;
    if (source instanceof Blob) this.blob = URL.createObjectURL(source);
    this.canPlay = true;
    this.video.src = this.blob || source;
  }

  close() {
    this.video.pause();
    clearTimeout(this.jump);
    this.jump = null;
    this.canPlay = false;
    this.video.removeAttribute("src");
    this.video.load();
    if (this.blob) URL.revokeObjectURL(this.blob);
    this.blob = "";
  }

  // The visitor goes there; at most to length_s.
  seek(t, length_s) {
    this.setFollowing(false);
    this.time = Math.min(Math.max(t, 0), this.length_s || length_s);
    this.moveVideo();
    this.on.moved(this.time);
  }

  // The newest moment has moved.
  follow(t) {
    if (!this.isFollowing) return;
    this.time = t;
    this.on.moved(t);
    if (!this.canPlay) return;
    this.jump ??= setTimeout(() => {
      this.jump = null;
      if (this.isFollowing) this.moveVideo();
    }, JUMP_MS);
  }

  setFollowing(isFollowing) {
    if (isFollowing === this.isFollowing) return;
    this.isFollowing = isFollowing;
    this.on.followed(isFollowing);
  }

  toggle() {
    if (!this.canPlay) return;
    if (this.video.paused) this.video.play().catch(() => {}); // too early: the button of the video is still there
    else this.video.pause();
  }

  moveVideo() {
    if (!this.canPlay || !this.video.readyState) return; // it goes there once it is loaded
    this.own_s = Math.min(this.time, this.length_s || this.time);
    this.video.currentTime = this.own_s;
  }

  wire() {
    const video = this.video;
    const take = () => {
      if (!this.canPlay || video.seeking || !video.readyState || this.isFollowing) return;
      this.time = video.currentTime;
      this.on.moved(this.time);
    };
    video.addEventListener("loadedmetadata", () => {
      if (!video.videoWidth) { // only its sound can be played
        this.fail();
        return;
      }
      if (this.time > 0) this.moveVideo();
      this.on.measured();
    });
    video.addEventListener("error", () => {
      if (this.canPlay && video.getAttribute("src")) this.fail();
    });
    video.addEventListener("seeking", () => {
      if (Math.abs(video.currentTime - this.own_s) < 0.05) return;
      this.own_s = NaN;
      this.setFollowing(false); // with the controls of the video
    });
    for (const event of ["timeupdate", "seeked", "pause"]) video.addEventListener(event, take);
    video.addEventListener("play", () => {
      this.setFollowing(false);
      const tick = () => {
        take();
        if (!video.paused) requestAnimationFrame(tick);
      };
      requestAnimationFrame(tick);
    });
  }

  fail() {
    const wasAt_s = this.time;
    this.close();
    this.time = wasAt_s;
    this.on.unplayable();
  }
}
