/** The machines: what they have, what is used, and which take no new work. */

import type { JSX } from "preact";
import { useState } from "preact/hooks";
import { cordonNode, drainNode, uncordonNode } from "../api.ts";
import { setParams, useNodes, useNow } from "../hooks.ts";
import { Confirm, Meter, Pager, Panel, SortHead, StateMark, type Question } from "../parts/basics.tsx";
import type { Route } from "../route.ts";
import { matching, paged, sorted, turned, type Key } from "../sort.ts";
import { bytes, count, duration, plural } from "../text.ts";
import type { Node } from "../wire.ts";

const PAGE = 50;
const REASON = "from the dashboard";

const KEYS: Record<string, Key<Node>> = {
  name: (node) => node.name,
  state: (node) => node.state,
  slots: (node) => node.slots,
  used: (node) => node.slotsUsed,
  gpus: (node) => node.gpus,
  spares: (node) => node.spares,
  heard: (node) => -node.lastHeardAt,
};

const placing = (node: Node): string =>
  node.drained ? "drained" : node.draining ? "draining" : node.cordoned ? "cordoned" : "";

export function Nodes({ route }: { route: Route }): JSX.Element {
  const { rows, ready } = useNodes();
  const now = useNow();
  const [question, setQuestion] = useState<Question | null>(null);
  const [said, setSaid] = useState({ text: "", bad: false });
  const query = route.params["q"] ?? "";
  const by = route.params["sort"] ?? "name";
  const there = matching(rows, query, (node) => [node.name, node.address, placing(node), node.state, ...Object.entries(node.labels).flat()]);
  const { rows: shown, page, pages } = paged(sorted(there, by, KEYS), Number(route.params["page"] ?? 1), PAGE);
  const sort = (column: string): void => {
    const next = turned(by, column);
    setParams({ sort: next === "name" ? "" : next, page: "" });
  };
  const head = (column: string, title: string, kind = ""): JSX.Element => (
    <SortHead column={column} by={by} onSort={sort} class={kind}>
      {title}
    </SortHead>
  );
  const did = (what: Promise<unknown>, text: string): Promise<void> =>
    what.then(
      () => setSaid({ text, bad: false }),
      (error: Error) => setSaid({ text: error.message, bad: true }),
    );
  return (
    <>
      <h1>Nodes</h1>
      <Panel title="Nodes" aside={<span>{ready ? `${count(there.length)} of ${plural(rows.length, "node")}` : "asking…"}</span>}>
        <form class="filters" role="search" onSubmit={(event) => event.preventDefault()}>
          <label>
            Search
            <input
              type="search"
              value={query}
              placeholder="name, address, label"
              onInput={(event) => setParams({ q: event.currentTarget.value, page: "" })}
            />
          </label>
          <span role="status" class={said.bad ? "failure" : "note"}>
            {said.text}
          </span>
        </form>
        <div class="scroll" tabIndex={0} role="region" aria-label="Nodes, table">
          <table>
            <thead>
              <tr>
                {head("name", "Node")}
                {head("state", "State")}
                <th scope="col">New work</th>
                {head("used", "Used", "number")}
                {head("slots", "Slots", "number")}
                {head("gpus", "GPUs", "number")}
                {head("spares", "Spares", "number")}
                <th scope="col" class="number">CPUs</th>
                <th scope="col" class="number">Memory</th>
                {head("heard", "Heard", "number")}
                <th scope="col">Actions</th>
              </tr>
            </thead>
            <tbody>
              {shown.map((node) => (
                <Row key={node.name} node={node} now={now} ask={setQuestion} did={did} />
              ))}
            </tbody>
          </table>
        </div>
        {ready && there.length === 0 ? (
          <p class="empty">{rows.length === 0 ? "There is no node. `holdfast agent --coordinator HOST:PORT` makes a machine one." : "No node is like that."}</p>
        ) : null}
        <Pager page={page} pages={pages} onPage={(next) => setParams({ page: next === 1 ? "" : String(next) })} />
      </Panel>
      {question ? <Confirm question={question} onClose={() => setQuestion(null)} /> : null}
    </>
  );
}

interface RowProps {
  node: Node;
  now: number;
  ask: (question: Question) => void;
  did: (what: Promise<unknown>, text: string) => Promise<void>;
}

function Row({ node, now, ask, did }: RowProps): JSX.Element {
  const state = placing(node);
  const cordon: Question = {
    title: `Cordon ${node.name}?`,
    text: "It takes no new work; what runs there goes on.",
    yes: "Cordon it",
    danger: false,
    act: () => did(cordonNode(node.name, REASON), `Cordoned ${node.name}.`),
  };
  const uncordon: Question = {
    title: `Uncordon ${node.name}?`,
    text: "It takes new work again. What a drain was already moving still moves.",
    yes: "Uncordon it",
    danger: false,
    act: () => did(uncordonNode(node.name), `Uncordoned ${node.name}.`),
  };
  const drain: Question = {
    title: `Drain ${node.name}?`,
    text: `Its work (${plural(node.slotsUsed, "slot")} used) moves elsewhere after a checkpoint, and it takes no new work. What still runs after two minutes is ended by force.`,
    yes: "Drain it",
    danger: true,
    act: () => did(drainNode(node.name, REASON), `Asked for ${node.name} to be drained.`),
  };
  return (
    <tr data-node={node.name}>
      <td title={Object.entries(node.labels).map(([key, value]) => `${key}=${value}`).join(", ")}>{node.name}</td>
      <td title={node.reason}>
        <StateMark state={node.state} />
      </td>
      <td title={node.cordonReason}>{state ? <StateMark state={state} /> : "takes it"}</td>
      <td class="number">
        {count(node.slotsUsed)} <Meter share={node.slots ? node.slotsUsed / node.slots : 0} label={`${node.slotsUsed} of ${node.slots} slots used`} />
      </td>
      <td class="number">{count(node.slots)}</td>
      <td class="number">{count(node.gpus)}</td>
      <td class="number">{count(node.spares)}</td>
      <td class="number">{count(node.cpus)}</td>
      <td class="number">{node.memoryBytes ? bytes(node.memoryBytes) : "–"}</td>
      <td class="number">{node.lastHeardAt ? `${duration((now - node.lastHeardAt) / 1000)} ago` : "–"}</td>
      <td class="buttons">
        {node.cordoned ? (
          <button type="button" aria-label={`Uncordon ${node.name}`} onClick={() => ask(uncordon)}>
            Uncordon…
          </button>
        ) : (
          <button type="button" aria-label={`Cordon ${node.name}`} onClick={() => ask(cordon)}>
            Cordon…
          </button>
        )}
        <button type="button" aria-label={`Drain ${node.name}`} disabled={node.draining || node.drained} onClick={() => ask(drain)}>
          Drain…
        </button>
      </td>
    </tr>
  );
}
