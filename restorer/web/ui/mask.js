// Mark damage on the photo: what the server detected, by the sensitivity chosen on the page, and what a brush adds and
// removes. gr.ImageEditor would do the latter, but its server side keeps what any client sends in memory.
// This runs before the page is complete.
(() => {
  const { root, api_prefix: prefix } = window.gradio_config;
  const one = (selector) => document.querySelector(selector);
  const MARK = [255, 0, 110, 165], EDGE = 2;  // RGBA, and the pixels by which the server widens a mask too
  const ADD = 1, REMOVE = 2;

  const canvas = Object.assign(document.createElement("canvas"), { id: "mask" });
  let map = null;  // width, height, probability 0 to 255, and edits by pixel: 0, ADD or REMOVE
  let edited = false, last = null;

  const isOn = () => Boolean(one("#repair_on input")?.checked);
  const brush = () => ({ Add: ADD, Remove: REMOVE })[one("#brush input:checked")?.value] ?? 0;
  const number = (id) => Number(one(`${id} input[type=range]`)?.value);

  // A pixel is marked if one within EDGE pixels of it has a probability above 1 - sensitivity
  const detected = () => {
    const { width, height, probability } = map, least = 255 * (1 - number("#repair_sensitivity"));
    const rows = new Uint8Array(width * height), both = new Uint8Array(width * height);
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        if (probability[i] > least) rows.fill(1, i - Math.min(EDGE, x), i + Math.min(EDGE, width - 1 - x) + 1);
      }
    }
    for (let i = 0; i < rows.length; i++) {
      if (!rows[i]) continue;
      const y = Math.floor(i / width);
      for (let step = -Math.min(EDGE, y); step <= Math.min(EDGE, height - 1 - y); step++) both[i + step * width] = 1;
    }
    return both;
  };
  const marked = () => {
    const mask = detected();
    map.edits.forEach((edit, i) => { if (edit) mask[i] = edit === ADD; });
    return mask;
  };
  const draw = () => {
    const image = new ImageData(map.width, map.height), mask = marked();
    for (let i = 0; i < mask.length; i++) if (mask[i]) image.data.set(MARK, 4 * i);
    canvas.getContext("2d").putImageData(image, 0, 0);
  };
  let scheduled = false;
  const redraw = () => {
    if (scheduled || !map) return;
    scheduled = true;
    requestAnimationFrame(() => { scheduled = false; if (map) draw(); });
  };

  // The canvas lies over the photo, which is drawn with object-fit: contain, at the top
  const place = () => {
    const holder = one("#before"), image = holder?.querySelector("img");
    canvas.hidden = !(map && isOn() && image?.offsetParent);
    canvas.style.pointerEvents = brush() ? "auto" : "none";
    if (canvas.hidden) return;
    if (canvas.parentElement !== holder) holder.append(canvas);
    const box = image.getBoundingClientRect(), outer = holder.getBoundingClientRect();
    const scale = Math.min(box.width / map.width, box.height / map.height);
    Object.assign(canvas.style, {
      left: `${box.left - outer.left + (box.width - map.width * scale) / 2}px`, top: `${box.top - outer.top}px`,
      width: `${map.width * scale}px`, height: `${map.height * scale}px`,
    });
  };

  const paint = (event) => {
    const box = canvas.getBoundingClientRect(), { width, height } = map, tool = brush();
    const x = (event.clientX - box.left) / box.width * width, y = (event.clientY - box.top) / box.height * height;
    const radius = number("#brush-size") / 2 * width / box.width;
    const from = last ?? [x, y], steps = Math.ceil(Math.hypot(x - from[0], y - from[1]) / Math.max(radius / 2, 1)) || 1;
    for (let step = 1; step <= steps; step++) {
      const cx = from[0] + (x - from[0]) * step / steps, cy = from[1] + (y - from[1]) * step / steps;
      for (let row = Math.max(0, Math.floor(cy - radius)); row <= Math.min(height - 1, cy + radius); row++) {
        const half = Math.sqrt(Math.max(radius * radius - (row - cy) ** 2, 0.25));
        const first = Math.max(0, Math.round(cx - half)), end = Math.min(width, Math.round(cx + half) + 1);
        if (first < end) map.edits.fill(tool, row * width + first, row * width + end);
      }
    }
    last = [x, y];
    edited = true;
    redraw();
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (!map || !brush() || event.button !== 0) return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    last = null;
    paint(event);
  });
  canvas.addEventListener("pointermove", (event) => { if (canvas.hasPointerCapture(event.pointerId)) paint(event); });
  document.addEventListener("input", (event) => { if (event.target.closest?.("#repair_sensitivity")) redraw(); });
  document.addEventListener("change", (event) => { if (event.target.closest?.("#repair")) { place(); redraw(); } });
  document.addEventListener("click", (event) => {
    if (!map || !event.target.closest?.("#brush-undo")) return;
    map.edits.fill(0);
    edited = false;
    redraw();
  });
  addEventListener("resize", place);

  // Mark what the server detected in an upload, "UPLOAD|FILE", unless another photo was chosen meanwhile
  const markDamage = async (detected, photo) => {
    const bar = detected.lastIndexOf("|"), upload = detected.slice(0, bar), file = detected.slice(bar + 1);
    map = null;
    edited = false;
    place();
    if (!file || upload !== photo) return;
    const image = Object.assign(new Image(), { src: `${root}${prefix}/file=${file}` });
    await image.decode().catch(() => null);
    const { naturalWidth: width, naturalHeight: height } = image;
    if (!width) return;
    Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const { data } = context.getImageData(0, 0, width, height);
    map = { width, height, probability: data.filter((_, i) => i % 4 === 0), edits: new Uint8Array(width * height) };
    draw();
    place();
  };
  // Upload the mask if the brush has changed it; return its path on the server, else ""
  const uploadMask = async () => {
    if (!map || !edited || !isOn()) return "";
    const mask = marked(), picture = new ImageData(map.width, map.height);
    for (let i = 0; i < mask.length; i++) picture.data.set(mask[i] ? [255, 255, 255, 255] : [0, 0, 0, 255], 4 * i);
    const copy = Object.assign(document.createElement("canvas"), { width: map.width, height: map.height });
    copy.getContext("2d").putImageData(picture, 0, 0);
    const form = new FormData();
    form.append("files", await new Promise((resolve) => copy.toBlob(resolve, "image/png")), "mask.png");
    const answer = await fetch(`${root}${prefix}/upload`, { method: "POST", body: form });
    return answer.ok ? (await answer.json())[0] : "failed";  // which the server refuses
  };

  Object.assign(window.restorer, { markDamage, uploadMask, placeMask: place });
})();
