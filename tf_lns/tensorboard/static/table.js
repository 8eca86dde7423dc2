// Tables that sort by their heads, and downloads of what they show.

import { h } from "./dom.js";

/**
 * @typedef {{id, title, value: (row) => any, cell?: (row) => any, text?: boolean, note?: string,
 *   seen?: boolean}} Column `value` sorts and is downloaded, `cell` is what is seen.
 */

/** A table that is sorted by clicking a head; remembers how, and keeps the focus. */
export class SortedTable {
  /**
   * @param {Element} container
   * @param {{caption: string, sort: string, ascending?: boolean}} options
   */
  constructor(container, { caption, sort, ascending = false }) {
    this.container = container;
    this.caption = caption;
    this.sort = sort;
    this.ascending = ascending;
    this.columns = [];
    this.rows = [];
  }

  /**
   * @param {Column[]} columns
   * @param {Array} rows
   * @param {{key?: (row) => string, rowClass?: (row) => string, total?: Array}} options
   */
  update(columns, rows, options = {}) {
    Object.assign(this, { columns, rows, options });
    if (!columns.some((column) => column.id === this.sort)) this.sort = columns[0].id;
    this.render();
  }

  get sorted() {
    const { value } = this.columns.find((column) => column.id === this.sort);
    const sign = this.ascending ? 1 : -1;
    return [...this.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === y) return 0;
      // What is missing comes last, whichever way.
      if (x === null || x === undefined) return 1;
      if (y === null || y === undefined) return -1;
      return typeof x === "number" ? sign * (x - y)
        : sign * String(x).localeCompare(String(y), "en", { numeric: true });
    });
  }

  by(column) {
    this.ascending = column.id === this.sort ? !this.ascending : Boolean(column.text);
    this.sort = column.id;
    this.render();
    this.container.querySelector(`th[data-column="${CSS.escape(column.id)}"] button`)?.focus();
  }

  render() {
    const { rowClass, footer } = this.options;
    const columns = this.columns.filter((column) => column.seen !== false);
    const head = columns.map((column) => h("th", {
      scope: "col", class: column.text ? "text" : "number", "data-column": column.id,
      "aria-sort": column.id !== this.sort ? "none" : this.ascending ? "ascending" : "descending",
    }, h("button", { type: "button", title: column.note ?? null, on: { click: () => this.by(column) } },
      column.title,
      h("span", { class: "arrow", "aria-hidden": "true" },
        column.id !== this.sort ? "" : this.ascending ? "▲" : "▼"))));
    const cells = (row, cell) => columns.map((column) =>
      h("td", { class: column.text ? "text" : "number" }, cell(column, row)));
    const show = (column, row) => {
      const content = (column.cell ?? column.value)(row);
      return content === null || content === undefined ? "–" : content;
    };
    this.container.replaceChildren(h("table", null,
      h("caption", { class: "hidden" }, this.caption),
      h("thead", null, h("tr", null, head)),
      h("tbody", null, this.sorted.map((row) =>
        h("tr", { class: rowClass?.(row) || null }, cells(row, show)))),
      footer ? h("tfoot", null, h("tr", null, columns.map((column) =>
        h("td", { class: column.text ? "text" : "number" }, footer[column.id] ?? "")))) : null));
  }

  /** Rows as objects for a download, in the order shown. */
  get records() {
    return this.sorted.map((row) =>
      Object.fromEntries(this.columns.map((column) => [column.id, column.value(row) ?? null])));
  }
}

/** RFC 4180; a text that a spreadsheet would take for a formula gets an apostrophe in front. */
export function csv(records) {
  const names = Object.keys(records[0] ?? {});
  const field = (value) => {
    const text = value === null ? "" : String(value);
    const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return [names, ...records.map((record) => names.map((name) => record[name]))]
    .map((line) => line.map(field).join(",")).join("\r\n") + "\r\n";
}

/** Hands a text to the browser as a file. */
export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = h("a", { href: url, download: name.replace(/[^\w.-]+/g, "_") });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
