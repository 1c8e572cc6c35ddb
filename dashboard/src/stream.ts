/**
 * One stream of named events (SSE) of the gateway. EventSource reconnects and resumes by itself; what it gives up on, for
 * instance because a proxy answered with an error, is opened again here. A page that is hidden lets go of its streams after
 * a while: a browser has six connections to one place over HTTP/1.1, for all of its windows together.
 */

import { streamIs } from "./connection.ts";
import type { Json } from "./wire.ts";

const OPEN_AGAIN_MS = 2_000;
const HIDDEN_FOR_MS = 15_000;

export interface Handlers {
  /** It was opened, for the first time or anew. */
  opened?: () => void;
  /** The gateway answered with something else; it is tried again. */
  refused?: () => void;
  events: Record<string, (data: Json) => void>;
}

/** Open it; returns what closes it. `url` is asked each time that it is opened anew, so that it can say where to go on. */
export function openStream(url: () => string, handlers: Handlers): () => void {
  const self = {};
  let source: EventSource | null = null;
  let timer: ReturnType<typeof setTimeout> | undefined;

  const close = (): void => {
    clearTimeout(timer);
    source?.close();
    source = null;
  };
  const open = (): void => {
    close();
    source = new EventSource(url());
    source.onopen = () => {
      streamIs(self, "live");
      handlers.opened?.();
    };
    source.onerror = () => {
      streamIs(self, "lost");
      if (source?.readyState !== EventSource.CLOSED) return;
      timer = setTimeout(open, OPEN_AGAIN_MS);
      handlers.refused?.();
    };
    for (const [name, handle] of Object.entries(handlers.events)) {
      source.addEventListener(name, (event) => handle(JSON.parse((event as MessageEvent<string>).data) as Json));
    }
  };
  const seen = (): void => {
    if (document.visibilityState === "visible") {
      clearTimeout(timer);
      if (!source) open();
    } else {
      timer = setTimeout(close, HIDDEN_FOR_MS);
    }
  };
  streamIs(self, "connecting");
  document.addEventListener("visibilitychange", seen);
  open();
  return () => {
    document.removeEventListener("visibilitychange", seen);
    close();
    streamIs(self, "closed");
  };
}

/** Calls at most once in `pause` milliseconds, the last time after the last wish. */
export function paced(pause: number, call: () => void): { wish: () => void; stop: () => void } {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let last = 0;
  return {
    wish: () => {
      timer ??= setTimeout(() => {
        timer = undefined;
        last = Date.now();
        call();
      }, Math.max(0, last + pause - Date.now()));
    },
    stop: () => clearTimeout(timer),
  };
}
