// What Gradio has no event or option for: pasting a photo, dropping a folder, choosing a position on an image by mouse
// or keyboard, comparing by keyboard and touch, the strength while it is dragged, accessible names, and moving focus
// and scroll position to what changes.
() => {
  const one = (selector) => document.querySelector(selector);

  const upload = async (id, files) => {
    if (id === "#upload") one("#upload [aria-label=Clear]")?.click();  // a single upload has no input while full
    for (let attempt = 0; attempt < 40; attempt++) {
      const input = one(`${id} input[type=file]`);
      if (input) {
        input.files = files;
        input.dispatchEvent(new Event("change", { bubbles: true }));
        return;
      }
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  };
  const uploadToTab = (files) => upload(one("#uploads")?.offsetParent ? "#uploads" : "#upload", files);
  document.addEventListener("paste", (event) => {
    const files = event.clipboardData?.files;
    if (!files?.length) return;
    event.preventDefault();
    uploadToTab(files);
  });

  // A photo dropped beside the box, which the browser would open in place of the page
  let ownDrag = false;  // of a picture of the page itself
  document.addEventListener("dragstart", () => { ownDrag = true; });
  document.addEventListener("dragend", () => { ownDrag = false; });
  document.addEventListener("dragover", (event) => {
    if (!ownDrag && event.dataTransfer?.types.includes("Files")) event.preventDefault();
  });
  document.addEventListener("drop", (event) => {
    const files = event.dataTransfer?.files;
    if (event.defaultPrevented || ownDrag || !files?.length) return;
    event.preventDefault();
    uploadToTab(files);
  });

  // A dropped folder: Gradio takes files only
  const filesBelow = async (entry) => {
    if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
    const reader = entry.createReader(), found = [];
    for (;;) {  // a reader returns at most 100 entries at a time
      const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!entries.length) return found;
      for (const child of entries) found.push(...await filesBelow(child));
    }
  };
  document.addEventListener("drop", async (event) => {
    const entries = [...event.dataTransfer?.items ?? []].map((item) => item.webkitGetAsEntry?.());
    if (!event.target.closest?.("#uploads") || !entries.some((entry) => entry?.isDirectory)) return;
    event.preventDefault();
    event.stopPropagation();
    const transfer = new DataTransfer(), accepted = one("#uploads input[type=file]")?.accept.split(", ") ?? [];
    for (const entry of entries.filter(Boolean)) {
      for (const file of await filesBelow(entry)) {
        const suffix = file.name.slice(file.name.lastIndexOf(".")).toLowerCase();
        if (file.type.startsWith("image/") || accepted.includes(suffix)) transfer.items.add(file);
      }
    }
    if (transfer.files.length) upload("#uploads", transfer.files);
  }, true);

  // The box in which an image is drawn inside its element (object-fit: contain): at the top of #before, elsewhere centred
  const drawnBox = (image) => {
    const box = image.getBoundingClientRect();
    const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
    const width = image.naturalWidth * scale, height = image.naturalHeight * scale;
    const above = image.closest("#before") ? 0 : (box.height - height) / 2;
    return { left: box.left + (box.width - width) / 2, top: box.top + above, width, height };
  };
  const scrollTo = (selector) => {
    const reduced = matchMedia("(prefers-reduced-motion: reduce)").matches;
    one(selector)?.scrollIntoView({ block: "nearest", behavior: reduced ? "auto" : "smooth" });
  };
  // Send a position (x, y, each 0 to 1) on #slider or #before to the server; there are no previews during a job
  const choosePosition = (element, x, y) => {
    if (element.id === "before" && !one("#crop-preview")?.offsetParent) return;
    const id = element.id === "slider" ? "zoom-position" : "crop-position";
    const input = one(`#${id} textarea, #${id} input`);
    input.value = `${x.toFixed(4)},${y.toFixed(4)}`;
    input.dispatchEvent(new Event("input", { bubbles: true }));
    awaited = id === "zoom-position" ? "#view" : "#detail";
    scrollTo(awaited);
  };
  // A preview is hidden until it has been computed
  let awaited = "";
  const scrollToAwaited = () => {
    const image = awaited && one(`${awaited} img`);
    if (!image?.offsetParent || !image.complete) return;
    scrollTo(awaited);
    awaited = "";
  };

  let pressedAt = null;
  document.addEventListener("pointerdown", (event) => { pressedAt = [event.clientX, event.clientY]; }, true);
  document.addEventListener("pointerup", (event) => {
    const element = event.target.closest?.("#slider, #before"), image = element?.querySelector("img");
    const inToolbar = event.target.closest?.("button")?.querySelector("img") === null;
    if (!image || !pressedAt || inToolbar || event.button !== 0 || event.target.id === "mask") return;
    const dragged = Math.hypot(event.clientX - pressedAt[0], event.clientY - pressedAt[1]) > 4;  // the handle
    if (dragged) return;
    const box = drawnBox(image);
    const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
    if (x >= 0 && x <= 1 && y >= 0 && y <= 1) choosePosition(element, x, y);
  }, true);

  // The same with arrow keys and Enter: a crosshair marks the position
  const crosshair = Object.assign(document.createElement("div"), { id: "crosshair", hidden: true });
  document.body.append(crosshair);
  let position = [0.5, 0.5];
  const showCrosshair = (element) => {
    const box = drawnBox(element.querySelector("img"));
    crosshair.style.left = `${box.left + position[0] * box.width}px`;
    crosshair.style.top = `${box.top + position[1] * box.height}px`;
    crosshair.hidden = false;
  };
  const clip = (value) => Math.min(Math.max(value, 0), 1);
  document.addEventListener("focusout", () => { crosshair.hidden = true; });
  addEventListener("scroll", () => { crosshair.hidden = true; }, true);
  const steps = { ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowRight: [1, 0] };
  const directions = { ArrowLeft: "left", ArrowUp: "up", ArrowDown: "down", ArrowRight: "right" };
  document.addEventListener("keydown", (event) => {
    const target = event.target, step = steps[event.key];
    if (target.matches?.("#before, #slider") && target.querySelector("img")) {
      if (event.key === "Enter") choosePosition(target, ...position);
      else if (step) position = [clip(position[0] + 0.05 * step[0]), clip(position[1] + 0.05 * step[1])];
      else return;
      event.preventDefault();
      showCrosshair(target);
    } else if (step && target.closest?.("#zoom-view") && !target.matches("input, textarea")) {
      event.preventDefault();
      one(`#go-${directions[event.key]}`)?.click();
    }
  });

  // Comparing. Gradio's handle follows the mouse only, a touch on an image that is not enlarged would keep the page
  // from scrolling, and so would the wheel
  const SLIDERS = "#slider, #view, #detail, #slider-all, #example-slider";
  const isEnlarged = (slider) => !/scale\(1\)/.test(slider.querySelector("img")?.style.transform ?? "scale(1)");
  // The share of the image that shows the photo before
  const handlePosition = (handle) => {
    const box = handle.getBoundingClientRect(), image = drawnBox(handle.parentElement.querySelector("img"));
    return clip((box.left + box.width / 2 - image.left) / image.width);
  };
  const moveHandle = (handle, change) => {
    const box = handle.getBoundingClientRect(), image = drawnBox(handle.parentElement.querySelector("img"));
    const start = box.left + box.width / 2, y = box.top + box.height / 2;
    const x = start + change * image.width;
    const event = (type, clientX) => new MouseEvent(type, { view: window, bubbles: true, clientX, clientY: y });
    handle.dispatchEvent(event("mousedown", start));
    window.dispatchEvent(event("mousemove", x));
    window.dispatchEvent(event("mouseup", x));
    requestAnimationFrame(() => { handle.ariaValueNow = Math.round(100 * handlePosition(handle)); });
  };
  document.addEventListener("keydown", (event) => {
    const handle = event.target, step = { ...steps, Home: [-100, 0], End: [100, 0] }[event.key];
    if (!handle.matches?.("[data-testid=slider]") || !step) return;
    event.preventDefault();
    event.stopPropagation();
    moveHandle(handle, 0.05 * (step[0] - step[1]));
  }, true);
  document.addEventListener("touchstart", (event) => {
    const slider = event.target.closest?.(SLIDERS);
    if (!slider || event.touches.length > 1 || event.target.closest("[data-testid=slider]") || isEnlarged(slider)) return;
    event.stopPropagation();
  }, true);
  document.addEventListener("wheel", (event) => {
    const slider = event.target.closest?.(SLIDERS);
    if (slider && event.deltaY > 0 && !isEnlarged(slider)) event.stopPropagation();
  }, true);

  const hold = (held) => one("#stage").classList.toggle("original", held);
  document.addEventListener("pointerdown", (event) => { if (event.target.closest?.("#hold")) hold(true); });
  document.addEventListener("keydown", (event) => {
    if (event.target.id === "hold" && (event.key === " " || event.key === "Enter")) hold(true);
  });
  for (const type of ["pointerup", "pointercancel", "keyup", "blur"]) addEventListener(type, () => hold(false));

  // The server blends the file once the strength is released; until then the page blends what it shows
  let composed = 100, shownSource = "";
  const strength = () => Number(one("#strength input[type=range]")?.value ?? 100);
  const blend = (opacity) => {
    document.querySelectorAll("#slider img + img, #view img + img").forEach((image) => { image.style.opacity = opacity; });
  };
  document.addEventListener("input", (event) => {
    if (event.target.closest?.("#strength")) blend(composed ? Math.min(1, strength() / composed) : 1);
  });
  document.addEventListener("keyup", (event) => {  // Gradio's release event is that of a pointer
    if (event.target.matches?.("#strength input") && event.key !== "Tab") event.target.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
  });
  const updateStrength = () => {
    const source = one("#slider img + img")?.src ?? "";
    if (source === shownSource) return;
    [shownSource, composed] = [source, strength()];
    blend(1);
  };

  // Accessible names and roles that Gradio does not set
  const altTexts = {
    "#before img": "Photo", "#slider img": "Before and after", "#view img": "View at 100 %",
    "#detail img": "Detail before and after", "#faces img": "Face before and after",
    "#slider-all img": "Before and after", "#samples img": "Sample photo", "#example-slider img": "Example", "#gallery img": "Restored photo", "#comparison img": "Detail restored by one model",
  };
  const groupLabels = { "#before": "Choose a detail to preview", "#slider": "Choose a part to view at 100 %" };
  const labelElements = () => {
    for (const [selector, text] of Object.entries(altTexts)) {
      for (const image of document.querySelectorAll(selector)) {
        if (!image.alt) image.alt = text;
      }
    }
    for (const [selector, label] of Object.entries(groupLabels)) {
      const element = one(selector);
      if (element && !element.hasAttribute("tabindex")) {
        element.tabIndex = 0;
        element.setAttribute("role", "group");
        element.setAttribute("aria-label", `${label}: arrow keys, then Enter`);
      }
    }
    document.querySelectorAll("#samples button, #comparison button, #gallery button").forEach((button) => {
      const caption = button.querySelector(".caption-label")?.textContent.trim();
      const file = button.querySelector("img")?.src.split("/").pop().split(".")[0];
      const label = caption || (button.closest("#samples") && file);
      if (label && button.ariaLabel !== label) button.ariaLabel = label;
    });
    document.querySelectorAll(":is(#upload, #uploads) button.upload-container").forEach((button) => {
      button.ariaLabel = button.closest("#upload") ? "Drop, paste or choose a photo" : "Drop, paste or choose photos";
    });
    document.querySelectorAll("[data-testid=slider]").forEach((handle) => {
      const image = handle.parentElement.querySelector("img");
      if (handle.role === "slider" || !image?.naturalWidth) return;  // the handle comes before its image
      Object.assign(handle, {
        tabIndex: 0, role: "slider", ariaLabel: "Before and after", ariaValueMin: 0, ariaValueMax: 100, ariaValueNow: 50,
      });
    });
    document.querySelectorAll('[aria-label="common.upload"]').forEach((input) => { input.ariaLabel = "Upload"; });
    for (const group of ["outscale", "preset"]) {  // one name makes the radio buttons one group
      document.querySelectorAll(`#${group} input`).forEach((input) => { if (input.name !== group) input.name = group; });
    }
    for (const selector of ["#summary", "#result-text", "#batch-summary", "#comparison-text"]) {
      const element = one(selector);
      if (element && !element.hasAttribute("role")) element.setAttribute("role", "status");
    }
  };

  let lastResult = "", focused = null;
  document.addEventListener("focusin", (event) => { focused = event.target.closest("#start, #stop, #start-all, #stop-all"); });
  const update = () => {
    labelElements();
    updateStrength();
    window.restorer.placeMask();
    // A focused button that was hidden passes the focus to the one that replaces it
    if (focused && document.activeElement === document.body && !focused.offsetParent) {
      const suffix = focused.id.endsWith("-all") ? "-all" : "";
      const next = [`#stop${suffix}`, `#start${suffix}`].map(one).find((button) => button?.offsetParent && !button.disabled);
      next?.focus({ preventScroll: true });
    }
    const result = one("#result-text")?.offsetParent ? one("#result-text").textContent : "";
    if (result && !lastResult) scrollTo("#slider");
    lastResult = result;
    scrollToAwaited();
  };
  let scheduled = false;
  const scheduleUpdate = () => {
    if (scheduled) return;
    scheduled = true;
    setTimeout(() => { scheduled = false; update(); }, 100);
  };
  document.addEventListener("load", scheduleUpdate, true);  // an image that has loaded is no mutation
  new MutationObserver(scheduleUpdate).observe(document.body, {
    subtree: true, childList: true, attributes: true, attributeFilter: ["class", "src"],
  });
  update();
  document.addEventListener("click", (event) => {
    if (event.target.closest?.("#start")) setTimeout(() => scrollTo(one("#before")?.offsetParent ? "#before" : "#slider"), 400);
  });
}
