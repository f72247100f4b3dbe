// Building parts of the page.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element.
 *
 * @param name of the tag; "button.primary" also gives it a class.
 * @param properties of the element, with `on` as { event: listener } and `aria` as { name: value }.
 * @param children elements and texts.
 */
export function element(name, properties = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const made = document.createElement(tag);
  if (classes.length) made.className = classes.join(" ");
  const { on = {}, aria = {}, role, ...rest } = properties;
  Object.assign(made, rest);
  if (role) made.setAttribute("role", role); // Firefox before 119 has no such property
  for (const [event, listener] of Object.entries(on)) made.addEventListener(event, listener);
  for (const [key, value] of Object.entries(aria)) made.setAttribute(`aria-${key}`, value);
  made.append(...children);
  return made;
}

export function button(text, onClick, properties = {}) {
  return element("button", { type: "button", on: { click: onClick }, ...properties }, text);
}

/** An SVG element with attributes. */
export function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** The element with this id. */
export function byId(id) {
  return document.getElementById(id);
}

/** Says something to users of a screen reader. */
export function announce(text) {
  byId("announcements").textContent = text;
}
