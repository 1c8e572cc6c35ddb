/** Numbers and times as people read them. */

const WHOLE = new Intl.NumberFormat("en-US");

/** 12,345; a dash where there is none. */
export const count = (value: number | null): string => (value === null ? "–" : WHOLE.format(value));

/** Four digits that count: 0.01234, 1.234, 123,456. */
export function figure(value: number | null): string {
  if (value === null || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (size >= 1_000 || Number.isInteger(value)) return size >= 1e15 ? value.toExponential(2) : WHOLE.format(Math.round(value));
  return size !== 0 && size < 0.001 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

export const percent = (share: number | null): string => (share === null ? "–" : `${(share * 100).toFixed(1)}%`);

/** 12 s, 3 min, 4 h 05, 2 d 3 h. */
export function duration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${String(whole % 60).padStart(2, "0")}`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return `${hours} h ${String(minutes % 60).padStart(2, "0")}`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** 512 MiB, 1.5 GiB. */
export function bytes(value: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  let left = value;
  while (left >= 1024 && unit < units.length - 1) {
    left /= 1024;
    unit++;
  }
  return `${left >= 10 || unit === 0 ? Math.round(left) : left.toFixed(1)} ${units[unit]}`;
}

/** The time of day, in the reader's zone; with the date when that is another. */
export function clock(at: number, now: number = Date.now()): string {
  if (!at) return "–";
  const date = new Date(at);
  const two = (value: number): string => String(value).padStart(2, "0");
  const time = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  if (date.toDateString() === new Date(now).toDateString()) return time;
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${time}`;
}

export const plural = (many: number, one: string, more = `${one}s`): string => `${count(many)} ${many === 1 ? one : more}`;

// Colours and cursor movements, titles and links, all other controls, and what turns writing around.
const CONTROLS =
  /\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0a-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g;

/** A line of a log without what a terminal would obey. */
export const printable = (line: string): string => line.replace(CONTROLS, "");
