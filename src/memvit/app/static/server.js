// What the page asks of the server, and how it follows what the server tells.

// A sentence for the visitor; `status` is 0 where the server could not be reached.
export class Refusal extends Error {
  constructor(sentence, status) {
    super(sentence);
    this.status = status;
  }
}

export const address = (id, rest = "") => `api/jobs/${encodeURIComponent(id)}${rest}`;

export async function ask(path, { method = "GET", data, body } = {}) {
  const options = { method, cache: "no-store" };
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
  } catch {
    throw new Refusal("The server cannot be reached. Is the connection lost?", 0);
  }
  if (!response.ok) throw new Refusal(sentenceOf(await response.text().catch(() => ""), response.status), response.status);
  return response;
}

export const askJson = async (path, options) => (await ask(path, options)).json();

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
  // on: { state(data), clip(data, id of the event), lost(), found(), removed() }
  constructor(id, on) {
    this.id = id;
    this.on = on;
    this.pause_s = 1;
    this.isClosed = this.isLost = false;
    this.again = () => {
      if (!this.isLost) return;
      this.source.close();
      this.open();
    };
    addEventListener("online", this.again); // sooner than the browser tries by itself
    this.open();
  }

  open() {
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
      if (this.isClosed || source !== this.source) return;
      this.isLost = true;
      this.on.lost();
      if (source.readyState === EventSource.CLOSED) this.retry();
    });
  }

  async retry() {
    await new Promise((ready) => setTimeout(ready, 1000 * this.pause_s));
    this.pause_s = Math.min(2 * this.pause_s, 15);
    if (this.isClosed || !this.isLost) return;
    try {
      await askJson(address(this.id));
    } catch (error) {
      if (this.isClosed) return;
      if (error.status === 404) {
        this.close();
        this.on.removed();
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
