// What Gradio has no event or option for: pasting a photo, choosing a position on an image by mouse or
// keyboard, accessible names, and moving focus and scroll position to what changes.
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
  document.addEventListener("paste", (event) => {
    const files = event.clipboardData?.files;
    if (!files?.length) return;
    event.preventDefault();
    upload(one("#uploads")?.offsetParent ? "#uploads" : "#upload", files);
  });

  // The box in which an image is drawn inside its element (object-fit: contain)
  const drawnBox = (image) => {
    const box = image.getBoundingClientRect();
    const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
    const width = image.naturalWidth * scale, height = image.naturalHeight * scale;
    return { left: box.left + (box.width - width) / 2, top: box.top + (box.height - height) / 2, width, height };
  };
  const scrollTo = (selector) => {
    const reduced = matchMedia("(prefers-reduced-motion: reduce)").matches;
    one(selector)?.scrollIntoView({ block: "nearest", behavior: reduced ? "auto" : "smooth" });
  };
  // Send a position (x, y, each 0 to 1) on #slider or #before to the server
  const choosePosition = (element, x, y) => {
    const id = element.id === "slider" ? "zoom-position" : "crop-position";
    const input = one(`#${id} textarea, #${id} input`);
    input.value = `${x.toFixed(4)},${y.toFixed(4)}`;
    input.dispatchEvent(new Event("input", { bubbles: true }));
    scrollTo(id === "zoom-position" ? "#view" : "#detail");
  };

  let pressedAt = null;
  document.addEventListener("pointerdown", (event) => { pressedAt = [event.clientX, event.clientY]; }, true);
  document.addEventListener("pointerup", (event) => {
    const element = event.target.closest?.("#slider, #before"), image = element?.querySelector("img");
    const inToolbar = event.target.closest?.("button")?.querySelector("img") === null;
    if (!image || !pressedAt || inToolbar || event.button !== 0) return;
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

  // Accessible names and roles that Gradio does not set
  const altTexts = {
    "#before img": "Photo", "#slider img": "Before and after", "#view img": "View at 100 %",
    "#detail img": "Detail before and after", "#faces img": "Face before and after",
    "#samples img": "Sample photo", "#gallery img": "Restored photo", "#comparison img": "Detail restored by one model",
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
    document.querySelectorAll('[aria-label="common.upload"]').forEach((input) => { input.ariaLabel = "Upload"; });
    for (const group of ["outscale", "preset"]) {  // one name makes the radio buttons one group
      document.querySelectorAll(`#${group} input`).forEach((input) => { if (input.name !== group) input.name = group; });
    }
    for (const selector of ["#summary", "#result-text", "#batch-summary"]) {
      const element = one(selector);
      if (element && !element.hasAttribute("role")) element.setAttribute("role", "status");
    }
  };

  let lastResult = "", focused = null;
  document.addEventListener("focusin", (event) => { focused = event.target.closest("#start, #stop, #start-all, #stop-all"); });
  const update = () => {
    labelElements();
    // A focused button that was hidden passes the focus to the one that replaces it
    if (focused && document.activeElement === document.body && !focused.offsetParent) {
      const suffix = focused.id.endsWith("-all") ? "-all" : "";
      const next = [`#stop${suffix}`, `#start${suffix}`].map(one).find((button) => button?.offsetParent && !button.disabled);
      next?.focus({ preventScroll: true });
    }
    const result = one("#result-text")?.offsetParent ? one("#result-text").textContent : "";
    if (result && !lastResult) scrollTo("#slider");
    lastResult = result;
  };
  let scheduled = false;
  new MutationObserver(() => {
    if (scheduled) return;
    scheduled = true;
    setTimeout(() => { scheduled = false; update(); }, 100);
  }).observe(document.body, { subtree: true, childList: true, attributes: true, attributeFilter: ["class", "src"] });
  update();
  document.addEventListener("click", (event) => {
    if (event.target.closest?.("#start")) setTimeout(() => scrollTo(one("#before")?.offsetParent ? "#before" : "#slider"), 400);
  });
}
