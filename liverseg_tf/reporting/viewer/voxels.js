"use strict";
/* What pages hold of a volume: base64 of gzip of what differs from the voxel to the left, in elements that are emptied.
   Each line of text is a part of the volume, some whole slices, and can be decoded without the others. */
const Voxels = (() => {
  function linesOf(id) {
    const element = document.getElementById(id), text = element.textContent.trim();
    element.remove();
    return text ? text.split("\n") : [];
  }

  async function unpack(line) {
    const text = atob(line), packed = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // Each slice: the low bytes of its differences, then the high bytes; zigzag-coded, each row from 0.
  function steps(raw, found, rows, columns) {
    const size = rows * columns, count = found.length / size;
    for (let s = 0, i = 0; s < count; s++) {
      const low = 2 * s * size, high = low + size;
      for (let r = 0, k = 0; r < rows; r++) {
        for (let c = 0, value = 0; c < columns; c++, k++, i++) {
          const z = raw[low + k] | (raw[high + k] << 8);
          value += (z >>> 1) ^ -(z & 1);
          found[i] = value;
        }
      }
    }
  }

  function bytes(raw, found, rows, columns) {
    for (let i = 0; i < raw.length; i += columns)
      for (let c = 0, value = 0; c < columns; c++) found[i + c] = value = (value + raw[i + c]) & 255;
  }

  /* A volume of `count` slices, `slicesALine` of them in a line; `kind` is "steps" or "bytes". Until a part of it is
     loaded, `values` are 0 there. */
  function stack(id, kind, count, rows, columns, slicesALine) {
    const lines = linesOf(id), size = rows * columns;
    if (lines.length !== Math.ceil(count / slicesALine)) throw new Error("some slices are missing");
    const values = new (kind === "steps" ? Int16Array : Uint8Array)(count * size);
    return {
      values,
      parts: lines.length,
      async load(part) {
        const raw = await unpack(lines[part]);
        lines[part] = "";
        const found = values.subarray(part * slicesALine * size, Math.min((part + 1) * slicesALine, count) * size);
        if (raw.length !== found.length * found.BYTES_PER_ELEMENT) throw new Error("a part has a wrong length");
        (kind === "steps" ? steps : bytes)(raw, found, rows, columns);
      },
    };
  }

  async function whole(...about) {
    const one = stack(...about);
    for (let part = 0; part < one.parts; part++) await one.load(part);
    return one.values;
  }

  return { can: typeof DecompressionStream !== "undefined", inflate: (id) => unpack(linesOf(id)[0]), stack, whole };
})();
