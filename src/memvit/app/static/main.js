// The page: what a visitor can begin with, and which recording its address names.

import { Camera, openCamera } from "./camera.js";
import { initKeys } from "./keys.js";
import { askJson, pause } from "./server.js";
import { initTheme } from "./theme.js";
import { initChoice, objection, send } from "./upload.js";
import { Watch, stateOf } from "./watch.js";
import { $, count, size, span } from "./words.js";

let about = null, upload = null;
let turn = 0; // grows whenever something else is to be shown: what was asked for before is not shown any more

const watch = new Watch({ alert: showAlert, removed: leaveGone });

function showAlert(sentence) {
  $("alert").hidden = !sentence;
  $("alert").textContent = sentence;
}

// The same without alarm.
function showTold(sentence) {
  $("told").hidden = !sentence;
  $("told").textContent = sentence;
}

function showMain(id) {
  showTold("");
  for (const main of ["start", "watch"]) $(main).hidden = main !== id;
}

const idInAddress = () => new URLSearchParams(location.hash.slice(1)).get("job") ?? "";

function goToStart() {
  if (location.hash) history.pushState(null, "", location.pathname + location.search);
  showStart();
  showAlert("");
}

// There is nothing under this address any more: "Back" must not come to it again.
function leaveGone(sentence) {
  history.replaceState(null, "", location.pathname + location.search);
  showStart();
  showAlert("");
  showTold(sentence);
}

function showStart() {
  turn++;
  upload?.cancel();
  upload = null;
  watch.close();
  showMain("start");
}

// ---- beginnings -----------------------------------------------------------------------------------------------------------

const isCompared = () => about.memory && $("compare").checked;

async function beginFile(file) {
  if (about === null) return;
  showAlert(objection(file, about.limits.upload_bytes));
  if (!$("alert").hidden) return;
  showStart();
  showMain("watch");
  watch.prepare(file);
  const mine = send(file, isCompared(), (share) => watch.showSending(file.name, share));
  upload = mine;
  watch.showSending(file.name, 0);
  try {
    const id = await mine.done;
    if (upload === mine) await begun(id, { file });
  } catch (error) {
    if (upload !== mine) return; // cancelled
    goToStart();
    showAlert(error.message);
  }
  if (upload === mine) upload = null;
}

async function beginCamera() {
  showAlert("");
  $("camera").disabled = true;
  const mine = ++turn;
  let stream = null, camera = null;
  try {
    stream = await openCamera(about.camera.height);
    const { id } = await askJson("api/jobs/camera", { method: "POST", data: { compare: isCompared() } });
    camera = new Camera(stream, id, about.camera, {
      dropped: (number) => watch.notices.setDropped(number),
      lost: () => watch.setLost("camera", true),
      found: () => watch.setLost("camera", false),
      ended: (sentence) => {
        showAlert(sentence);
        watch.stop();
      },
    });
    if (turn !== mine || !await begun(id, { camera })) camera.abandon();
  } catch (error) {
    camera?.abandon();
    stream?.getTracks().forEach((track) => track.stop());
    showAlert(error.message);
  }
  $("camera").disabled = false;
}

async function beginSource(event) {
  event.preventDefault();
  showAlert("");
  const source = $("source").value.trim(), button = $("sourceForm").querySelector("button");
  if (!source) return;
  button.disabled = true; // with it, Enter in the field does nothing either
  const mine = ++turn;
  try {
    const { id } = await askJson("api/jobs/source", { method: "POST", data: { source, compare: isCompared() } });
    if (turn === mine) await begun(id);
  } catch (error) {
    showAlert(error.message);
  }
  button.disabled = false;
}

// The server has taken it: from here on the address of the page names it, so that it is found again whatever happens.
function begun(id, own) {
  history.pushState(null, "", `#job=${encodeURIComponent(id)}`);
  return openJob(id, own);
}

async function openAddress() {
  const id = idInAddress();
  if (id && id === watch.id) return;
  showStart();
  if (id) await openJob(id);
}

// Shows what the server has under an id, as soon as it can be reached; false: it has nothing, or that is not wanted any more.
async function openJob(id, own = {}) {
  const mine = ++turn;
  // A proxy in front answers with 502 and the like while the server is away.
  const isWorthIt = ({ status }) => turn === mine && (status < 400 || status >= 500);
  try {
    const state = await patiently(() => stateOf(id), isWorthIt);
    if (turn !== mine) return false;
    showAlert("");
    showMain("watch");
    watch.open(state, own);
    return true;
  } catch (error) {
    if (turn !== mine) return false;
    if (error.status === 404) {
      leaveGone(error.message);
    } else {
      showStart();
      showAlert(error.message);
    }
    return false;
  }
}

// Asks again and again, for as long as that is worth it.
async function patiently(question, isWorthIt = () => true) {
  for (let pause_s = 1; ; pause_s = Math.min(2 * pause_s, 15)) {
    try {
      return await question();
    } catch (error) {
      if (!isWorthIt(error)) throw error;
      showAlert(`${error.message} Trying again…`);
      await pause(pause_s);
      if (!isWorthIt(error)) throw error;
    }
  }
}

// ---- the server's own words -----------------------------------------------------------------------------------------------

function describe() {
  const { limits, heads, memory, reach_s, clip_s, anticipation_s } = about;
  watch.about = about;
  $("model").textContent = $("model").title = about.model; // of a long name, the page shows as much as fits
  $("notice").hidden = !about.notice;
  $("notice").textContent = about.notice && `Untrained model: ${about.notice}.`;
  const long = limits.duration_s ? ` and ${span(limits.duration_s)}` : "";
  const removed = `Video and results are removed ${span(limits.keep_s)} after the end, or when you say so.`;
  $("limits").textContent = `At most ${size(limits.upload_bytes)}${long}. ${removed}`;
  $("compare").disabled = !memory;
  $("compareNote").textContent = memory
    ? "Recognises a second time with nothing remembered, to show what memory changes. This takes up to twice as long."
    : "This model has no memory: there is nothing to compare.";
  $("sourceForm").hidden = !about.sources;
  const classes = heads.map(({ name, num_classes }) => count(num_classes, name || "class", name ? `${name}s` : "classes"));
  const sentences = [
    `${about.model} looks at one clip of ${span(clip_s)} after another and knows ${classes.join(" and ")}.`,
    memory ? `Its memory reaches ${span(reach_s)} back.` : "It has no memory: every clip stands for itself.",
    anticipation_s > 0 ? `It says what will happen ${span(anticipation_s)} later.` : "",
    `memvit ${about.version}.`,
  ];
  $("factsText").textContent = sentences.filter(Boolean).join(" ");
}

async function begin() {
  about = await patiently(() => askJson("api/about"));
  showAlert("");
  describe();
  await openAddress();
}

initTheme(() => watch.repaint());
initChoice(beginFile, showAlert);
initKeys(watch);
$("camera").addEventListener("click", beginCamera);
$("sourceForm").addEventListener("submit", beginSource);
$("cancel").addEventListener("click", () => goToStart());
$("another").addEventListener("click", () => goToStart());
addEventListener("hashchange", openAddress);
begin();
