// Elements and tooltips. Text from data only ever becomes a text node or an attribute value.

const SVG = "http://www.w3.org/2000/svg";

/** Sets attributes; `on` holds listeners, `style` properties, false and null leave one out. */
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) {
        element.addEventListener(event, listener);
      }
    } else if (name === "style") {
      for (const [property, setting] of Object.entries(value)) {
        element.style.setProperty(property, setting);
      }
    } else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

/** An HTML element: h("p", {class: "note"}, "text", child). */
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An SVG element. */
export function s(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

export const $ = (id) => document.getElementById(id);

const redraws = new WeakMap();
const observer = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    const entry = redraws.get(target);
    const width = Math.floor(contentRect.width);
    if (entry && width > 0 && width !== entry.width) {
      entry.width = width;
      target.replaceChildren(entry.draw(width));
    }
  }
});

/** Fills `container` with draw(width), again whenever its width changes. */
export function responsive(container, draw) {
  const width = Math.floor(container.clientWidth);
  redraws.set(container, { draw, width });
  container.replaceChildren(...(width > 0 ? [draw(width)] : []));
  observer.observe(container);
}

/** One tooltip for the whole page. */
const bubble = h("div", { class: "tip", role: "tooltip", id: "tip", hidden: true });

function place(x, y) {
  const { offsetWidth: width, offsetHeight: height } = bubble;
  const right = window.innerWidth - width - 8;
  const left = x + 14 > right ? Math.max(8, x - width - 14) : x + 14;
  const top = y + 14 + height > window.innerHeight ? Math.max(8, y - height - 14) : y + 14;
  bubble.style.left = `${left}px`;
  bubble.style.top = `${top}px`;
}

/** Shows the tooltip: a title, then rows of [label, value, colour or nothing]. */
export function showTip(x, y, title, rows) {
  if (!bubble.isConnected) document.body.append(bubble);
  bubble.replaceChildren(
    h("strong", null, title),
    ...rows.map(([label, value, colour]) =>
      h("div", { class: "tip-row" },
        h("span", { class: "tip-key" },
          colour ? h("i", { class: "dot", style: { background: colour } }) : null, label),
        h("span", { class: "tip-value" }, value))),
  );
  bubble.hidden = false;
  place(x, y);
}

export function hideTip() {
  bubble.hidden = true;
}

/**
 * Gives an element a tooltip for pointer and keyboard.
 * @param {Element} element
 * @param {() => [string, Array]} content title and rows, see showTip
 */
export function tip(element, content) {
  const [title, rows] = content();
  element.setAttribute("tabindex", "0");
  if (!element.hasAttribute("role")) element.setAttribute("role", "img");
  element.setAttribute("aria-label", [title, ...rows.map((r) => `${r[0]} ${r[1]}`)].join(", "));
  element.addEventListener("pointermove", (event) => {
    showTip(event.clientX, event.clientY, ...content());
  });
  element.addEventListener("pointerleave", hideTip);
  element.addEventListener("focus", () => {
    if (!element.matches(":focus-visible")) return;
    const box = element.getBoundingClientRect();
    showTip(box.left + Math.min(box.width, 160), box.top + box.height / 2, ...content());
  });
  element.addEventListener("blur", hideTip);
  return element;
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hideTip();
});
