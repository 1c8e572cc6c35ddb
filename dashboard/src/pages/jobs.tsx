/** All jobs: searched, sorted and paged here, so that 1,000s stay quick. */

import type { JSX } from "preact";
import { setParams, useJobs, useNow } from "../hooks.ts";
import { Pager, Panel, SortHead, StateMark } from "../parts/basics.tsx";
import { formatRoute, type Route } from "../route.ts";
import { matching, paged, sorted, turned, type Key } from "../sort.ts";
import { JOB_STATES } from "../states.ts";
import { clock, count, duration, plural } from "../text.ts";
import type { Job } from "../wire.ts";

const PAGE = 50;
const NEWEST = "-created";

const age = (job: Job, now: number): number => ((job.finishedAt || now) - job.createdAt) / 1000;

const KEYS: Record<string, Key<Job>> = {
  name: (job) => job.name,
  id: (job) => job.id,
  state: (job) => job.state,
  ranks: (job) => job.worldSize,
  restarts: (job) => job.restarts,
  committed: (job) => job.committed ?? -1,
  created: (job) => job.createdAt,
  took: (job) => age(job, Date.now()),
};

export function Jobs({ route }: { route: Route }): JSX.Element {
  const { rows, ready } = useJobs();
  const now = useNow(5_000);
  const query = route.params["q"] ?? "";
  const state = route.params["state"] ?? "";
  const by = route.params["sort"] ?? NEWEST;
  const there = matching(
    rows.filter((job) => state === "" || job.state === state),
    query,
    (job) => [job.name, job.id, job.reason, job.command.join(" ")],
  );
  const { rows: shown, page, pages } = paged(sorted(there, by, KEYS), Number(route.params["page"] ?? 1), PAGE);
  const sort = (column: string): void => {
    const next = turned(by, column);
    setParams({ sort: next === NEWEST ? "" : next, page: "" });
  };
  const head = (column: string, title: string, kind = ""): JSX.Element => (
    <SortHead column={column} by={by} onSort={sort} class={kind}>
      {title}
    </SortHead>
  );
  return (
    <>
      <h1>Jobs</h1>
      <Panel title="Jobs" aside={<span role="status">{ready ? `${count(there.length)} of ${plural(rows.length, "job")}` : "asking…"}</span>}>
        <form class="filters" role="search" onSubmit={(event) => event.preventDefault()}>
          <label>
            Search
            <input
              type="search"
              value={query}
              placeholder="name, id, reason, command"
              onInput={(event) => setParams({ q: event.currentTarget.value, page: "" })}
            />
          </label>
          <label>
            State
            <select value={state} onChange={(event) => setParams({ state: event.currentTarget.value, page: "" })}>
              <option value="">all</option>
              {JOB_STATES.map((name) => (
                <option key={name} value={name}>
                  {name}
                </option>
              ))}
            </select>
          </label>
        </form>
        <div class="scroll" tabIndex={0} role="region" aria-label="Jobs, table">
          <table class="jobs">
            <thead>
              <tr>
                {head("name", "Name")}
                {head("id", "Id")}
                {head("state", "State")}
                {head("ranks", "Ranks", "number")}
                {head("restarts", "Restarts", "number")}
                {head("committed", "Committed", "number")}
                {head("created", "Created", "number")}
                {head("took", "Took", "number")}
                <th scope="col">Why</th>
              </tr>
            </thead>
            <tbody>
              {shown.map((job) => (
                <tr key={job.id} data-job={job.id}>
                  <td>
                    <a href={formatRoute({ page: "job", id: job.id, params: {} })}>{job.name || job.id}</a>
                  </td>
                  <td class="id">{job.id}</td>
                  <td>
                    <StateMark state={job.state} />
                  </td>
                  <td class="number">{count(job.worldSize)}</td>
                  <td class="number">{count(job.restarts)}</td>
                  <td class="number">{count(job.committed)}</td>
                  <td class="number">{clock(job.createdAt, now)}</td>
                  <td class="number">{duration(age(job, now))}</td>
                  <td class="why">{job.reason}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
        {ready && there.length === 0 ? (
          <p class="empty">{rows.length === 0 ? "There is no job. `holdfast job submit -f job.yaml` starts one." : "No job is like that."}</p>
        ) : null}
        <Pager page={page} pages={pages} onPage={(next) => setParams({ page: next === 1 ? "" : String(next) })} />
      </Panel>
    </>
  );
}
