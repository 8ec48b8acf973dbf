// Draws the conversation that the page holds. Others wrote the data, so the script turns them into text
// (`textContent`) only, never into markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const details = document.getElementById("details");
  // The live page says in the address which theme it shows; without that, the theme is the system's.
  const theme = new URLSearchParams(location.search).get("theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  const LABELS = {
    l1: "L1: Redis", l2: "L2: PostgreSQL", saver: "call of the checkpointer", wait: "wait for a connection", model: "model", tool: "tool",
    graph: "graph, node", turn: "turn", other: "other",
  };
  const ROW_HEIGHT = matchMedia("(max-width: 760px)").matches ? 39 : 26;
  const SERVERS = { l1: "L1 Redis", l2: "L2 PostgreSQL", redis: "Redis alone", memory: "memory" };
  const SERVER_CLASS = { l1: "w-l1", redis: "w-l1", l2: "w-l2" };

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function add(parent, ...children) {
    for (const child of children) if (child) parent.appendChild(child);
    return parent;
  }

  // Returns microseconds as text, in a suitable unit.
  function took(microseconds) {
    const ms = microseconds / 1000;
    if (ms < 1000) return `${ms.toFixed(ms >= 100 ? 0 : ms >= 10 ? 1 : 2)} ms`;
    const seconds = ms / 1000;
    if (seconds < 60) return `${seconds.toFixed(seconds >= 10 ? 1 : 2)} s`;
    return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  }

  const percent = (part, whole) => (whole > 0 ? `${Math.round((100 * part) / whole)} %` : "–");

  // ---- the summary -----------------------------------------------------------------------------------------

  function drawTop() {
    const top = document.getElementById("top");
    add(top, make("p", "kicker", "Conversation"), make("h1", "", data.thread_id));
    const facts = make("dl", "facts");
    const fact = (name, value, more, parts) => {
      const box = make("div", "fact");
      const shown = make("dd", "", value);
      if (more) add(shown, make("small", "", more));
      if (parts) {
        const share = make("div", "share");
        for (const [work, amount] of parts) {
          if (!amount) continue;
          const piece = make("i", `w-${work}`);
          piece.style.flex = `${amount} 0 0`;
          piece.style.background = "var(--c)";
          share.appendChild(piece);
        }
        shown.appendChild(share);
      }
      add(facts, add(box, make("dt", "", name), shown));
    };
    const proper = data.turns.filter((turn) => turn.number !== null);
    const counted = proper.length ? proper : data.turns;
    const whole = counted.reduce((sum, turn) => sum + turn.took, 0);
    const saver = counted.reduce((sum, turn) => sum + turn.saver, 0);
    const outside = data.turns.length - proper.length;
    const first = data.turns[0], last = data.turns[data.turns.length - 1];
    fact("Turns", String(proper.length), outside ? `and ${outside} traces outside of them` : data.period);
    const reads = Object.entries(data.reads);
    const total = reads.reduce((sum, [, count]) => sum + count, 0);
    fact(
      "Reads", total ? `${percent(data.hits, total)} hits` : "none",
      reads.map(([server, count]) => `${count} from ${SERVERS[server] || server}`).join(", "),
      reads.map(([server, count]) => [server === "l2" ? "l2" : server === "l1" ? "l1" : "other", count]),
    );
    fact("Checkpointer at work", percent(saver, whole), `${took(saver)} of ${took(whole)}`, [
      ["turn", saver], ["saver", Math.max(0, whole - saver)],
    ]);
    if (counted.length > 1) {
      const slowest = counted.reduce((a, b) => (b.took > a.took ? b : a));
      fact("Slowest", took(slowest.took), slowest.title);
    }
    top.appendChild(facts);
    if (data.notes.length) {
      const notes = make("ul", "notes");
      for (const note of data.notes) notes.appendChild(make("li", "", note));
      top.appendChild(notes);
    }
    const legend = make("p", "legend");
    const seen = new Set(data.turns.flatMap((turn) => turn.spans.map((span) => span.work)));
    for (const [work, label] of Object.entries(LABELS)) {
      if (seen.has(work)) legend.appendChild(make("span", `w-${work}`, label));
    }
    legend.appendChild(make("b", "soft hint", "Arrow keys walk and fold, Enter shows attributes."));
    top.appendChild(legend);
    if (!first || !last) top.appendChild(make("p", "soft", "There is nothing to show."));
  }

  // One column for each turn, as high as the turn was long, to see slow turns at a glance.
  function drawOverview() {
    const nav = document.getElementById("overview");
    if (data.turns.length < 2) {
      nav.hidden = true;
      return;
    }
    const longest = Math.max(...data.turns.map((turn) => turn.took), 1);
    const list = make("ol");
    for (const turn of data.turns) {
      const link = make("a");
      link.href = `#${turn.id}`;
      link.title = `${turn.title}: ${took(turn.took)}, ${took(turn.saver)} of it with the checkpointer at work`;
      const column = make("div", "column");
      const height = 72 * (turn.took / longest);
      const rest = make("i", turn.failed ? "failed" : "w-graph");
      const saver = make("i", SERVER_CLASS[turn.served_by] || "w-saver");
      const share = turn.took > 0 ? Math.min(1, turn.saver / turn.took) : 0;
      rest.style.height = `${height * (1 - share)}px`;
      saver.style.height = `${height * share}px`;
      add(column, rest, turn.saver ? saver : null);
      add(link, column, make("span", "", turn.number === null ? "·" : String(turn.number)));
      list.appendChild(add(make("li"), link));
    }
    const caption = "A column for each turn, as high as it was long; in colour: the checkpointer at work, by where the turn's first read came from.";
    add(nav, make("p", "", caption), list);
  }

  // ---- the turns -------------------------------------------------------------------------------------------

  function drawTurn(turn) {
    const section = make("section", "turn");
    section.id = turn.id;
    section.setAttribute("aria-labelledby", `${turn.id}-title`);
    const header = make("header");
    const title = make("h2", "", turn.title);
    title.id = `${turn.id}-title`;
    add(header, title, make("span", "took", took(turn.took)), make("span", "soft", turn.when));
    for (const each of [turn.agent, turn.service]) if (each) header.appendChild(make("span", "soft who", each));
    const chips = make("div", "chips");
    if (turn.failed) chips.appendChild(make("span", "chip failed", "failed"));
    for (const read of turn.first_reads) {
      chips.appendChild(make("span", `chip ${read.server} ${SERVER_CLASS[read.server] || ""}`, read.text));
    }
    for (const origin of turn.origins) {
      if (origin.to === null) {
        chips.appendChild(make("span", "chip missing", origin.text));
      } else {
        const chip = make("a", origin.fork ? "chip fork" : "chip", `← ${origin.text}`);
        chip.href = `#${origin.to}`;
        chips.appendChild(chip);
      }
    }
    for (const next of turn.continued) {
      const chip = make("a", "chip", `${next.text} →`);
      chip.href = `#${next.to}`;
      chips.appendChild(chip);
    }
    header.appendChild(chips);
    const rows = make("div", "rows");
    rows.setAttribute("role", "tree");
    rows.setAttribute("aria-label", `Spans of ${turn.title}`);
    add(section, header, drawAxis(turn), rows);
    const waterfall = new Waterfall(turn, rows, header);
    // The approximate height, because the browser draws a turn only when it is near the viewport.
    section.style.containIntrinsicSize = `auto ${90 + ROW_HEIGHT * waterfall.rows.length}px`;
    return section;
  }

  function drawAxis(turn) {
    const ticks = make("div", "ticks");
    for (let quarter = 0; quarter <= 4; quarter += 1) {
      const tick = make("span", "", quarter ? took((turn.span * quarter) / 4) : "0");
      tick.style.left = `${25 * quarter}%`;
      ticks.appendChild(tick);
    }
    const axis = add(make("div", "axis"), make("div"), ticks);
    axis.setAttribute("aria-hidden", "true");
    return axis;
  }

  // The rows of a turn: a tree that can be folded, with the arrow keys for navigation.
  class Waterfall {
    constructor(turn, element, header) {
      this.turn = turn;
      this.element = element;
      this.folded = new Set();
      this.rows = [];
      turn.spans.forEach((span, index) => {
        if (span.work === "saver" && this.hasChildren(index)) this.folded.add(index);
      });
      if (this.folded.size) {
        const button = make("button", "bar-button", "Unfold calls");
        button.type = "button";
        const calls = [...this.folded];
        button.addEventListener("click", () => {
          const unfold = this.folded.size > 0;
          this.folded = new Set(unfold ? [] : calls);
          button.textContent = unfold ? "Fold calls" : "Unfold calls";
          this.draw();
        });
        header.insertBefore(button, header.lastChild);
      }
      element.addEventListener("click", (event) => {
        const row = event.target.closest(".row");
        if (!row) return;
        const index = Number(row.dataset.index);
        if (event.target.closest(".fold") && this.hasChildren(index)) this.toggle(index);
        else this.open(index);
      });
      element.addEventListener("keydown", (event) => this.pressed(event));
      this.draw();
    }

    hasChildren(index) {
      const next = this.turn.spans[index + 1];
      return Boolean(next) && next.depth > this.turn.spans[index].depth;
    }

    end(index) {
      const { spans } = this.turn;
      let next = index + 1;
      while (next < spans.length && spans[next].depth > spans[index].depth) next += 1;
      return next;
    }

    draw() {
      const { spans } = this.turn;
      this.rows = [];
      const fragment = document.createDocumentFragment();
      for (let index = 0; index < spans.length; index = this.folded.has(index) ? this.end(index) : index + 1) {
        this.rows.push(this.row(index));
        fragment.appendChild(this.rows[this.rows.length - 1]);
      }
      this.element.replaceChildren(fragment);
      if (this.rows.length) this.rows[0].tabIndex = 0;
    }

    row(index) {
      const span = this.turn.spans[index];
      const isFolded = this.folded.has(index);
      const row = make("div", `row w-${span.work}${span.work === "saver" ? " call" : ""}${span.depth ? "" : " root"}`);
      row.dataset.index = String(index);
      row.tabIndex = -1;
      row.style.setProperty("--depth", String(span.depth));
      row.setAttribute("role", "treeitem");
      row.setAttribute("aria-level", String(span.depth + 1));
      row.setAttribute("aria-label", `${span.name} ${span.said.join(" ")} ${took(span.took)}`);
      if (this.hasChildren(index)) row.setAttribute("aria-expanded", String(!isFolded));
      const label = make("div", "label");
      const fold = make("span", "fold", this.hasChildren(index) ? (isFolded ? "▸" : "▾") : "");
      fold.setAttribute("aria-hidden", "true");
      const said = make("span", "said");
      span.said.forEach((each, position) => {
        if (position) said.appendChild(document.createTextNode(" · "));
        const isFirst = position === 0 && span.served_by;
        const mark = each.endsWith(" failed") ? "failed" : isFirst ? SERVER_CLASS[span.served_by] || "plain" : "";
        said.appendChild(mark ? make("b", mark, each) : document.createTextNode(each));
      });
      if (span.failed) said.appendChild(make("b", "failed", `${span.said.length ? " · " : ""}${span.failed}`));
      add(label, fold, make("span", "name", span.name), said);
      label.title = [span.name, ...span.said].join("  ");
      const lane = make("div", "lane");
      const bar = make("div", `bar w-${span.work}`);
      this.place(bar, span.at, span.took);
      if (span.failed) bar.classList.add("failed");
      if (isFolded) this.pieces(bar, index);
      lane.appendChild(bar);
      for (const event of span.events) {
        const mark = make("div", "mark");
        mark.style.left = `${100 * Math.min(1, Math.max(0, event.at / (this.turn.span || 1)))}%`;
        mark.title = event.name;
        lane.appendChild(mark);
      }
      lane.appendChild(make("span", "time", took(span.took)));
      return add(row, label, lane);
    }

    place(bar, at, length) {
      const whole = this.turn.span || 1;
      bar.style.left = `${Math.min(99.8, (100 * at) / whole)}%`;
      bar.style.width = `${Math.min(100, (100 * length) / whole)}%`;
    }

    // Inside the bar of a folded call: when it asked which server.
    pieces(bar, index) {
      const { spans } = this.turn;
      const call = spans[index];
      bar.classList.add("frame");
      for (let below = index + 1; below < this.end(index); below += 1) {
        const span = spans[below];
        if (!span.tier) continue;
        const piece = make("i", `w-${span.tier}`);
        if (span.failed) piece.classList.add("failed");
        const whole = call.took || 1;
        piece.style.left = `${(100 * (span.at - call.at)) / whole}%`;
        piece.style.width = `${(100 * span.took) / whole}%`;
        bar.appendChild(piece);
      }
    }

    toggle(index) {
      if (this.folded.has(index)) this.folded.delete(index);
      else this.folded.add(index);
      this.draw();
      this.focus(this.rows.findIndex((row) => Number(row.dataset.index) === index));
    }

    focus(position) {
      const row = this.rows[position];
      if (!row) return;
      for (const each of this.rows) each.tabIndex = -1;
      row.tabIndex = 0;
      row.focus();
    }

    open(index) {
      const position = this.rows.findIndex((row) => Number(row.dataset.index) === index);
      this.focus(position);
      showDetails(this.turn, this.turn.spans[index], this.rows[position]);
      this.rows[position].scrollIntoView({ block: "nearest" });
    }

    pressed(event) {
      const position = this.rows.indexOf(event.target.closest(".row"));
      if (position < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
      const index = Number(this.rows[position].dataset.index);
      const isFolded = this.folded.has(index);
      switch (event.key) {
        case "ArrowDown": this.focus(position + 1); break;
        case "ArrowUp": this.focus(position - 1); break;
        case "Home": this.focus(0); break;
        case "End": this.focus(this.rows.length - 1); break;
        case "ArrowRight":
          if (isFolded) this.toggle(index);
          else if (this.hasChildren(index)) this.focus(position + 1);
          break;
        case "ArrowLeft":
          if (this.hasChildren(index) && !isFolded) this.toggle(index);
          else {
            const { depth } = this.turn.spans[index];
            let above = position - 1;
            while (above >= 0 && this.turn.spans[Number(this.rows[above].dataset.index)].depth >= depth) above -= 1;
            this.focus(above);
          }
          break;
        case "Enter": case " ": this.open(index); break;
        default: return;
      }
      event.preventDefault();
    }
  }

  // ---- the attributes of a span ----------------------------------------------------------------------------

  let openedFrom = null;

  function showDetails(turn, span, row) {
    closeDetails(false);
    openedFrom = row;
    row.setAttribute("aria-selected", "true");
    const close = make("button", "", "✕");
    close.id = "close";
    close.type = "button";
    close.setAttribute("aria-label", "Close the details");
    close.addEventListener("click", () => closeDetails(true));
    const about = [
      ["took", took(span.took)],
      ["began", `${took(span.at)} after ${turn.title} did`],
      ["failed", span.failed],
      ["status", span.status],
      ["kind", span.kind],
      ["recorded by", span.scope],
      ["trace id", turn.trace_id],
      ["span id", span.id],
    ].filter(([, value]) => value);
    add(details, close, make("h2", "", span.name), table(about));
    section("Attributes", span.attributes);
    for (const event of span.events) section(`Event ${event.name}`, [["after", took(event.at)], ...event.attributes]);
    for (const link of span.links) section("Link", link);
    section("Resource", data.resources[span.resource]);
    details.hidden = false;
    details.scrollTop = 0;
    document.body.classList.add("with-details");
  }

  function section(title, pairs) {
    if (pairs.length) add(details, make("h3", "", title), table(pairs));
  }

  function table(pairs) {
    const body = make("tbody");
    for (const [name, value] of pairs) body.appendChild(add(make("tr"), make("td", "", name), make("td", "", value)));
    return add(make("table"), body);
  }

  function closeDetails(giveFocusBack) {
    details.hidden = true;
    details.replaceChildren();
    document.body.classList.remove("with-details");
    if (openedFrom) {
      openedFrom.removeAttribute("aria-selected");
      if (giveFocusBack) openedFrom.focus();
      openedFrom = null;
    }
  }

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !details.hidden) closeDetails(true);
  });

  drawTop();
  drawOverview();
  const turns = document.getElementById("turns");
  for (const turn of data.turns) turns.appendChild(drawTurn(turn));
  // The browser looked for the turn in the address before the script had drawn it.
  const wanted = location.hash.slice(1) || data.at;
  const named = wanted && document.getElementById(wanted);
  if (named) named.scrollIntoView();
})();
