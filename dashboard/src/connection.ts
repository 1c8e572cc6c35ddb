/**
 * Whether what is shown is true now. A stream that broke shows it at once; one on which nothing comes any more, because
 * the gateway hangs or the coordinator behind it is away, does not, and is found by asking `/health`.
 */

export interface Connection {
  state: "connecting" | "live" | "lost";
  /** When it was last known to be live, in milliseconds since 1970; 0: never. */
  since: number;
  /** Who is away, in words. */
  why: string;
}

const ASK_EVERY_MS = 3_000;
const ANSWER_WITHIN_MS = 2_500;

const streams = new Map<object, "connecting" | "live" | "lost">();
const listeners = new Set<(now: Connection) => void>();
let healthy: boolean | null = null;
let answers = true;
let now: Connection = { state: "connecting", since: 0, why: "" };

export const connection = (): Connection => now;

export function onConnection(listener: (now: Connection) => void): () => void {
  listeners.add(listener);
  listener(now); // it may have changed before anybody listened
  return () => listeners.delete(listener);
}

/** A stream says how it is; "closed" when nobody wants it any more. */
export function streamIs(stream: object, state: "connecting" | "live" | "lost" | "closed"): void {
  if (state === "closed") streams.delete(stream);
  else streams.set(stream, state);
  settle();
}

function settle(): void {
  const states = [...streams.values()];
  const lost = healthy === false || states.includes("lost");
  const state = lost ? "lost" : healthy === null || states.includes("connecting") ? "connecting" : "live";
  const why = !lost ? "" : healthy === false && answers ? "The coordinator is away." : "The gateway does not answer.";
  if (state === now.state && why === now.why) {
    if (state === "live") now.since = Date.now();
    return;
  }
  now = { state, why, since: state === "live" ? Date.now() : now.since };
  for (const listener of listeners) listener(now);
}

async function ask(): Promise<void> {
  try {
    const answer = await fetch("/health", { signal: AbortSignal.timeout(ANSWER_WITHIN_MS), cache: "no-store" });
    answers = true;
    healthy = answer.ok;
  } catch {
    answers = false;
    healthy = false;
  }
  settle();
}

/** Ask for ever, while anybody looks. */
export function watchHealth(): void {
  const again = (): void => {
    if (document.visibilityState === "visible") void ask();
  };
  document.addEventListener("visibilitychange", again);
  setInterval(again, ASK_EVERY_MS);
  again();
}
