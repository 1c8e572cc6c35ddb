/** Where the ranks' time went. */

import type { JSX } from "preact";
import { duration, percent } from "../text.ts";
import { memo } from "./memo.tsx";

/** In this order, with what each means. */
const PARTS: [string, string][] = [
  ["kept", "steps that were kept"],
  ["redone", "steps done again"],
  ["checkpoint", "stopped for checkpoints"],
  ["setup", "start-up and restore"],
  ["restart", "no process after a death"],
  ["waiting", "no room on the nodes"],
  ["hang", "hung"],
  ["other", "sections of the program"],
  ["finished", "waiting for other ranks"],
];

export const Goodput = memo(function Goodput({ seconds }: { seconds: Record<string, number> }): JSX.Element {
  const whole = Object.values(seconds).reduce((sum, value) => sum + value, 0);
  if (whole === 0) return <p class="empty">Nothing has run yet.</p>;
  const parts = PARTS.map(([name, means]) => ({ name, means, share: (seconds[name] ?? 0) / whole })).filter(
    (part) => part.share > 0.0005,
  );
  let x = 0;
  return (
    <div class="goodput">
      <svg viewBox="0 0 1000 22" preserveAspectRatio="none" role="img" aria-label={parts.map((p) => `${p.name} ${percent(p.share)}`).join(", ")}>
        {parts.map((part) => {
          const from = x;
          x += part.share * 1000;
          return <rect key={part.name} class={`part-${part.name}`} x={from} width={Math.max(0, part.share * 1000 - 1.5)} height="22" />;
        })}
      </svg>
      <ul>
        {parts.map((part) => (
          <li key={part.name} title={part.means}>
            <svg viewBox="0 0 10 10" aria-hidden="true">
              <rect class={`part-${part.name}`} width="10" height="10" />
            </svg>
            <span>{part.name}</span> <b>{percent(part.share)}</b>{" "}
            <span class="note">{duration((seconds[part.name] ?? 0))}</span>
          </li>
        ))}
      </ul>
    </div>
  );
});
