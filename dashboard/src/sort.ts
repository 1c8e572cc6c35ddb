/** Searching, sorting and paging tables: 1,000s of rows, of which one page is shown. */

export type Key<T> = (row: T) => string | number;

const COLLATOR = new Intl.Collator("en", { numeric: true });

/** Sort by a column; "-age" is by age, the largest first. What is equal stays in the order that it came in. */
export function sorted<T>(rows: readonly T[], by: string, keys: Record<string, Key<T>>): T[] {
  const down = by.startsWith("-");
  const key = keys[down ? by.slice(1) : by];
  if (!key) return [...rows];
  const found = rows.map((row, index) => ({ row, index, key: key(row) }));
  found.sort((a, b) => {
    const order =
      typeof a.key === "number" && typeof b.key === "number"
        ? a.key - b.key
        : COLLATOR.compare(String(a.key), String(b.key));
    return (down ? -order : order) || a.index - b.index;
  });
  return found.map((item) => item.row);
}

/** What a click on a column's head sorts by: that column, and then the other way round. */
export const turned = (now: string, column: string): string => (now === column ? `-${column}` : column);

/** Rows of which the texts contain every word of the query, in any case. */
export function matching<T>(rows: readonly T[], query: string, texts: (row: T) => string[]): T[] {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length === 0) return [...rows];
  return rows.filter((row) => {
    const whole = texts(row).join("\n").toLowerCase();
    return words.every((item) => whole.includes(item));
  });
}

export interface Page<T> {
  rows: T[];
  /** From 1; the nearest there is to the one that was asked for. */
  page: number;
  pages: number;
}

export function paged<T>(rows: readonly T[], wanted: number, size: number): Page<T> {
  const pages = Math.max(1, Math.ceil(rows.length / size));
  const page = Math.min(Math.max(1, Math.floor(wanted) || 1), pages);
  return { rows: rows.slice((page - 1) * size, page * size), page, pages };
}
