// Light or dark: as the system has it, until the visitor says otherwise, which this browser remembers.

import { $ } from "./words.js";

const KEY = "memvit.theme";
const root = document.documentElement;
const wantsDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : wantsDark.matches);

// Colours that the drawing on canvases needs.
export const colors = {};

export function classColor(label, alpha = 1) {
  return `hsl(${((212 + label * 137.508) % 360).toFixed(0)} 68% ${colors.lightness} / ${alpha})`;
}

// Browsers may forbid a page to store anything: then the choice holds until the page is left.
function remembered() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}

function remember(theme) {
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    // as above
  }
}

export function initTheme(onChange) {
  const chosen = remembered();
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
  const apply = () => {
    $("theme").textContent = isDark() ? "Light" : "Dark";
    const style = getComputedStyle(root);
    for (const name of ["lightness", "ink", "dim", "line", "cursor"]) colors[name] = style.getPropertyValue(`--${name}`).trim();
    onChange();
  };
  $("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remember(root.dataset.theme);
    apply();
  });
  wantsDark.addEventListener("change", apply);
  apply();
}
