// Submits a job of two workers, shows its states and what it prints, and deletes it when it has ended.
//
//   npm ci && node train.mjs python3 train.py
//
// HOLDFAST_SERVER is the coordinator's address, 127.0.0.1:7070 unless it is set.

import { randomUUID } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import { fileURLToPath } from "node:url";

import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const PROTOS = fileURLToPath(new URL("../../proto", import.meta.url));
const ENDED = new Set(["JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_STOPPED"]);
const DEADLINE_MS = 30_000;
const RECONNECT_MS = 500;

const { holdfast } = grpc.loadPackageDefinition(
  loader.loadSync("holdfast/v1/job.proto", {
    includeDirs: [PROTOS],
    keepCase: true,
    longs: String, // a step is an int64
    enums: String,
    defaults: true,
    oneofs: true,
  }),
);
const client = new holdfast.v1.JobService(
  process.env.HOLDFAST_SERVER || "127.0.0.1:7070",
  grpc.credentials.createInsecure(),
  { "grpc.keepalive_time_ms": 10_000, "grpc.keepalive_timeout_ms": 5_000 },
);

/** A call with one answer. Rejects with a grpc.ServiceError: `code`, and in `details` what is wrong. */
function call(method, request) {
  return new Promise((resolve, reject) => {
    const deadline = Date.now() + DEADLINE_MS;
    client[method](request, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

/** What a call streams; called again, with a request made anew, when the coordinator was away. */
async function* stream(method, request) {
  for (;;) {
    try {
      yield* client[method](request());
      return;
    } catch (error) {
      if (error.code !== grpc.status.UNAVAILABLE) throw error;
    }
    await pause(RECONNECT_MS);
  }
}

/** Show each state that a job comes to, and return the last. */
async function watch(jobId) {
  let shown = "";
  while (!ENDED.has(shown)) {
    for await (const { job } of stream("WatchJob", () => ({ job_id: jobId }))) {
      if (job.state !== shown) console.log(`${job.state}: ${job.reason}`);
      shown = job.state;
    }
  }
  return shown;
}

/** Show what workers print, every byte once: a cursor for each log says where to go on. */
async function showLogs(jobId) {
  const cursors = new Map();
  const request = () => ({ job_id: jobId, follow: true, cursors: [...cursors.values()] });
  for await (const { cursor, data } of stream("StreamLogs", request)) {
    if (!cursor) continue; // it says that a node is away
    const { rank, attempt, stream: of } = cursor;
    cursors.set(`${rank} ${attempt} ${of}`, { ...cursor, offset: Number(cursor.offset) + data.length });
    const lines = data.toString().replace(/\n$/, "").split("\n");
    if (data.length) console.log(lines.map((line) => `[${rank}] ${line}`).join("\n"));
  }
}

const command = process.argv.slice(2);
const spec = { name: "from-node", command: command.length ? command : ["echo", "hello"], world_size: 2 };
try {
  const { job } = await call("CreateJob", { spec, request_id: randomUUID() });
  console.log(`created ${job.id}`);
  const [state] = await Promise.all([watch(job.id), showLogs(job.id)]);
  await call("DeleteJob", { job_id: job.id });
  console.log(`deleted ${job.id}`);
  process.exitCode = state === "JOB_STATE_SUCCEEDED" ? 0 : 1;
} catch (error) {
  console.error(error.details || error.message);
  process.exitCode = 1;
} finally {
  client.close();
}
