"use strict";
// Sorting, filtering, tips and the dialog of a cell. The page is complete without it.
{
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const make = (name, attributes = {}, ...inside) => {
    const element = name === "svg" || name === "path"
      ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...inside);
    return element;
  };

  // Which of a cell's views is shown: the number of the checked tab.
  const shown = (table) => {
    const tabs = all(".tabs input", table.closest(".box"));
    return Math.max(0, tabs.findIndex((tab) => tab.checked));
  };
  const key = (table, row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.s === undefined) return cell.textContent.trim();
    const value = cell.dataset.s.split(",")[table.classList.contains("grid") ? shown(table) : 0];
    return value ? Number(value) : null;
  };
  const sort = (table, heading, down) => {
    const column = heading.cellIndex, body = table.querySelector("tbody.rows");
    const rows = all("tr", body).map((row) => [key(table, row, column), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);  // no number: last, in both directions
      const order = typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
      return down ? -order : order;
    });
    body.append(...rows.map(([, row]) => row));
    all("th[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  };
  for (const table of all("table.sortable")) {
    for (const heading of all("thead th", table)) {
      const button = make("button", { type: "button", title: "Sort" }, ...heading.childNodes);
      heading.append(button);
      // The best first: the highest, or of an error the lowest; text from a to z.
      const first = heading.dataset.better === "1";
      button.addEventListener("click", () => {
        const now = heading.getAttribute("aria-sort");
        sort(table, heading, now === null ? first : now === "ascending");
      });
    }
  }
  for (const tab of all(".tabs input")) {
    tab.addEventListener("change", () => {
      const heading = tab.closest(".box").querySelector("th[aria-sort]");
      if (heading) sort(heading.closest("table"), heading, heading.getAttribute("aria-sort") === "descending");
    });
  }

  all(".scripted").forEach((part) => { part.hidden = false; });
  for (const input of all(".find input")) {
    input.hidden = false;
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/);
      for (const row of all("tbody.rows tr", input.closest(".box"))) {
        const text = input.closest("#runs") ? row.textContent : row.cells[0].textContent;
        row.hidden = !words.every((word) => text.toLowerCase().includes(word));
      }
    });
  }

  // Tips: every seed of a cell ("1:70.12 2:70.60"), or a sentence.
  const tip = document.getElementById("tip");
  const words = (text) => /^\d+:\S+( \d+:\S+)*$/.test(text)
    ? text.split(" ").map((part) => "seed " + part.replace(":", "\u2002")).join("\n") : text;
  const show = (event) => {
    const target = event.target.closest?.("[data-t]") ?? event.target.querySelector?.(":scope > [data-t]");
    const visible = target && (target.checkVisibility?.() ?? true);
    tip.hidden = !visible;
    if (!visible) return;
    tip.textContent = words(target.dataset.t);
    const at = target.getBoundingClientRect(), own = tip.getBoundingClientRect();
    const above = at.top - own.height - 6;
    tip.style.top = `${above > 4 ? above : at.bottom + 6}px`;
    tip.style.left = `${Math.max(4, Math.min(at.left + at.width / 2 - own.width / 2, innerWidth - own.width - 4))}px`;
  };
  for (const name of ["mouseover", "focusin"]) document.addEventListener(name, show);
  document.addEventListener("scroll", () => { tip.hidden = true; }, true);

  // The dialog of a cell: its runs, one at a time.
  const packed = document.getElementById("details").textContent;
  let known;  // read when the first cell is opened
  const unpack = async () => {
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    const text = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    known ??= await new Response(text).json();
  };
  const dialog = document.getElementById("cell");
  const lines = (pairs) => make("dl", {}, ...pairs.flatMap(([label, text]) => [make("dt", {}, label), make("dd", {}, text)]));
  const section = ([title, numbers]) => {
    const pairs = numbers.map((number) => known.lines[number]);
    const plain = pairs.filter(([label]) => !label).map(([, text]) => text);
    const rest = pairs.filter(([label]) => label);
    const texts = plain.map((text) => make(title === "Command" ? "pre" : "p", {}, text));
    return [make("h3", {}, title), ...texts, ...(rest.length ? [lines(rest)] : [])];
  };
  const curve = ([stage, kind, name, epochs, values]) => {
    const finite = values.filter(Number.isFinite), low = Math.min(...finite), high = Math.max(...finite);
    const x = (epoch) => 2 + 176 * (epoch - epochs[0]) / (epochs.at(-1) - epochs[0] || 1);
    const y = (value) => 68 - 64 * (value - low) / (high - low || 1);
    const points = epochs.map((epoch, index) => `${x(epoch).toFixed(1)} ${y(values[index]).toFixed(1)}`);
    const label = (kind === "loss" ? `${name} loss` : name) + (stage === "main" ? "" : ` (stage ${stage})`);
    const ends = `${values[0]} → ${values.at(-1)}`;
    return make("figure", {}, make("figcaption", {}, label, make("b", {}, ends)),
      make("svg", { viewBox: "0 0 180 72", role: "img", "aria-label": `${label} over epochs: ${ends}` },
        make("path", { class: "line", d: "M" + points.join("L") })));
  };
  const body = (id) => {
    const [sections, curves] = known.runs[id];
    const parts = sections.map((number) => known.sections[number]);
    const command = parts.filter(([title]) => title === "Command"), rest = parts.filter(([title]) => title !== "Command");
    const losses = curves.length
      ? [make("h3", {}, "Losses by term over epochs, first → last"), make("div", { class: "curves" }, ...curves.map(curve))] : [];
    return [...command.flatMap(section), ...losses,
      make("div", { class: "parts" }, ...rest.map((part) => make("section", {}, ...section(part))))];
  };
  const seedOf = (id) => document.getElementById(`r-${id}`)?.cells[4].textContent ?? id;
  const title = (link) => {
    const cell = link.closest("td"), table = cell.closest("table");
    if (!table.classList.contains("grid")) return `Run ${link.dataset.r}`;
    const heading = table.tHead.rows[0].cells[cell.cellIndex];
    return [cell.parentElement.cells[0].textContent.trim(), all("span", heading).map((part) => part.textContent).join(" → ")].join(" on ");
  };
  const open = async (link) => {
    await unpack();
    const ids = link.dataset.r.split(" ").filter((id) => known.runs[id]);
    if (!ids.length) {
      location.hash = link.hash;
      return;
    }
    const close = make("button", { type: "button", class: "close" }, "Close");
    close.addEventListener("click", () => dialog.close());
    const content = make("div");
    const buttons = ids.map((id) => {
      const button = make("button", { type: "button" }, `seed ${seedOf(id)}`);
      button.addEventListener("click", () => {
        buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
        content.replaceChildren(...body(id));
      });
      return button;
    });
    dialog.replaceChildren(make("h2", { id: "cell-title" }, title(link)), close, make("div", { class: "seeds" }, ...buttons), content);
    buttons[0].click();
    tip.hidden = true;
    dialog.showModal();
    dialog.scrollTop = 0;
  };
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-r]");
    if (link && packed) {
      event.preventDefault();
      open(link);
    } else if (event.target === dialog) dialog.close();
  });
}
