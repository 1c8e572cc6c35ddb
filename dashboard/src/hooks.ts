/** What the pages share: the address, live collections, and what is asked for again and again. */

import { useEffect, useRef, useState } from "preact/hooks";
import { getJob, Problem } from "./api.ts";
import { connection, onConnection, type Connection } from "./connection.ts";
import { formatRoute, parseRoute, type Route } from "./route.ts";
import { openStream, paced } from "./stream.ts";
import { ended, readEntry, readJob, readNode, type Entry, type Job, type Json, type Node } from "./wire.ts";

export function useRoute(): Route {
  const [route, setRoute] = useState(() => parseRoute(location.hash));
  useEffect(() => {
    const changed = (): void => setRoute(parseRoute(location.hash));
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return route;
}

/** Change parameters of the address in place: what is typed into a filter is no step to go back to. */
export function setParams(params: Record<string, string>): void {
  const route = parseRoute(location.hash);
  const hash = formatRoute({ ...route, params: { ...route.params, ...params } });
  if (hash === location.hash) return;
  history.replaceState(null, "", hash);
  dispatchEvent(new HashChangeEvent("hashchange"));
}

export function useConnection(): Connection {
  const [now, setNow] = useState(connection);
  useEffect(() => onConnection((next) => setNow({ ...next })), []);
  return now;
}

export interface Collection<T> {
  rows: T[];
  /** The snapshot is complete. */
  ready: boolean;
}

/** All rows of a stream that sends a snapshot, "ready", and then what changes. */
function useCollection<T>(url: string, name: string, read: (raw: unknown) => T, key: (row: T) => string, gone: string): Collection<T> {
  const [found, setFound] = useState<Collection<T>>({ rows: [], ready: false });
  useEffect(() => {
    const all = new Map<string, T>();
    let fresh = new Set<string>();
    let ready = false;
    const { wish, stop } = paced(150, () => setFound({ rows: [...all.values()], ready }));
    const close = openStream(() => url, {
      opened: () => {
        fresh = new Set();
        ready = false;
      },
      events: {
        [name]: (data) => {
          const row = read(data);
          all.set(key(row), row);
          fresh.add(key(row));
          if (ready) wish();
        },
        deleted: (data) => {
          all.delete(String(data[gone]));
          wish();
        },
        ready: () => {
          // What was deleted while the stream was broken is not in the new snapshot.
          for (const there of all.keys()) if (!fresh.has(there)) all.delete(there);
          ready = true;
          wish();
        },
      },
    });
    return () => {
      stop();
      close();
    };
  }, [url]);
  return found;
}

const byId = (job: Job): string => job.id;
const byName = (node: Node): string => node.name;
export const useJobs = (): Collection<Job> => useCollection("/jobs/stream", "job", readJob, byId, "job_id");
export const useNodes = (): Collection<Node> => useCollection("/nodes/stream", "node", readNode, byName, "name");

const EVENTS_EVERY_MS = 250;

/** So many events are held; older ones are left out. */
export const MOST_EVENTS = 2_000;

export interface Events {
  /** In the order of their seq. */
  events: Entry[];
  leftOut: number;
}

/** The newest events of one job, or with "" of all. */
export function useEvents(jobId: string, tail: number): Events {
  const [found, setFound] = useState<Events>({ events: [], leftOut: 0 });
  useEffect(() => {
    const events: Entry[] = [];
    let leftOut = 0;
    let last = 0;
    const { wish, stop } = paced(EVENTS_EVERY_MS, () => setFound({ events: [...events], leftOut }));
    const url = (): string =>
      `/events/stream?${jobId ? `job_id=${encodeURIComponent(jobId)}&` : ""}${last ? `after=${last}` : `tail=${tail}`}`;
    const close = openStream(url, {
      events: {
        event: (data) => {
          const event = readEntry(data);
          if (event.seq <= last) return;
          last = event.seq;
          events.push(event);
          if (events.length > MOST_EVENTS) {
            events.shift();
            leftOut++;
          }
          wish();
        },
      },
    });
    return () => {
      stop();
      close();
    };
  }, [jobId, tail]);
  return found;
}

const ASK_AGAIN_MS = 4_000;
/** A job of more ranks than this is shown once a second, as its ranks report; a smaller one at once. */
const BIG = 100;

/** A job with its workers, as it changes, or why it can't be shown. `turn` opens it anew. */
export function useJob(id: string, turn: number): { job: Job | null; error: string } {
  const [found, setFound] = useState<{ job: Job | null; error: string }>({ job: null, error: "" });
  useEffect(() => {
    let over = false;
    let timer: ReturnType<typeof setTimeout> | undefined;
    let close = (): void => undefined;
    const look = async (): Promise<void> => {
      try {
        const job = await getJob(id);
        if (over) return;
        setFound({ job, error: "" });
        close();
        close = follow(job);
      } catch (error) {
        if (over) return;
        // Gone, and not to be asked for again.
        if (error instanceof Problem && error.status === 404) {
          close();
          setFound({ job: null, error: error.message });
        } else {
          setFound((before) => ({ job: before.job, error: (error as Error).message }));
          timer = setTimeout(() => void look(), ASK_AGAIN_MS);
        }
      }
    };
    const follow = (first: Job): (() => void) => {
      const wait = first.worldSize > BIG ? 1_000 : 250;
      let raw: Json | null = null;
      const show = (): void => void (raw && setFound({ job: readJob(raw), error: "" }));
      const { wish, stop } = paced(wait, show);
      const shut = openStream(() => `/jobs/${encodeURIComponent(id)}/stream?pause=${wait / 1_000}`, {
        refused: () => void look(),
        events: {
          job: (data) => {
            raw = data;
            wish();
          },
          end: () => {
            show();
            shut(); // it would be opened again for ever
          },
        },
      });
      return () => {
        stop();
        shut();
      };
    };
    void look();
    return () => {
      over = true;
      clearTimeout(timer);
      close();
    };
  }, [id, turn]);
  return found;
}

/** The answer of a call that is made anew every so often while the page is seen; `stop` says when the last one was enough. */
export function useAsked<T>(ask: () => Promise<T>, every: number, key: string, stop = false): { value: T | null; error: string } {
  const [found, setFound] = useState<{ value: T | null; error: string }>({ value: null, error: "" });
  const latest = useRef(ask);
  latest.current = ask;
  useEffect(() => {
    let over = false;
    const once = async (): Promise<void> => {
      try {
        const value = await latest.current();
        if (!over) setFound({ value, error: "" });
      } catch (error) {
        if (!over) setFound((before) => ({ value: before.value, error: (error as Error).message }));
      }
    };
    void once();
    if (stop) return () => void (over = true);
    const timer = setInterval(() => document.visibilityState === "visible" && void once(), every);
    return () => {
      over = true;
      clearInterval(timer);
    };
  }, [key, stop]);
  return found;
}

/** The time of day, again every so often: for ages. */
export function useNow(every = 1_000): number {
  const [now, setNow] = useState(Date.now);
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), every);
    return () => clearInterval(timer);
  }, [every]);
  return now;
}

export const jobEnded = (job: Job | null): boolean => job !== null && ended(job.state);
