/** The timeline in words, newest first. */

import type { JSX } from "preact";
import { useState } from "preact/hooks";
import { setParams } from "../hooks.ts";
import { formatRoute } from "../route.ts";
import { routine, troubling } from "../story.ts";
import { clock, count } from "../text.ts";
import type { Entry } from "../wire.ts";
import { memo } from "./memo.tsx";

const AT_ONCE = 60;

/** Hides what every rank of a job that is well has events of; the address keeps the choice where it is another than `usual`. */
export function RoutineChoice({ off, usual }: { off: boolean; usual: boolean }): JSX.Element {
  const turn = (): void => setParams({ routine: off === usual ? (off ? "on" : "off") : "" });
  return (
    <button type="button" aria-pressed={off} onClick={turn}>
      hide routine
    </button>
  );
}

interface EventListProps {
  events: Entry[];
  leftOut: number;
  withJob: boolean;
  /** Leave out what is routine. */
  brief: boolean;
}

export const EventList = memo(function EventList({ events: all, leftOut, withJob, brief }: EventListProps): JSX.Element {
  const [shown, setShown] = useState(AT_ONCE);
  const events = brief ? all.filter((event) => !routine(event)) : all;
  const some = events.slice(-shown).reverse();
  if (events.length === 0) return <p class="empty">Nothing has happened yet.</p>;
  return (
    <>
      <div class="events" tabIndex={0} role="region" aria-label="Events, newest first">
        <ol>
          {some.map((event) => (
            <Row key={event.seq} event={event} withJob={withJob} />
          ))}
        </ol>
      </div>
      {events.length > shown ? (
        <button type="button" class="more" onClick={() => setShown(shown + 200)}>
          Show older ones
        </button>
      ) : null}
      {leftOut > 0 && events.length <= shown ? (
        <p class="empty">{count(leftOut)} older ones: `holdfast events`.</p>
      ) : null}
    </>
  );
});

const Row = memo(function Row({ event, withJob }: { event: Entry; withJob: boolean }): JSX.Element {
  const bad = troubling(event);
  const who = [
    event.rank === null ? "" : `rank ${event.rank}`,
    event.node,
    event.attempt > 1 ? `attempt ${event.attempt}` : "",
  ].filter(Boolean);
  return (
    <li class={bad ? "bad" : ""} data-kind={event.kind} data-seq={event.seq}>
      <time dateTime={new Date(event.at).toISOString()}>{clock(event.at)}</time>
      <span class="kind">{event.kind}</span>
      <span class="why">
        {withJob && event.jobId ? (
          <a href={formatRoute({ page: "job", id: event.jobId, params: {} })}>{event.jobId}</a>
        ) : null}
        {who.length > 0 ? <span class="who">{who.join(" · ")}</span> : null}
        <span class="message">{event.message}</span>
        {event.outcome ? <span class="outcome">→ {event.outcome}</span> : null}
        {event.evidence ? (
          <details>
            <summary>evidence</summary>
            <pre tabIndex={0}>{event.evidence}</pre>
          </details>
        ) : null}
      </span>
    </li>
  );
});
