"use strict";
/* A resection tried on the liver's coarse grid: a plane, or a sphere around a lesion with a margin. Lengths in mm, towards
   the patient's left, back and head from the middle of the volume; the state stands in the address after "#plan=". */
function planView(grid, shares, lesions, solid, redraw) {
  const $ = (id) => document.getElementById(id);
  const count = shares.reduce((n, v) => n + (v > 0), 0), cells = new Float32Array(4 * count);
  const [rows, columns, slices] = grid.shape;
  for (let r = 0, at = 0, to = 0; r < rows; r++) for (let c = 0; c < columns; c++) for (let s = 0; s < slices; s++, at++) {
    if (!shares[at]) continue;
    for (let a = 0; a < 3; a++) cells[to++] = grid.first_mm[a] + r * grid.steps_mm[0][a] + c * grid.steps_mm[1][a] + s * grid.steps_mm[2][a];
    cells[to++] = (shares[at] / 255) * grid.cell_ml;
  }
  const edge = Math.cbrt(1000 * grid.cell_ml), KINDS = ["none", "plane", "sphere"];
  const state = { kind: "none", turn: 0, tilt: 0, position: 0, lesion: 1, margin: 10 };

  // At 0 the resected side is the patient's right; turned by 90 degrees the front; tilted up the head.
  function normal() {
    const [turn, tilt] = [state.turn, state.tilt].map((degrees) => (degrees * Math.PI) / 180);
    return [-Math.cos(tilt) * Math.cos(turn), -Math.cos(tilt) * Math.sin(turn), Math.sin(tilt)];
  }
  const along = (n, p) => n[0] * (p[0] - grid.middle_mm[0]) + n[1] * (p[1] - grid.middle_mm[1]) + n[2] * (p[2] - grid.middle_mm[2]);
  function ball() {
    const lesion = lesions.find((one) => one.number === state.lesion);
    if (!lesion) return null;
    const { corners } = lesion, low = [1e9, 1e9, 1e9], high = [-1e9, -1e9, -1e9];
    for (let i = 0; i < corners.length; i++) {
      low[i % 3] = Math.min(low[i % 3], corners[i]);
      high[i % 3] = Math.max(high[i % 3], corners[i]);
    }
    const center = low.map((v, a) => (v + high[a]) / 2);
    let reach = 0;
    for (let i = 0; i < corners.length; i += 3)
      reach = Math.max(reach, Math.hypot(corners[i] - center[0], corners[i + 1] - center[1], corners[i + 2] - center[2]));
    return { center, radius: reach + state.margin };
  }
  // How far inside the resected part a point lies.
  function depthOf() {
    if (state.kind === "plane") {
      const n = normal();
      return (x, y, z) => along(n, [x, y, z]) - state.position;
    }
    const { center, radius } = ball();
    return (x, y, z) => radius - Math.hypot(x - center[0], y - center[1], z - center[2]);
  }

  function result() {
    if (state.kind === "none" || (state.kind === "sphere" && !ball())) return null;
    const depth = depthOf();
    let resected = 0, whole = 0;
    for (let i = 0; i < cells.length; i += 4) {
      // a cell that the cut goes through belongs to both sides
      resected += cells[i + 3] * Math.max(0, Math.min(1, 0.5 + depth(cells[i], cells[i + 1], cells[i + 2]) / edge));
      whole += cells[i + 3];
    }
    const found = lesions.map(({ number, corners }) => {
      let least = 1e9, most = -1e9;
      for (let i = 0; i < corners.length; i += 3) {
        const d = depth(corners[i], corners[i + 1], corners[i + 2]);
        least = Math.min(least, d);
        most = Math.max(most, d);
      }
      const where = least > 0 ? "within" : most < 0 ? "left" : "cut";
      return { number, where, margin_mm: where === "within" ? least : where === "left" ? -most : 0 };
    });
    return { remnant_ml: whole - resected, remnant_share: (whole - resected) / whole, resected_ml: resected, lesions: found };
  }

  function words(found) {
    if (!found) return "";
    const of = (where) => found.lesions.filter((one) => one.where === where);
    const list = (ones) => ones.slice(0, 8).map((one) => one.number + (one.where === "cut" ? "" : " (" + one.margin_mm.toFixed(0) + " mm)")).join(", ")
      + (ones.length > 8 ? " and " + (ones.length - 8) + " more" : "");
    const parts = ["Remnant " + found.remnant_ml.toFixed(0) + " ml (" + (100 * found.remnant_share).toFixed(1) + " %), resected "
      + found.resected_ml.toFixed(0) + " ml"];
    if (of("within").length) parts.push("lesions resected, with margin: " + list(of("within")));
    if (of("cut").length) parts.push("cut through: " + list(of("cut")));
    if (of("left").length) parts.push("left, at a distance: " + list(of("left")));
    return parts.join("; ") + ".";
  }

  // The cut as triangles, for the view in three dimensions.
  function surface() {
    if (state.kind === "plane") {
      const n = normal(), flat = Math.hypot(n[0], n[1]);
      const u = flat > 1e-6 ? [-n[1] / flat, n[0] / flat, 0] : [1, 0, 0];
      const v = [n[1] * u[2] - n[2] * u[1], n[2] * u[0] - n[0] * u[2], n[0] * u[1] - n[1] * u[0]];
      const corner = (a, b) => [0, 1, 2].map((i) => grid.middle_mm[i] + n[i] * state.position + 130 * (a * u[i] + b * v[i]));
      return { corners: [corner(-1, -1), corner(1, -1), corner(1, 1), corner(-1, 1)].flat(), triangles: [0, 1, 2, 0, 2, 3] };
    }
    const { center, radius } = ball(), corners = [], triangles = [], N = 24;
    for (let i = 0; i <= N; i++) for (let j = 0; j <= N; j++) {
      const [a, b] = [(Math.PI * i) / N, (2 * Math.PI * j) / N];
      corners.push(center[0] + radius * Math.sin(a) * Math.cos(b), center[1] + radius * Math.sin(a) * Math.sin(b), center[2] + radius * Math.cos(a));
      if (i < N && j < N) {
        const k = i * (N + 1) + j;
        triangles.push(k, k + N + 1, k + 1, k + 1, k + N + 1, k + N + 2);
      }
    }
    return { corners, triangles };
  }

  let latest = null;
  function update() {
    latest = result();
    for (const name of ["turn", "tilt", "position", "lesion", "margin"]) {
      $("plan-" + name).value = state[name];
      $("plan-" + name).closest("label").hidden = !(["lesion", "margin"].includes(name) ? state.kind === "sphere" : state.kind === "plane");
    }
    $("plan-kind").value = state.kind;
    $("plan-save").hidden = !latest;
    $("plan-result").textContent = words(latest);
    $("plan-result").dataset.result = latest ? JSON.stringify(latest) : "";
    if (solid) solid.cut(latest ? surface() : null);
    const numbers = state.kind === "plane" ? [state.turn, state.tilt, state.position] : [state.lesion, state.margin];
    if (latest) history.replaceState(null, "", "#plan=" + [state.kind, ...numbers.map((v) => +v.toFixed(1))].join(","));
    else if (location.hash.startsWith("#plan=")) history.replaceState(null, "", "#");
    redraw();
  }
  function read() {
    const [kind, ...numbers] = location.hash.replace(/^#plan=/, "").split(",");
    if (!KINDS.includes(kind) || numbers.some((text) => !Number.isFinite(Number(text)))) return;
    const names = kind === "plane" ? ["turn", "tilt", "position"] : ["lesion", "margin"];
    state.kind = kind;
    names.forEach((name, i) => { if (i < numbers.length) state[name] = Number(numbers[i]); });
  }
  $("plan-kind").addEventListener("change", () => { state.kind = $("plan-kind").value; update(); });
  for (const name of ["turn", "tilt", "position", "lesion", "margin"])
    $("plan-" + name).addEventListener("input", () => {
      if (!$("plan-" + name).checkValidity() || $("plan-" + name).value === "") return;
      state[name] = Number($("plan-" + name).value);
      update();
    });
  $("plan-save").addEventListener("click", () => {
    const content = { note: "not for planning treatment", plan: state, ...latest };
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 2)], { type: "application/json" }));
    link.download = "resection.json";
    link.click();
    URL.revokeObjectURL(link.href);
  });
  window.addEventListener("hashchange", () => { read(); update(); });
  read();
  update();
  return {
    update,
    // Moves the plane by a step (left, back, head) in mm.
    drag(step) {
      if (state.kind !== "plane") return;
      const n = normal();
      state.position = Math.max(-150, Math.min(150, state.position + n[0] * step[0] + n[1] * step[1] + n[2] * step[2]));
      update();
    },
    /* Where the cut meets a slice: `place(a, b)` gives a point (left, back, head) of the slice for mm along its right and
       down; returns lines as lists of [a, b], and a place on the resected side. */
    lines(place, width, height) {
      if (!latest) return [];
      const depth = depthOf(), found = [], N = 90, at = (i, j) => [(width * i) / N, (height * j) / N];
      const values = [];
      for (let j = 0; j <= N; j++) for (let i = 0; i <= N; i++) values.push(depth(...place(...at(i, j))));
      const cross = (i, j, k, l) => {
        const [p, q] = [values[j * (N + 1) + i], values[l * (N + 1) + k]];
        if (p > 0 === q > 0) return null;
        const t = p / (p - q), [a, b] = [at(i, j), at(k, l)];
        return [a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])];
      };
      for (let j = 0; j < N; j++) for (let i = 0; i < N; i++) {
        const ends = [cross(i, j, i + 1, j), cross(i + 1, j, i + 1, j + 1), cross(i, j + 1, i + 1, j + 1), cross(i, j, i, j + 1)].filter(Boolean);
        if (ends.length >= 2) found.push(ends.slice(0, 2));
      }
      return found;
    },
    // How many mm inside the resected part a point lies; null without a cut.
    depth: () => (latest ? depthOf() : null),
    isResected: (point) => latest !== null && depthOf()(...point) > 0,
  };
}
