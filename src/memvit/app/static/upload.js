// Choosing or dropping a video, and sending it to the server.

import { Refusal, sentenceOf } from "./server.js";
import { $, size } from "./words.js";

// chosen(file): the visitor has picked a file; refused(sentence): it is none that can be sent.
export function initChoice(chosen, refused) {
  const take = (files) => {
    if (files.length > 1) refused("One video at a time, please.");
    else if (files.length === 1) chosen(files[0]);
  };
  $("choose").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    take($("file").files);
    $("file").value = ""; // so that the same can be chosen again
  });
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  let depth = 0; // dragenter and dragleave come for every element that is crossed
  const setDepth = (next) => {
    depth = Math.max(next, 0);
    $("veil").hidden = depth === 0;
  };
  document.addEventListener("dragenter", (event) => { if (hasFiles(event)) setDepth(depth + 1); });
  document.addEventListener("dragleave", (event) => { if (hasFiles(event)) setDepth(depth - 1); });
  document.addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
  document.addEventListener("drop", (event) => {
    setDepth(0);
    if (!hasFiles(event)) return;
    event.preventDefault();
    take(event.dataTransfer.files);
  });
}

// Why a file is not even sent; "" where it can be.
export function objection(file, limit_bytes) {
  if (file.size === 0) return `${file.name} is empty, or a folder.`;
  if (file.size <= limit_bytes) return "";
  return `${file.name} has ${size(file.size)}; this server takes at most ${size(limit_bytes)}.`;
}

// Returns { done, cancel }: `done` becomes the id, or fails with a Refusal, whose sentence is "" where it was cancelled.
export function send(file, isCompared, progressed) {
  const request = new XMLHttpRequest();
  const done = new Promise((resolve, reject) => {
    request.upload.addEventListener("progress", (event) => progressed(event.loaded / Math.max(event.total, 1)));
    request.addEventListener("load", () => {
      if (request.status !== 201) reject(new Refusal(sentenceOf(request.responseText, request.status), request.status));
      else resolve(JSON.parse(request.responseText).id);
    });
    request.addEventListener("error", () => {
      reject(new Refusal(`The connection broke while ${file.name} was sent. Please try again.`, 0));
    });
    request.addEventListener("abort", () => reject(new Refusal("", 0)));
    request.open("POST", `api/jobs?name=${encodeURIComponent(file.name)}&compare=${isCompared ? 1 : 0}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.send(file);
  });
  return { done, cancel: () => request.abort() };
}
