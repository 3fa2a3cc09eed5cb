"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const { columns, words } = JSON.parse($("page-data").textContent);
  const NAMES = Object.keys(columns).filter((name) => name !== "report"), ROW = 30, SPARE = 8;
  const HEADS = { case: "Case", status: "Status", flags: "Flags", outlier_in: "Outlier in", error: "Error", ...words };
  const body = document.querySelector("#cases tbody"), scroller = $("scroller");
  let order = [], sorted = null, down = false;

  // As many digits as a reader believes; the CSV beside the page has all of them.
  const DIGITS = { liver_volume_ml: 0, tumour_volume_ml: 1, tumour_burden: 3, liver_mean_hu: 0, seconds: 1 };
  function text(name, i) {
    const value = columns[name][i];
    if (value === null || value === undefined) return "";
    return typeof value === "number" && name in DIGITS ? value.toFixed(DIGITS[name]) : String(value);
  }
  function select() {
    const wanted = $("find").value.trim().toLowerCase(), which = $("which").value;
    const test = { all: () => true, failed: (i) => columns.status[i] !== "done", flagged: (i) => columns.flags[i] !== "",
      outliers: (i) => columns.outlier_in[i] !== "" }[which];
    order = columns.case.map((_, i) => i).filter((i) => test(i)
      && (!wanted || ["case", "flags", "error", "outlier_in"].some((name) => text(name, i).toLowerCase().includes(wanted))));
    if (sorted) {
      const values = columns[sorted], sign = down ? -1 : 1;
      order.sort((a, b) => {
        const [x, y] = [values[a], values[b]];
        if (x === null || y === null) return (x === null) - (y === null); // unknown ones last, either way
        return sign * (typeof x === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true }));
      });
    }
    $("count").textContent = order.length + " of " + columns.case.length + (columns.case.length === 1 ? " case" : " cases");
    scroller.scrollTop = 0;
    draw();
  }
  function gap(rows) {
    const row = document.createElement("tr"), cell = row.insertCell();
    row.className = "gap";
    cell.colSpan = NAMES.length;
    cell.style.height = rows * ROW + "px";
    return row;
  }
  // only rows in sight are in the document, whatever the archive's size
  function draw() {
    const first = Math.max(0, Math.floor(scroller.scrollTop / ROW) - SPARE);
    const last = Math.min(order.length, first + Math.ceil(scroller.clientHeight / ROW) + 2 * SPARE);
    const rows = [gap(first)];
    for (const i of order.slice(first, last)) {
      const row = document.createElement("tr");
      for (const name of NAMES) {
        const cell = row.insertCell();
        if (name === "case" && columns.report[i]) {
          const link = document.createElement("a");
          link.href = columns.report[i];
          link.textContent = text(name, i);
          cell.append(link);
        } else cell.textContent = text(name, i);
        cell.title = text(name, i);
        if (words[name]) cell.className = "number";
      }
      rows.push(row);
    }
    rows.push(gap(order.length - last));
    body.replaceChildren(...rows);
  }
  const head = document.querySelector("#cases thead").insertRow();
  for (const name of NAMES) {
    const cell = document.createElement("th"), button = document.createElement("button");
    cell.scope = "col";
    button.type = "button";
    button.textContent = HEADS[name];
    button.addEventListener("click", () => {
      down = sorted === name ? !down : Boolean(words[name]);
      sorted = name;
      for (const other of head.cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      select();
    });
    cell.append(button);
    head.append(cell);
  }
  let pending = false;
  scroller.addEventListener("scroll", () => {
    if (pending) return;
    pending = true;
    requestAnimationFrame(() => { pending = false; draw(); });
  });
  new ResizeObserver(draw).observe(scroller);
  $("find").addEventListener("input", select);
  $("which").addEventListener("change", select);
  select();
  document.body.dataset.ready = "true";
})();
