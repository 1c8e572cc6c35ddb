/** The life of a job as a picture: its attempts, its commits, and what went wrong, over time. */

import type { JSX } from "preact";
import { spread, told } from "../story.ts";
import { clock, count, duration, plural } from "../text.ts";
import type { Entry, Job } from "../wire.ts";

const WIDE = 1000;
const MOST_MARKS = 300;

export function Timeline({ job, events, now }: { job: Job; events: Entry[]; now: number }): JSX.Element {
  const story = told(events, job.scope);
  const from = Math.min(job.createdAt, events[0]?.at ?? job.createdAt);
  const to = Math.max(job.finishedAt || now, events.at(-1)?.at ?? 0, from + 1_000);
  const x = (at: number): number => ((Math.min(Math.max(at, from), to) - from) / (to - from)) * WIDE;
  const attempts = story.attempts.slice(-MOST_MARKS);
  const what = [
    job.scope === "rank" ? plural(job.restarts, "restart") : plural(story.attempts.length, "attempt"),
    plural(story.commits.length, "commit"),
    plural(story.incidents.length, "incident"),
  ].join(", ");
  return (
    <div class="timeline">
      <svg viewBox={`0 0 ${WIDE} 62`} preserveAspectRatio="none" role="img" aria-label={`Timeline: ${what}`}>
        {job.scope === "rank" ? <rect class="attempt even" x="0" y="2" width={WIDE} height="18" /> : null}
        {attempts.map((attempt) => (
          <rect
            key={attempt.number}
            class={`attempt ${attempt.number % 2 ? "odd" : "even"}`}
            x={x(attempt.from)}
            y="2"
            width={Math.max(1.5, x(attempt.to ?? to) - x(attempt.from) - 1.5)}
            height="18"
          >
            <title>{`attempt ${attempt.number}, from ${clock(attempt.from)}, ${duration(((attempt.to ?? to) - attempt.from) / 1000)}`}</title>
          </rect>
        ))}
        {spread(story.commits, MOST_MARKS).map((mark, index) => (
          <rect key={index} class="commit" x={x(mark.at)} y="26" width="2" height="12">
            <title>{`${clock(mark.at)} ${mark.text}`}</title>
          </rect>
        ))}
        {spread(story.incidents, MOST_MARKS).map((mark, index) => (
          <rect key={index} class="incident" x={x(mark.at)} y="44" width="3" height="16">
            <title>{`${clock(mark.at)} ${mark.text}`}</title>
          </rect>
        ))}
      </svg>
      <p class="legend">
        <span>{clock(from)}</span>
        <span>
          <i class="attempt" />
          {job.scope === "rank" ? "each rank restarts by itself" : plural(story.attempts.length, "attempt")} <i class="commit" />
          {plural(story.commits.length, "commit")}
          {job.committed === null ? "" : `, the last of step ${count(job.committed)}`} <i class="incident" />
          {plural(story.incidents.length, "incident")}
        </span>
        <span>{job.finishedAt ? clock(job.finishedAt) : "now"}</span>
      </p>
    </div>
  );
}
