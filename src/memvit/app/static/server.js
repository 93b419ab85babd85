// What the page asks of the server, and how it follows what the server tells.

const LIMIT_S = 30;
const LATE = `The server has not answered for ${LIMIT_S} s. Is the connection lost, or is this page open in many tabs?`;

// A sentence for the visitor; `status` is 0 where the server could not be reached.
export class Refusal extends Error {
  constructor(sentence, status) {
    super(sentence);
    this.status = status;
  }
}

export const address = (id, rest = "") => `api/jobs/${encodeURIComponent(id)}${rest}`;

export const pause = (seconds) => new Promise((ready) => setTimeout(ready, 1000 * seconds));

// isLong: it may take its time, as what is sent in a body may.
export async function ask(path, { method = "GET", data, body, isLong = body !== undefined } = {}) {
  const options = { method, cache: "no-store", signal: isLong ? null : AbortSignal.timeout(1000 * LIMIT_S) };
  if (data !== undefined) {
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(data);
  } else if (body !== undefined) {
    options.headers = { "Content-Type": "application/octet-stream" };
    options.body = body;
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    throw unreached(error);
  }
  if (!response.ok) throw new Refusal(sentenceOf(await response.text().catch(() => ""), response.status), response.status);
  return response;
}

export async function askJson(path, options) {
  const response = await ask(path, options);
  return response.json().catch((error) => { throw unreached(error); });
}

function unreached(error) {
  return new Refusal(error.name === "TimeoutError" ? LATE : "The server cannot be reached. Is the connection lost?", 0);
}

export function sentenceOf(text, status) {
  try {
    const { error } = JSON.parse(text);
    if (typeof error === "string" && error) return error;
  } catch {
    // no answer of ours, perhaps of a proxy in between
  }
  return `The server cannot do this now (answer ${status}).`;
}

// Follows the events of one recording until it ends. The browser itself asks for what it missed after a break; where a break
// ends in an error instead, everything is asked for again, and whoever listens leaves out what is known already.
export class Events {
  // on: { state(data), clip(data, id of the event), lost(), found(), removed(sentence) }
  constructor(id, on) {
    this.id = id;
    this.on = on;
    this.pause_s = 1;
    this.isClosed = this.isResting = this.isLost = false;
    this.again = () => {
      if (this.isLost) this.open();
    };
    addEventListener("online", this.again); // sooner than the browser tries by itself
    this.open();
  }

  // While it rests it has no connection; what it misses comes afterwards.
  setResting(isResting) {
    if (isResting === this.isResting) return;
    this.isResting = isResting;
    if (isResting) this.source.close();
    else this.open();
  }

  open() {
    if (this.isClosed || this.isResting) return;
    this.source?.close();
    const source = new EventSource(address(this.id, "/events"));
    this.source = source;
    source.addEventListener("open", () => {
      this.pause_s = 1;
      this.isLost = false;
      this.on.found();
    });
    source.addEventListener("state", (event) => this.on.state(JSON.parse(event.data)));
    source.addEventListener("clip", (event) => this.on.clip(JSON.parse(event.data), Number(event.lastEventId)));
    source.addEventListener("error", () => {
      if (this.isClosed || this.isResting || source !== this.source) return;
      this.isLost = true;
      this.on.lost();
      if (source.readyState === EventSource.CLOSED) this.retry();
    });
  }

  async retry() {
    await pause(this.pause_s);
    this.pause_s = Math.min(2 * this.pause_s, 15);
    if (this.isClosed || this.isResting || !this.isLost) return;
    try {
      await askJson(address(this.id));
    } catch (error) {
      if (this.isClosed) return;
      if (error.status === 404) {
        this.close();
        this.on.removed(error.message);
      } else {
        this.retry();
      }
      return;
    }
    if (!this.isClosed && this.isLost) this.open();
  }

  close() {
    this.isClosed = true;
    removeEventListener("online", this.again);
    this.source.close();
  }
}
