// The keyboard, wherever nothing is typed.

import { $ } from "./words.js";

export function initKeys(watch) {
  // Captured, so that the video's own keys do not do the same a second time.
  document.addEventListener("keydown", (event) => {
    if ($("watch").hidden || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.target.closest?.("input, textarea, select")) return;
    if ((event.key === " " || event.key === "Enter") && event.target.closest?.("button, a")) return;
    const step_s = event.shiftKey ? 1 : 5, now_s = watch.player.time;
    const action = {
      " ": () => watch.player.toggle(),
      ArrowLeft: () => watch.seek(now_s - step_s),
      ArrowRight: () => watch.seek(now_s + step_s),
      Home: () => watch.seek(0),
      End: () => watch.seek(watch.length_s),
    }[event.key];
    if (!action) return;
    event.preventDefault();
    event.stopPropagation();
    action();
  }, true);
}
