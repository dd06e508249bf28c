(() => {
  const texts = (element) => (element ? element.textContent.trim() : "");
  const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
  const clipped = [];
  const overlapping = [];
  let smallest = null;
  for (const svg of document.querySelectorAll("svg")) {
    const frame = svg.getBoundingClientRect();
    const scale = frame.width / svg.viewBox.baseVal.width;
    const boxes = [...svg.querySelectorAll("text")].map((node) => {
      const size = parseFloat(getComputedStyle(node).fontSize) * scale;
      smallest = smallest === null ? size : Math.min(smallest, size);
      return [node.textContent, node.getBoundingClientRect()];
    });
    boxes.forEach(([text, box], at) => {
      if (box.left < frame.left - 1 || box.right > frame.right + 1 ||
          box.top < frame.top - 2 || box.bottom > frame.bottom + 2) clipped.push(text);
      for (const [other, place] of boxes.slice(at + 1)) {
        const across = Math.min(box.right, place.right) - Math.max(box.left, place.left);
        const down = Math.min(box.bottom, place.bottom) - Math.max(box.top, place.top);
        // A box is as tall as the font's lines, so neighbours may share a little of it.
        if (across > 1 && down > 0.35 * Math.min(box.height, place.height)) overlapping.push(`${text} | ${other}`);
      }
    });
  }
  const body = getComputedStyle(document.body);
  return {
    inner_width: window.innerWidth,
    scroll_width: document.documentElement.scrollWidth,
    names: [...document.querySelectorAll("svg, img")].map((image) => image.tagName === "IMG" ? image.alt :
      (image.getAttribute("aria-labelledby") || "").split(" ").map((id) => texts(document.getElementById(id))).join("\n")),
    repeated_ids: [...new Set(ids.filter((id, at) => ids.indexOf(id) !== at))],
    headings: [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")].map((node) => Number(node.tagName[1])),
    clipped, overlapping,
    smallest_text: smallest,
    background: body.backgroundColor,
    ink: body.color,
  };
})()
