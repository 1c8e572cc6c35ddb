/** The life of a job as a picture: its attempts, its commits, and what went wrong, over time. */

import type { JSX } from "preact";
import { spread, told } from "../story.ts";
import { clock, count, duration, plural } from "../text.ts";
import type { Entry } from "../wire.ts";
import { memo } from "./memo.tsx";

const WIDE = 1000;
const MOST_MARKS = 300;

interface TimelineProps {
  events: Entry[];
  scope: string;
  restarts: number;
  committed: number | null;
  createdAt: number;
  /** When the job ended, or 0. */
  finishedAt: number;
  /** The right end while it goes on. */
  now: number;
}

export const Timeline = memo(function Timeline(props: TimelineProps): JSX.Element {
  const { events, scope, restarts, committed, createdAt, finishedAt, now } = props;
  const story = told(events, scope);
  // Of a long life only the newest events are here, and the picture begins with them.
  const whole = events.length === 0 || events[0]?.kind === "JobCreated";
  const from = whole ? createdAt : (events[0]?.at ?? createdAt);
  const to = Math.max(finishedAt || now, events.at(-1)?.at ?? 0, from + 1_000);
  const x = (at: number): number => ((Math.min(Math.max(at, from), to) - from) / (to - from)) * WIDE;
  const attempts = story.attempts.slice(-MOST_MARKS);
  const what = [
    scope === "rank" ? plural(restarts, "restart") : plural(story.attempts.length, "attempt"),
    plural(story.commits.length, "commit"),
    plural(story.incidents.length, "incident"),
  ].join(", ");
  return (
    <div class="timeline">
      <svg viewBox={`0 0 ${WIDE} 62`} preserveAspectRatio="none" role="img" aria-label={`Timeline: ${what}`}>
        {scope === "rank" ? <rect class="attempt even" x="0" y="2" width={WIDE} height="18" /> : null}
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
        <span>{whole ? clock(from) : `${clock(from)}, older events are left out`}</span>
        <span>
          <i class="attempt" />
          {scope === "rank" ? "each rank restarts by itself" : plural(story.attempts.length, "attempt")} <i class="commit" />
          {plural(story.commits.length, "commit")}
          {committed === null ? "" : `, the last of step ${count(committed)}`} <i class="incident" />
          {plural(story.incidents.length, "incident")}
        </span>
        <span>{finishedAt ? clock(finishedAt) : "now"}</span>
      </p>
    </div>
  );
});
