// Puts the page together: events come in, are kept, and are drawn once a second, and not at all while nobody looks.

import { Conversations, key } from "./conversations.js";
import { Demo, takeKey } from "./demo.js";
import { $, el, forgetColours, mark, say } from "./dom.js";
import { Events } from "./events.js";
import { Feed } from "./feed.js";
import { Figures } from "./figures.js";
import { Picture } from "./path.js";
import { Chips, Ladder, headline } from "./state.js";
import { Stream } from "./stream.js";
import { Strips, WINDOWS } from "./strips.js";
import { percent, rate, short, time, took } from "./words.js";

const THEME = "glasspoint-theme";
const MOST_PROCESSES = 32;
const SUM = "";

takeKey();

let hello = null;
let events = [];
let newlyConnected = true;
let paused = false;
let chosen = SUM;
let each = {};
const kept = new Map([[SUM, new Figures()]]);

const turn = $("turn");
const picture = new Picture($("picture"));
const ladder = new Ladder($("ladder"));
const chips = new Chips($("chips"));
const strips = new Strips($("strips"), pointed);
const eventList = new Events($("event-list"), $("events").querySelector(".nothing"));
const conversations = new Conversations({
  list: $("conversation-list"),
  nothing: $("conversations").querySelector(".nothing"),
  open: openTurn,
  filter: (thread) => {
    $("calls-filter").value = thread;
    $("calls-filter").dispatchEvent(new Event("input"));
    $("calls").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    $("calls-filter").focus({ preventScroll: true });
  },
});
const feed = new Feed({
  body: $("call-rows"),
  said: $("calls-said"),
  nothing: $("calls").querySelector(".nothing"),
  filter: $("calls-filter"),
  pause: $("calls-pause"),
  open: (trace) => openTurn(trace, "The turn of a call"),
});
const demo = new Demo(
  {
    demo: $("demo"),
    chatSection: $("chat"),
    faults: $("faults"),
    groups: $("fault-groups"),
    said: $("faults-said"),
    log: $("chat-log"),
    form: $("chat-form"),
    text: $("chat-text"),
    fresh: $("chat-new"),
    ideas: $("chat-ideas"),
  },
  openTurn,
  (trace) => conversations.turn(trace),
);
key($("conversation-key"));

// ---- what the process sends ------------------------------------------------------------------------------

const heard = {
  hello(found) {
    if (hello && (hello.started !== found.started || hello.pid !== found.pid)) {
      kept.clear();
      kept.set(SUM, new Figures());
      chosen = SUM;
    }
    hello = found;
    newlyConnected = true;
    demo.begin(found);
    conversations.begin(found.spans !== false);
    say(
      $("processes-own"),
      `Events, conversations and calls are those of process ${short(found.pid, 20)}, which serves this page.`,
    );
    $("conversation-key").hidden = found.spans === false;
    say(
      $("about"),
      `Glasspoint ${short(found.version, 30)}, process ${short(found.pid, 20)}, since ${time(found.started)}. Thread ids are ${{ plain: "shown as they are", hashed: "hashed", none: "not shown" }[found.thread_ids] ?? "shown as the settings say"}; what is said in conversations is never shown.`,
    );
  },
  history({ figures }) {
    kept.get(SUM).precede(figures);
    draw();
  },
  figures(found) {
    kept.get(SUM).add(found.at, found.sum);
    each = found.each ?? {};
    const names = Object.keys(each).slice(0, MOST_PROCESSES);
    if (names.length > 1) {
      for (const name of names) {
        if (!kept.has(name)) kept.set(name, new Figures());
        kept.get(name).add(found.at, each[name]);
      }
    }
    demo.states(found.actions);
    draw();
  },
  timeline({ lines }) {
    if (newlyConnected) {
      events = lines;
      eventList.replace(lines);
    } else {
      events = [...events, ...lines];
      eventList.add(lines);
    }
    newlyConnected = false;
    events = events.slice(-(hello?.limits?.timeline ?? 500));
  },
  calls({ calls, skipped }) {
    feed.add(calls, skipped);
  },
  conversations(found) {
    conversations.add(found.conversations);
    demo.turnsChanged();
  },
  state: connection,
};

// ---- drawing ---------------------------------------------------------------------------------------------

function figures() {
  return kept.get(chosen) ?? kept.get(SUM);
}

function draw() {
  if (document.hidden || paused) return;
  const shown = figures();
  const end = shown.rows.length;
  const [level, text] = headline(shown, end, shown.latest?.error === undefined ? shown.latest : null);
  const failed = shown.latest?.error;
  mark($("headline"), "data-level", failed ? "error" : level);
  say($("headline").lastElementChild, failed ? `${short(chosen, 60)} ${short(failed, 200)}.` : together(text));
  picture.show(shown, end, failed ? null : shown.latest);
  ladder.show(failed ? null : shown.latest, events);
  chips.show(failed ? null : shown.latest, events, (name) => shown.mean(name, end));
  strips.events = events;
  strips.show(shown);
  drawProcesses();
}

// A number and its unit stay on one line.
const together = (text) => text.replace(/(\d) (?=%|m?s\b)/g, "$1\u00a0");

function drawProcesses() {
  const names = Object.keys(each).slice(0, MOST_PROCESSES);
  const several = names.length > 1;
  $("processes").hidden = !several;
  $("source-choice").hidden = !several;
  if (!several) return;
  const body = $("process-rows"),
    select = $("source");
  const wanted = [SUM, ...names];
  if ([...body.children].map((row) => row.key).join("\n") !== wanted.join("\n")) {
    body.replaceChildren(
      ...wanted.map((name) => {
        const radio = el("input", { type: "radio", name: "shown", on: { change: () => choose(name) } });
        const row = el(
          "tr",
          {},
          el(
            "th",
            { scope: "row" },
            el(
              "label",
              {},
              radio,
              el("bdi", { text: name === SUM ? "All together" : name === "here" ? "This process" : short(name, 60) }),
            ),
          ),
          ...Array.from({ length: 7 }, () => el("td")),
        );
        row.key = name;
        return row;
      }),
    );
    select.replaceChildren(
      ...wanted.map((name) => {
        const option = el("option", {
          text: name === SUM ? "All together" : name === "here" ? "This process" : short(name, 60),
        });
        option.key = name;
        return option;
      }),
    );
    if (!wanted.includes(chosen)) chosen = SUM;
    choose(chosen);
  }
  for (const row of body.children) {
    const cells = [...row.children].slice(1);
    const of = kept.get(row.key);
    const failed = of?.latest?.error;
    const said = failed
      ? [short(failed, 100)]
      : [
          rate(of?.mean("reads")),
          percent(of?.mean("hitRatio")),
          took(of?.recent("hit99")),
          rate(of?.mean("writes")),
          took(of?.recent("write99")),
          of?.rows.at(-1)?.tier ?? "–",
          of?.rows.at(-1)?.breaker?.replace("_", " ") ?? "–",
        ];
    cells.forEach((cell, n) => {
      say(cell, said[n] ?? "");
      cell.hidden = Boolean(failed) && n > 0;
      cell.colSpan = failed && n === 0 ? 7 : 1;
    });
    mark(row, "class", failed ? "failed" : "");
  }
}

function choose(name) {
  chosen = name;
  for (const row of $("process-rows").children) row.querySelector("input").checked = row.key === name;
  for (const option of $("source").options) option.selected = option.key === name;
  draw();
}
$("source").addEventListener("change", (event) => choose(event.target.selectedOptions[0].key));

// ---- the moment that the figures are of ------------------------------------------------------------------

const slider = $("moment").querySelector("input"),
  output = $("moment").querySelector("output");

function pointed(at) {
  const { moments } = strips;
  say(output, at === null ? "now" : time(at));
  const index = moments.findIndex((row) => row.at >= at);
  slider.value =
    at !== null && index >= 0 && moments.length > 1 ? String(Math.round((100 * index) / (moments.length - 1))) : "100";
}
slider.addEventListener("input", () => {
  const { moments } = strips;
  const index =
    slider.value === "100" || !moments.length ? null : Math.round((slider.value / 100) * (moments.length - 1));
  say(output, index === null ? "now" : time(moments[index].at));
  strips.look(index === null ? null : moments[index].at);
});

for (const [seconds, text] of WINDOWS) {
  const radio = el("input", {
    type: "radio",
    name: "window",
    checked: seconds === 300,
    on: {
      change: () => {
        strips.seconds = seconds;
        strips.look(null);
        pointed(null);
        draw();
      },
    },
  });
  $("window").append(el("label", {}, radio, el("span", { text })));
}

// ---- the connection --------------------------------------------------------------------------------------

let retryAt = 0;
let countdown = 0;

function connection(state, reason, at) {
  const banner = $("banner"),
    [text, button] = banner.children;
  clearInterval(countdown);
  retryAt = at;
  mark($("link"), "data-state", state);
  say(
    $("link").lastElementChild,
    {
      connecting: "Connecting …",
      live: paused ? "Paused" : "Live",
      silent: "No news",
      lost: "Disconnected",
      dropped: "Dropped",
    }[state] ?? state,
  );
  const broken = state === "lost" || state === "dropped";
  if (state === "live") banner.hidden = true;
  if (state === "silent") {
    banner.hidden = false;
    button.hidden = true;
    say(text, "The process has sent nothing for some seconds. It is busy, stopped, or the connection is broken.");
  }
  if (!broken) return;
  const why = reason ? short(reason, 300) : "the process does not answer.";
  const what = state === "dropped" ? `The process has dropped this viewer: ${why}` : `Disconnected: ${why}`;
  banner.hidden = false;
  button.hidden = false;
  const tell = () => {
    const left = Math.max(0, Math.ceil((retryAt - performance.now()) / 1000));
    say(text, `${what} ${left ? `Trying again in ${left} s.` : "Trying again …"}`);
  };
  say(text, `${what} Trying again.`);
  countdown = setInterval(tell, 1000);
}
$("banner")
  .querySelector("button")
  .addEventListener("click", () => stream.connect());

// ---- pause, theme, turns ---------------------------------------------------------------------------------

$("pause").addEventListener("click", () => {
  paused = !paused;
  mark($("pause"), "aria-pressed", String(paused));
  say($("pause"), paused ? "Go on" : "Pause");
  picture.hold(paused);
  feed.hold(paused);
  if (!paused) draw();
  if ($("link").dataset.state === "live") say($("link").lastElementChild, paused ? "Paused" : "Live");
});
document.addEventListener("visibilitychange", draw);

const themes = ["auto", "light", "dark"];
let theme = themes.includes(localStorage.getItem(THEME)) ? localStorage.getItem(THEME) : "auto";

function paint() {
  if (theme === "auto") document.documentElement.removeAttribute("data-theme");
  else mark(document.documentElement, "data-theme", theme);
  say($("theme"), `◐ ${theme}`);
  mark($("theme"), "aria-label", `Theme: ${theme}`);
  forgetColours();
  strips.repaint();
}
$("theme").addEventListener("click", () => {
  theme = themes[(themes.indexOf(theme) + 1) % themes.length];
  localStorage.setItem(THEME, theme);
  paint();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
paint();

async function openTurn(trace, title) {
  if (!/^[0-9a-f]{32}$/.test(trace)) return;
  const address = `live/turns/${trace}${theme === "auto" ? "" : `?theme=${theme}`}`;
  const said = $("turn-said"),
    frame = $("turn-frame");
  say($("turn-title"), title);
  $("turn-tab").href = address;
  said.hidden = false;
  frame.hidden = true;
  say(said, "Loading …");
  if (!turn.open) turn.showModal();
  try {
    // Asked for before it is framed: a turn that is gone is told in a sentence.
    const { ok } = await fetch(address, { method: "HEAD", cache: "no-store" });
    if (!ok) {
      say(said, short(await (await fetch(address, { cache: "no-store" })).text(), 300) || "This turn cannot be shown.");
      return;
    }
  } catch {
    say(said, "The process does not answer.");
    return;
  }
  frame.src = address;
  frame.hidden = false;
  said.hidden = true;
}
$("turn-close").addEventListener("click", () => turn.close());
turn.addEventListener("click", (event) => {
  if (event.target === turn) turn.close();
});
turn.addEventListener("close", () => {
  $("turn-frame").removeAttribute("src");
});

// Last, because it calls what is above.
const peers = new URLSearchParams(location.search).get("peers");
const stream = new Stream(peers ? `live/events?peers=${encodeURIComponent(peers)}` : "live/events", heard);
