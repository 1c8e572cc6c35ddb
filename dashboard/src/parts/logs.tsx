/** Output of workers as they write it: the newest lines, of which those in sight are in the document. */

import type { JSX } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { parseRanks } from "../ranks.ts";
import { openStream, paced } from "../stream.ts";
import { count, printable } from "../text.ts";
import { readLine, type Line } from "../wire.ts";
import { memo } from "./memo.tsx";

export const MOST_LINES = 5_000;
const TAIL = 200;
const LINE_HIGH = 18;
const AROUND = 20;

interface Held {
  lines: Line[];
  leftOut: number;
  over: boolean;
}

interface LogsProps {
  jobId: string;
  which: string;
  world: number;
  turn: number;
}

function useLines(jobId: string, which: string, world: number, turn: number): Held {
  const [held, setHeld] = useState<Held>({ lines: [], leftOut: 0, over: false });
  useEffect(() => {
    let lines: Line[] = [];
    let leftOut = 0;
    let over = false;
    const { wish, stop } = paced(150, () => setHeld({ lines, leftOut, over }));
    const query = [...parseRanks(which, world).map((rank) => `rank=${rank}`), `tail=${TAIL}`].join("&");
    const close = openStream(() => `/jobs/${encodeURIComponent(jobId)}/logs/stream?${query}`, {
      events: {
        line: (data) => {
          lines.push(readLine(data));
          if (lines.length > MOST_LINES * 1.2) {
            leftOut += lines.length - MOST_LINES;
            lines = lines.slice(-MOST_LINES);
          }
          wish();
        },
        end: () => {
          over = true;
          wish();
          close();
        },
      },
    });
    setHeld({ lines, leftOut, over });
    return () => {
      stop();
      close();
    };
  }, [jobId, which, turn]);
  return held;
}

/** `which` is a list of ranks, as "0-3,7"; empty: all. */
export const Logs = memo(function Logs({ jobId, which, world, turn }: LogsProps): JSX.Element {
  const { lines, leftOut, over } = useLines(jobId, which, world, turn);
  const box = useRef<HTMLDivElement>(null);
  const [top, setTop] = useState(0);
  const [follow, setFollow] = useState(true);
  useLayoutEffect(() => {
    if (follow && box.current) box.current.scrollTop = box.current.scrollHeight;
  });
  const high = box.current?.clientHeight ?? 360;
  const first = Math.max(0, Math.floor((follow ? lines.length * LINE_HIGH - high : top) / LINE_HIGH) - AROUND);
  const some = lines.slice(first, first + Math.ceil(high / LINE_HIGH) + 2 * AROUND);
  const scrolled = (): void => {
    const place = box.current;
    if (!place) return;
    setTop(place.scrollTop);
    setFollow(place.scrollHeight - place.scrollTop - place.clientHeight < LINE_HIGH);
  };
  const status = [
    `${count(lines.length)} lines`,
    leftOut ? `${count(leftOut)} older ones left out` : "",
    over ? "the job has ended" : follow ? "following" : "not following: scroll to the end to follow",
  ].filter(Boolean);
  return (
    <>
      <div class="logs" ref={box} onScroll={scrolled} tabIndex={0} role="log" aria-live="off" aria-label="Output of the workers">
        <svg class="before" width="1" height={lines.length * LINE_HIGH} aria-hidden="true" />
        <ol class="lines" style={{ top: `${first * LINE_HIGH}px` }}>
          {some.map((line, index) => (
            <li key={first + leftOut + index} class={line.stream}>
              <span class="rank">
                {line.rank}
                {line.attempt > 1 ? `.${line.attempt}` : ""}
                {line.stream === "stderr" ? " err" : ""}
              </span>
              {printable(line.text)}
            </li>
          ))}
        </ol>
      </div>
      <p class="note">{lines.length === 0 && !over ? "Nothing was written yet." : status.join(" · ")}</p>
    </>
  );
});
