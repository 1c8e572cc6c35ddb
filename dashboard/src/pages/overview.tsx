/** The fleet, its jobs and its goodput on one page. */

import type { JSX } from "preact";
import { getSummaries } from "../api.ts";
import { useAsked, useEvents, useJobs, useNodes, useNow } from "../hooks.ts";
import { EventList, RoutineChoice } from "../parts/events.tsx";
import { Failure, Figure, Meter, Panel, StateMark } from "../parts/basics.tsx";
import { formatRoute, type Route } from "../route.ts";
import { JOB_STATES } from "../states.ts";
import { clock, count, duration, percent, plural } from "../text.ts";
import { ended, type Job, type Node, type Summary } from "../wire.ts";

const MOST_JOBS = 12;
const MOST_ENDED = 5;
const EVENTS = 100;

export function Overview({ route }: { route: Route }): JSX.Element {
  const brief = route.params["routine"] !== "on";
  const jobs = useJobs();
  const nodes = useNodes();
  const { events, leftOut } = useEvents("", EVENTS);
  const summaries = useAsked(getSummaries, 5_000, "summaries");
  const byJob = new Map((summaries.value ?? []).map((summary) => [summary.jobId, summary]));
  return (
    <>
      <h1>Overview</h1>
      <Failure text={summaries.error} />
      <Fleet nodes={nodes.rows} jobs={jobs.rows} summaries={summaries.value ?? []} />
      <div class="columns">
        <div>
          <Panel
            title="Jobs under way"
            aside={
              <a href={formatRoute({ page: "jobs", id: "", params: {} })}>all {plural(jobs.rows.length, "job")}</a>
            }
          >
            <LiveJobs jobs={jobs.rows} ready={jobs.ready} summaries={byJob} />
            <States jobs={jobs.rows} />
          </Panel>
          <Ended jobs={jobs.rows} />
        </div>
        <Panel title="What happened" aside={<RoutineChoice off={brief} usual />}>
          <EventList events={events} leftOut={leftOut} withJob brief={brief} />
        </Panel>
      </div>
    </>
  );
}

function Fleet({ nodes, jobs, summaries }: { nodes: Node[]; jobs: Job[]; summaries: Summary[] }): JSX.Element {
  const sum = (of: (node: Node) => number): number => nodes.reduce((total, node) => total + of(node), 0);
  const there = nodes.filter((node) => node.state === "ready");
  const slots = sum((node) => node.slots);
  const used = sum((node) => node.slotsUsed);
  const alive = new Set(jobs.filter((job) => !ended(job.state)).map((job) => job.id));
  const live = summaries.filter((summary) => alive.has(summary.jobId));
  const kept = live.reduce((total, summary) => total + (summary.goodput === null ? 0 : (summary.timeSeconds["kept"] ?? 0)), 0);
  const whole = live.reduce((total, summary) => total + (summary.goodput === null ? 0 : summary.elapsed), 0);
  const pace = live.reduce((total, summary) => total + summary.stepsPerSecond, 0);
  const restarts = jobs.filter((job) => alive.has(job.id)).reduce((total, job) => total + job.restarts, 0);
  return (
    <dl class="figures">
      <Figure name="Nodes ready" value={`${count(there.length)} of ${count(nodes.length)}`} note={away(nodes)} />
      <Figure
        name="Slots used"
        value={`${count(used)} of ${count(slots)}`}
        note={<Meter share={slots ? used / slots : 0} label={`${count(used)} of ${count(slots)} slots used`} />}
      />
      <Figure name="GPUs" value={count(sum((node) => node.gpus))} note={`spares ${count(sum((node) => node.spares))}`} />
      <Figure name="Jobs under way" value={count(alive.size)} note={`${plural(restarts, "restart")} so far`} />
      <Figure
        name="Goodput"
        value={whole ? percent(kept / whole) : "–"}
        note={whole ? <Meter share={kept / whole} label={`goodput ${percent(kept / whole)}`} /> : "no job reports steps"}
      />
      <Figure name="Throughput" value={pace ? count(Math.round(pace)) : "–"} note="steps a second, all ranks" />
    </dl>
  );
}

function away(nodes: Node[]): string {
  const parts = ["suspect", "lost"].map((state) => [state, nodes.filter((node) => node.state === state).length] as const);
  const cordoned = nodes.filter((node) => node.cordoned).length;
  const said = parts.filter(([, many]) => many > 0).map(([state, many]) => `${many} ${state}`);
  return [...said, cordoned ? `${cordoned} cordoned` : ""].filter(Boolean).join(", ") || "all take work";
}

function LiveJobs(props: { jobs: Job[]; ready: boolean; summaries: Map<string, Summary> }): JSX.Element {
  const now = useNow(5_000);
  const live = props.jobs.filter((job) => !ended(job.state)).sort((a, b) => b.createdAt - a.createdAt);
  if (live.length === 0) {
    return <p class="empty">{props.ready ? "No job is under way. `holdfast job submit -f job.yaml` starts one." : "Asking…"}</p>;
  }
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="Jobs under way, table">
      <table>
        <thead>
          <tr>
            <th scope="col">Job</th>
            <th scope="col">State</th>
            <th scope="col" class="number">Ranks</th>
            <th scope="col" class="number">Step</th>
            <th scope="col" class="number">Goodput</th>
            <th scope="col" class="number">Age</th>
          </tr>
        </thead>
        <tbody>
          {live.slice(0, MOST_JOBS).map((job) => (
            <tr key={job.id}>
              <td>
                <a href={formatRoute({ page: "job", id: job.id, params: {} })}>{job.name || job.id}</a>
              </td>
              <td>
                <StateMark state={job.state} />
              </td>
              <td class="number">{count(job.worldSize)}</td>
              <td class="number">{count(props.summaries.get(job.id)?.steps ?? job.committed)}</td>
              <td class="number">{percent(props.summaries.get(job.id)?.goodput ?? null)}</td>
              <td class="number">{duration((now - job.createdAt) / 1000)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** The newest that are over, with why. */
function Ended({ jobs }: { jobs: Job[] }): JSX.Element | null {
  const over = jobs.filter((job) => ended(job.state)).sort((a, b) => b.finishedAt - a.finishedAt);
  if (over.length === 0) return null;
  return (
    <Panel title="Ended lately">
      <ul class="ended">
        {over.slice(0, MOST_ENDED).map((job) => (
          <li key={job.id}>
            <a href={formatRoute({ page: "job", id: job.id, params: {} })}>{job.name || job.id}</a>
            <StateMark state={job.state} />
            <span class="note">{clock(job.finishedAt)}</span>
            <p class="note">{job.reason}</p>
          </li>
        ))}
      </ul>
    </Panel>
  );
}

function States({ jobs }: { jobs: Job[] }): JSX.Element {
  const found = JOB_STATES.map((state) => ({ state, many: jobs.filter((job) => job.state === state).length }));
  return (
    <ul class="states" aria-label="Jobs by state">
      {found
        .filter((item) => item.many > 0)
        .map(({ state, many }) => (
          <li key={state}>
            <a href={formatRoute({ page: "jobs", id: "", params: { state } })}>
              <StateMark state={state} label={`${count(many)} ${state}`} />
            </a>
          </li>
        ))}
    </ul>
  );
}
