// Light or dark: as the system has it, until the visitor says otherwise.

import { $ } from "./words.js";

const root = document.documentElement;
const wantsDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : wantsDark.matches);

// Colours that the drawing on canvases needs.
export const colors = {};

export function classColor(label, alpha = 1) {
  return `hsl(${((212 + label * 137.508) % 360).toFixed(0)} 68% ${colors.lightness} / ${alpha})`;
}

export function initTheme(onChange) {
  const apply = () => {
    $("theme").textContent = isDark() ? "Light" : "Dark";
    const style = getComputedStyle(root);
    for (const name of ["lightness", "ink", "dim", "line", "cursor"]) colors[name] = style.getPropertyValue(`--${name}`).trim();
    onChange();
  };
  $("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    apply();
  });
  wantsDark.addEventListener("change", apply);
  apply();
}
