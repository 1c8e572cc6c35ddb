/** The ranks as a table: what the picture shows, for reading and for screen readers. */

import type { JSX } from "preact";
import { setParams } from "../hooks.ts";
import { paged } from "../sort.ts";
import { count, figure } from "../text.ts";
import type { Worker } from "../wire.ts";
import { Pager, StateMark } from "./basics.tsx";
import { stateOf } from "./ranks.tsx";

const PAGE = 32;

export function RankTable(props: { workers: Worker[]; picked: Set<number>; onPick: (rank: number) => void; page: number }): JSX.Element {
  const { rows, page, pages } = paged(props.workers, props.page, PAGE);
  return (
    <>
      <div class="scroll" tabIndex={0} role="region" aria-label="Ranks, table">
        <table>
          <thead>
            <tr>
              <th scope="col">Logs</th>
              <th scope="col" class="number">Rank</th>
              <th scope="col">State</th>
              <th scope="col" class="number">Step</th>
              <th scope="col">Section</th>
              <th scope="col">Node</th>
              <th scope="col" class="number">Pid</th>
              <th scope="col" class="number">Attempt</th>
              <th scope="col">Metrics</th>
              <th scope="col">Last exit</th>
            </tr>
          </thead>
          <tbody>
            {rows.map((worker) => (
              <tr key={worker.rank}>
                <td>
                  <input
                    type="checkbox"
                    aria-label={`Logs of rank ${worker.rank}`}
                    checked={props.picked.has(worker.rank)}
                    onChange={() => props.onPick(worker.rank)}
                  />
                </td>
                <td class="number">{worker.rank}</td>
                <td>
                  <StateMark state={stateOf(worker)} label={worker.hang || worker.state} />
                </td>
                <td class="number">{count(worker.step)}</td>
                <td>{worker.section || "–"}</td>
                <td>{worker.node || "–"}</td>
                <td class="number">{worker.pid || "–"}</td>
                <td class="number">{worker.attempt}</td>
                <td>
                  {Object.entries(worker.metrics)
                    .map(([name, value]) => `${name} ${figure(value)}`)
                    .join(", ") || "–"}
                </td>
                <td class="why">{worker.lastExit?.message || "–"}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <Pager page={page} pages={pages} onPage={(next) => setParams({ at: next === 1 ? "" : String(next) })} />
    </>
  );
}
