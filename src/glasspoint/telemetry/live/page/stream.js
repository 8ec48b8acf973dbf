// The connection to the process: server-sent events, and what is tried when it breaks.

const SILENCE_SECONDS = 6;
const GIVEN_UP_SECONDS = 20;
const LONGEST_WAIT_SECONDS = 30;
const LONGEST_REASON = 300;

// Calls `on[event](data)` for each event, and `on.state(name, text, retry_at)` when the state changes: `connecting`, `live`, `silent`, `lost`, `dropped`.
export class Stream {
  #url;
  #on;
  #source = null;
  #attempts = 0;
  #heard = 0;
  #timer = 0;
  #state = "";

  constructor(url, on) {
    this.#url = url;
    this.#on = on;
    setInterval(() => this.#watch(), 1000);
    this.connect();
  }

  connect() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#tell("connecting", "");
    const source = new EventSource(this.#url);
    this.#source = source;
    this.#heard = performance.now();
    for (const event of ["hello", "history", "figures", "timeline", "calls", "conversations"]) {
      source.addEventListener(event, (message) => {
        if (source !== this.#source) return;
        this.#heard = performance.now();
        this.#attempts = 0;
        this.#tell("live", "");
        this.#on[event](JSON.parse(message.data));
      });
    }
    source.addEventListener("bye", (message) => {
      if (source !== this.#source) return;
      this.#again("dropped", String(JSON.parse(message.data).reason ?? ""), 5);
    });
    source.addEventListener("error", () => {
      if (source === this.#source) this.#failed();
    });
  }

  // The browser does not say why: a plain request for the same address does, if the server is there at all.
  async #failed() {
    this.#source.close();
    this.#source = null;
    this.#attempts += 1;
    let reason = "";
    const stop = new AbortController();
    const late = setTimeout(() => stop.abort(), 3000);
    try {
      const response = await fetch(this.#url, { signal: stop.signal, cache: "no-store" });
      if (!response.ok) reason = (await response.text()).slice(0, LONGEST_REASON);
      else this.#attempts = Math.min(this.#attempts, 2);
    } catch {
      // It does not answer: `lost` without a reason says that.
    } finally {
      clearTimeout(late);
      stop.abort();
    }
    this.#again("lost", reason, Math.min(LONGEST_WAIT_SECONDS, 2 ** (this.#attempts - 1)));
  }

  #again(state, reason, seconds) {
    this.#source?.close();
    this.#source = null;
    this.#tell(state, reason, performance.now() + 1000 * seconds);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.connect(), 1000 * seconds);
  }

  // A connection can be open and dead: the figures come once a second.
  #watch() {
    if (!this.#source) return;
    const silent = (performance.now() - this.#heard) / 1000;
    if (silent > GIVEN_UP_SECONDS) this.#failed();
    else if (silent > SILENCE_SECONDS && this.#state === "live") this.#tell("silent", "");
  }

  #tell(state, reason, retryAt = 0) {
    if (state === this.#state && state === "live") return;
    this.#state = state;
    this.#on.state(state, reason, retryAt);
  }
}
