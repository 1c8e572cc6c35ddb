/** The timeline's picture, made of events alone: attempts, commits, and what went wrong. */

import type { Entry } from "./wire.ts";

export interface Attempt {
  number: number;
  from: number;
  /** Milliseconds since 1970; null: it is the one that is on. */
  to: number | null;
}

export interface Mark {
  at: number;
  text: string;
}

export interface Story {
  attempts: Attempt[];
  commits: Mark[];
  incidents: Mark[];
}

const BAD = new Set([
  "CheckpointFailed",
  "CheckpointQuarantined",
  "JobFailed",
  "JobGivenUp",
  "NodeExcluded",
  "NodeLost",
  "NodeSuspect",
  "RestartDecided",
  "StragglerStruckOut",
  "WorkerHung",
  "WorkerLost",
]);

/** Whether an event says that something went wrong: one for each death, whoever went with it. */
export const troubling = (event: Entry): boolean => BAD.has(event.kind);

const ROUTINE = new Set(["CheckpointCommitted", "WorkerExited", "WorkerStarted"]);

/** Whether there is one of these for every rank, or every few minutes, of a job that is well. */
export const routine = (event: Entry): boolean => ROUTINE.has(event.kind);

const sentence = (event: Entry): string => {
  const who = event.rank === null ? "" : `rank ${event.rank}: `;
  return `${who}${event.message}${event.outcome ? `; ${event.outcome}` : ""}`;
};

/** Tell it from events in the order of their seq. In scope "rank" each rank has attempts of its own, which are not lanes. */
export function told(events: readonly Entry[], scope: string): Story {
  const story: Story = { attempts: [], commits: [], incidents: [] };
  for (const event of events) {
    if (event.kind === "CheckpointCommitted") {
      story.commits.push({ at: event.at, text: sentence(event) });
    } else if (troubling(event)) {
      story.incidents.push({ at: event.at, text: sentence(event) });
    }
    if (scope === "rank" || event.attempt === 0) continue;
    const last = story.attempts.at(-1);
    if (!last || event.attempt > last.number) {
      if (last) last.to = event.at;
      story.attempts.push({ number: event.attempt, from: event.at, to: null });
    }
  }
  return story;
}

/** At most `most` marks, evenly: a pixel shows one. The last stays. */
export function spread<T>(marks: readonly T[], most: number): T[] {
  if (marks.length <= most) return [...marks];
  const every = Math.ceil(marks.length / most);
  return marks.filter((_, index) => index % every === 0 || index === marks.length - 1);
}
