"use strict";
/* The organ, its lesions and further structures as surfaces, drawn by three.js when something changes. x runs to the patient's left, y to the head,
   z to anterior: seen from there, the patient's right is on the left, as on the slices. */
function solidView(canvas, labels, about, packed, colorOf, onLesion) {
  let renderer;
  try {
    renderer = new THREE.WebGLRenderer({ canvas, antialias: true, preserveDrawingBuffer: true });
  } catch {
    return null;
  }
  const scene = new THREE.Scene(), body = new THREE.Group(), camera = new THREE.OrthographicCamera(-1, 1, 1, -1, 1, 10);
  const light = new THREE.DirectionalLight(0xffffff, 2.2);
  light.position.set(-0.4, 0.6, 1);
  scene.add(body, light, new THREE.AmbientLight(0xffffff, 1.1));
  camera.position.z = 5;
  const meshes = [], view = new DataView(packed.buffer, packed.byteOffset, packed.byteLength);
  let offset = 0, radius = 0;
  const low = [1e9, 1e9, 1e9], high = [-1e9, -1e9, -1e9];
  for (const one of about) {
    const corners = new Float32Array(3 * one.corners), triangles = new Uint32Array(3 * one.triangles);
    for (let i = 0; i < one.corners; i++, offset += 6) {
      const [left, back, head] = [0, 2, 4].map((b) => view.getInt16(offset + b, true) / 10);
      corners.set([left, head, -back], 3 * i);
    }
    for (let i = 0; i < triangles.length; i++, offset += 4) triangles[i] = view.getUint32(offset, true);
    if (one.lesion === 0) for (let i = 0; i < corners.length; i++) {
      low[i % 3] = Math.min(low[i % 3], corners[i]);
      high[i % 3] = Math.max(high[i % 3], corners[i]);
    }
    const shape = new THREE.BufferGeometry();
    shape.setAttribute("position", new THREE.BufferAttribute(corners, 3));
    shape.setIndex(new THREE.BufferAttribute(triangles, 1));
    shape.computeVertexNormals();
    const material = new THREE.MeshPhongMaterial(
      one.label !== 1 ? { shininess: 20 } : { shininess: 8, transparent: true, opacity: 0.38, depthWrite: false });
    const mesh = new THREE.Mesh(shape, material);
    mesh.userData = { lesion: one.lesion, label: one.label };
    mesh.renderOrder = one.label !== 1 ? 0 : 1;
    body.add(mesh);
    meshes.push(mesh);
  }
  const middle = low.map((v, i) => (v + high[i]) / 2);
  for (const mesh of meshes) mesh.geometry.translate(-middle[0], -middle[1], -middle[2]);
  for (const mesh of meshes) {
    mesh.geometry.computeBoundingBox();
    mesh.geometry.computeBoundingSphere();
    if (!mesh.userData.lesion)
      radius = Math.max(radius, mesh.geometry.boundingSphere.center.length() + mesh.geometry.boundingSphere.radius);
  }
  const ofLesions = meshes.filter((mesh) => mesh.userData.lesion);

  const marks = [["R", [-1, 0, 0]], ["L", [1, 0, 0]], ["S", [0, 1, 0]], ["I", [0, -1, 0]], ["A", [0, 0, 1]], ["P", [0, 0, -1]]]
    .map(([text, at]) => ({ text, at: new THREE.Vector3(...at).multiplyScalar(radius * 1.03), name: "side" }));
  for (const mesh of ofLesions.slice(0, 10)) {
    const at = mesh.geometry.boundingBox.getCenter(new THREE.Vector3());
    marks.push({ text: String(mesh.userData.lesion), at, name: "lesion-number" });
  }
  for (const mark of marks) {
    mark.element = document.createElement("span");
    mark.element.className = mark.name;
    mark.element.textContent = mark.text;
    labels.append(mark.element);
  }

  let knife = null;
  function cut(shape) {
    if (knife) { body.remove(knife); knife.geometry.dispose(); knife.material.dispose(); knife = null; }
    if (shape) {
      const corners = new Float32Array(shape.corners.length);
      for (let i = 0; i < corners.length; i += 3)
        corners.set([shape.corners[i] - middle[0], shape.corners[i + 2] - middle[1], -shape.corners[i + 1] - middle[2]], i);
      const geometry = new THREE.BufferGeometry();
      geometry.setAttribute("position", new THREE.BufferAttribute(corners, 3));
      geometry.setIndex(shape.triangles);
      geometry.computeVertexNormals();
      const material = new THREE.MeshPhongMaterial({ color: 0xff7ad9, transparent: true, opacity: 0.35, depthWrite: false, side: 2 });
      knife = new THREE.Mesh(geometry, material);
      knife.renderOrder = 2;
      body.add(knife);
    }
    refresh();
  }

  let zoom = 1, current = -1, pending = false;
  function draw() {
    pending = false;
    const box = canvas.getBoundingClientRect();
    if (!box.width || !box.height) return;
    labels.parentElement.style.setProperty("--ratio", box.width / box.height); // paper keeps the screen's shape
    renderer.setPixelRatio(window.devicePixelRatio || 1);
    renderer.setSize(box.width, box.height, false);
    const unit = (1.12 * radius) / zoom / Math.min(box.width, box.height);
    Object.assign(camera, { left: -unit * box.width, right: unit * box.width, top: unit * box.height, bottom: -unit * box.height,
      near: 0.1, far: 20 * radius });
    camera.position.z = 8 * radius;
    camera.updateProjectionMatrix();
    for (const mesh of meshes) {
      mesh.material.color.setRGB(...colorOf(mesh.userData.label).map((v) => (v / 255) ** 2.2));
      mesh.material.emissive.setScalar(mesh.userData.lesion && mesh.userData.lesion === current ? 0.06 : 0);
    }
    renderer.render(scene, camera);
    for (const mark of marks) {
      const at = mark.at.clone().applyQuaternion(body.quaternion), away = mark.name === "side" && Math.abs(at.z) > 0.9 * radius;
      const behind = mark.name === "side" && at.z < -0.3 * radius;
      at.project(camera);
      Object.assign(mark.element.style, { left: 50 * (at.x + 1) + "%", top: 50 * (1 - at.y) + "%" });
      mark.element.style.opacity = away ? 0 : behind ? 0.45 : 1; // what points to or from the reader would lie on the liver
    }
    canvas.dataset.turned = body.quaternion.toArray().map((v) => v.toFixed(3)).join(" ");
  }
  function refresh() {
    if (pending) return;
    pending = true;
    requestAnimationFrame(draw);
  }
  function turn(right, down) {
    const by = new THREE.Quaternion().setFromAxisAngle(new THREE.Vector3(0, 1, 0), right);
    by.multiply(new THREE.Quaternion().setFromAxisAngle(new THREE.Vector3(1, 0, 0), down));
    body.quaternion.premultiply(by);
    refresh();
  }
  let last = null, moved = 0;
  canvas.addEventListener("pointerdown", (event) => {
    last = event;
    moved = 0;
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last || event.pointerId !== last.pointerId) return;
    const [x, y] = [event.clientX - last.clientX, event.clientY - last.clientY];
    moved += Math.abs(x) + Math.abs(y);
    last = event;
    turn(x * 0.01, y * 0.01);
  });
  canvas.addEventListener("pointerup", (event) => {
    last = null;
    if (moved > 4) return;
    const box = canvas.getBoundingClientRect(), ray = new THREE.Raycaster();
    ray.setFromCamera(new THREE.Vector2((2 * (event.clientX - box.left)) / box.width - 1,
      1 - (2 * (event.clientY - box.top)) / box.height), camera);
    const [hit] = ray.intersectObjects(ofLesions);
    if (hit) onLesion(hit.object.userData.lesion);
  });
  canvas.addEventListener("pointercancel", () => { last = null; });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom = Math.max(0.5, Math.min(8, zoom * Math.exp(-event.deltaY / 500)));
    refresh();
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step || event.ctrlKey || event.altKey || event.metaKey) return;
    turn(step[0] * 0.26, step[1] * 0.26);
    event.preventDefault();
  });
  new ResizeObserver(refresh).observe(canvas);
  refresh();
  return {
    refresh,
    cut,
    reset() { body.quaternion.identity(); zoom = 1; refresh(); },
    show(lesion) { current = lesion; refresh(); },
  };
}
