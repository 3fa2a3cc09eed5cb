"use strict";
(async () => {
  const $ = (id) => document.getElementById(id);
  const page = JSON.parse($("page-data").textContent);
  if (!page.scans.length) return;
  function fail(message) {
    $("failure").textContent = message;
    $("failure").hidden = false;
    $("status").textContent = "";
  }
  if (!Voxels.can) {
    fail("This browser is too old for the pictures (it lacks DecompressionStream); the figures below are complete.");
    return;
  }

  try {
    for (const [i, scan] of page.scans.entries()) {
      const about = [scan.shape[2], scan.shape[0], scan.shape[1], page.slices_a_line];
      scan.hu = await Voxels.whole("blob-hu-" + i, "steps", ...about);
      scan.mask = await Voxels.whole("blob-mask-" + i, "bytes", ...about);
    }
  } catch (error) {
    fail("The pictures in this file are damaged (" + error.message + "); the figures below are complete.");
    return;
  }

  // --- Places: index (row, column, slice) of a scan <-> mm of the first scan ---

  const apply = (m, p) => [0, 1, 2].map((i) => m[i][0] * p[0] + m[i][1] * p[1] + m[i][2] * p[2] + m[i][3]);

  // What a lattice of vectors says at a place, linearly between its points; beyond it, its border's.
  function vector(lattice, p) {
    const at = [0, 1, 2].map((i) => Math.max(0, Math.min(lattice.shape[i] - 1, (p[i] - lattice.origin[i]) / lattice.step)));
    const base = at.map((v, i) => Math.min(Math.floor(v), Math.max(0, lattice.shape[i] - 2)));
    const out = [0, 0, 0];
    for (let corner = 0; corner < 8; corner++) {
      let weight = 1, index = 0;
      for (let i = 0; i < 3; i++) {
        const up = (corner >> i) & 1, part = at[i] - base[i], there = Math.min(base[i] + up, lattice.shape[i] - 1);
        weight *= up ? part : 1 - part;
        index = index * lattice.shape[i] + there;
      }
      if (weight) for (let i = 0; i < 3; i++) out[i] += weight * lattice.values[3 * index + i];
    }
    return out;
  }
  const plus = (a, b) => a.map((v, i) => v + b[i]);
  const toFirst = (scan, index) => {
    const p = apply(scan.to_mm, index);
    return scan.forth ? plus(p, vector(scan.forth, p)) : p;
  };
  const fromFirst = (scan, place) => apply(scan.to_index, scan.back ? plus(place, vector(scan.back, place)) : place);

  // --- State: a place in the first scan; each side shows where it lies there ---

  const sides = { left: { scan: 0 }, right: { scan: page.scans.length - 1 } };
  let place = page.start, lesion = page.lesions.length ? 0 : -1;
  let low = 0, range = 1;
  function setWindow({ width, level }) {
    const half = Math.floor(width / 2);
    low = level - half;
    range = Math.max(2 * half, 1);
  }
  function where(side) {
    const scan = page.scans[sides[side].scan];
    return fromFirst(scan, place).map((v, i) => Math.max(0, Math.min(scan.shape[i] - 1, v)));
  }

  const scratch = document.createElement("canvas");
  function draw(side) {
    const scan = page.scans[sides[side].scan], [rows, columns] = scan.shape, canvas = $(side);
    const [row, column, slice] = where(side), s = Math.round(slice), size = rows * columns;
    scratch.width = columns;
    scratch.height = rows;
    const into = scratch.getContext("2d"), image = into.createImageData(columns, rows), out = image.data;
    const labels = scan.mask.subarray(s * size, (s + 1) * size), showMask = $("show-mask").checked;
    for (let i = 0, o = 0; i < size; i++, o += 4) {
      const value = (255 * (scan.hu[s * size + i] * scan.step_hu + page.lowest_hu - low)) / range;
      const label = labels[i], x = i % columns;
      const edge = showMask && ((x && labels[i - 1] !== label) || (x + 1 < columns && labels[i + 1] !== label)
        || (i >= columns && labels[i - columns] !== label) || (i + columns < size && labels[i + columns] !== label));
      const share = !showMask || !label ? 0 : edge ? 0.85 : label === 2 ? 0.2 : 0, color = page.colors[label];
      const gray = Math.max(0, Math.min(255, value));
      for (let c = 0; c < 3; c++) out[o + c] = gray * (1 - share) + color[c] * share;
      out[o + 3] = 255;
    }
    into.putImageData(image, 0, 0);
    const ratio = window.devicePixelRatio || 1, wide = columns * scan.spacing_mm[1], high = rows * scan.spacing_mm[0];
    canvas.style.aspectRatio = wide + " / " + high;
    const box = canvas.getBoundingClientRect();
    canvas.width = Math.max(1, Math.round(box.width * ratio));
    canvas.height = Math.max(1, Math.round((box.width * ratio * high) / wide));
    const context = canvas.getContext("2d"), W = canvas.width, H = canvas.height;
    context.imageSmoothingQuality = "high";
    context.drawImage(scratch, 0, 0, W, H);
    if ($("crosshair").checked) {
      const x = ((column + 0.5) / columns) * W, y = ((row + 0.5) / rows) * H, gap = 12 * ratio;
      context.strokeStyle = "rgba(127, 180, 216, 0.55)";
      context.lineWidth = ratio;
      context.beginPath();
      for (const [a, b] of [[0, x - gap], [x + gap, W]]) { context.moveTo(a, y); context.lineTo(b, y); }
      for (const [a, b] of [[0, y - gap], [y + gap, H]]) { context.moveTo(x, a); context.lineTo(x, b); }
      context.stroke();
    }
    context.font = 13 * ratio + "px system-ui, sans-serif";
    context.shadowColor = "#000";
    context.shadowBlur = 3 * ratio;
    context.fillStyle = "#c4cad1";
    context.textBaseline = "middle";
    context.fillText("R", 5 * ratio, H / 2);
    context.textAlign = "right";
    context.fillText("L", W - 5 * ratio, H / 2);
    // lesions of this slice by their id over time, so that both sides show the same number
    context.fillStyle = "#ffe36e";
    context.textAlign = "left";
    for (const mark of scan.marks) if (s >= mark.slices[0] && s <= mark.slices[1])
      context.fillText(mark.id, ((mark.column + 0.5) / columns) * W + 6 * ratio, ((mark.row + 0.5) / rows) * H - 8 * ratio);
    $(side + "-label").textContent = "slice " + (s + scan.first_slice + 1) + " of " + scan.slices;
  }

  let pending = false;
  function refresh() {
    if (pending) return;
    pending = true;
    requestAnimationFrame(() => {
      pending = false;
      draw("left");
      draw("right");
      const scan = page.scans[sides.left.scan];
      $("slider").max = scan.shape[2];
      $("slider").value = Math.round(where("left")[2]) + 1;
      const fit = [...new Set(Object.values(sides).map((side) => page.scans[side.scan]).filter((s) => s.residual_mm !== null))]
        .map((s) => s.name + ": surfaces of the " + page.organ + " " + s.residual_mm.toFixed(1) + " mm apart after registration");
      $("status").textContent = fit.join("; ") || "One scan";
      document.querySelectorAll("tr[data-lesion]").forEach((row) => {
        row.classList.toggle("current", Number(row.dataset.lesion) === lesion);
      });
      document.body.dataset.ready = "true";
    });
  }
  function scroll(side, steps) {
    const scan = page.scans[sides[side].scan], index = where(side), next = Math.round(index[2]) + steps;
    if (next < 0 || next >= scan.shape[2]) return;
    index[2] = next;
    place = toFirst(scan, index);
    lesion = -1;
    refresh();
  }

  for (const side of ["left", "right"]) {
    const canvas = $(side), choice = $(side + "-scan");
    page.scans.forEach((scan, i) => choice.add(new Option(i + 1 + ": " + scan.name, i)));
    choice.value = sides[side].scan;
    choice.addEventListener("change", () => { sides[side].scan = Number(choice.value); refresh(); });
    let turned = 0;
    canvas.addEventListener("wheel", (event) => {
      if (event.ctrlKey) return;
      event.preventDefault();
      const notch = event.deltaMode || Math.abs(event.deltaY) >= 50;
      turned = notch ? 50 * Math.sign(event.deltaY) : turned + event.deltaY;
      const steps = Math.trunc(turned / 50);
      turned -= 50 * steps;
      if (steps) scroll(side, -steps);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const steps = { ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10 }[event.key];
      if (!steps || event.ctrlKey || event.altKey || event.metaKey) return;
      scroll(side, steps);
      event.preventDefault();
    });
    canvas.addEventListener("click", (event) => {
      const scan = page.scans[sides[side].scan], box = canvas.getBoundingClientRect();
      place = toFirst(scan, [((event.clientY - box.top) / box.height) * scan.shape[0] - 0.5,
        ((event.clientX - box.left) / box.width) * scan.shape[1] - 0.5, Math.round(where(side)[2])]);
      lesion = -1;
      refresh();
    });
  }
  $("slider").addEventListener("input", () => scroll("left", Number($("slider").value) - 1 - Math.round(where("left")[2])));
  const preset = $("preset");
  for (const w of page.windows) preset.add(new Option(w.name.replace(/_/g, " ") + " (" + w.width + ", " + w.level + ")", w.name));
  preset.addEventListener("change", () => { setWindow(page.windows.find((w) => w.name === preset.value)); refresh(); });
  for (const id of ["show-mask", "crosshair"]) $(id).addEventListener("change", refresh);

  function goTo(index) {
    if (!page.lesions.length) return;
    lesion = ((index % page.lesions.length) + page.lesions.length) % page.lesions.length;
    place = page.lesions[lesion].place;
    refresh();
  }
  document.querySelectorAll("tr[data-lesion]").forEach((row) => row.addEventListener("click", () => {
    goTo(Number(row.dataset.lesion));
    $("left").focus({ preventScroll: true });
    $("viewer").scrollIntoView({ block: "start" });
  }));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.matches("select, input[type=number]")) return;
    const key = event.key.toLowerCase();
    if (key === "n") goTo(lesion + 1);
    else if (key === "p") goTo(lesion < 0 ? -1 : lesion - 1);
    else if (key === "m") $("show-mask").click();
    else if (key === "x") $("crosshair").click();
    else return;
    event.preventDefault();
  });
  new ResizeObserver(refresh).observe($("pair"));
  setWindow(page.windows[0]);
  refresh();
  $("left").focus({ preventScroll: true });
})();
